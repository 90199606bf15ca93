#!/usr/bin/env bash
# Makes one file for a GPU machine that has a CUDA PyTorch wheel and a C++ compiler, but
# neither Go nor a network: this checkout as it is committed, the modules that it
# imports, and a Go toolchain without its tests, documents and own sources.
#   scripts/gpu/pack.sh FILE.tar.xz
# There:  tar -xf FILE.tar.xz && ssr/scripts/gpu/check.sh
set -euo pipefail
[ $# = 1 ] || { echo "usage: scripts/gpu/pack.sh FILE.tar.xz" >&2; exit 2; }
out=$(realpath "$1")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

mkdir "$tmp/ssr"
git archive HEAD | tar -C "$tmp/ssr" -xf -
git rev-parse --short HEAD >"$tmp/ssr/COMMIT"
(cd "$tmp/ssr" && go mod vendor)
go=$tmp/ssr/.toolchain/go
mkdir -p "$go"
tar -C "$(go env GOROOT)" -cf - --exclude='*_test.go' --exclude=testdata --exclude=./src/cmd --exclude=./test --exclude=./doc \
  --exclude=./api --exclude=./misc --exclude=./bin/gofmt --exclude=./pkg/obj --exclude=./lib/wasm . | tar -C "$go" -xf -
# Of the tools only what a build runs.
find "$go/pkg/tool" -type f ! -name asm ! -name cgo ! -name compile ! -name link ! -name vet ! -name buildid -delete
tar -C "$tmp" -c ssr | xz -T0 -3 >"$out"
du -h "$out"
