# Sourced by setup.sh and env.sh after libtorch.sh. Which CUDA libtorch a build
# with CUDA=1 uses: the one that $LIBTORCH points at, else Debian 13's (2.6, CUDA
# 12.4), unpacked into the checkout. The latter compiles, links and starts
# anywhere, but computes on the CPU only: Debian does not carry cuDNN.

cuda_tree=$root/.toolchain/cuda
# The exit status of setup.sh where the packages are not to be had.
unavailable=3

# cuda_homes prints the folders of toolkits: $CUDA_HOME, the one of nvcc, /usr/local/cuda.
cuda_homes() {
  local nvcc
  if [ -n "${CUDA_HOME:-}" ]; then echo "$CUDA_HOME"; fi
  if nvcc=$(command -v nvcc); then dirname "$(dirname "$(readlink -f "$nvcc")")"; fi
  echo /usr/local/cuda
}

# cuda_headers prints the folders, separated by spaces, of CUDA's headers for the
# libtorch in folder $1: those that a Python wheel of PyTorch has beside its own folder,
# which fit it, and for what these lack (CUDA 13's have no crt) a toolkit's.
cuda_headers() {
  local dir header left found= wanted='cuda.h nvrtc.h cuda_runtime_api.h crt/host_defines.h'
  for dir in "$1/include" "$1"/../nvidia/*/include $(cuda_homes | sed 's|$|/include|') /usr/include; do
    left=
    for header in $wanted; do
      [ -e "$dir/$header" ] || left="$left $header"
    done
    [ "$left" = " $wanted" ] || found="$found $(cd "$dir" && pwd -P)"
    wanted=${left# }
    if [ -z "$wanted" ]; then break; fi
  done
  [ -z "$wanted" ] || fail "CUDA=1: no $wanted beside the libtorch in $1, in \$CUDA_HOME/include, nvcc's toolkit or /usr/local/cuda/include; set CUDA_HOME to a CUDA toolkit"
  echo $found
}

# cuda_libraries prints the folders with NVRTC and the libraries that libtorch
# needs, for the libtorch in folder $1, separated by colons.
cuda_libraries() {
  local dir found=$1/lib
  for dir in "$1"/../nvidia/*/lib $(cuda_homes | sed 's|$|/lib64|'); do
    [ -d "$dir" ] && found=$found:$(cd "$dir" && pwd -P)
  done
  echo "$found"
}

# stub SONAME DIR FILE...: makes DIR/SONAME, with every function of that library
# that FILEs want. Each ends the process when it is called, which without a GPU
# nothing does.
stub() {
  local soname=$1 dir=$2 source
  shift 2
  source=$(mktemp --suffix=.c)
  {
    echo '#include <stdio.h>'
    echo '#include <stdlib.h>'
    nm -D --undefined-only "$@" | awk -v soname="$soname" '
      { split($2, part, "@"); name = part[1] }
      part[2] == soname || (soname ~ /^libnccl/ && name ~ /^nccl/) { if (!seen[name]++)
        printf "void %s(void) { fputs(\"%s: %s is not in this build\\n\", stderr); abort(); }\n", name, soname, name }'
  } >"$source"
  echo "$soname { *; };" >"$source.map"
  gcc -shared -fPIC -w -Wl,-soname,"$soname" -Wl,--version-script,"$source.map" -o "$dir/$soname" "$source"
  rm -f "$source" "$source.map"
}

# unpack_cuda fills $cuda_tree. The toolkit's libraries stay out but for NVRTC and
# the runtime: libtorch needs them to be there (2.5 GB), not to work, on a machine
# without a GPU, so that stubs do.
unpack_cuda() {
  local part=$cuda_tree.part packages
  packages="libtorch-cuda-2.6 libtorch-cuda-dev libgloo-cuda-0 libtensorpipe-cuda-0 libnvrtc12 libnvrtc-builtins12.4 libcudart12 nvidia-cuda-dev"
  rm -rf "$part" "$cuda_tree"
  mkdir -p "$part/lib"
  say "unpacking Debian 13's CUDA libtorch 2.6 into .toolchain/cuda (1.4 GB to download, 1.5 GB on disk)"
  # Downloaded without what they depend on, which is 2.5 GB.
  mmdebstrap --quiet --variant=extract --architectures=amd64 --format=tar --components='main contrib non-free' \
    --extract-hook="mkdir \"\$1/debs\" && cd \"\$1/debs\" && APT_CONFIG=\"\$MMDEBSTRAP_APT_CONFIG\" apt-get -qq -o APT::Sandbox::User=root download $packages" \
    trixie - | tar -x -C "$part" --no-same-owner ./debs || {
    rm -rf "$part"
    say "the mirror does not have all of these packages, or there is no network: $packages"
    return $unavailable
  }
  local deb
  for deb in "$part"/debs/lib*.deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$part" --no-same-owner --wildcards --exclude='*libtorch_python*' './usr/lib/*.so*' './usr/include/*' 2>/dev/null || true
  done
  # The headers come first in the archive, so that tar is done before the rest of
  # its 5 GB is unpacked.
  dpkg-deb --fsys-tarfile "$part"/debs/nvidia-cuda-dev*.deb 2>/dev/null | tar -x -C "$part" --no-same-owner --occurrence=1 \
    $(printf './usr/include/%s ' cuda.h nvrtc.h cuda_runtime_api.h crt/host_defines.h builtin_types.h device_types.h driver_types.h \
      vector_types.h surface_types.h texture_types.h cuda_device_runtime_api.h) || true
  find "$part/usr/lib" -name '*.so*' -exec mv -t "$part/lib/" {} +
  mv "$part/usr/include" "$part/include"
  local file
  for file in "$part"/lib/lib*.so.2.6; do ln -sfn "${file##*/}" "${file%.2.6}"; done
  local torch="$part/lib/libtorch_cuda.so $part/lib/libtorch_cpu.so $part/lib/libc10_cuda.so"
  for file in $(readelf -d $torch | sed -n 's/.*NEEDED.*\[\(lib\(cu\|nccl\|nvToolsExt\).*\)\]/\1/p' | sort -u); do
    [ -e "$part/lib/$file" ] || stub "$file" "$part/lib" $torch
  done
  rm -rf "$part/usr" "$part/debs"
  for file in include/cuda.h include/nvrtc.h include/torch/csrc/api/include/torch/version.h lib/libtorch_cuda.so lib/libnvrtc.so.12; do
    [ -e "$part/$file" ] || { say "the unpacked packages lack $file"; return $unavailable; }
  done
  touch "$part/.complete"
  mv "$part" "$cuda_tree"
}
