"""flash_attn_varlen_func: a request without a key writes the LSE of rows after its own.

One request with one query and no key. The longest request of the call is said to have 4 queries, which is a bound. The LSE has
one row for the query, and here three rows more, which hold 7.
"""

from unittest import mock

import torch
from kernels import DEVICE, compare, ints, load


def zeros(shape, **options):
    """The LSE, with three rows after its own."""
    return torch.full((4, 1), 7.0, device=DEVICE) if tuple(shape) == (1, 1) else new(shape, **options)


q = torch.ones(1, 1, 32, dtype=torch.float16, device=DEVICE)
mha = load("aiter.ops.triton.attention.mha")
new = torch.zeros
with mock.patch.object(torch, "zeros", zeros):
    _, lse = mha.flash_attn_varlen_func(q, q[:0], q[:0], ints(0, 1), ints(0, 0), 4, 4, causal=True, return_lse=True)
compare([7.0, 7.0, 7.0], lse[1:, 0])
