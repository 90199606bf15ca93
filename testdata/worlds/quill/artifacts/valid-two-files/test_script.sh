#!/bin/bash
python3 -m unittest -v tests.test_spans tests.test_stats 2>&1
