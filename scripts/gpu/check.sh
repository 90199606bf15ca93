#!/usr/bin/env bash
# Everything of this project that needs a GPU, in one command of at most ten minutes:
# builds against the libtorch of the machine's PyTorch (or $LIBTORCH), runs the
# kernels' suite on the GPU, measures them against the bandwidth of a copy, and
# leaves a report in docs/results/gpu (or $OUT).
#   scripts/gpu/check.sh [FILE.tar.xz]     of pack.sh, where there is no Go
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export CUDA=1

if [ $# -gt 0 ]; then
  [ ! -e vendor ] || { echo "check: there is a vendor folder already; remove it first" >&2; exit 1; }
  mkdir -p .toolchain
  tar -C .toolchain -xf "$1" || exit 1
  export GOROOT=$PWD/.toolchain/go PATH=$PWD/.toolchain/go/bin:$PATH GOFLAGS="-mod=vendor -buildvcs=false" GOTOOLCHAIN=local GOPROXY=off
  mv .toolchain/vendor vendor
  trap 'rm -rf vendor' EXIT
fi
command -v go >/dev/null || { echo "check: no Go on this machine; give the file that scripts/gpu/pack.sh makes" >&2; exit 1; }
if [ -z "${LIBTORCH:-}" ]; then
  LIBTORCH=$(python3 -c 'import os, torch; print(os.path.dirname(torch.__file__))') ||
    { echo "check: python3 has no torch; set LIBTORCH to a CUDA libtorch" >&2; exit 1; }
  export LIBTORCH
fi
gpus=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader) ||
  { echo "check: nvidia-smi finds no GPU on this machine" >&2; exit 1; }

out=${OUT:-docs/results/gpu}
mkdir -p "$out"
report=$out/$(head -1 <<<"$gpus" | cut -d, -f1 | tr -c 'A-Za-z0-9\n' - | tr A-Z a-z).md
failed=0
section() { # section TITLE COMMAND...: runs it with its output in the report
  local title=$1 status began=$SECONDS
  shift
  printf '\n## %s\n\n```\n' "$title" >>"$report"
  timeout 420 "$@" 2>&1 | tee -a "$report"
  status=${PIPESTATUS[0]}
  printf '```\n\n%s in %d s.\n' "$([ "$status" = 0 ] && echo passed || echo "FAILED with status $status")" $((SECONDS - began)) >>"$report"
  [ "$status" = 0 ] || failed=1
}

{
  echo "# $(head -1 <<<"$gpus" | cut -d, -f1)"
  echo
  echo "$(date -u +%F), $(nproc) cores, commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown), made by scripts/gpu/check.sh."
  echo
  sed 's/^/- GPU: /' <<<"$gpus"
  echo "- libtorch $(. scripts/libtorch.sh && libtorch_version "$LIBTORCH/include")"
} >"$report"
flags=$(scripts/env.sh) || exit 1
eval "$flags"
mkdir -p bin
section build go build -tags gpu -o bin/ssr-cuda ./cmd/ssr
section doctor bin/ssr-cuda doctor
section 'what this libtorch lacks' go test -tags gpu -count=1 -v -run Lacks ./kernels/torch
section kernels go test -tags gpu -count=1 -v ./kernels/cuda/gpu
section 'kernels against a copy' go test -tags gpu -count=1 -run '^$' -bench . -benchtime 20x ./kernels/cuda/gpu
echo "report: $report"
exit $failed
