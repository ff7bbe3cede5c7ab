"""Decode context parallelism: the weights of ranks do not add up to 1 where LSEs are large.

Two ranks, whose LSEs are 1500 and whose outputs are 1. The merged output is 1, whatever the weights are, if they add up to 1.
Printed is 1 minus the output, in units of 10^-6: of dcp_lse_combine_triton, which divides by the sum of the weights, and of
correct_attn_out, whose shares the network adds up. In closed form the second is 1 - 2 exp(1500 - m) = -31.947, where m is
1500 + ln 2 in float32.
"""

import torch
from kernels import DEVICE, compare, load

RANKS, HEAD_SIZE = 2, 16
dcp = load("sglang.kernels.ops.attention.dcp_kernels")
outs = torch.ones(RANKS, 1, 1, HEAD_SIZE, device=DEVICE)
lses = torch.full((RANKS, 1, 1), 1500.0, device=DEVICE)
reduced = torch.zeros(1, 1, HEAD_SIZE, device=DEVICE)
for rank in range(RANKS):
    share, _ = dcp.correct_attn_out(outs[rank], lses, rank, None, torch.empty_like(reduced), is_lse_base_on_e=True)
    reduced += share
combined, _ = dcp.dcp_lse_combine_triton(outs, lses)
expected, got = ((1 - found[0, 0, :1].double().cpu()) * 1e6 for found in (combined, reduced))
compare(expected, got)
