"""Writes model/testdata: tiny random checkpoints as transformers saves them, the
log-probabilities that transformers gives them in float32 and bfloat16, greedy
continuations, and what three AdamW steps of PyTorch make of them.

    python3 scripts/reference/model.py model/testdata [CASE ...]

With --check DIR it loads a checkpoint that this project saved, fails on any
warning, and prints the log-probabilities of DIR/tokens.json's sequences; with
--check DIR ADAPTER, under the adapter in that folder, which is read as PEFT
documents its files and computed beside the matrices, not merged into them.
"""
import copy
import json
import logging
import math
import sys
import warnings
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM, CwmConfig, CwmForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM,
    Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM)

SHAPE = dict(
    vocab_size=61, hidden_size=32, intermediate_size=44, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.2, bos_token_id=1, eos_token_id=[2, 3],
)
SMALL = dict(
    vocab_size=47, hidden_size=24, intermediate_size=28, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=128, initializer_range=0.25, bos_token_id=1, eos_token_id=2)
CASES = {
    "qwen2-tied": (Qwen2ForCausalLM, Qwen2Config(**SHAPE, rope_theta=1e6, rms_norm_eps=1e-6, tie_word_embeddings=True)),
    "llama-untied": (LlamaForCausalLM, LlamaConfig(
        **SHAPE, head_dim=10, rms_norm_eps=1e-5, tie_word_embeddings=False, rope_theta=5e5,
        rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                          original_max_position_embeddings=32))),
    # The windows are no multiple of a block of keys, and shorter than the sequences.
    "qwen2-window": (Qwen2ForCausalLM, Qwen2Config(
        **SMALL, num_hidden_layers=3, rope_theta=1e4, use_sliding_window=True, sliding_window=37, max_window_layers=1,
        rope_scaling=dict(rope_type="linear", factor=2.5))),
    "qwen3-yarn": (Qwen3ForCausalLM, Qwen3Config(
        **SMALL, num_hidden_layers=2, head_dim=14, tie_word_embeddings=True, rope_theta=1e4,
        rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32))),
    "mistral-window": (MistralForCausalLM, MistralConfig(
        **SMALL, num_hidden_layers=2, rope_theta=1e5, sliding_window=11)),
    "cwm": (CwmForCausalLM, CwmConfig(
        **SMALL, num_hidden_layers=5, head_dim=8, sliding_window=19, rope_parameters=dict(
            rope_type="llama3", rope_theta=1e6, factor=16.0, low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=8))),
}
# How a checkpoint is stored, where not as one file of float32.
STORED = {"mistral-window": dict(dtype=torch.float16, max_shard_size="12KB"), "cwm": dict(dtype=torch.bfloat16)}
LENGTHS = [40, 1, 7, 100]
STEPS = 3
GREEDY = 40  # tokens that continue each prompt
ADAMW = dict(lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
CLIP = 1.0


def logprobs(model, ids):
    logits = model(torch.tensor([ids]), use_cache=False).logits[0].float()
    lp = torch.log_softmax(logits[:-1], -1)
    return lp[torch.arange(len(ids) - 1), ids[1:]]


def greedy(model, ids):
    """prompt, continuation: the most likely token again and again, whatever it is."""
    prompt = torch.tensor([ids])
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=GREEDY,
                         eos_token_id=None, pad_token_id=0)[0].tolist()
    return [ids, out[len(ids):]]


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
    stored = STORED.get(name, {})
    dtype = stored.get("dtype", torch.float32)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.to(dtype))
    # A copy: the frequencies of rotary embeddings stay in float32.
    copy.deepcopy(model).to(dtype).save_pretrained(folder, max_shard_size=stored.get("max_shard_size", "1GB"))
    (folder / "generation_config.json").unlink(missing_ok=True)
    sequences = [torch.randint(0, config.vocab_size, (n,), generator=generator).tolist() for n in LENGTHS]
    golden = dict(transformers=transformers.__version__, torch=torch.__version__, sequences=sequences)
    with torch.no_grad():
        golden["logprobs"] = [[0.0] + logprobs(model, s).tolist() for s in sequences]
        half = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        golden["bfloat16"] = [[0.0] + logprobs(half, s).tolist() for s in sequences]
        golden["greedy"] = [greedy(model, s[:prompt]) for s, prompt in zip(sequences, [40, 1, 7, 70])]

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


def adapt(model, folder):
    """Adds LoRA as https://huggingface.co/docs/peft/developer_guides/checkpoint describes it."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["peft_type"], config["task_type"], config["bias"]) == ("LORA", "CAUSAL_LM", "none"), config
    tensors, scale = load_file(folder / "adapter_model.safetensors"), config["lora_alpha"] / config["r"]
    used = 0
    for name, module in model.named_modules():
        if name.split(".")[-1] not in config["target_modules"]:
            continue
        if config["layers_to_transform"] and int(name.split(".")[2]) not in config["layers_to_transform"]:
            continue
        a, b = (tensors[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
        assert a.shape == (config["r"], module.in_features) and b.shape == (module.out_features, config["r"]), name
        module.register_forward_hook(lambda _, inputs, out, a=a, b=b: out + scale * (inputs[0] @ a.T) @ b.T)
        used += 2
    if used != len(tensors) or not used:
        sys.exit(f"{len(tensors)} tensors in the adapter, {used} have a module")


def check(folder, adapter=None):
    warnings.simplefilter("error")

    class Fail(logging.Handler):
        def emit(self, record):
            if record.levelno >= logging.WARNING:
                sys.exit(f"transformers warned: {record.getMessage()}")

    transformers.logging.get_logger("transformers").addHandler(Fail())
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    if any(info.values()):
        sys.exit(f"loading: {info}")
    if adapter:
        adapt(model, adapter)
    with torch.no_grad():
        json.dump([[0.0] + logprobs(model, s).tolist() for s in json.loads((folder / "tokens.json").read_text())], sys.stdout)


if sys.argv[1] == "--check":
    check(*map(Path, sys.argv[2:]))
else:
    for name, (cls, config) in CASES.items():
        if name in (sys.argv[2:] or CASES):
            write(Path(sys.argv[1]), name, cls, config)
