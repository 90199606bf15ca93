python3 -m unittest -v tests.test_fields 2>&1
