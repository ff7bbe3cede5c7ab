"""chunked_prefill_paged_decode: a decode rounds each product of an element of q and one of k to 16 bits.

One query and two keys of 16 elements, in float16. Eight elements of the query are 16.25 and eight are 16. The first key has
16.5 in the first eight. Its products are 268.125, halfway between two numbers of float16. The second key has 16.75 in the last
eight. Its products are 268. The logits are 2145 / 4 and 2144 / 4. The values are 1 and 0, so the output is the weight of the
first key.
"""

import torch
from calls import chunked_prefill_paged_decode
from kernels import DEVICE, compare, load

HEAD_SIZE, X = 16, 8
q = torch.full((1, 1, HEAD_SIZE), 16.0, dtype=torch.float16, device=DEVICE)
q[..., :8] = 16.25
k = torch.zeros(16, HEAD_SIZE, dtype=q.dtype, device=DEVICE)
k[0, :8] = 16.5
k[1, 8:] = 16.75
k_cache = k.view(1, 1, 16, HEAD_SIZE // X, X).transpose(2, 3).contiguous()
v_cache = torch.zeros(1, 1, HEAD_SIZE, 16, dtype=q.dtype, device=DEVICE)
v_cache[..., 0] = 1.0
module = load("aiter.ops.triton.attention.chunked_pa_prefill")
out = chunked_prefill_paged_decode(module, q, q, q, k_cache, v_cache, keys=2, sm_scale=0.25)
compare((q[0, 0].float() @ k[:2].float().T * 0.25).softmax(dim=0)[0], out[0, 0, 0])
