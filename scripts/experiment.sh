#!/usr/bin/env bash
# The measurements of docs/results: self-play over three seeds, then repair-only
# on the first run's bugs and injection-only beside it. Each run goes to
# runs/experiment/NAME and is measured on the held-out bugs before and after; then
# each policy of self-play, and the bundled one, on testdata/unseen, on which nothing
# was chosen. A run that was interrupted goes on; one that is complete is left alone.
#   scripts/experiment.sh [NAME ...]     default: all five
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
make -s build

out=runs/experiment
scripts/make-world.sh runs/world/quill quill
run() { # run NAME SEED [FLAG ...]
  local name=$1 seed=$2
  shift 2
  if [ -e $out/$name/config.yaml ]; then
    bin/ssr train --resume $out/$name
  else
    bin/ssr train --config testdata/demo.yaml --run $out/$name --seed "$seed" "$@"
  fi
}
unseen() { # unseen NAME MODEL SEED
  local file=$out/$1-unseen.json
  [ ! -e "$file" ] || return 0
  bin/ssr eval --config testdata/demo.yaml --set seed="$3" --model "$2" --bugs testdata/unseen --attempts 2 --json >"$file.tmp"
  mv "$file.tmp" "$file"
}
[ $# -gt 0 ] || set -- self-play-1 self-play-2 self-play-3 repair-only injection-only
for name in "$@"; do
  echo "== $name"
  case $name in
  self-play-*)
    run "$name" "${name#self-play-}"
    unseen "$name" "$(ls -d $out/$name/checkpoints/*/weights | tail -1)" "${name#self-play-}"
    unseen bundled testdata/policy 1
    ;;
  repair-only) run repair-only 1 --set game.mode=repair-only --set game.bugs=$out/self-play-1/bugs --set game.solver_groups=20 ;;
  injection-only) run injection-only 1 --set game.mode=injection-only --set game.signal=validation ;;
  *) echo "experiment: unknown run $name" >&2; exit 2 ;;
  esac
done
