# Sourced by setup.sh and env.sh. Where the checkout is, and which libtorch it
# builds against: $LIBTORCH, else a system libtorch that gotch can compile
# against, else the one that setup.sh unpacks into the checkout.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
bundled=$root/.toolchain/libtorch
multiarch=x86_64-linux-gnu

fail() {
  echo "${0##*/}: $*" >&2
  exit 1
}

# libtorch_version DIR: "2.6.0" for a folder whose include path is DIR, "" without one.
# Newer ones have the numbers in another header, which the first includes.
libtorch_version() {
  local header=$1/torch/csrc/api/include/torch/version.h
  [ -r "$header" ] || return 0
  [ ! -r "$1/torch/headeronly/version.h" ] || header=$1/torch/headeronly/version.h
  awk '$1 == "#define" && $2 ~ /^TORCH_VERSION_(MAJOR|MINOR|PATCH)$/ { v[$2] = $3 }
       END { if ("TORCH_VERSION_MAJOR" in v)
               print v["TORCH_VERSION_MAJOR"] "." v["TORCH_VERSION_MINOR"] "." v["TORCH_VERSION_PATCH"] }' "$header"
}

# usable VERSION: gotch compiles against 2.1 to 2.14.
usable() {
  local major minor
  IFS=. read -r major minor _ <<<"$1"
  [ "${major:-0}" = 2 ] && [ "${minor:-0}" -ge 1 ] && [ "$minor" -le 14 ]
}

# find_libtorch sets kind (given, system, bundled or none) and version.
find_libtorch() {
  kind=none version=
  if [ -n "${LIBTORCH:-}" ]; then
    version=$(libtorch_version "$LIBTORCH/include")
    [ -n "$version" ] || fail "LIBTORCH=$LIBTORCH: no include/torch/csrc/api/include/torch/version.h there; give the folder that holds include/ and lib/"
    usable "$version" || fail "LIBTORCH=$LIBTORCH is libtorch $version; this project builds against 2.1 to 2.14"
    kind=given
    return
  fi
  version=$(libtorch_version /usr/include)
  if usable "$version" && [ -e /usr/lib/$multiarch/libtorch_cpu.so ]; then
    kind=system
    return
  fi
  version=$(libtorch_version "$bundled/usr/include")
  if [ -n "$version" ] && [ -e "$bundled/.complete" ]; then kind=bundled; else version=; fi
}
