#!/usr/bin/env bash
# Everything of this project that needs a GPU, in one command: builds against the
# libtorch of the machine's PyTorch (or $LIBTORCH), runs the tests of kernels, policies
# and the engine on the GPU, measures, and leaves a report in Markdown and in JSON in
# docs/results/gpu (or $OUT). It takes $DEADLINE seconds at most, 480 on a GPU: the most
# important steps come first, and the report names those that were left out. Where there
# is no GPU it takes the same steps on the CPU, at the size of a toy, and the reports say
# "no device": a rehearsal. With FIGURES=1 it measures only, without tests.
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
deadline=${DEADLINE:-$([ "$device" = generic ] && echo 3600 || echo 480)}

out=${OUT:-docs/results/gpu}
mkdir -p "$out" bin
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/tests"

# section TITLE SECONDS COMMAND...: runs it for so long at most, with its output in the
# report; where less than five seconds are left of the whole, not at all.
section() {
  local title=$1 bound=$2 status=- began=$SECONDS log
  shift 2
  log=$(mktemp -p "$work")
  bound=$((bound < deadline - SECONDS ? bound : deadline - SECONDS))
  if [ $bound -ge 5 ]; then
    echo "== $title" >&2
    timeout -k 5 $bound "$@" >"$log" 2>&1
    status=$?
    tail -3 "$log" >&2
  fi
  printf '%s\t%s\t%s\t%s\t%s\n' "$title" $status $((SECONDS - began)) "$log" "${*//$'\n'/ }" >>"$work/sections"
}
# pin first|rest COMMAND...: on the first four cores or on the rest, where there are eight.
pin() {
  python3 -c 'import os, sys
cores = sorted(os.sched_getaffinity(0))
if len(cores) >= 8:
    os.sched_setaffinity(0, cores[:4] if sys.argv[1] == "first" else cores[4:])
os.execvp(sys.argv[2], sys.argv[2:])' "$@"
}
export -f pin

# What is measured: shapes, batches, tokens of prompts and new ones, sequences and tokens
# of training steps, and of the GRPO step. Prompts and new tokens make whole contexts.
shapes=scripts/gpu/shapes
wide=1,16,64,256 narrow=1,16,64 short=960 long=8128 longest=32704 prefill=15360 new=64 time=1s
packed='--train 16,1 --length 1024,16384' packed_long='--train 64,4 --length 1024,16384' rank=16
packed_all='--train 16,1,64,4 --length 1024,16384,1024,16384' packed_one='--train 16 --length 1024'
step='--group 8 --batch 64 --prompt 512 --new 256' step_small='--group 8 --batch 16 --prompt 128 --new 64'
exact=--determinism # which a CPU is, and its stand-in for a GPU is not without kernels
if [ "$device" = generic ]; then
  shapes=$work/shapes
  wide=1,2,4 narrow=1,2,4 short=32 long=48 longest=64 prefill=64 new=8 time=100ms
  packed='--train 4,1 --length 32,128' packed_long='--train 8,2 --length 32,128' rank=4
  packed_all='--train 4,1,8,2 --length 32,128,32,128' packed_one='--train 4 --length 32'
  step='--group 8 --batch 16 --prompt 32 --new 16' step_small='--group 4 --batch 8 --prompt 32 --new 16'
  exact="--device cpu $exact"
  python3 - scripts/gpu/shapes "$shapes" <<'PYTHON' || die "no shapes for the rehearsal"
import json, pathlib, sys
for file in pathlib.Path(sys.argv[1]).glob("*/config.json"):
    c = json.loads(file.read_text())
    c |= dict(vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    folder = pathlib.Path(sys.argv[2], file.parent.name)
    folder.mkdir(parents=True)
    (folder / file.name).write_text(json.dumps(c | ({"head_dim": 32} if "head_dim" in c else {})))
PYTHON
fi

# The machine's own PyTorch and transformers, where it has them, measure the same
# meanwhile: the GPU has nothing to do while this program is built.
pairs() { # pairs A,B C,D: each of the second with each of the first, as JSON
  local x y all=
  for y in ${2//,/ }; do for x in ${1//,/ }; do all="$all, [$x, $y]"; done; done
  echo "[${all#, }]"
}
zip() { # zip --train A,B --length C,D: as JSON
  local i all= n=(${2//,/ }) length=(${4//,/ })
  for i in "${!n[@]}"; do all="$all, [${n[$i]}, ${length[$i]}]"; done
  echo "[${all#, }]"
}
step_task() { # step_task --group N --batch N --prompt N --new N: as fields
  echo "\"step\": [[$(($4 / $2)), $2, $6]], \"new\": $8"
}
task() { # task SHAPE FIELDS
  echo "{\"model\": \"$shapes/$1\", \"device\": \"${device/generic/cpu}\", \"dtype\": \"bfloat16\", \"seconds\": 0, $2}"
}
more=$((new / 2))
tasks="[{\"machine\": \"${device/generic/cpu}\"},
  $(task qwen2.5-0.5b "\"decode\": $(pairs $wide $short), \"new\": $more"),
  $(task qwen3-4b "\"training\": $(zip $packed)"),
  $(task qwen2.5-7b "\"decode\": $(pairs $narrow $short), \"new\": $more"),
  $(task qwen3-0.6b "$(step_task $step)"),
  $(task qwen3-0.6b "\"training\": $(zip $packed)"),
  $(task qwen3-4b "\"training\": $(zip $packed), \"lora_rank\": $rank"),
  $(task qwen2.5-0.5b "\"decode\": $(pairs $narrow $long), \"new\": $more"),
  $(task qwen2.5-0.5b "\"decode\": $(pairs ${narrow%,*} $longest), \"new\": $more"),
  $(task qwen2.5-1.5b "\"decode\": $(pairs $narrow $short), \"new\": $more"),
  $(task qwen3-4b "\"training\": $(zip $packed_long), \"lora_rank\": $rank"),
  $(task qwen3-0.6b "\"training\": $(zip $packed_long)"),
  $(task qwen3-4b "\"training\": $(zip $packed_long)")]"
flags=$(scripts/env.sh) || exit 1
eval "$flags"
ssr=bin/ssr-check
suites=(./kernels/torch ./model ./model/engine $([ -n "${CUDA:-}" ] && echo ./kernels/cuda/gpu || echo ./kernels/cuda/emulate))
[ -z "${FIGURES:-}" ] || suites=()
section build "$deadline" bash -c 'pin rest go build "${@:3}" -o "$1" ./cmd/ssr && { [ -z "$2" ] || pin rest go test "${@:3}" -c -o "$0/" $2; }' \
  "$work/tests" $ssr "${suites[*]}" "${tags[@]}" &
build=$!
if python3 -c 'import torch, transformers' 2>/dev/null; then
  section 'PyTorch and transformers' $((deadline / 3)) bash -c 'pin first "$@"' - python3 scripts/bench/peer.py "$tasks" $((deadline / 4))
else
  echo "check: python3 has no torch with transformers; nothing is compared with them" >&2
fi
wait $build
section doctor 60 $ssr doctor

export SSR_TEST_DEVICE=$device
# suite TITLE PACKAGE FLAGS...: a package's tests, of those that were built.
suite() {
  local title=$1 package=$2
  shift 2
  [ -n "${FIGURES:-}" ] || section "$title" 180 bash -c 'cd "$1" && exec "$0" "${@:2}"' "$work/tests/${package##*/}.test" "./$package" "$@"
}
suite 'what this libtorch lacks' kernels/torch -test.v -test.run Lacks
if [ -n "${CUDA:-}" ]; then
  suite 'kernels, CUDA build' kernels/cuda/gpu -test.v
else
  suite 'kernels, emulated: this libtorch has no CUDA' kernels/cuda/emulate
fi
suite "operations on $device" kernels/torch -test.v -test.run 'Attention|Sample|Device'
suite "policies on $device" model -test.v -test.run 'Device|Fused|Half|Kernels|Recorded'
suite "generation on $device" model/engine -test.v -test.run 'Device|Kernels'

# bench TITLE SECONDS SHAPE FLAGS...: figures of ssr bench, in a section of their own.
bench() {
  local title=$1 bound=$2 shape=$3
  shift 3
  bound=$((bound < deadline - SECONDS ? bound : deadline - SECONDS))
  section "$title" $bound $ssr bench --json --device "$device" --dtype bfloat16 --model "$shapes/$shape" --seconds $time --prefill-tokens $prefill \
    --deadline $((bound > 10 ? bound - 5 : 5))s "$@"
}
# A process for each shape and way to train: making a context and compiling takes each a while.
bench 'decode and prefill, 0.5B' 60 qwen2.5-0.5b --parts decode,prefill --batch $wide --prompt $short --new $new
bench 'training, 4B' 70 qwen3-4b --parts training $packed_all
bench 'GRPO step and training, 0.6B' 80 qwen3-0.6b --parts step,training $step $packed_all
bench 'GRPO step, 0.6B, determinism' 50 qwen3-0.6b --parts step $step_small $exact
bench 'decode and prefill, 7B' 60 qwen2.5-7b --parts decode,prefill --batch $narrow --prompt $short --new $new
bench 'decode and prefill, 0.5B, 8k' 50 qwen2.5-0.5b --parts decode,prefill --batch $narrow --prompt $long --new $new
bench 'decode and prefill, 0.5B, 32k' 50 qwen2.5-0.5b --parts prefill,decode --batch ${narrow%,*} --prompt $longest --new $new
bench 'training and GRPO step, 4B, adapters' 80 qwen3-4b --parts training,step $packed_all $step_small --lora-rank $rank
bench 'decode and prefill, 1.5B' 40 qwen2.5-1.5b --parts decode,prefill --batch $narrow --prompt $short --new $new
# What the kernels bring, and what determinism costs.
for flag in --no-kernels "$exact"; do
  bench "decode, 0.5B, $flag" 40 qwen2.5-0.5b --parts decode --batch ${narrow%,*} --prompt $short --new $new $flag
  bench "training, 0.6B, $flag" 40 qwen3-0.6b --parts training $packed_one $flag
done
# Whether larger steps read prompts faster, and what float32 costs.
bench 'prefill, 0.5B, larger steps' 40 qwen2.5-0.5b --parts prefill --prompt $short --new $new --chunk-tokens 1024 --step-tokens 8192
bench 'training, 0.6B, float32' 40 qwen3-0.6b --parts training $packed_one --dtype float32
# Two million tokens to be read first.
bench 'decode, 0.5B, 8k, all sequences' 60 qwen2.5-0.5b --parts decode --batch ${wide##*,} --prompt $long --new $new
bench 'decode, 0.5B, 32k, more sequences' 60 qwen2.5-0.5b --parts decode --batch ${narrow##*,} --prompt $longest --new $new
[ -z "${CUDA:-}" ] || suite 'kernels against their rooflines' kernels/cuda/gpu -test.run '^$' -test.bench . -test.benchtime 20x

commit=$(git rev-parse --short HEAD 2>/dev/null || cat COMMIT 2>/dev/null || echo unknown)
version=$($ssr doctor --json | python3 -c 'import json, sys
print(next(f["found"] for f in json.load(sys.stdin)["findings"] if f["name"] == "libtorch"))') || version=unknown
python3 scripts/gpu/report.py "$work/sections" "$out" "$gpus" "$commit" "$version" "$(nproc)" $SECONDS
