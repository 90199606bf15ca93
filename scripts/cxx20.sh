#!/bin/sh
# The compiler for a libtorch whose headers are of C++20: gotch asks for C++17 after the
# environment's flags, so that the last word is said here.
exec g++ "$@" -std=c++20
