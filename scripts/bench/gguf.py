"""Writes a Qwen2 checkpoint of random weights as GGUF, so that llama.cpp measures
the very model that we measure. Of the weights nothing is changed: matrices keep
the type that they are stored in, and vectors, which llama.cpp wants in float32,
are widened. The format is https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.

    gguf.py CHECKPOINT FILE
"""
import array
import json
import os
import struct
import sys

U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9  # types of metadata
TENSOR = {"F32": 0, "BF16": 30}
ALIGN = 32
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}


def renamed(name):
    """blk.3.attn_q.bias for model.layers.3.self_attn.q_proj.bias."""
    stem, kind = name.rsplit(".", 1)
    if not stem.startswith("model.layers."):
        return f"{NAMES[stem]}.{kind}"
    layer, part = stem.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{NAMES[part]}.{kind}"


def text(s):
    return struct.pack("<Q", len(s.encode())) + s.encode()


def value(v):
    """A metadata value with its type before it."""
    if isinstance(v, bool):
        return struct.pack("<I?", BOOL, v)
    if isinstance(v, int):
        return struct.pack("<II", U32, v)
    if isinstance(v, float):
        return struct.pack("<If", F32, v)
    if isinstance(v, str):
        return struct.pack("<I", STRING) + text(v)
    kind, pack = (STRING, text) if isinstance(v[0], str) else (I32, lambda i: struct.pack("<i", i))
    return struct.pack("<IIQ", ARRAY, kind, len(v)) + b"".join(map(pack, v))


def metadata(config, stored):
    heads = config["num_attention_heads"]
    size = config["vocab_size"]
    # A vocabulary that llama.cpp accepts: one character for each of the first ids, as
    # byte-level BPE has them, and words for the others.
    words = [chr(0x100 + i) if i < 256 else f"w{i}" for i in range(size)]
    return {
        "general.architecture": "qwen2", "general.name": "random", "general.file_type": {"F32": 0, "BF16": 32}[stored],
        "qwen2.block_count": config["num_hidden_layers"], "qwen2.context_length": config["max_position_embeddings"],
        "qwen2.embedding_length": config["hidden_size"], "qwen2.feed_forward_length": config["intermediate_size"],
        "qwen2.attention.head_count": heads, "qwen2.attention.head_count_kv": config["num_key_value_heads"],
        "qwen2.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "qwen2.rope.freq_base": float(config["rope_theta"]), "qwen2.vocab_size": size,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.token_type": [1] * size, "tokenizer.ggml.merges": [f"{words[0]} {words[1]}"],
        "tokenizer.ggml.eos_token_id": size - 1, "tokenizer.ggml.add_bos_token": False,
    }


def widened(raw):
    """float32 bytes of bfloat16 ones."""
    return array.array("I", (b << 16 for b in array.array("H", raw))).tobytes()


def main(folder, path):
    with open(os.path.join(folder, "config.json")) as f:
        config = json.load(f)
    if config["model_type"] != "qwen2":
        sys.exit(f"gguf.py: {folder} is {config['model_type']}; only qwen2 is written")
    with open(os.path.join(folder, "model.safetensors"), "rb") as src, open(path, "wb") as out:
        length, = struct.unpack("<Q", src.read(8))
        header = json.loads(src.read(length))
        header.pop("__metadata__", None)
        base = 8 + length
        fields = metadata(config, header["model.embed_tokens.weight"]["dtype"])
        out.write(struct.pack("<4sIQQ", b"GGUF", 3, len(header), len(fields)))
        for key, v in fields.items():
            out.write(text(key) + value(v))
        at, copies = 0, []
        for name, t in header.items():
            begin, end = t["data_offsets"]
            kind, n = t["dtype"], end - begin
            widen = kind == "BF16" and len(t["shape"]) == 1
            if widen:
                kind, n = "F32", 2 * n
            shape = t["shape"][::-1]
            out.write(text(renamed(name)) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, TENSOR[kind], at))
            copies.append((base + begin, end - begin, widen, at))
            at += (n + ALIGN - 1) // ALIGN * ALIGN
        data = (out.tell() + ALIGN - 1) // ALIGN * ALIGN
        for begin, n, widen, at in copies:
            src.seek(begin)
            out.seek(data + at)
            raw = src.read(n)
            out.write(widened(raw) if widen else raw)
        out.truncate(max(out.tell(), (out.tell() + ALIGN - 1) // ALIGN * ALIGN))


if __name__ == "__main__":
    main(*sys.argv[1:])
