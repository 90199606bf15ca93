#!/usr/bin/env bash
# Prints the exports that a cgo build of this project needs:
#   eval "$(scripts/env.sh)" && go build ./...
#   eval "$(CUDA=1 scripts/env.sh)" && go build -tags gpu ./cmd/...
# The output depends on nothing but the checkout, LIBTORCH, CUDA and its toolkits, so
# that Go's build cache holds the two minutes of C++ for everybody who uses them.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/libtorch.sh"
. "$(dirname "${BASH_SOURCE[0]}")/cuda.sh"

find_libtorch
compat=$root/kernels/torch/compat
case $root${LIBTORCH:-} in *[[:space:]]*) fail "the path $root has a space in it, which cgo's flags cannot carry; move the checkout" ;; esac

cflags=-O2
cxxflags="-O2 -Wno-deprecated-declarations -I$compat/include"
# RPATH rather than RUNPATH: libtorch's libraries need each other.
ldflags="-Wl,--disable-new-dtags"
if [ -n "${CUDA:-}" ]; then
  cuda=$cuda_tree
  case $kind in
  given) cuda=$(cd "$LIBTORCH" && pwd -P) ;;
  bundled | system) [ -e "$cuda_tree/.complete" ] || fail "CUDA=1: no CUDA libtorch found; run CUDA=1 scripts/setup.sh, or set LIBTORCH to a libtorch with CUDA" ;;
  esac
  [ -e "$cuda/lib/libtorch_cuda.so" ] || fail "CUDA=1: $cuda/lib has no libtorch_cuda.so; set LIBTORCH to a libtorch with CUDA"
  headers=$(cuda_headers "$cuda")
  # No sysroot for C: cu names /usr/include, where the host's own C library is.
  cflags="$cflags -Wno-deprecated-declarations -I$root/kernels/cuda/compat${headers:+ -I${headers// / -I}}"
  cxxflags="$cxxflags -I$cuda/include -I$cuda/include/torch/csrc/api/include${headers:+ -I${headers// / -I}}"
  # Functions of libcuda and libnvrtc are found when the program starts. libtorch's
  # CUDA half registers itself, so it must be there though nothing names it; what it
  # needs in turn is found by its own path and the program's when it is loaded.
  ldflags="$ldflags -L$compat/lazy -L$cuda/lib -Wl,-rpath,$(cuda_libraries "$cuda") -Wl,--no-as-needed -Wl,--allow-shlib-undefined"
fi
case $kind in
bundled)
  s=$bundled lib=$bundled/usr/lib/$multiarch
  [ -n "${CUDA:-}" ] || cflags="$cflags --sysroot=$s"
  cxxflags="$cxxflags --sysroot=$s -I$s/usr/include/torch/csrc/api/include"
  # Its own loader, because its C library is newer than a Debian 12 host's.
  ldflags="$ldflags --sysroot=$s -L$s/usr/lib/gcc/$multiarch/14 -L$lib -Wl,-rpath,$lib:$lib/openblas-pthread:$lib/pmix2/lib:$s/usr/lib -Wl,--dynamic-linker=$lib/ld-linux-x86-64.so.2"
  ;;
system)
  cxxflags="$cxxflags -I/usr/include/torch/csrc/api/include"
  ;;
given)
  dir=$(cd "$LIBTORCH" && pwd -P)
  abi=0
  if grep -q __cxx11 "$dir/lib/libc10.so"; then abi=1; fi
  cxxflags="$cxxflags -I$dir/include -I$dir/include/torch/csrc/api/include -D_GLIBCXX_USE_CXX11_ABI=$abi"
  ldflags="$ldflags -L$dir/lib -Wl,-rpath,$dir/lib"
  if [ -z "${CUDA:-}" ] && [ -e "$dir/lib/libtorch_cuda.so" ] && [ -d /usr/local/cuda/lib64 ]; then
    ldflags="$ldflags -L/usr/local/cuda/lib64 -Wl,-rpath,/usr/local/cuda/lib64"
  fi
  ;;
none) fail "no libtorch found; run scripts/setup.sh (or make setup), or set LIBTORCH to a folder with include/ and lib/" ;;
esac
# Last, so that it only stands in for what is not there.
ldflags="$ldflags -L$compat/stubs -Wl,--strip-debug"

cat <<EOT
export CGO_ENABLED=1
export CGO_CFLAGS='$cflags'
export CGO_CXXFLAGS='$cxxflags'
export CGO_LDFLAGS='$ldflags'
EOT
case $version in 2.14.*) echo "export CXX='$root/scripts/cxx20.sh'" ;; esac
