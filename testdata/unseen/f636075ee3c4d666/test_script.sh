python3 -m unittest -v tests.test_stats 2>&1
