#!/usr/bin/env bash
# pretend.sh: builds kernels/cuda/pretend, a CUDA without a GPU, for Debian's libtorch 2.6
# with CUDA, and prints the library's path. A program runs on it with LD_PRELOAD set to
# that; what it proves is in docs/cuda.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
flags=$(LIBTORCH= CUDA=1 scripts/env.sh)
eval "$flags"
out=$PWD/bin/pretend library=$PWD/bin/pretend/libcuda.so.1
mkdir -p "$out"
objects=()
for source in kernels/cuda/pretend/*.cc kernels/cuda/emulate/emulate_amd64.cc; do
  object=$out/$(basename "$source" .cc).o
  g++ -std=c++17 -O2 -Wno-unknown-pragmas -fPIC -Wall $CGO_CXXFLAGS -Ikernels/cuda/pretend -Ikernels/cuda/emulate -Ikernels/cuda/src -c "$source" -o "$object"
  objects+=("$object")
done
# First of all, because libtorch's libraries register their kernels as they are loaded.
# What it needs of them is there by then.
g++ -shared -Wl,-z,initfirst -Wl,-soname,libcuda.so.1 -o "$library" "${objects[@]}" $(tr ' ' '\n' <<<"$CGO_LDFLAGS" | grep -E '^(--sysroot|-L)')
echo "$library"
