#!/bin/bash
python3 -m unittest -v tests.test_slug tests.test_units 2>&1
