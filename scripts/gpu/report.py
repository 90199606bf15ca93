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

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "bench"))
from roofline import Roofline

sections, out, gpus, commit, libtorch, cores = sys.argv[1:]
out, gpus = pathlib.Path(out), gpus.splitlines()
report = {
    "gpus": [] if gpus == ["no device"] else gpus,
    "device": gpus[0].split(",")[0],
    "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    "commit": commit, "libtorch": libtorch, "cores": int(cores), "sections": [], "benchmarks": [],
}


def setting(command):
    """What a benchmark of ours measures, from its flags."""
    flags = dict(re.findall(r"--([a-z]+) ([^-\s]\S*)", command))
    s = {k: int(v) for k, v in flags.items() if k in ("batch", "prompt", "new", "train", "length")}
    return s | {"model": flags.get("model"), "dtype": flags.get("dtype", "float32")}


def at_best(b, machine):
    """Beside a benchmark's figure, how fast the machine could be, and the share of its products' rate that is reached."""
    s = b["setting"]
    roof = Roofline(s["model"], {"gflops": machine[s["dtype"] + "_gflops"], "gb_per_second": machine["gb_per_second"]})
    if "training_tokens_per_second" in b:
        best, operations, _ = roof.training(s)
        return {"roofline_tokens_per_second": best, "flops_utilisation": b["training_tokens_per_second"] * operations / roof.flops}
    best, operations, _ = roof.sampling(s, s["batch"], 2 if s["dtype"] == "bfloat16" else 4)
    return {"roofline_tokens_per_second": best, "flops_utilisation": b["sampling_tokens_per_second"] * operations / roof.flops}


machine, peers, logs = None, {}, []
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
    if status != "0" or start < 0:
        continue
    if " bench --json" in command:
        report["benchmarks"].append({"title": title, "setting": setting(command), **json.JSONDecoder().raw_decode(text[start:])[0]})
    elif "peer.py" in command:
        figures, spec = json.JSONDecoder().raw_decode(text[text.rindex("\n{") + 1 if "\n{" in text else start:])[0], json.loads(command.split(None, 2)[2])
        if "machine" in spec:
            machine = report["machine"] = figures
            continue
        key = spec["model"], spec.get("dtype", "float32")
        for batch, rate in figures["sampling"].items():
            peers[key + (int(batch), spec["prompt"], spec["new"])] = rate
        if figures["training"]:
            peers[key + (spec["train"], spec["length"])] = figures["training"]
for b in report["benchmarks"]:
    s = b["setting"]
    wanted = ("train", "length") if "training_tokens_per_second" in b else ("batch", "prompt", "new")
    if rate := peers.get((s["model"], s["dtype"], *(s.get(k) for k in wanted))):
        b["peer_tokens_per_second"] = rate
    if machine and s["model"]:
        b.update(at_best(b, machine))

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
if machine:
    lines += ["", f"Products reach {machine['float32_gflops'] / 1e3:.4g} TFLOP/s in float32 and {machine['bfloat16_gflops'] / 1e3:.4g} in bfloat16, "
              f"copies {machine['gb_per_second']:.4g} GB/s (PyTorch's, measured in this run)."]
if report["benchmarks"]:
    lines += ["", "Tokens per second. A roofline is the least time that products of that rate and memory of that rate need "
              "(scripts/bench/roofline.py: 2 operations a weight and token, three times as many in training, and attention's); "
              "utilisation is operations a second over the rate of products.", "",
              "| benchmark | parameters | ours | prompts | transformers | ratio | roofline | share of it | utilisation |",
              "| --- " * 9 + "|"]
    for b in report["benchmarks"]:
        ours = b.get("training_tokens_per_second") or b.get("sampling_tokens_per_second", 0)
        cell = lambda v, form="{:,.4g}": form.format(v) if v else ""
        peer, best = b.get("peer_tokens_per_second"), b.get("roofline_tokens_per_second")
        lines.append(f"| {b['title']} | {b['parameters']:,} | " + " | ".join([
            cell(ours), cell(b.get("prompt_tokens_per_second")), cell(peer), cell(peer and ours / peer, "{:.2f}×"), cell(best),
            cell(best and ours / best, "{:.0%}"), cell(b.get("flops_utilisation"), "{:.1%}")]) + " |")
for entry, text in logs:
    lines += ["", f"## {entry['title']}", "", f"    {entry['command']}", "", "```", text, "```"]
(out / f"{name}.md").write_text("\n".join(lines) + "\n")
print(f"report: {out / name}.md and {out / name}.json")
