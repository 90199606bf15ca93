"""What a user would run instead, for compare.py: Hugging Face generate and an
eager PyTorch training step, on a given checkpoint. Runs inside the reference
stack; prints one JSON object.

    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive python3 peer.py '{"model": DIR, "batches": [1, 8], ...}'
"""
import json
import sys
import time

import torch
from transformers import Qwen2ForCausalLM

spec = json.loads(sys.argv[1])
torch.manual_seed(0)
model = Qwen2ForCausalLM.from_pretrained(spec["model"], dtype=torch.float32).eval()
vocabulary = model.config.vocab_size
model.generation_config.eos_token_id = None
model.generation_config.pad_token_id = 0


def generate(ids, new, **options):
    with torch.inference_mode():
        out = model.generate(ids, max_new_tokens=new, min_new_tokens=new, attention_mask=torch.ones_like(ids), **options)
    assert out.shape == (len(ids), ids.shape[1] + new), out.shape
    return out


def sampling(batch):
    """New tokens per second for batch sequences side by side."""
    ids = torch.randint(0, vocabulary, (batch, spec["prompt"]))
    options = dict(do_sample=True, temperature=1.0, top_k=0)
    generate(ids[:, :8], 2, **options)
    began, done = time.perf_counter(), 0
    while done == 0 or time.perf_counter() - began < spec["seconds"]:
        generate(ids, spec["new"], **options)
        done += batch * spec["new"]
    return done / (time.perf_counter() - began)


def train():
    """Tokens per second of whole AdamW steps."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    ids = torch.randint(0, vocabulary, (spec["train"], spec["length"]))
    steps = 0
    while True:
        if steps == 1:  # the first warms up
            began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        logits = model(ids, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, vocabulary), ids[:, 1:].reshape(-1)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if steps > 0 and time.perf_counter() - began > spec["seconds"]:
            return steps * ids.numel() / (time.perf_counter() - began)
        steps += 1


if "greedy" in spec:
    ids = torch.tensor([spec["greedy"]])
    result = {"greedy": generate(ids, spec["new"], do_sample=False)[0, ids.shape[1]:].tolist()}
else:
    result = {"sampling": {batch: sampling(batch) for batch in spec["batches"]}, "training": train() if spec["train"] else None}
print(json.dumps(result))
