#!/bin/bash
make -s check 2>&1
