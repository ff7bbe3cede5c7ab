"""Decode context parallelism: the weights of ranks do not add up to 1 where LSEs are large.

Two ranks, whose LSEs are 300 and whose outputs are 1. The merged output is 1, whatever the weights are, if they add up to 1.
Printed is 1 minus the output, in units of 10^-6: expected by _lse_weighted_combine, which is vLLM's reference, and got of
correct_attn_out's kernel, whose shares are added up, and of the all-to-all's. Numbers near 1 have steps of 0.06 to 0.12 there.
"""

import torch
from kernels import DEVICE, compare, load

RANKS, HEAD_SIZE = 2, 16
dcp = load("vllm.v1.attention.ops.dcp")
out = torch.ones(RANKS, 1, 1, HEAD_SIZE, device=DEVICE)
lse = torch.full((RANKS, 1, 1), 300.0, device=DEVICE)

reduced = torch.zeros(1, 1, HEAD_SIZE, device=DEVICE)
for rank in range(RANKS):
    share, merged = torch.empty_like(reduced), torch.empty_like(lse[0])
    dcp.CorrectAttnCPOutKernel.kernel[1, 1, 1](
        *(out[rank], share, lse, merged),
        *(HEAD_SIZE, HEAD_SIZE, 1),  # strides of out
        *(1, 1, 1),  # strides of lse
        rank,
        HEAD_DIM=HEAD_SIZE,
        N_ROUNDED=RANKS,
        IS_BASE_E=True,
    )
    reduced += share

received = torch.cat([out, lse[..., None]], dim=3)  # of each rank: the outputs of one head, and its LSE
combined, _ = dcp._dcp_a2a_unpack_combine(received, HEAD_SIZE, 1, True, True)

right = dcp._lse_weighted_combine(out, lse)
missing = torch.stack([(1 - found[0, 0, 0].double()) * 1e6 for found in (right, right, reduced, combined)])
compare(missing[:2], missing[2:])
