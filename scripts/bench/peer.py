"""What a user would run instead, for compare.py and scripts/gpu: Hugging Face generate
and an eager PyTorch training step, on a given checkpoint, or on random weights where
there is a config.json alone. Runs inside the reference stack; prints one JSON object.

    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive python3 peer.py '{"model": DIR, "batches": [1, 8], ...}'
    python3 peer.py '{"machine": "cuda:0"}'     # what products and copies reach at best
"""
import glob
import json
import sys
import time

import torch


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


class Peer:
    def __init__(self, spec):
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(0)
        self.spec, self.device = spec, spec.get("device", "cpu")
        dtype = getattr(torch, spec.get("dtype", "float32"))
        if glob.glob(spec["model"] + "/*.safetensors"):
            model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=dtype)
        else:
            with torch.device(self.device):
                model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(spec["model"]), dtype=dtype)
        self.model = model.to(self.device).eval()
        self.vocabulary = model.config.vocab_size
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0

    def tokens(self, *shape):
        return torch.randint(0, self.vocabulary, shape, device=self.device)

    def generate(self, ids, new, **options):
        with torch.inference_mode():
            out = self.model.generate(ids, max_new_tokens=new, min_new_tokens=new, attention_mask=torch.ones_like(ids), **options)
        assert out.shape == (len(ids), ids.shape[1] + new), out.shape
        return out

    def sampling(self, batch):
        """New tokens per second for batch sequences side by side."""
        ids = self.tokens(batch, self.spec["prompt"])
        options = dict(do_sample=True, temperature=1.0, top_k=0)
        self.generate(ids[:, :8], 2, **options)
        synchronize(self.device)
        began, done = time.perf_counter(), 0
        while done == 0 or time.perf_counter() - began < self.spec["seconds"]:
            self.generate(ids, self.spec["new"], **options)
            synchronize(self.device)
            done += batch * self.spec["new"]
        return done / (time.perf_counter() - began)

    def training(self):
        """Tokens per second of whole AdamW steps."""
        model = self.model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
        ids = self.tokens(self.spec["train"], self.spec["length"])
        steps = 0
        while True:
            synchronize(self.device)
            if steps == 1:  # the first warms up
                began = time.perf_counter()
            if steps > 1 and time.perf_counter() - began > self.spec["seconds"]:
                return (steps - 1) * ids.numel() / (time.perf_counter() - began)
            optimizer.zero_grad(set_to_none=True)
            logits = model(ids, use_cache=False).logits
            torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, self.vocabulary), ids[:, 1:].reshape(-1)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            steps += 1

    def result(self):
        if "greedy" in self.spec:
            ids = torch.tensor([self.spec["greedy"]], device=self.device)
            return {"greedy": self.generate(ids, self.spec["new"], do_sample=False)[0, ids.shape[1]:].tolist()}
        return {
            "sampling": {batch: self.sampling(batch) for batch in self.spec.get("batches", [])},
            "training": self.training() if self.spec.get("train") else None,
        }


spec = json.loads(sys.argv[1])
print(json.dumps(machine(spec["machine"]) if "machine" in spec else Peer(spec).result()))
