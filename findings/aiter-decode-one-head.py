"""pa_decode: a decode with one query head for each KV head does not compile: `alpha[:, None]` of a scalar.

One query, one key. The value is 1.
"""

import sys

import torch
from kernels import DEVICE, compare, ints, load, tl
from triton.errors import TritonError

HEAD_SIZE = 64
q = torch.ones(1, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
cache = torch.ones(1, 1, 16, HEAD_SIZE, dtype=q.dtype, device=DEVICE)
out = torch.full_like(q, torch.nan)
one = torch.ones((), device=DEVICE)
try:
    load("aiter.ops.triton.attention.pa_decode").paged_attention_decode(
        output=out,
        query=q,
        key_cache=cache,
        value_cache=cache,
        seq_lens=ints(1),
        block_tables=ints([0]),
        attn_scale=0.125,
        max_seq_len=1,
        compute_type=tl.float16,
        k_scale=one,
        v_scale=one,
    )
except TritonError as error:
    print("expected  1\ngot      ", str(error).splitlines()[-1])
    sys.exit(1)
compare(1.0, out[0, 0, 0])
