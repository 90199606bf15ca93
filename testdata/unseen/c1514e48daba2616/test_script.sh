python3 -m unittest -v tests.test_dates 2>&1
