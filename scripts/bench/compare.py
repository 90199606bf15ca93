#!/usr/bin/env python3
"""Our sampling and training beside what a user would run instead, on this machine,
in turns so that all meet the same neighbours: llama.cpp, Hugging Face generate and an
eager PyTorch step, on the same random weights at three sizes. First it is checked
that all continue a prompt with the same tokens. A peer counts at its best setting of
threads; beside all of it stands the roofline, from what this machine was measured to
reach. Build bin/ssr first.

    LLAMA_CPP=DIR REFERENCE_ROOT=DIR scripts/bench/compare.py [--json FILE]

LLAMA_CPP is a folder with llama-batched-bench and llama-server, compiled for this
processor. REFERENCE_ROOT is a root folder with python3-torch and
python3-transformers, for instance

    mmdebstrap --variant=minbase --include=python3-torch,python3-transformers,libopenblas0-pthread sid DIR

with /proc, /dev and /sys mounted in it (torch misreads the processor without);
it is entered with chroot, so this needs root. Either may be absent.
"""
import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

import gguf
from roofline import Roofline

HERE = os.path.dirname(os.path.abspath(__file__))
CORES = len(os.sched_getaffinity(0))
# What is measured at each size, in about eight minutes altogether on two idle cores.
SIZES = {
    "2M": dict(rounds=2, prompt=32, new=64, train=16, length=512, threads=sorted({1, CORES})),
    "20M": dict(rounds=2, prompt=32, new=32, train=4, length=512, threads=sorted({1, CORES})),
    "0.5B": dict(rounds=1, prompt=16, new=8, train=2, length=128, threads=[CORES]),
}
CHECKED = 12  # tokens that all have to agree on
BYTES = {"float32": 4, "bfloat16": 2}


def fail(message):
    sys.exit(f"compare.py: {message}")


def run(command, env=None):
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=1800)
    if done.returncode != 0:
        fail(f"{' '.join(command[:4])} … ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


class Ours:
    def __init__(self, command, workers):
        self.command, self.workers = command.split(), workers

    def bench(self, *options):
        return json.loads(run(self.command + ["--json", f"--workers={self.workers}", *options]))

    def save(self, size, dtype, folder):
        run(self.command + [f"--shape={size}", f"--dtype={dtype}", f"--save={folder}"])

    def greedy(self, folder, prompt):
        return self.bench(f"--model={folder}", "--parts=greedy", f"--prompt={len(prompt)}", f"--new={CHECKED}")["greedy"]

    def measure(self, m, folder, dtype, note):
        last = m["batches"][-1]
        for batch in m["batches"]:
            parts = "sampling,training" if batch == last and dtype == "float32" and m["train"] else "sampling"
            r = self.bench(
                f"--model={folder}", f"--dtype={dtype}", f"--parts={parts}", f"--seconds={m['seconds']}s", f"--batch={batch}",
                f"--prompt={m['prompt']}", f"--new={m['new']}", f"--train={m['train']}", f"--length={m['length']}")
            note(f"ours, {dtype}", f"sampling, {batch}", r["sampling_tokens_per_second"])
            if "training" in parts:
                note("ours, float32", "training", r["training_tokens_per_second"])


class LlamaCpp:
    def __init__(self, folder):
        for name in ("llama-batched-bench", "llama-server"):
            if not os.access(os.path.join(folder, name), os.X_OK):
                fail(f"LLAMA_CPP={folder} has no {name}")
        self.folder = folder

    def greedy(self, path, prompt):
        """The tokens that llama-server continues with, its cache in float32 too."""
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        with tempfile.TemporaryFile() as log:
            server = subprocess.Popen(
                [os.path.join(self.folder, "llama-server"), "-m", path, "--host", "127.0.0.1", "--port", str(port), "-c", "512",
                 "-np", "1", "-t", "1", "-ctk", "f32", "-ctv", "f32"], stdout=log, stderr=log)
            try:
                body = {"prompt": prompt, "n_predict": CHECKED, "temperature": 0, "return_tokens": True, "ignore_eos": True,
                        "cache_prompt": False}
                for _ in range(600):
                    try:
                        urllib.request.urlopen(f"http://127.0.0.1:{port}/health").read()
                        break
                    except OSError:  # not there yet, or status 503 while it loads
                        if server.poll() is not None:
                            log.seek(0)
                            fail(f"llama-server ended:\n{log.read().decode(errors='replace')[-2000:]}")
                        time.sleep(0.5)
                request = urllib.request.Request(f"http://127.0.0.1:{port}/completion", json.dumps(body).encode(),
                                                 {"Content-Type": "application/json"})
                return json.load(urllib.request.urlopen(request))["tokens"]
            finally:
                server.kill()
                server.wait()

    def measure(self, m, path, dtype, note):
        """Its benchmark feeds random tokens back: it pays for the logits but not for drawing.
        Version 0.7.0 may end before its last line is out, so one more batch follows."""
        context = m["batches"][-1] * -(-(m["prompt"] + m["new"]) // 256) * 256  # it gives each sequence a multiple of 256
        for threads in m["threads"]:
            out = run([os.path.join(self.folder, "llama-batched-bench"), "-m", path, "-c", str(context), "-t", str(threads),
                       "-npp", str(m["prompt"]), "-ntg", str(m["new"]), "-npl", ",".join(map(str, m["batches"] + [1])),
                       "--output-format", "jsonl"])
            results = [json.loads(line) for line in out.splitlines() if line.startswith("{")][:len(m["batches"])]
            if [r["pl"] for r in results] != m["batches"]:
                fail(f"llama-batched-bench measured batches of {[r['pl'] for r in results]}, not {m['batches']}")
            for r in results:
                note(f"llama.cpp, {dtype}, {threads} threads", f"sampling, {r['pl']}", r["pl"] * r["tg"] / (r["t_pp"] + r["t_tg"]))


class Transformers:
    def __init__(self, root):
        if not os.path.ismount(os.path.join(root, "proc")):
            fail(f"{root}/proc is not mounted: mount -t proc proc {root}/proc; mount --rbind /sys {root}/sys; mount --rbind /dev {root}/dev")
        self.root = root
        self.script = os.path.join(root, "tmp/ssr-bench-peer.py")
        shutil.copy(os.path.join(HERE, "peer.py"), self.script)

    def peer(self, folder, threads, **spec):
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "HF_HUB_OFFLINE": "1",
               "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
        spec["model"] = "/" + os.path.relpath(folder, self.root)
        out = run(["chroot", self.root, "python3", "/tmp/ssr-bench-peer.py", json.dumps(spec)], env)
        return json.loads(out[out.index("{"):])

    def greedy(self, folder, prompt):
        return self.peer(folder, 1, greedy=prompt, new=CHECKED)["greedy"]

    def measure(self, m, folder, note):
        for threads in m["threads"]:
            r = self.peer(folder, threads, **{k: m[k] for k in ("prompt", "new", "batches", "train", "length", "seconds")})
            name = f"transformers, float32, {threads} threads"
            for batch, rate in r["sampling"].items():
                note(name, f"sampling, {batch}", rate)
            if m["train"]:
                note(name, "training", r["training"])


def compare(size, m, ours, llama, transformers, machine, folder):
    print(f"{size}: making the model", file=sys.stderr)
    models, files = {}, {}
    for dtype in BYTES:
        models[dtype] = os.path.join(folder, dtype)
        ours.save(size, dtype, models[dtype])
        if llama:
            files[dtype] = models[dtype] + ".gguf"
            gguf.main(models[dtype], files[dtype])
    prompt = list(range(1, 17))
    tokens = {"ours": ours.greedy(models["float32"], prompt)}
    if llama:
        tokens["llama.cpp"] = llama.greedy(files["float32"], prompt)
    if transformers:
        tokens["transformers"] = transformers.greedy(models["float32"], prompt)
    if any(t != tokens["ours"] for t in tokens.values()):
        fail(f"{size}: after the same prompt and in float32, the greedy tokens differ: {tokens}")
    table = {}

    def note(who, what, rate):
        table.setdefault(what, {}).setdefault(who, []).append(rate)

    for r in range(m["rounds"]):
        print(f"{size}: round {r + 1} of {m['rounds']}, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
        for dtype in BYTES:
            ours.measure(m, models[dtype], dtype, note)
            if llama:
                llama.measure(m, files[dtype], dtype, note)
        if transformers:
            transformers.measure(m, models["float32"], note)

    roof = Roofline(models["float32"], machine)
    rows = []
    for what, by in table.items():
        best = {}
        for who, rates in by.items():
            name = ", ".join(who.split(", ")[:2])  # without its threads
            best[name] = max(best.get(name, 0), statistics.median(rates))
        if what == "training":
            roofs = {"float32": roof.training(m)}
        else:
            roofs = {d: roof.sampling(m, int(what.split(", ")[1]), w) for d, w in BYTES.items()}
        rows.append({
            "size": size, "what": what, "tokens_per_second": best,
            "roofline": {d: {"tokens_per_second": t, "operations_per_token": o, "bytes_per_token": b} for d, (t, o, b) in roofs.items()},
        })
    return {"setting": m, "greedy": tokens["ours"], "rows": rows, "all": table}


def ratio(row, ours, peer):
    best = row["tokens_per_second"]
    return f"{best[ours] / best[peer]:.2f}×" if peer in best and ours in best else "–"


def render(report):
    m = report["machine"]
    print(f"{report['processor']}, {report['cores']} cores: products at {m['gflops']:.0f} GFLOP/s, memory at {m['gb_per_second']:.1f} GB/s. "
          "Tokens per second, each at its best number of threads.\n")
    whos = ["ours, float32", "ours, bfloat16", "llama.cpp, float32", "llama.cpp, bfloat16", "transformers, float32"]
    print(f"| | {' | '.join(whos)} | ours to llama.cpp, float32, bfloat16 | to transformers | roofline, float32, bfloat16 | operations, bytes a token |")
    print("| --- " * (len(whos) + 5) + "|")
    for size in report["sizes"].values():
        for row in size["rows"]:
            cells = [f"{row['tokens_per_second'][w]:,.1f}" if w in row["tokens_per_second"] else "–" for w in whos]
            roofs = list(row["roofline"].values())
            rates = ", ".join(f"{r['tokens_per_second']:,.0f}" for r in roofs)
            moved = ", ".join(f"{r['bytes_per_token'] / 1e6:,.2f}" for r in roofs)
            print(f"| {row['size']}, {row['what']} | {' | '.join(cells)} | "
                  f"{ratio(row, 'ours, float32', 'llama.cpp, float32')}, {ratio(row, 'ours, bfloat16', 'llama.cpp, bfloat16')} | "
                  f"{ratio(row, 'ours, float32', 'transformers, float32')} | {rates} | "
                  f"{roofs[0]['operations_per_token'] / 1e6:,.1f} M, {moved} MB |")


def processor():
    with open("/proc/cpuinfo") as f:
        return next((line.split(":")[1].strip() for line in f if line.startswith("model name")), platform.machine())


def main():
    p = argparse.ArgumentParser(description="Compare with llama.cpp, Hugging Face generate and an eager PyTorch step.")
    p.add_argument("--sizes", default=",".join(SIZES), help="of " + ", ".join(SIZES))
    p.add_argument("--batches", default="1,8,64", help="sequences side by side")
    p.add_argument("--seconds", type=int, default=2, help="least time of each measurement of ours and of transformers")
    p.add_argument("--threads", type=int, help="threads of everybody; by default one per core, and one alone where a peer may like that better")
    for name, what in (("rounds", "how often everything is measured; medians count"), ("prompt", "tokens of each prompt"), ("new", "new tokens of each sequence"),
                       ("train", "sequences of a training step, 0 for no training"), ("length", "tokens of each")):
        p.add_argument(f"--{name}", type=int, help=what + "; by default by size")
    p.add_argument("--ours", default=os.path.join(HERE, "../../bin/ssr") + " bench", help="the command to measure")
    p.add_argument("--json", metavar="FILE", help="write every figure to FILE, too")
    args = p.parse_args()
    root, llama = os.environ.get("REFERENCE_ROOT"), os.environ.get("LLAMA_CPP")
    if not root and not llama:
        fail("set LLAMA_CPP or REFERENCE_ROOT; see the top of this file")
    sizes = args.sizes.split(",")
    if unknown := set(sizes) - set(SIZES):
        fail(f"no size {', '.join(unknown)}; there are {', '.join(SIZES)}")

    ours = Ours(args.ours, args.threads or CORES)
    llama = llama and LlamaCpp(llama)
    transformers = root and Transformers(root)
    report = {"processor": processor(), "cores": CORES, "machine": ours.bench("--parts=machine"), "sizes": {}}
    for size in sizes:
        m = SIZES[size] | {"batches": sorted(map(int, args.batches.split(","))), "seconds": args.seconds}
        m |= {k: v for k in ("rounds", "prompt", "new", "train", "length") if (v := getattr(args, k)) is not None}
        if args.threads:
            m["threads"] = [args.threads]
        with tempfile.TemporaryDirectory(prefix="ssr-bench-", dir=root and os.path.join(root, "tmp")) as folder:
            report["sizes"][size] = compare(size, m, ours, llama, transformers, report["machine"], folder)
    if args.json:
        with open(args.json, "w") as f:
            json.dump(report, f, indent=1)
    render(report)


if __name__ == "__main__":
    main()
