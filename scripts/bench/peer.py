"""What a user would run instead, for compare.py and scripts/gpu: Hugging Face generate
and an eager PyTorch training step, on a given checkpoint, or on random weights where
there is a config.json alone. Runs inside the reference stack; prints a JSON object, or
for a list of tasks a line of JSON for each setting, as soon as it is measured.

    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive python3 peer.py '{"model": DIR, "batches": [1, 8], ...}'
    python3 peer.py '[{"machine": "cuda:0"}, {"model": DIR, "decode": [[16, 960]], "new": 32}, ...]' [SECONDS]

A machine is what its products and copies reach at best. Of a model, with its "device",
"dtype" and "seconds", a task has one of
  decode    [[batch, prompt], ...] with "new" tokens of each sequence;
  training  [[sequences, length], ...], with "lora_rank" of adapters;
  step      [[groups, episodes, prompt], ...] with "new": generate, and a GRPO update.
After SECONDS the settings that are not begun are left out, as are those that fail.
"""
import gc
import glob
import json
import sys
import time

import torch

MICRO_BATCH = 16384  # tokens that go through the model at once in training


def synchronize(device):
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def rate(device, work, f):
    """work a second, the best of five rounds."""
    best = 0
    for _ in range(5):
        synchronize(device)
        began = time.perf_counter()
        for _ in range(10):
            f()
        synchronize(device)
        best = max(best, 10 * work / (time.perf_counter() - began))
    return best


def machine(device):
    """Operations of products by dtype, in GFLOP/s, and what a copy reads and writes, in GB/s."""
    n = 8192 if device.startswith("cuda") else 1024
    result = {}
    with torch.inference_mode():
        for name in ("float32", "bfloat16"):
            a, b = (torch.randn(n, n, device=device, dtype=getattr(torch, name)) for _ in range(2))
            out = torch.empty_like(a)
            result[name + "_gflops"] = rate(device, 2 * n**3, lambda: torch.mm(a, b, out=out)) / 1e9
        source = torch.zeros(1 << 28 if device.startswith("cuda") else 1 << 26, device=device)
        target = torch.empty_like(source)
        result["gb_per_second"] = rate(device, 8 * len(source), lambda: target.copy_(source)) / 1e9
    return result


class Adapted(torch.nn.Module):
    """A projection that is frozen, beside an adapter that is trained (LoRA, arXiv 2106.09685)."""

    def __init__(self, base, rank):
        super().__init__()
        self.base = base.requires_grad_(False)
        options = dict(device=base.weight.device, dtype=base.weight.dtype)
        self.a = torch.nn.Parameter(torch.randn(rank, base.in_features, **options) / base.in_features**0.5)
        self.b = torch.nn.Parameter(torch.zeros(base.out_features, rank, **options))

    def forward(self, x):
        return self.base(x) + (x @ self.a.T) @ self.b.T


class Peer:
    def __init__(self, spec):
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(0)
        self.spec, self.device = spec, spec.get("device", "cpu")
        dtype = getattr(torch, spec.get("dtype", "float32"))
        if glob.glob(spec["model"] + "/*.safetensors"):
            model = AutoModelForCausalLM.from_pretrained(spec["model"])
        else:
            torch.set_default_dtype(dtype)
            with torch.device(self.device):
                model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(spec["model"]))
            torch.set_default_dtype(torch.float32)
        self.model = model.to(self.device, dtype).eval()
        self.vocabulary = model.config.vocab_size
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0
        if rank := spec.get("lora_rank"):
            model.requires_grad_(False)
            for layer in model.model.layers:
                for module in (layer.self_attn, layer.mlp):
                    for name, child in list(module.named_children()):
                        if isinstance(child, torch.nn.Linear):
                            setattr(module, name, Adapted(child, rank))
        self.optimizer = None

    def tokens(self, *shape):
        return torch.randint(0, self.vocabulary, shape, device=self.device)

    def generate(self, ids, new, **options):
        with torch.inference_mode():
            out = self.model.generate(ids, max_new_tokens=new, min_new_tokens=new, attention_mask=torch.ones_like(ids), **options)
        assert out.shape == (len(ids), ids.shape[1] + new), out.shape
        return out

    def sample(self, ids, new):
        """At temperature 1."""
        return self.generate(ids, new, do_sample=True, temperature=1.0, top_k=0)

    def seconds(self, f):
        synchronize(self.device)
        began = time.perf_counter()
        f()
        synchronize(self.device)
        return time.perf_counter() - began

    def sampling(self, batch):
        """New tokens per second for batch sequences side by side."""
        ids = self.tokens(batch, self.spec["prompt"])
        self.sample(ids[:, :8], 2)
        synchronize(self.device)
        began, done = time.perf_counter(), 0
        while done == 0 or time.perf_counter() - began < self.spec["seconds"]:
            self.sample(ids, self.spec["new"])
            synchronize(self.device)
            done += batch * self.spec["new"]
        return done / (time.perf_counter() - began)

    def decode(self, batch, prompt):
        """Of runs of generate, for one new token and for several more, what the difference takes,
        and what the first. Each counts at its best of two rounds or more."""
        ids, new = self.tokens(batch, prompt), self.spec["new"]
        short = long = float("inf")
        began, rounds = time.perf_counter(), 0
        while rounds < 2 or time.perf_counter() - began < self.spec["seconds"]:
            rounds += 1
            short = min(short, self.seconds(lambda: self.sample(ids, 1)))
            long = min(long, self.seconds(lambda: self.sample(ids, 1 + new)))
        if long <= short:
            raise RuntimeError(f"{new} more tokens took no longer: {long} s, and {short} s without")
        return {"batch": batch, "prompt": prompt, "new": new, "tokens_per_second": batch * new / (long - short),
                "prefill_tokens_per_second": batch * prompt / short}

    def tidy(self):
        """Gives back what an update that failed has left."""
        self.model.zero_grad(set_to_none=True)
        gc.collect()
        torch.cuda.empty_cache()

    def update(self, ids, loss):
        """An AdamW step on sequences, a micro-batch at a time: loss is of its logits and which sequences they are of."""
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-6)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        rows = max(1, MICRO_BATCH // ids.shape[1])
        for lo in range(0, len(ids), rows):
            part = slice(lo, lo + rows)
            loss(self.model(ids[part], use_cache=False).logits, part).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def patiently(self, f):
        """The best time of f after a first run, keeping activations, or where they do not fit computing them again."""
        full = False
        try:
            f()
        except torch.cuda.OutOfMemoryError:
            full = True  # what it had is not free before the exception has gone
        if full:
            self.tidy()
            self.model.gradient_checkpointing_enable()
            self.model.enable_input_require_grads()
            f()
        best, began = float("inf"), time.perf_counter()
        while best == float("inf") or time.perf_counter() - began < self.spec["seconds"]:
            best = min(best, self.seconds(f))
        return best

    def training(self, sequences, length):
        """Tokens per second of whole AdamW steps."""
        ids = self.tokens(sequences, length)

        def loss(logits, part):
            targets = ids[part, 1:]
            return torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, self.vocabulary), targets.reshape(-1)) * len(targets) / sequences

        seconds = self.patiently(lambda: self.update(ids, loss))
        return {"sequences": sequences, "length": length, "lora_rank": self.spec.get("lora_rank", 0),
                "recompute": self.model.is_gradient_checkpointing, "tokens_per_second": ids.numel() / seconds}

    def step(self, groups, episodes, prompt):
        """Seconds of a GRPO step: generate, advantages, and one on-policy update, whose gradient is that of
        the mean of each sequence's advantage times its log-probabilities."""
        new, n = self.spec["new"], groups * episodes

        def once():
            self.model.eval()
            ids = self.sample(self.tokens(groups, prompt).repeat_interleave(episodes, 0), new).clone()
            rewards = (ids[:, prompt:] % 2 == 0).float().mean(1).view(groups, episodes)
            advantages = ((rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-6)).view(n)

            def loss(logits, part):
                logits, targets = logits[:, prompt - 1:-1], ids[part, prompt:]
                nll = torch.nn.functional.cross_entropy(logits.reshape(-1, self.vocabulary), targets.reshape(-1), reduction="none")
                return (nll.view(targets.shape).mean(1) * advantages[part]).sum() / n

            self.update(ids, loss)

        seconds = self.patiently(once)
        return {"groups": groups, "episodes": episodes, "prompt": prompt, "new": new, "lora_rank": self.spec.get("lora_rank", 0),
                "recompute": self.model.is_gradient_checkpointing, "seconds": seconds, "tokens_per_second": n * (prompt + new) / seconds}

    def result(self):
        """Of compare.py's specification."""
        if "greedy" in self.spec:
            ids = torch.tensor([self.spec["greedy"]], device=self.device)
            return {"greedy": self.generate(ids, self.spec["new"], do_sample=False)[0, ids.shape[1]:].tolist()}
        return {
            "sampling": {batch: self.sampling(batch) for batch in self.spec.get("batches", [])},
            "training": self.training(self.spec["train"], self.spec["length"])["tokens_per_second"] if self.spec.get("train") else None,
        }


def reason(error):
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def measure(tasks, deadline):
    for spec in tasks:
        if "machine" in spec:
            yield {"kind": "machine", **machine(spec["machine"])}
            continue
        kind = next(k for k in ("decode", "training", "step") if k in spec)
        peer = None
        for setting in spec[kind]:
            line = {"kind": kind, "model": spec["model"], "dtype": spec.get("dtype", "float32"), "setting": setting,
                    "lora_rank": spec.get("lora_rank", 0)}
            try:
                if time.monotonic() > deadline:
                    raise TimeoutError("no time was left")
                peer = peer or Peer(spec)
                line |= getattr(peer, kind)(*setting)
            except (RuntimeError, TimeoutError) as error:
                line["left_out"] = reason(error)
            if "left_out" in line and peer:
                peer.tidy()
            yield line
        peer = None
        gc.collect()
        torch.cuda.empty_cache()


spec = json.loads(sys.argv[1])
if isinstance(spec, list):
    for line in measure(spec, time.monotonic() + float(sys.argv[2] if len(sys.argv) > 2 else "inf")):
        print(json.dumps(line), flush=True)
else:
    print(json.dumps(machine(spec["machine"]) if "machine" in spec else Peer(spec).result()))
