"""decode_attention_fwd: without grouped heads, each product of an element of q and one of k is rounded to 16 bits.

One query and two keys of 128 elements, in float16. All elements of the query are 1 + 1/64. All elements of the first key are
1 + 1/32. Their products are 1 + 48.5/1024, halfway between two numbers of float16. The second key has 124 elements of 1 and 4
of 2, whose products are exact. Both logits are 134.0625. The values are 1 and 0, so the output is the weight of the first key.
"""

import torch
from calls import decode_attention_fwd
from kernels import DEVICE, compare, ints, load

HEAD_SIZE = 128
q = torch.full((1, 1, HEAD_SIZE), 1 + 1 / 64, dtype=torch.float16, device=DEVICE)
k = torch.ones(2, 1, HEAD_SIZE, dtype=q.dtype, device=DEVICE)
k[0] = 1 + 1 / 32
k[1, 0, :4] = 2.0
v = torch.zeros_like(k)
v[0] = 1.0
module = load("sglang.kernels.ops.attention.decode_attention")
compare(0.5, decode_attention_fwd(module, q, k, v, ints(0, 2), ints(0, 1))[0, 0, 0])
