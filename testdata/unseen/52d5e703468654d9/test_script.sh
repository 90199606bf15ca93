python3 -m unittest -v tests.test_diffs 2>&1
