"""pa_decode: a decode with one query head for each KV head does not compile (Triton 3.9): `alpha[:, None]` of a scalar.

One query, one key, whose value is 1. Four calls: of one partition and of two, with scales of the cache and of each token.
"""

import sys

import torch
from kernels import DEVICE, compare, ints, load, tl
from triton.errors import TritonError

HEAD_SIZE, BLOCK_SIZE = 64, 16
q = torch.ones(1, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
cache = torch.ones(1, 1, BLOCK_SIZE, HEAD_SIZE, dtype=q.dtype, device=DEVICE)
decode, got = load("aiter.ops.triton.attention.pa_decode").paged_attention_decode, []
for longest in (1, 2000):
    for scales in (torch.ones((), device=DEVICE), torch.ones(1, 1, BLOCK_SIZE, device=DEVICE)):
        out = torch.full_like(q, torch.nan)
        try:
            decode(out, q, cache, cache, ints(1), ints([0]), 0.125, longest, tl.float16, scales, scales)
        except TritonError as error:
            print("expected  1\ngot      ", str(error).splitlines()[-1])
            sys.exit(1)
        got.append(out[0, 0, 0])
compare([1.0] * 4, torch.stack(got))
