"""Writes model/testdata: tiny random checkpoints as transformers saves them, the
log-probabilities that transformers gives them in float32 and bfloat16, and what
three AdamW steps of PyTorch make of them.

    python3 scripts/reference/model.py model/testdata

With --check DIR it loads a checkpoint that this project saved, fails on any
warning, and prints the log-probabilities of DIR/tokens.json's sequences.
"""
import json
import logging
import math
import sys
import warnings
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

SHAPE = dict(
    vocab_size=61, hidden_size=32, intermediate_size=44, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.2, bos_token_id=1, eos_token_id=[2, 3],
)
CASES = {
    "qwen2-tied": (Qwen2ForCausalLM, Qwen2Config(**SHAPE, rope_theta=1e6, rms_norm_eps=1e-6, tie_word_embeddings=True)),
    "llama-untied": (LlamaForCausalLM, LlamaConfig(
        **SHAPE, head_dim=10, rms_norm_eps=1e-5, tie_word_embeddings=False, rope_theta=5e5,
        rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                          original_max_position_embeddings=32))),
}
LENGTHS = [40, 1, 7, 100]
STEPS = 3
ADAMW = dict(lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
CLIP = 1.0


def logprobs(model, ids):
    logits = model(torch.tensor([ids]), use_cache=False).logits[0].float()
    lp = torch.log_softmax(logits[:-1], -1)
    return lp[torch.arange(len(ids) - 1), ids[1:]]


def randomise(model, generator):
    """Biases and norms too, which start at 0 and 1."""
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p.copy_(1 + 0.3 * torch.randn(p.shape, generator=generator))


def write(out, name, cls, config):
    torch.manual_seed(sum(name.encode()))
    generator = torch.Generator().manual_seed(1)
    model = cls(config)
    randomise(model, generator)
    folder = out / name
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    sequences = [torch.randint(0, config.vocab_size, (n,), generator=generator).tolist() for n in LENGTHS]
    golden = dict(transformers=transformers.__version__, torch=torch.__version__, sequences=sequences)
    with torch.no_grad():
        golden["logprobs"] = [[0.0] + logprobs(model, s).tolist() for s in sequences]
        half = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        golden["bfloat16"] = [[0.0] + logprobs(half, s).tolist() for s in sequences]

    optimizer = torch.optim.AdamW([
        dict(params=[p for p in model.parameters() if p.dim() > 1]),
        dict(params=[p for p in model.parameters() if p.dim() == 1], weight_decay=0.0),
    ], **ADAMW)
    norms = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        i, loss = 0, 0.0
        for s in sequences:
            if len(s) > 1:
                weights = torch.tensor([math.cos(i + j) for j in range(1, len(s))])
                loss = loss + (weights * logprobs(model, s)).sum() / 10
            i += len(s)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP).item())
        optimizer.step()
    golden["grad_norms"] = norms
    save_file({n: p.detach() for n, p in model.named_parameters()}, folder / "trained.safetensors")
    (folder / "golden.json").write_text(json.dumps(golden) + "\n")


def check(folder):
    warnings.simplefilter("error")

    class Fail(logging.Handler):
        def emit(self, record):
            if record.levelno >= logging.WARNING:
                sys.exit(f"transformers warned: {record.getMessage()}")

    transformers.logging.get_logger("transformers").addHandler(Fail())
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    if any(info.values()):
        sys.exit(f"loading: {info}")
    with torch.no_grad():
        json.dump([[0.0] + logprobs(model, s).tolist() for s in json.loads((folder / "tokens.json").read_text())], sys.stdout)


if sys.argv[1] == "--check":
    check(Path(sys.argv[2]))
else:
    for name, (cls, config) in CASES.items():
        write(Path(sys.argv[1]), name, cls, config)
