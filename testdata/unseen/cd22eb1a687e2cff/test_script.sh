python3 -m unittest -v tests.test_paths 2>&1
