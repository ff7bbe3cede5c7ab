"""TRITON_ATTN, a scale for each token and head, float16: a weight times a small scale is rounded to a denormal of float16.

One query and one key. The weight is 1. V is 127 with a scale of 17.5 * 2^-24: 1.32 * 10^-4, which float16 has in steps of
1/1000 and finer. Printed is the output in units of 10^-4.
"""

import torch
from calls import unified_attention
from kernels import DEVICE, compare, load

HEAD_SIZE = 32
module = load("vllm.v1.attention.ops.triton_unified_attention")
q = torch.ones(1, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
cache = torch.full((1, 16, 1, HEAD_SIZE), 127, dtype=torch.int8, device=DEVICE)
scales = torch.full((1, 16, 1), 17.5 * 2.0**-24, device=DEVICE)
mode = module.KVQuantMode.INT8_PER_TOKEN_HEAD
out = unified_attention(module, q, cache, cache, keys=1, kv_quant_mode=mode, k_scale_cache=scales, v_scale_cache=scales)
compare(127 * 17.5 * 2.0**-24 * 1e4, out[0, 0, 0].float() * 1e4)
