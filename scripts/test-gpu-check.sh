#!/usr/bin/env bash
# The GPU check must not rot between GPUs: its reports' arithmetic, and a rehearsal of all
# that it measures, in which every setting has figures or a reason.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python3 -m unittest scripts/gpu/report_test.py
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
FIGURES=1 OUT=$out scripts/gpu/check.sh 2>"$out/log" || { cat "$out/log" "$out"/*.md; exit 1; }
python3 - "$out"/*.json <<'PYTHON'
import json, sys

with open(sys.argv[1]) as f:
    report = json.load(f)
for kind in ("decode", "prefill", "training", "step"):
    figures = report[kind]
    assert figures, f"no figures of {kind}"
    for f in figures:
        assert f.get("tokens_per_second", 0) > 0 or "left_out" in f, f
    assert any("tokens_per_second" in f for f in figures), f"all of {kind} is left out: {figures}"
bad = [s for s in report["sections"] if s["result"] != "passed"]
assert not bad, bad
goals = {g["goal"]: g for g in report["goals"]}
for name in ("log-probabilities that do not differ in determinism mode", "no bytes of weights copied from sampling to training"):
    assert goals[name]["reached"], goals[name]
print(f"{len(report['sections'])} steps rehearsed in {report['seconds']} s")
PYTHON
