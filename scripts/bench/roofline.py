"""How fast a machine could sample and train at best, for compare.py and the reports of
scripts/gpu."""
import json
import math
import os


class Roofline:
    """The least time that a machine of these rates can take, by a model's shape. Weights
    are read once a step, and once for every 512 tokens of the prompts; those that stay
    in the cache of a small model may be faster than memory."""

    def __init__(self, folder, machine):
        with open(os.path.join(folder, "config.json")) as f:
            c = json.load(f)
        self.flops, self.bandwidth = machine["gflops"] * 1e9, machine["gb_per_second"] * 1e9
        h, n, wide = c["hidden_size"], c["num_hidden_layers"], c["intermediate_size"]
        dim = c.get("head_dim") or h // c["num_attention_heads"]
        heads, kv = c["num_attention_heads"] * dim, c["num_key_value_heads"] * dim
        self.layers = n * (h * (2 * heads + 2 * kv) + 3 * h * wide)
        self.head = h * c["vocab_size"]
        self.attention = 4 * n * heads  # operations for each token that a token sees
        self.cache = 2 * n * kv  # keys and values of a token
        # Weights of adapters on all projections, for each of their rank.
        self.adapters = n * (2 * (h + heads) + 2 * (h + kv) + 3 * (h + wide))

    def sampling(self, m, batch, width):
        """New tokens per second, and the operations and bytes of each."""
        p, n = m["prompt"], m["new"]
        prefill_ops = batch * (2 * p * self.layers + self.attention * p * p / 2)
        decode_ops = batch * n * (2 * (self.layers + self.head) + self.attention * (p + n / 2))
        prefill_bytes = math.ceil(batch * p / 512) * self.layers * width
        decode_bytes = n * (self.layers + self.head) * width + batch * n * self.cache * 4 * (p + n / 2)
        seconds = sum(max(ops / self.flops, b / self.bandwidth)
                      for ops, b in ((prefill_ops, prefill_bytes), (decode_ops, decode_bytes)))
        new = batch * n
        return new / seconds, (prefill_ops + decode_ops) / new, (prefill_bytes + decode_bytes) / new

    def decode(self, batch, context, width, cache):
        """Tokens per second of steps of one token for each sequence of context tokens on
        average, with weights of width bytes and cache bytes of keys and values for each
        token: all weights and the whole cache are read once a step."""
        ops = batch * (2 * (self.layers + self.head) + self.attention * context)
        b = (self.layers + self.head) * width + batch * context * cache
        return batch / max(ops / self.flops, b / self.bandwidth)

    def prefill(self, sequences, prompt, width):
        """Tokens per second of prompts, weights being read once and the head computed for
        each prompt's last token."""
        ops = sequences * (2 * prompt * self.layers + self.attention * prompt * prompt / 2 + 2 * self.head)
        return sequences * prompt / max(ops / self.flops, (self.layers + self.head) * width / self.bandwidth)

    def operations(self, length, lora_rank=0):
        """Operations for each token of a training step on sequences of length tokens: 2 a
        weight and pass, and attention's, which sees half of the sequence on average. There
        is one pass forward and two backward, for the inputs' gradients and the weights';
        frozen weights need not the last."""
        passes = 2 if lora_rank else 3
        return (2 * passes * (self.layers + self.head) + 3 * self.attention * length / 2
                + 6 * lora_rank * self.adapters)

    def training(self, m, lora_rank=0):
        """Tokens per second of a step, and the operations and bytes of each: operations(), and
        AdamW in float32, which reads weights, gradients and two moments of what is trained,
        and writes all but the gradients."""
        tokens = m["train"] * m["length"]
        ops = tokens * self.operations(m["length"], lora_rank)
        b = 7 * 4 * (lora_rank * self.adapters or self.layers + self.head)
        return tokens / (ops / self.flops + b / self.bandwidth), ops / tokens, b / tokens

    def step(self, m, batch, prompt, new, width, cache, lora_rank=0):
        """Seconds of a GRPO step: each prompt read once for a group, new tokens of batch
        sequences, and an update on all of them."""
        length = prompt + new
        read = m["groups"] * prompt / self.prefill(m["groups"], prompt, width)
        decoded = batch * (new - 1) / self.decode(batch, prompt + new / 2, width, cache)
        trained = batch * length / self.training({"train": batch, "length": length}, lora_rank)[0]
        return read + decoded + trained
