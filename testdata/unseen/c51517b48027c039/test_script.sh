python3 -m unittest -v tests.test_slug 2>&1
