"""Writes model/safetensors/testdata/python.safetensors with the reference library.

usage: python3 scripts/reference/safetensors_file.py   (from the top of the checkout)
"""
import torch
from safetensors.torch import save_file

save_file({
    "layers.0.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4) / 8 - 0.5,
    "layers.0.bias": torch.tensor([1.5, -2.25, 1e-3], dtype=torch.bfloat16),
    "half": torch.tensor([[0.5], [65504.0]], dtype=torch.float16),
    "double": torch.tensor(3.141592653589793, dtype=torch.float64),
    "ids": torch.tensor([-1, 2**40], dtype=torch.int64),
    "counts": torch.tensor([7, -7, 2**31 - 1], dtype=torch.int32),
    "bytes": torch.tensor([0, 255, 128], dtype=torch.uint8),
    "empty": torch.zeros((0, 4), dtype=torch.float32),
    'quo"te<&>é': torch.ones(1, dtype=torch.float32),
}, "model/safetensors/testdata/python.safetensors", metadata={"format": "pt"})
