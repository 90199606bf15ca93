#!/usr/bin/env bash
# Makes the bundled policy and the held-out bugs anew, in DIR: DIR/policy/model,
# DIR/heldout/bugs and DIR/unseen/bugs are what testdata/policy, testdata/heldout and
# testdata/unseen hold. About a quarter of an hour on two cores.
#   scripts/make-policy.sh DIR
set -euo pipefail
[ $# = 1 ] || { echo "usage: scripts/make-policy.sh DIR" >&2; exit 2; }
mkdir -p "$1"
dir=$(cd "$1" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
make -s build

scripts/make-world.sh "$dir/quill" quill
bin/ssr warmstart --repo "$dir/quill" --out "$dir/heldout" --bugs 96 --bugs-only --strategy removal --careful 1 --slip 0 --seed 1001 --in-flight 6
# Most players slip often, so that what follows a failure is written as well as what is
# written first, and hardly any of their looking is imitated. The text and the drills
# first, then the policy's own turns: these passes leave self-play something to learn
# and something to learn from. Turns are those of testdata/demo.yaml.
bin/ssr warmstart --repo "$dir/quill" --out "$dir/warm" --bugs 400 --held-out "$dir/heldout/bugs" --seed 1 --turns 20 --careful 0.75 --slip 0.7 --shy 0.93 --in-flight 6 \
  --epochs 5 --until 2 --batch-size 8 --token-budget 2048 --lr 0.002 --warmup 50 --weight-decay 0.05 --save-dtype bfloat16
bin/ssr sft --model "$dir/warm/model" --data "$dir/warm/episodes.jsonl" --out "$dir/policy" --seed 2 \
  --epochs "${EPOCHS:-4}" --batch-size 8 --token-budget 2048 --lr 0.001 --warmup 10 --weight-decay 0.05 --save-dtype bfloat16
# Bugs on which nothing is chosen, for the last measurement.
bin/ssr warmstart --repo "$dir/quill" --out "$dir/unseen" --bugs 240 --bugs-only --strategy removal --careful 1 --slip 0 --seed 3003 \
  --held-out "$dir/heldout/bugs" --held-out "$dir/warm/bugs" --in-flight 6
