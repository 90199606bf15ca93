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
        h, layers = c["hidden_size"], c["num_hidden_layers"]
        dim = c.get("head_dim") or h // c["num_attention_heads"]
        heads, kv = c["num_attention_heads"] * dim, c["num_key_value_heads"] * dim
        self.layers = layers * (h * (2 * heads + 2 * kv) + 3 * h * c["intermediate_size"])
        self.head = h * c["vocab_size"]
        self.attention = 4 * layers * heads  # operations for each token that a token sees
        self.cache = 2 * layers * kv  # keys and values of a token

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

    def training(self, m):
        """Tokens per second of a step in float32: three products a weight, and AdamW, which
        reads weights, gradients and two moments and writes all but the gradients."""
        tokens, weights = m["train"] * m["length"], self.layers + self.head
        ops = tokens * 3 * (2 * weights + self.attention * m["length"] / 2)
        b = 7 * 4 * weights
        return tokens / (ops / self.flops + b / self.bandwidth), ops / tokens, b / tokens
