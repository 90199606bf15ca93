python3 -m unittest -v tests.test_table 2>&1
