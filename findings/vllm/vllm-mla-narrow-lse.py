"""TRITON_MLA: the LSE has the dtype of q, and decode context parallelism weights ranks by it.

One query with 16 heads and two equal keys, whose logits are 34: the LSE is 34 + log(2). TritonMLAImpl.forward_mqa makes the
tensors and calls the kernel. What is compared is exp(LSE - 34), the weight of the two keys.
"""

from types import SimpleNamespace

import torch
from kernels import DEVICE, compare, ints, load

LATENT, WIDTH, HEADS = 256, 288, 16
forward_mqa = load("vllm.v1.attention.backends.mla.triton_mla").TritonMLAImpl.forward_mqa
q = torch.ones(1, HEADS, WIDTH, dtype=torch.float16, device=DEVICE)
cache = torch.ones(1, 16, WIDTH, dtype=q.dtype, device=DEVICE)
decode = SimpleNamespace(block_table=ints([0]).view(1, 1), seq_lens=ints(2))
backend = SimpleNamespace(kv_lora_rank=LATENT, scale=34 / WIDTH, dcp_world_size=1, _sm_count=1)
layer = SimpleNamespace(_k_scale=torch.ones((), device=DEVICE))
metadata = SimpleNamespace(decode=decode, max_seq_len=2, causal=True)
_, lse = forward_mqa(backend, q, cache, metadata, layer)
compare(2.0, torch.exp(lse[0, 0].float() - 34))
