#!/usr/bin/env bash
# Makes what check.sh needs on a GPU machine that has a CUDA PyTorch wheel and a C++
# compiler, but neither Go nor a network: a Go toolchain without its tests, documents
# and own sources, and the modules that this project imports: 125 MB before compression.
#   scripts/gpu/pack.sh FILE.tar.xz
set -euo pipefail
[ $# = 1 ] || { echo "usage: scripts/gpu/pack.sh FILE.tar.xz" >&2; exit 2; }
out=$(realpath "$1")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

go mod vendor -o "$tmp/vendor"
mkdir "$tmp/go"
tar -C "$(go env GOROOT)" -cf - --exclude='*_test.go' --exclude=testdata --exclude=./src/cmd --exclude=./test --exclude=./doc \
  --exclude=./api --exclude=./misc --exclude=./bin/gofmt --exclude=./pkg/obj --exclude=./lib/wasm . | tar -C "$tmp/go" -xf -
# Of the tools only what a build runs.
find "$tmp/go/pkg/tool" -type f ! -name asm ! -name cgo ! -name compile ! -name link ! -name vet ! -name buildid -delete
tar -C "$tmp" -cJf "$out" go vendor
du -h "$out"
