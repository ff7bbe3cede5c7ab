"""Arithmetic that depends on its arguments alone, and not on what torch is set to around a call.

TF32 and `torch.set_float32_matmul_precision` round the factors of float32 products, and `torch.autocast` those of all products
but float64: so products are summed in float64. Autocast to float16 joins no bfloat16 tensors: so tensors are joined as bits.
"""

import torch

from attn_reference.rounding import rounded

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The integers of as many bytes as an element has. Moved as integers, a NaN keeps its bits."""


def sum_of_products(equation: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`torch.einsum` of two tensors of one dtype: summed in float64, and rounded to their dtype."""
    return rounded(torch.einsum(equation, a.double(), b.double()), a.dtype)


def joined(*parts: torch.Tensor) -> torch.Tensor:
    """Tensors of one dtype, joined in their last dimension."""
    as_bits = [part.view(INTEGERS[part.itemsize]) for part in parts]
    return torch.cat(as_bits, dim=-1).view(parts[0].dtype)
