#!/usr/bin/env bash
# Plays self-play on the bundled repository with the bundled policy, measures it
# on held-out bugs before and after, and leaves everything in runs/demo.
# SEED and STEPS override those of testdata/demo.yaml; a run that was interrupted
# goes on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

run=runs/demo
scripts/make-world.sh runs/world/quill quill
if [ -e $run/config.yaml ]; then
  echo "$run holds a run; going on with it (remove the folder to begin anew)"
  exec bin/ssr train --resume $run ${STEPS:+--steps "$STEPS"}
fi
exec bin/ssr train --config testdata/demo.yaml ${SEED:+--seed "$SEED"} ${STEPS:+--steps "$STEPS"}
