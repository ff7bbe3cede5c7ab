"""pa_decode_sparse: with one split, a head whose sink is -inf, which has no weight, is 0.

One query with 16 heads and one key. Every output is the key's value, 1: with 4 splits, it is.
"""

import torch
from kernels import DEVICE, compare, ints, load

WIDTH, HEADS = 512, 16
q = torch.ones(1, HEADS, WIDTH, dtype=torch.float16, device=DEVICE)
kv = torch.ones(1, WIDTH, dtype=q.dtype, device=DEVICE)
sinks = torch.full((HEADS,), -torch.inf, device=DEVICE)
kernels = load("aiter.ops.triton.attention.pa_decode_sparse")
torch.Tensor.is_cuda = True  # which it asks for
out = [kernels.pa_decode_sparse(q, kv, ints(0), ints(0, 1), sinks, 1.0, kv_splits=splits)[0, 0, 0] for splits in (4, 1)]
compare([1.0, 1.0], torch.stack(out))
