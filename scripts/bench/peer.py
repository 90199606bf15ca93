"""What a user would run instead, for compare.py: Hugging Face generate and an
eager PyTorch training step, on a random policy of the same shape. Runs inside
the reference stack; prints one JSON object of tokens per second.

    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive python3 peer.py '{"prompt": 128, ...}'
"""
import json
import sys
import time

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

spec = json.loads(sys.argv[1])
torch.manual_seed(0)
config = Qwen2Config(
    vocab_size=2048, hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=6,
    num_key_value_heads=2, max_position_embeddings=4096, rms_norm_eps=1e-6, tie_word_embeddings=True,
    bos_token_id=None, eos_token_id=None, pad_token_id=0,
)
model = Qwen2ForCausalLM(config).eval()
result = {"parameters": sum(p.numel() for p in model.parameters()), "threads": torch.get_num_threads()}


def generate(batch):
    """New tokens per second for spec["batch"] sequences, batch of them at a time."""
    ids = torch.randint(0, 2048, (batch, spec["prompt"]))
    new = spec["new"]
    kwargs = dict(do_sample=True, temperature=1.0, top_k=0, max_new_tokens=new, min_new_tokens=new,
                  attention_mask=torch.ones_like(ids))
    with torch.inference_mode():
        model.generate(ids[:, :8], **{**kwargs, "max_new_tokens": 4, "min_new_tokens": 4, "attention_mask": torch.ones_like(ids[:, :8])})
        began, done = time.perf_counter(), 0
        while done < spec["batch"]:
            out = model.generate(ids, **kwargs)
            assert out.shape == (batch, spec["prompt"] + new), out.shape
            done += batch
        return done * new / (time.perf_counter() - began)


def train():
    """Tokens per second of whole AdamW steps."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    ids = torch.randint(0, 2048, (spec["train"], spec["length"]))
    for step in range(3):
        if step == 1:  # the first warms up
            began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        logits = model(ids, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, 2048), ids[:, 1:].reshape(-1)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return 2 * ids.numel() / (time.perf_counter() - began)


for batch in spec["batches"]:
    result[f"generate, {batch} at a time"] = generate(batch)
result["train"] = train()
print(json.dumps(result))
