python3 -m unittest -v tests.test_graph 2>&1
