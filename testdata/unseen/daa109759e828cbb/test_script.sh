python3 -m unittest -v tests.test_units 2>&1
