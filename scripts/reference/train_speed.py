"""Eager PyTorch beside which training speed is given: AdamW steps over 16
sequences of 512 tokens of the 2 M-parameter Qwen2 shape. Prints tokens per
second, and per second of CPU time of one core times the cores (which leaves out
what other processes took).

    OMP_WAIT_POLICY=passive python3 train_speed.py [steps]
"""
import os
import resource
import sys
import time

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM


def cpu():
    u = resource.getrusage(resource.RUSAGE_SELF)
    return u.ru_utime + u.ru_stime


steps = int(sys.argv[1]) if len(sys.argv) > 1 else 5
torch.manual_seed(0)
config = Qwen2Config(
    vocab_size=2048, hidden_size=192, intermediate_size=512, num_hidden_layers=4,
    num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=1024,
    rms_norm_eps=1e-6, tie_word_embeddings=True,
)
model = Qwen2ForCausalLM(config)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
ids = torch.randint(0, 2048, (16, 512))
threads = torch.get_num_threads()
for step in range(steps + 1):
    if step == 1:  # the first warms up
        wall, used = time.time(), cpu()
    optimizer.zero_grad(set_to_none=True)
    logits = model(ids, use_cache=False).logits
    torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, 2048), ids[:, 1:].reshape(-1)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
n = steps * ids.numel()
print(f"threads {threads}: {n / (time.time() - wall):.0f} tokens/s, {n / ((cpu() - used) / threads):.0f} tokens/cpu-s")
