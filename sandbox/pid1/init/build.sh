#!/bin/sh
# Builds the embedded first process for one processor: build.sh amd64|arm64
set -eu
cd "$(dirname "$0")"
case ${1:-amd64} in
amd64) cc=${CC:-gcc} ;;
arm64) cc=${CC:-aarch64-linux-gnu-gcc} ;;
*) echo "build.sh: unknown processor $1" >&2; exit 2 ;;
esac
hash=$(cat sys.h launch.c pid1.c | sha256sum | cut -c 1-64)
$cc -Os -std=c11 -Wall -Wextra -Werror -DSOURCE="\"$hash\"" \
	-ffreestanding -fno-builtin -fno-stack-protector -fno-asynchronous-unwind-tables -fno-pic -fno-tree-loop-distribute-patterns \
	-nostdlib -static -no-pie -Wl,--build-id=none -Wl,-z,noexecstack -Wl,-z,max-page-size=4096 -s \
	-o "pid1_${1:-amd64}" pid1.c launch.c
