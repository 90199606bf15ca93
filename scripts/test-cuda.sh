#!/usr/bin/env bash
# What a CUDA build must pass with or without a GPU: it compiles and links, starts
# and says what it computes on; every kernel compiles to PTX; and where there is a
# GPU, the kernels' suite passes on it. With Debian's libtorch the tests of devices pass
# on pretended ones, too (see docs/cuda.md). CUDA=1 is implied.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CUDA=1

flags=$(scripts/env.sh)
eval "$flags"
mkdir -p bin
go build -tags gpu -o bin/ssr-cuda ./cmd/ssr
# The driver and NVRTC are found at run time: needing them would keep the program
# from starting where they are not.
needed=$(readelf -d bin/ssr-cuda | grep NEEDED)
if grep -E 'libcuda\.so|libnvrtc|libcaffe2_nvrtc' <<<"$needed"; then
  echo "test-cuda: bin/ssr-cuda must not be linked with these" >&2
  exit 1
fi
grep -q libtorch_cuda <<<"$needed" || { echo "test-cuda: bin/ssr-cuda lacks libtorch_cuda" >&2; exit 1; }
bin/ssr-cuda doctor --json | python3 -c '
import json, sys
for f in json.load(sys.stdin)["findings"]:
    if f["name"] == "CUDA":
        print("doctor:", f["found"])
        sys.exit("built without" in f["found"])
sys.exit("doctor does not tell of CUDA")'
go vet -tags gpu ./kernels/cuda/gpu ./cmd/ssr
go test -tags gpu -count=1 -v ./kernels/cuda/gpu
go test -tags gpu -count=1 ./kernels/torch

[ -z "${LIBTORCH:-}" ] || exit 0 # the pretended CUDA is that of Debian's libtorch
pretended=$(scripts/pretend.sh)
counts=$(mktemp)
trap 'rm -f "$counts"' EXIT
# pretend COMMAND...: what it made on the pretended devices must be gone at its end.
pretend() {
  : >"$counts"
  PRETEND_COUNTS=$counts SSR_TEST_DEVICE=cuda:0 "$@"
  tr -d '\0' <"$counts" | awk '$1 ~ /^(streams|events|modules|graphs|graph_execs)$/ && $2 { print "test-cuda: not freed:", $0; bad = 1 } END { exit bad }'
}
tests() { pretend go test -tags gpu -count=1 -exec "env LD_PRELOAD=$pretended" -run "$2" "$1"; }
tests ./kernels/cuda/gpu 'Kernels|Record|Ring|Thread|Device'
tests ./kernels/torch 'Attention|Sample|Device'
tests ./model 'Device|Fused|Half|Kernels|Recorded'
tests ./model/engine 'Device|Kernels'
tests ./rl/train/learner GPU
