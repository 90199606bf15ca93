python3 -m unittest -v tests.test_layout 2>&1
