#!/usr/bin/env bash
# Makes a checkout ready to build: the few system packages that it needs, and a
# libtorch. Safe to run again; what is there already is left alone. Everything
# outside the checkout goes through apt-get and is announced first.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/libtorch.sh"
. "$(dirname "${BASH_SOURCE[0]}")/cuda.sh"

say() { echo "setup: $*"; }

# need PACKAGE COMMAND: notes PACKAGE unless COMMAND (or a file of that path) is there.
missing=()
need() {
  if [ -e "$2" ] || command -v "$2" >/dev/null 2>&1; then return; fi
  missing+=("$1")
}

[ "$(uname -sm)" = "Linux x86_64" ] || fail "built and tested on Linux x86-64 only; this is $(uname -sm)"
command -v go >/dev/null 2>&1 || fail "go is not on the PATH; install Go 1.26 or newer (https://go.dev/dl)"
case $root in *[[:space:]]*) fail "the path $root has a space in it, which cgo's flags cannot carry; move the checkout" ;; esac

find_libtorch
need g++ g++
need git git
need python3 python3
need bubblewrap bwrap
need ca-certificates /etc/ssl/certs/ca-certificates.crt
if [ "$kind" = none ] || { [ -n "${CUDA:-}" ] && [ "$kind" != given ]; }; then
  need mmdebstrap mmdebstrap
  # Without root, mmdebstrap unpacks in a user namespace.
  if [ "$(id -u)" != 0 ]; then need uidmap newuidmap; fi
fi

if [ ${#missing[@]} -gt 0 ]; then
  install="apt-get install -y --no-install-recommends ${missing[*]}"
  sudo=
  if [ "$(id -u)" != 0 ]; then
    sudo=sudo
    if ! sudo -n true 2>/dev/null; then
      fail "these packages are missing: ${missing[*]}. As root, run:  apt-get update && $install"
    fi
  fi
  command -v apt-get >/dev/null 2>&1 || fail "these are missing and there is no apt-get to install them with: ${missing[*]}"
  say "installing system packages: ${missing[*]}"
  $sudo apt-get update -q || say "apt-get update failed; trying with the lists at hand"
  DEBIAN_FRONTEND=noninteractive $sudo $install || fail "could not install ${missing[*]}; as root, run:  apt-get update && $install"
else
  say "system packages: all there"
fi

# unpack puts Debian 13's libtorch (2.6, CPU) and the C library that it was built
# with into $bundled. Nothing is installed and no root is needed. What only
# Python, Java, MPI tools or AMD's GPUs would use stays out: 924 MB become ~560.
unpack() {
  local lib=usr/lib/$multiarch part=$bundled.part
  say "unpacking Debian 13's libtorch 2.6 (CPU) into .toolchain/libtorch (about 200 MB to download)"
  rm -rf "$part" "$bundled"
  mkdir -p "$part"
  mmdebstrap --quiet --variant=extract --architectures=amd64 --format=tar \
    --include=libtorch-dev,libopenblas0-pthread,libc6-dev,libstdc++-14-dev trixie - |
    tar -xf - -C "$part" --no-same-owner \
      --exclude=./dev --exclude=./etc --exclude=./var --exclude=./root --exclude=./boot --exclude=./tmp \
      --exclude=./usr/share --exclude=./usr/bin --exclude=./usr/sbin --exclude=./usr/libexec \
      --exclude='./usr/lib/python3*' --exclude="./$lib/libpython3*" --exclude="./$lib/libtorch_python*" \
      --exclude="./$lib/libLLVM*" --exclude="./$lib/libamd*" --exclude="./$lib/libhsa*" \
      --exclude="./$lib/libasan*" --exclude="./$lib/libtsan*" --exclude="./$lib/liblsan*" \
      --exclude="./$lib/libhwasan*" --exclude="./$lib/libubsan*" --exclude="./$lib/libprotobuf*.a" ||
    fail "unpacking failed; is there a network? To use a libtorch of your own, set LIBTORCH to a folder with include/ and lib/"
  ln -sfn usr/lib "$part/lib"
  ln -sfn usr/lib64 "$part/lib64"
  # What Debian's alternatives system would have done.
  local name
  for name in libblas.so.3 liblapack.so.3 libopenblas.so.0; do
    ln -sfn openblas-pthread/libopenblas.so.0 "$part/$lib/$name"
  done
  touch "$part/.complete"
  mv "$part" "$bundled"
}

case $kind in
given) say "libtorch $version from LIBTORCH=$LIBTORCH" ;;
system) say "libtorch $version of the system" ;;
bundled) say "libtorch $version in .toolchain/libtorch: already there" ;;
none)
  unpack
  find_libtorch
  say "libtorch $version in .toolchain/libtorch, $(du -sm "$bundled" | cut -f1) MB"
  ;;
esac

if [ -n "${CUDA:-}" ] && [ "$kind" != given ]; then
  if [ -e "$cuda_tree/.complete" ]; then
    say "CUDA libtorch in .toolchain/cuda: already there"
  else
    unpack_cuda
    say "CUDA libtorch in .toolchain/cuda, $(du -sm "$cuda_tree" | cut -f1) MB"
  fi
fi
