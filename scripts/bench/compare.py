#!/usr/bin/env python3
"""Our sampling and training beside Hugging Face generate and an eager PyTorch
step, on this machine, run alternately so that both meet the same neighbours.
A peer counts at its best setting: every combination of thread settings and
batch sizes below is measured, and the best median is the one compared with.

    REFERENCE_ROOT=DIR scripts/bench/compare.py [--rounds 5] [--json]

REFERENCE_ROOT is a root folder with python3-torch and python3-transformers, for
instance

    mmdebstrap --variant=minbase --include=python3-torch,python3-transformers,libopenblas0-pthread sid DIR

with /proc, /dev and /sys mounted in it (torch misreads the processor without);
it is entered with chroot, so this needs root. Build bin/ssr first.
"""
import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


def fail(message):
    sys.exit(f"compare.py: {message}")


def run(command, env=None):
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=1800)
    if done.returncode != 0:
        fail(f"{' '.join(command[:4])} … ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout[done.stdout.index("{"):])


def ours(args):
    return run(args.ours.split() + [
        "--json", "--parts=sampling,training", f"--seconds={args.seconds}s", f"--batch={args.batch}",
        f"--prompt={args.prompt}", f"--new={args.new}", f"--train={args.train}", f"--length={args.length}",
    ])


def peer(args, root, threads):
    spec = {"prompt": args.prompt, "new": args.new, "batch": args.batch, "train": args.train, "length": args.length,
            "batches": sorted({min(32, args.batch), args.batch})}
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "HF_HUB_OFFLINE": "1", **threads}
    return run(["chroot", root, "python3", "/tmp/ssr-bench-peer.py", json.dumps(spec)], env)


def processor():
    with open("/proc/cpuinfo") as f:
        return next((line.split(":")[1].strip() for line in f if line.startswith("model name")), platform.machine())


def main():
    p = argparse.ArgumentParser(description="Compare with Hugging Face generate and an eager PyTorch step.")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--seconds", type=int, default=10, help="time for each of our parts per round")
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--prompt", type=int, default=128)
    p.add_argument("--new", type=int, default=64)
    p.add_argument("--train", type=int, default=16, help="sequences of a training step")
    p.add_argument("--length", type=int, default=512, help="tokens of each")
    p.add_argument("--ours", default=os.path.join(HERE, "../../bin/ssr") + " bench", help="the command to measure")
    p.add_argument("--json", action="store_true")
    args = p.parse_args()
    root = os.environ.get("REFERENCE_ROOT") or fail("set REFERENCE_ROOT; see --help at the top of this file")
    if not os.path.ismount(os.path.join(root, "proc")):
        fail(f"{root}/proc is not mounted: mount -t proc proc {root}/proc; mount --rbind /sys {root}/sys; mount --rbind /dev {root}/dev")
    shutil.copy(os.path.join(HERE, "peer.py"), os.path.join(root, "tmp/ssr-bench-peer.py"))

    cores = len(os.sched_getaffinity(0))
    settings = {
        f"{cores} threads, passive": {"OMP_NUM_THREADS": str(cores), "OMP_WAIT_POLICY": "passive"},
        "1 thread": {"OMP_NUM_THREADS": "1"},
    }
    our, their = {}, {}

    def note(table, key, value):
        table.setdefault(key, []).append(value)

    for round in range(args.rounds):
        print(f"round {round + 1} of {args.rounds}, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
        result = ours(args)
        for key in ("sampling_tokens_per_second", "training_tokens_per_second", "first_token_seconds"):
            note(our, key, result[key])
        for name, threads in settings.items():
            for key, value in peer(args, root, threads).items():
                if key.startswith("generate") or key == "train":
                    note(their, f"{key}, {name}", value)

    def best(kind):
        return max(((statistics.median(v), k) for k, v in their.items() if k.startswith(kind)), default=(0, ""))

    rows = []
    for what, key, kind in (("sampling", "sampling_tokens_per_second", "generate"), ("training", "training_tokens_per_second", "train")):
        mine, (other, setting) = statistics.median(our[key]), best(kind)
        rows.append({"what": what, "ours": mine, "peer": other, "peer_setting": setting, "ratio": mine / other})
    report = {
        "processor": processor(), "cores": cores, "rounds": args.rounds, "batch": args.batch, "prompt": args.prompt,
        "new": args.new, "first_token_seconds": statistics.median(our["first_token_seconds"]), "comparison": rows,
        "all": {"ours": our, "peer": their},
    }
    if args.json:
        print(json.dumps(report, indent=1))
        return
    print(f"{report['processor']}, {cores} cores, medians of {args.rounds} rounds; {args.batch} sequences, "
          f"{args.prompt} prompt and {args.new} new tokens; training steps of {args.train} × {args.length}.\n")
    print("| tokens/s | ours | peer at its best | ratio |\n| --- | --- | --- | --- |")
    for r in rows:
        print(f"| {r['what']} | {r['ours']:,.0f} | {r['peer']:,.0f} ({r['peer_setting']}) | {r['ratio']:.1f}× |")
    print(f"\nFirst token {report['first_token_seconds']:.2f} s after the process started.")
    print("\n| all settings of the peer | median | lowest | highest |\n| --- | --- | --- | --- |")
    for key, v in sorted(their.items()):
        print(f"| {key} | {statistics.median(v):,.0f} | {min(v):,.0f} | {max(v):,.0f} |")


if __name__ == "__main__":
    main()
