"""Writes check.sh's reports from what it recorded.

report.py SECTIONS OUT GPUS COMMIT LIBTORCH CORES SECONDS

SECTIONS has a line for each step: title, status ("-" for one that was left out), seconds,
file of its output, command, with tabs between them. OUT gets NAME.json and NAME.md, named
after the first GPU. It ends with status 1 where a step failed.
"""
import datetime
import json
import math
import os
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "bench"))
from roofline import Roofline

LISTS = ("decode", "prefill", "training", "step")
BF16 = 2.0**-8  # the most by which bfloat16 rounds, relative to the value

# What is to be reached on an H200.
GOALS = {"decode_share": 0.7, "decode_ratio": 5, "training_mfu": 0.5, "training_ratio": 1.3}


def read_sections(path):
    """The steps, and the text of each."""
    for line in pathlib.Path(path).read_text().splitlines():
        title, status, seconds, log, command = line.split("\t")
        text = pathlib.Path(log).read_text(errors="replace").strip()
        entry = {"title": title, "seconds": int(seconds), "command": command,
                 "result": {"0": "passed", "-": "left out", "124": "stopped"}.get(status, "FAILED")}
        if entry["result"] == "FAILED":
            entry["status"] = int(status)
        if skipped := re.findall(r"^\s*--- SKIP: (\S+)", text, re.M):
            entry["skipped"] = skipped
        yield entry, text


def objects(text):
    """The JSON objects that begin a line."""
    decoder, at = json.JSONDecoder(), 0
    while match := re.compile(r"^\{", re.M).search(text, at):
        try:
            value, at = decoder.raw_decode(text, match.start())
            yield value
        except ValueError:
            at = match.end()


def origin(command):
    """What a benchmark of ours was told, from its flags, the last of each."""
    flags = dict(re.findall(r"--([a-z-]+) ([^-\s]\S*)", command))
    options = [o for o in ("no-kernels", "determinism", "chunk-tokens", "step-tokens") if "--" + o in command]
    return {"model": flags["model"], "shape": os.path.basename(flags["model"]), "dtype": flags.get("dtype", "float32"),
            "options": " ".join(f"--{o} {flags[o]}" if o in flags else f"--{o}" for o in options)}


def key(kind, f):
    """By which a figure of ours finds its peer."""
    size = {"decode": ("batch", "prompt"), "training": ("sequences", "length"), "step": ("groups", "episodes", "prompt", "new")}
    return (kind, f["shape"], f["dtype"], f.get("lora_rank", 0), *(f[k] for k in size[kind]))


def collect(sections):
    """The machine's rates, our figures and the peers', by kind."""
    machine, ours, peers = None, {kind: [] for kind in LISTS}, []
    for entry, text in sections:
        if " bench --json" in entry["command"]:
            for result in objects(text):
                told = origin(entry["command"]) | {k: result.get(k) for k in ("device", "parameters", "cache_bytes_per_token")}
                for kind in LISTS:
                    ours[kind] += [told | f for f in result.get(kind, [])]
        elif "peer.py" in entry["command"]:
            for line in objects(text):
                if line["kind"] == "machine":
                    machine = line
                else:
                    peers.append(line | {"shape": os.path.basename(line["model"])})
    return machine, ours, peers


def derive(machine, ours, peers):
    """Adds to our figures their peers', rooflines, and what they make of them."""
    beside = {}
    for p in peers:
        if "left_out" not in p:
            beside[key(p["kind"], p)] = p
            if p["kind"] == "decode":  # the prompts of decode are prefill's too
                beside["prefill", p["shape"], p["dtype"], p["batch"], p["prompt"]] = p
    for kind, figures in ours.items():
        for f in figures:
            rate = f.get("tokens_per_second")
            if not rate:
                continue
            peer = beside.get(("prefill", f["shape"], f["dtype"], f["sequences"], f["prompt"]) if kind == "prefill" else key(kind, f))
            if peer:
                f["peer_tokens_per_second"] = peer["prefill_tokens_per_second" if kind == "prefill" else "tokens_per_second"]
                f["ratio"] = rate / f["peer_tokens_per_second"]
                f["peer_recomputes"] = peer.get("recompute", False)
            if machine:
                at_best(kind, f, machine)


def at_best(kind, f, machine):
    """Beside a figure, how fast the machine could be, and what share of that is reached."""
    roof = Roofline(f["model"], {"gflops": machine[f["dtype"] + "_gflops"], "gb_per_second": machine["gb_per_second"]})
    width = 2 if f["dtype"] == "bfloat16" else 4
    rank, cache = f.get("lora_rank", 0), f["cache_bytes_per_token"]
    if kind == "decode":
        best = roof.decode(f["batch"], f["prompt"] + f["new"] / 2, width, cache)
    elif kind == "prefill":
        best = roof.prefill(f["sequences"], f["prompt"], width)
    elif kind == "training":
        best = roof.training({"train": f["sequences"], "length": f["length"]}, rank)[0]
        f["mfu"] = f["tokens_per_second"] * roof.operations(f["length"], rank) / roof.flops
    else:
        n, length = f["groups"] * f["episodes"], f["prompt"] + f["new"]
        best = n * length / roof.step({"groups": f["groups"]}, n, f["prompt"], f["new"], width, cache, rank)
        f["mfu"] = f["trained_tokens_per_second"] * roof.operations(length, rank) / roof.flops
    f["roofline_tokens_per_second"], f["roofline_share"] = best, f["tokens_per_second"] / best


def goals(ours, rehearsal):
    """What is to be reached: what, how much, what was found, and whether it is enough."""

    def least(what, figures, field, want, form):
        found = [f for f in figures if field in f]
        if not found:
            return {"goal": what, "found": "not measured", "reached": None}
        enough = [f for f in found if f[field] >= want]
        worst = min(found, key=lambda f: f[field])
        return {"goal": what, "found": f"{len(enough)} of {len(found)} settings; the least {form.format(worst[field])}, {describe(worst)}",
                "reached": len(enough) == len(found)}

    def most(what, values, want, form="{:.3g}"):
        if not values:
            return {"goal": what, "found": "not measured", "reached": None}
        return {"goal": what, "found": "at most " + form.format(max(values)), "reached": max(values) <= want}

    plain = {kind: [f for f in figures if not f["options"] and f["dtype"] == "bfloat16"] for kind, figures in ours.items()}
    large = [f for f in plain["training"] if f["shape"] == "qwen3-4b" and not f.get("lora_rank")
             and (rehearsal or f["sequences"] * f["length"] == 16384)]
    steps = [f for f in ours["step"] if "agreement" in f]
    rough = [f["agreement"] for f in steps if not f["options"]]
    vocabulary = {f["shape"]: json.loads(pathlib.Path(f["model"], "config.json").read_text())["vocab_size"] for f in steps}
    widest = max([BF16 * math.log(v) for v in vocabulary.values()], default=0)
    used = [f["memory"]["peak_total"] / f["memory"]["plan_total"] for kind in ("training", "step") for f in ours[kind] if "memory" in f and f["device"] != "cpu"]
    return [
        least("decode at 70% of the roofline", plain["decode"], "roofline_share", GOALS["decode_share"], "{:.0%}"),
        least("decode at 5 times transformers' generate", plain["decode"], "ratio", GOALS["decode_ratio"], "{:.2f} times"),
        least("training of 4B on 16k tokens at 50% MFU", large, "mfu", GOALS["training_mfu"], "{:.1%}"),
        least("training of 4B on 16k tokens at 1.3 times an eager PyTorch step", large, "ratio", GOALS["training_ratio"], "{:.2f} times"),
        most("log-probabilities that differ by 2⁻⁸ nats on average", [a["mean"] for a in rough], BF16),
        most("and by 2⁻⁸ of a uniform one, ln(vocabulary), at most", [a["largest"] for a in rough], widest),
        most("log-probabilities that do not differ in determinism mode", [f["agreement"]["largest"] for f in steps if "determinism" in f["options"]], 0),
        most("no bytes of weights copied from sampling to training", [f["turnaround"]["weight_bytes_copied"] for f in steps], 0, "{:d} bytes"),
        most("memory within the plan", used, 1, "{:.1%} of it"),
    ]


def describe(f):
    if "context" in f or "batch" in f:
        return f"{f['shape']}, batch {f['batch']}, context {f['prompt'] + f['new']}"
    if "groups" in f:
        return f"{f['shape']}, {f['groups']} x {f['episodes']} of {f['prompt']} + {f['new']}"
    return f"{f['shape']}, {f['sequences']} x {f.get('length', f.get('prompt'))}"


def cell(value, form="{:,.4g}"):
    return "" if value is None else form.format(value)


def table(title, header, rows):
    return ["", f"## {title}", "", "| " + " | ".join(header) + " |", "| --- " * len(header) + "|"] + ["| " + " | ".join(r) + " |" for r in rows] if rows else []


def told(f):
    """What distinguishes a setting from the plain one."""
    rank = f.get("lora_rank")
    return ", ".join(filter(None, [f["dtype"] if f["dtype"] != "bfloat16" else "", f"adapters of rank {rank}" if rank else "",
                                   "recomputed" if f.get("recompute") else "", f["options"], "on the CPU" if f["device"] == "cpu" else ""]))


def why(f, width):
    """Of a setting without figures, the reason in the place of so many cells."""
    text = f"**FAILED: {f['failed']}**" if "failed" in f else f"left out: {f['left_out']}" if "left_out" in f else None
    return text and [text.replace("|", "/").replace("\n", " ")] + [""] * (width - 1)


def rate_cells(f):
    eager = cell(f.get("peer_tokens_per_second")) + (", recomputed" if f.get("peer_recomputes") else "")
    return [cell(f.get("roofline_tokens_per_second")), cell(f.get("roofline_share"), "{:.0%}"), eager, cell(f.get("ratio"), "{:.2f}×")]


RATES = ["roofline", "share of it", "PyTorch", "ratio"]


def tables(ours):
    gib = lambda n: f"{n / 2**30:,.3g}"
    lines = table("Decoding", ["shape", "batch", "context", "", "tokens/s", "ms a step"] + RATES, [
        [f["shape"], str(f["batch"]), str(f["prompt"] + f["new"]), told(f)] + (why(f, 6) or [cell(f["tokens_per_second"]), cell(f["step_ms"])] + rate_cells(f))
        for f in ours["decode"]])
    lines += table("Prompts", ["shape", "prompts", "tokens of each", "", "tokens/s"] + RATES, [
        [f["shape"], str(f["sequences"]), str(f["prompt"]), told(f)] + (why(f, 5) or [cell(f["tokens_per_second"])] + rate_cells(f))
        for f in ours["prefill"]])
    lines += table("Training", ["shape", "sequences", "tokens of each", "", "tokens/s", "s a step", "MFU"] + RATES, [
        [f["shape"], str(f["sequences"]), str(f["length"]), told(f)] + (why(f, 7) or
            [cell(f["tokens_per_second"]), cell(f["seconds_per_step"]), cell(f.get("mfu"), "{:.1%}")] + rate_cells(f))
        for f in ours["training"]])
    steps = [f for f in ours["step"] if not why(f, 1)]
    lines += table("GRPO steps", ["shape", "groups", "episodes", "prompt + new", "", "tokens/s", "s", "play, s", "sampled/s", "update, s", "MFU of it"] + RATES, [
        [f["shape"], str(f["groups"]), str(f["episodes"]), f"{f['prompt']} + {f['new']}", told(f)] + (why(f, 10) or [
            cell(f[k]) for k in ("tokens_per_second", "seconds", "play_seconds", "sampled_tokens_per_second", "update_seconds")]
            + [cell(f.get("mfu"), "{:.1%}")] + rate_cells(f))
        for f in ours["step"]])
    lines += table("From sampling to training and back", ["step", "", "to training, ms", "to the next sampled token, ms", "bytes of weights copied"], [
        [describe(f), told(f), cell(1000 * t["to_training_seconds"]), cell(1000 * t["to_sampling_seconds"]), str(t["weight_bytes_copied"])]
        for f in steps for t in [f["turnaround"]]])
    lines += table("Agreement of log-probabilities, trained and sampled", ["step", "", "tokens", "largest difference", "mean"], [
        [describe(f), told(f), str(a["tokens"]), f"{a['largest']:.3g}", f"{a['mean']:.3g}"] for f in steps for a in [f["agreement"]]])
    kinds = ("weights", "gradients", "optimizer", "activations", "cache")
    lines += table("Memory: peak / plan, GiB", ["of", ""] + list(kinds) + ["all"], [
        [describe(f), told(f)] + [f"{gib(m['peak'][k])} / {gib(m['plan'][k])}" for k in kinds] + [f"{gib(m['peak_total'])} / {gib(m['plan_total'])}"]
        for kind in ("training", "step") for f in ours[kind] if "memory" in f for m in [f["memory"]]])
    return lines


FORMULAS = """
Rooflines are the least time in which products and copies of the rates above could do it
(scripts/bench/roofline.py). Decoding reads all weights and the whole cache once a step.
A training step takes 6·N + 6·L·H·T operations a token: N weights of the layers' products and
of the head, L layers, attention of width H, sequences of T tokens of which a token sees half;
with adapters of rank r 4·N + 6·r·A + 6·L·H·T, with A the adapters' weights of each rank. MFU
is the operations of these a second over the rate of products in the same type; what is
computed again, or of padding, does not count. Of a GRPO step, tokens are those of prompts and
episodes; its MFU is the update's. The column PyTorch is transformers' generate, with what the
tokens after the first take for decoding and the first for prompts, and an eager AdamW step on
bfloat16 weights (scripts/bench/peer.py), on the same machine in the same run, on cores of its
own while this program was built. Memory by purpose is of tensors, at different times; the sum
is at one time, and on a GPU has what libtorch's operations take for themselves, as the plan has
among activations.
""".strip()


def markdown(report, logs, ours):
    lines = [f"# {report['device']}", ""]
    if not report["gpus"]:
        lines += ["A rehearsal on the CPU: nothing below is a figure of a GPU.", ""]
    lines += [f"{report['date']}, {report['cores']} cores, commit {report['commit']}, libtorch {report['libtorch']}, made by scripts/gpu/check.sh "
              f"in {report['seconds']} s.", ""]
    lines += [f"- GPU: {g}" for g in report["gpus"]]
    if m := report["machine"]:
        lines += ["", f"Products reach {m['float32_gflops'] / 1e3:.4g} TFLOP/s in float32 and {m['bfloat16_gflops'] / 1e3:.4g} in bfloat16, "
                  f"copies {m['gb_per_second']:.4g} GB/s (PyTorch's, measured in this run)."]
    if late := [e["title"] for e, _ in logs if e["result"] == "left out"]:
        lines += ["", "There was no time left for: " + "; ".join(late) + "."]
    verdict = {True: "reached", False: "**not reached**", None: ""}
    lines += table("Goals", ["goal, on an H200", "found", ""], [[g["goal"], g["found"], verdict[g["reached"]]] for g in report["goals"]])
    lines += tables(ours)
    if any(ours.values()):
        lines += ["", FORMULAS]
    lines += table("Steps", ["step", "result", "seconds"], [
        [e["title"], e["result"] + (f" with status {e['status']}" if "status" in e else "")
         + (f", {len(e['skipped'])} skipped" if "skipped" in e else ""), str(e["seconds"])] for e, _ in logs])
    for entry, text in logs:
        if entry["result"] != "left out":
            lines += ["", f"## {entry['title']}", "", f"    {entry['command']}", "", "```", text, "```"]
    return "\n".join(lines) + "\n"


def main(sections, out, gpus, commit, libtorch, cores, seconds):
    gpus = gpus.splitlines()
    logs = list(read_sections(sections))
    machine, ours, peers = collect(logs)
    derive(machine, ours, peers)
    report = {
        "gpus": [] if gpus == ["no device"] else gpus, "device": gpus[0].split(",")[0],
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": commit, "libtorch": libtorch, "cores": int(cores), "seconds": int(seconds), "machine": machine,
        "goals": goals(ours, not gpus or gpus == ["no device"]), **ours, "peers": peers, "sections": [e for e, _ in logs],
    }
    name = pathlib.Path(out, re.sub(r"[^a-z0-9]+", "-", report["device"].lower()).strip("-"))
    name.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
    name.with_suffix(".md").write_text(markdown(report, logs, ours))
    print(f"report: {name}.md and {name}.json")
    return any(e["result"] in ("FAILED", "stopped") for e, _ in logs)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
