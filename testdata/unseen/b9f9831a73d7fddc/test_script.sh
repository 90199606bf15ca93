python3 -m unittest -v tests.test_spans 2>&1
