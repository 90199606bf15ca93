"""Writes check.sh's reports from what it recorded.

report.py SECTIONS OUT GPUS COMMIT LIBTORCH CORES

SECTIONS has a line for each step: title, status, seconds, file of its output, command,
with tabs between them. OUT gets NAME.json and NAME.md, named after the first GPU.
"""
import datetime
import json
import pathlib
import re
import sys

sections, out, gpus, commit, libtorch, cores = sys.argv[1:]
out, gpus = pathlib.Path(out), gpus.splitlines()
report = {
    "gpus": [] if gpus == ["no device"] else gpus,
    "device": gpus[0].split(",")[0],
    "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    "commit": commit, "libtorch": libtorch, "cores": int(cores), "sections": [], "benchmarks": [],
}
logs = []
for line in pathlib.Path(sections).read_text().splitlines():
    title, status, seconds, log, command = line.split("\t")
    text = pathlib.Path(log).read_text(errors="replace").strip()
    entry = {"title": title, "passed": status == "0", "status": int(status), "seconds": int(seconds), "command": command}
    skipped = re.findall(r"^\s*--- SKIP: (\S+)", text, re.M)
    if skipped:
        entry["skipped"] = skipped
    report["sections"].append(entry)
    logs.append((entry, text))
    start = text.find("{")
    if " bench --json" in command and status == "0" and start >= 0:
        report["benchmarks"].append({"title": title, **json.JSONDecoder().raw_decode(text[start:])[0]})

name = re.sub(r"[^a-z0-9]+", "-", report["device"].lower()).strip("-")
(out / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")

lines = [f"# {report['device']}", ""]
if not report["gpus"]:
    lines += ["A rehearsal on the CPU: nothing below is a figure of a GPU.", ""]
lines += [f"{report['date']}, {cores} cores, commit {commit}, libtorch {libtorch}, made by scripts/gpu/check.sh.", ""]
lines += [f"- GPU: {g}" for g in report["gpus"]]
lines += ["", "| step | result | seconds |", "| --- | --- | --- |"]
for entry, _ in logs:
    result = "passed" if entry["passed"] else f"FAILED with status {entry['status']}"
    if "skipped" in entry:
        result += f", {len(entry['skipped'])} skipped"
    lines.append(f"| {entry['title']} | {result} | {entry['seconds']} |")
if report["benchmarks"]:
    keys = ["parameters", "sampling_tokens_per_second", "prompt_tokens_per_second", "training_tokens_per_second"]
    lines += ["", "| benchmark | parameters | sampled tokens/s | prompt tokens/s | trained tokens/s |", "| --- | --- | --- | --- | --- |"]
    for b in report["benchmarks"]:
        lines.append(f"| {b['title']} | " + " | ".join(f"{b[k]:.6g}" if k in b else "" for k in keys) + " |")
for entry, text in logs:
    lines += ["", f"## {entry['title']}", "", f"    {entry['command']}", "", "```", text, "```"]
(out / f"{name}.md").write_text("\n".join(lines) + "\n")
print(f"report: {out / name}.md and {out / name}.json")
