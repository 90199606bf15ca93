#!/usr/bin/env bash
# Everything of this project that needs a GPU, in one command: builds against the
# libtorch of the machine's PyTorch (or $LIBTORCH), runs the tests of kernels, policies
# and the engine on the GPU, measures, and leaves a report in Markdown and in JSON in
# docs/results/gpu (or $OUT). Where there is no GPU it takes the same steps on the CPU,
# at the size of a toy, and the reports say "no device": a rehearsal.
#   scripts/gpu/check.sh
# In the folder that pack.sh's file unpacks to it needs neither Go nor a network.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
die() { echo "check: $1" >&2; exit 1; }

if [ -x .toolchain/go/bin/go ]; then
  export GOROOT=$PWD/.toolchain/go PATH=$PWD/.toolchain/go/bin:$PATH GOTOOLCHAIN=local
fi
if [ -d vendor ]; then export GOFLAGS="-mod=vendor -buildvcs=false ${GOFLAGS:-}" GOPROXY=off; fi
command -v go >/dev/null || die "no Go on this machine; unpack the file that scripts/gpu/pack.sh makes"
command -v python3 >/dev/null || die "no python3, which writes the reports"

device=cuda:0
if ! gpus=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null); then
  device=generic gpus='no device'
  echo "check: nvidia-smi finds no GPU; this is a rehearsal on the CPU" >&2
fi
if [ -z "${LIBTORCH:-}" ] && found=$(python3 -c 'import os, torch; print(os.path.dirname(torch.__file__))' 2>/dev/null); then
  export LIBTORCH=$found
fi
library=${LIBTORCH:-none}
# The CUDA build that setup.sh unpacks has no cuDNN: it is for rehearsals.
if [ "$device" = generic ]; then library=${LIBTORCH:-.toolchain/cuda}; fi
if [ -e "$library/lib/libtorch_cuda.so" ]; then
  export CUDA=1
elif [ "$device" != generic ]; then
  die "no libtorch with CUDA: python3 has no torch for this GPU; set LIBTORCH to a folder with include/ and lib/"
fi
tags=(${CUDA:+-tags gpu})

out=${OUT:-docs/results/gpu}
mkdir -p "$out" bin
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
# section TITLE COMMAND...: runs it with its output in the report.
section() {
  local title=$1 status began=$SECONDS log
  shift
  log=$(mktemp -p "$work")
  echo "== $title" >&2
  timeout 420 "$@" >"$log" 2>&1
  status=$?
  tail -3 "$log" >&2
  printf '%s\t%s\t%s\t%s\t%s\n' "$title" "$status" $((SECONDS - began)) "$log" "${*//$'\n'/ }" >>"$work/sections"
  [ "$status" = 0 ] || failed=1
}

flags=$(scripts/env.sh) || exit 1
eval "$flags"
ssr=bin/ssr-check
section build go build "${tags[@]}" -o $ssr ./cmd/ssr
section doctor $ssr doctor
section 'what this libtorch lacks' go test "${tags[@]}" -count=1 -v -run Lacks ./kernels/torch
if [ -n "${CUDA:-}" ]; then
  section 'kernels, CUDA build' go test "${tags[@]}" -count=1 -v ./kernels/cuda/gpu
else
  section 'kernels, emulated: this libtorch has no CUDA' go test -count=1 ./kernels/cuda/emulate
fi
export SSR_TEST_DEVICE=$device
section "operations on $device" go test "${tags[@]}" -count=1 -v -run 'Attention|Sample|Device' ./kernels/torch
section "policies on $device" go test "${tags[@]}" -count=1 -v -run 'Device|Half|Kernels|Recorded' ./model
section "generation on $device" go test "${tags[@]}" -count=1 -v -run 'Device|Kernels' ./model/engine

# bench TITLE FLAGS...: figures of ssr bench, each in a section of its own.
bench() {
  local title=$1
  shift
  section "$title" $ssr bench --json --device "$device" "$@"
}
# peer TITLE SPEC: the same by the machine's own PyTorch and transformers, where it has them.
peer() { section "$1" python3 scripts/bench/peer.py "$2"; }
if ! python3 -c 'import torch, transformers' 2>/dev/null; then
  echo "check: python3 has no torch with transformers; nothing is compared with them" >&2
  peer() { :; }
fi
if [ "$device" = generic ]; then
  toy=$work/toy
  $ssr bench --save "$toy" >/dev/null || failed=1
  bench 'sampling, toy' --parts sampling --model "$toy" --batch 4 --prompt 40 --new 8 --seconds 1s
  bench 'training, toy' --parts training --model "$toy" --train 2 --length 64 --seconds 1s
  peer 'this machine' '{"machine": "cpu"}'
  peer 'transformers, toy' "{\"model\": \"$toy\", \"batches\": [4], \"prompt\": 40, \"new\": 8, \"train\": 2, \"length\": 64, \"seconds\": 1}"
else
  peer 'this machine' "{\"machine\": \"$device\"}"
  section 'kernels against their rooflines' go test "${tags[@]}" -count=1 -run '^$' -bench . -benchtime 20x ./kernels/cuda/gpu
  sampling() { # sampling SHAPE BATCH PROMPT [FLAG]
    bench "sampling, $1, batch $2, prompts of $3${4:+, $4}" --parts sampling --model scripts/gpu/shapes/$1 --dtype bfloat16 --batch $2 \
      --prompt $3 --new 64 --seconds 5s ${4:-}
  }
  for batch in 1 16 64 256; do sampling qwen2.5-0.5b $batch 960; done
  sampling qwen2.5-0.5b 16 8128
  sampling qwen2.5-1.5b 64 960
  generate() { # generate SHAPE BATCHES PROMPT
    peer "transformers, $1, prompts of $3" "{\"model\": \"scripts/gpu/shapes/$1\", \"device\": \"$device\", \"dtype\": \"bfloat16\",
      \"batches\": [$2], \"prompt\": $3, \"new\": 64, \"seconds\": 5}"
  }
  generate qwen2.5-0.5b '1, 16, 64' 960
  generate qwen2.5-1.5b 64 960
  training() { # training DTYPE [FLAG]
    bench "training, qwen3-0.6b, 16 x 1k, $1${2:+, $2}" --parts training --model scripts/gpu/shapes/qwen3-0.6b --dtype $1 --train 16 \
      --length 1024 --seconds 10s ${2:-}
  }
  for dtype in float32 bfloat16; do training $dtype; done
  peer 'transformers, qwen3-0.6b, 16 x 1k' "{\"model\": \"scripts/gpu/shapes/qwen3-0.6b\", \"device\": \"$device\", \"dtype\": \"bfloat16\",
    \"train\": 16, \"length\": 1024, \"seconds\": 10}"
  # What the kernels bring, and what determinism costs.
  for flag in --no-kernels --determinism; do
    for batch in 1 64; do sampling qwen2.5-0.5b $batch 960 $flag; done
    training bfloat16 $flag
  done
fi

commit=$(git rev-parse --short HEAD 2>/dev/null || cat COMMIT 2>/dev/null || echo unknown)
version=$(sed -n '/^passed/d; s/.*libtorch \([0-9.]*\) lacks.*/\1/p' "$work"/tmp.* | head -1)
python3 scripts/gpu/report.py "$work/sections" "$out" "$gpus" "$commit" "${version:-unknown}" "$(nproc)" || exit 1
exit $failed
