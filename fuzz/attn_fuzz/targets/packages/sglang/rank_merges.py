"""SGLang's merges over ranks (kernels/ops/attention/dcp_kernels.py), as its latent attention has them (srt/layers/dcp/comm.py):

* cp_lse_ag_out_rs_mla (86-123) gathers LSEs, `correct_attn_out` weights the output of each rank, and the network sums.
* dcp_a2a_lse_reduce (474-537) packs outputs and LSEs into one buffer by `dcp_pack_a2a_send`, and `dcp_lse_combine_triton`
  merges what has come, without an LSE.

LSEs are float32. Where a rank has no key, the output is 0: both kernels multiply it by the weight 0. Numbers of ranks of the
first are powers of two (`tl.arange(0, N_ROUNDED)`). `ATTN_PARITY_SGLANG=FOLDER` takes the sources of another release.
"""

import functools
from typing import Any

import torch
from attn_fuzz import foreign
from attn_fuzz.findings import sglang
from attn_fuzz.targets.packages import rank_merges
from attn_fuzz.targets.packages.sglang import package as sglang_package

SOURCES = sglang_package.ops("dcp_kernels")


def _held(outs: torch.Tensor) -> torch.Tensor:
    return torch.where(outs.isnan(), 0.0, outs)


def _corrected(outs: torch.Tensor, lses: torch.Tensor, *, is_base_e: bool) -> Any:
    [module] = SOURCES.load()
    _, num_tokens, num_heads, head_size = outs.shape
    total, lse = torch.zeros(outs.shape[1:], dtype=torch.float64, device=outs.device), None
    for rank, out in enumerate(_held(outs)):
        share = out.new_full((num_heads, num_tokens, head_size), torch.nan, dtype=torch.float32)
        # before 0.5.17 it is told of no base
        hints = {"is_lse_base_on_e": is_base_e}
        _, lse = foreign.call(module.correct_attn_out, out, lses.contiguous(), rank, None, share, hints=hints)
        total += share.transpose(0, 1).double()
    return total.to(outs.dtype), lse


def _packed(outs: torch.Tensor, lses: torch.Tensor, *, is_base_e: bool) -> Any:
    """Each rank packs for all, and merges what all have packed for it."""
    [module] = SOURCES.load()
    num_ranks, num_tokens, num_heads, head_size = outs.shape
    pack = module._lse_pack_dim(outs.dtype)
    shape = (num_ranks, num_ranks, num_tokens, num_heads // num_ranks, head_size + pack)
    sent = outs.new_full(shape, torch.nan)
    for to, out, lse in zip(sent, _held(outs), lses, strict=True):
        module.dcp_pack_a2a_send(out, lse, to[..., :head_size], to.view(torch.float32)[..., head_size // pack])
    received = sent.transpose(0, 1).contiguous()
    words = received.view(torch.float32)[..., head_size // pack]
    merged = [
        module.dcp_lse_combine_triton(x[..., :head_size], lse, is_lse_base_on_e=is_base_e)[0]
        for x, lse in zip(received, words, strict=True)
    ]
    return torch.cat(merged, 1).double(), None


_target = functools.partial(rank_merges.rank_target, **SOURCES.fields())
SGLANG_DCP_REDUCE_SCATTER = _target(
    "sglang-dcp-reduce-scatter",
    rank_merges.over_ranks(_corrected, (2, 4, 8)),
    description="correct_attn_out of SGLang (decode context parallelism): the reference attends on each rank",
    findings=sglang.DCP_REDUCE_SCATTER,
)
SGLANG_DCP_ALL_TO_ALL = _target(
    "sglang-dcp-all-to-all",
    rank_merges.over_ranks(_packed, (2, 3, 4, 5, 8)),
    without=("sinks", "lse"),
    description="pack and combine of SGLang (decode context parallelism): the reference attends on each rank",
)
