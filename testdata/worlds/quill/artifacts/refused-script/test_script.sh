#!/bin/bash
python3 -m unittest -v tests.test_slug.TestSlugify 2>&1
