"""vLLM's merges over ranks (v1/attention/ops/dcp.py): the reference attends to the keys of each rank, and vLLM's kernels merge.

No network is needed: what ranks send each other is passed on here. Both exchanges are called as their engine calls them:

* cp_lse_ag_out_rs (:471) gathers LSEs, `correct_attn_out` weights the output of each rank, and the network sums. The sum is in
  float64 here, because it is NCCL's and not a kernel's.
* dcp_a2a_lse_reduce (:939) packs outputs and LSEs into one buffer by `_dcp_a2a_pack_send`, and `_dcp_a2a_unpack_combine` merges
  what has come. It gets the local lengths and the starts of requests, as from MLA: where a rank has no key of a
  request, the LSE may then be anything.

An LSE is -inf, +inf or NaN where a rank has no key (:172, :797). The output is then NaN, which the kernels select away (:206,
:833). `correct_attn_out` takes numbers of ranks that are powers of two (`tl.arange(0, N_ROUNDED)`, :164). No call of vLLM's
attention over ranks passes sinks (v1/attention/backends/flash_attn.py:1574).
"""

import dataclasses
import functools
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import attn_reference
import torch
from attn_contract import AttentionType
from attn_fuzz import foreign
from attn_fuzz.cases.poison import LEFTOVER
from attn_fuzz.findings import vllm
from attn_fuzz.targets.merge import EVERY_OPTION, State, parts_like, requests_of, rows_of, write_state
from attn_fuzz.targets.packages import vllm_package
from attn_fuzz.targets.rng import rng_of_call
from attn_fuzz.targets.target import EVERYTHING, AttentionFunction, Support, Target
from attn_fuzz.verdict.rounding import Rounding
from attn_reference import context_parallel
from attn_reference.rounding import rounded

FILES = ("v1/attention/ops/dcp.py",)
EARLIER_FILES = ("v1/attention/ops/common.py", "v1/attention/ops/dcp_alltoall.py")
"""Before 0.29."""
INTERLEAVES = (1, 1, 2, 16)
HEAD_SIZES = (32, 16, 64, 128, 256)
"""`tl.arange(0, HEAD_DIM)`: powers of two, as Lkv = 512 and the head sizes of models are."""


class _Kernel:
    """In place of VllmTritonJitKernel, which warms kernels up."""

    _warming = False

    def __class_getitem__(cls, key: object) -> type:
        return cls


class _Context:
    """In place of CPTritonContext, which keeps a compiled kernel."""

    def call_kernel(self, kernel: Any, grid: Any, *arguments: Any, **constants: Any) -> None:
        kernel[grid](*arguments, **constants)


def _launched(spec_of: Callable[..., Any]) -> Callable[..., None]:
    """In place of kernel_launcher: launch what a method says, with tensors by position and the rest by name."""

    def launch(self, outputs, new_output, lses, vlse, lse_idx, ctx, *, is_base_e) -> None:
        grid, named = spec_of(self, outputs, new_output, lses, vlse, lse_idx, ctx, is_base_e=is_base_e)
        given = {name: value for name, value in named.items() if not name.startswith("_")}
        self.kernel[grid](outputs, new_output, lses, vlse, lse_idx=lse_idx, **given)

    return launch


@functools.cache
def _module() -> ModuleType:
    nothing = SimpleNamespace()
    names = {
        "vllm.config": {"VllmConfig": nothing},
        "vllm.distributed": {"get_dcp_group": nothing},
        "vllm.model_executor.warmup.jit_warmup": {"WarmupIntRange": nothing, "kernel_launcher": _launched},
        "vllm.model_executor.warmup.jit_warmup_triton_helper": {
            "LaunchSpec": Any,
            "TritonWarmupTensor": nothing,
            "VllmTritonJitKernel": _Kernel,
            "triton_scalar_specialization_rep": nothing,
        },
        "vllm.v1.attention.backend": {"max_decode_query_len": nothing},
        "vllm.v1.attention.ops.cp_common": {
            "DirectCPWorkspace": object,
            "direct_cp_enabled": nothing,
            "direct_cp_multicast_enabled": nothing,
        },
        "vllm.v1.worker.ubatching": {"dbo_current_ubatch_id": nothing},
    }
    stubs = vllm_package.stubs(is_rocm=False) | names
    if foreign.missing("vllm", FILES, ""):
        stubs["vllm.distributed.parallel_state"] = {"GroupCoordinator": nothing}
        modules = foreign.load("vllm", EARLIER_FILES, stubs=stubs)
        module = ModuleType("dcp")
        module.__dict__.update({name: value for each in modules for name, value in vars(each).items()})
        module.__dict__["CPTritonContext"] = _Context
        return module
    [module] = foreign.load("vllm", FILES, stubs=stubs)
    kernel = module.CorrectAttnCPOutKernel.kernel
    kernel.constexprs = getattr(kernel, "constexprs", ())  # counted for a launcher of theirs; an interpreted kernel has none
    return module


Merge = Callable[..., tuple[torch.Tensor, torch.Tensor]]
"""Outs [N, B, H, D], LSEs [N, B, H] and more -> the merged out [B, H, D] and LSE [B, H]."""


def _corrected(outs: torch.Tensor, lses: torch.Tensor, *, is_base_e: bool, **lengths: torch.Tensor) -> Any:
    module = _module()
    total, lse = torch.zeros(outs.shape[1:], dtype=torch.float64, device=outs.device), None
    for rank, out in enumerate(outs):
        share, lse = module.correct_attn_out(out, lses, rank, module.CPTritonContext(), is_lse_base_on_e=is_base_e)
        total += share.double()
    return total, lse


def _packed(outs: torch.Tensor, lses: torch.Tensor, *, is_base_e: bool, **lengths: Any) -> Any:
    """Each rank packs for all, and merges what all have packed for it."""
    module = _module()
    num_ranks, num_tokens, num_heads, head_size = outs.shape
    own_heads, pack = num_heads // num_ranks, module._dcp_a2a_lse_pack_dim(outs.dtype)
    sent = torch.full((num_ranks, num_ranks, num_tokens, own_heads, head_size + pack), torch.nan, dtype=outs.dtype)
    sent = sent.to(outs.device)
    seq_lens = lengths.get("seq_lens", (None,) * num_ranks)
    for rank in range(num_ranks):
        sizes = (num_ranks, own_heads, head_size, pack)
        hints = {"seq_lens": seq_lens[rank], "query_start_loc": lengths.get("query_start_loc")}  # 0.28 masks by them
        foreign.call(module._dcp_a2a_pack_send, outs[rank], lses[rank], sent[rank], *sizes, hints=hints)
    merged = [
        module._dcp_a2a_unpack_combine(sent[:, rank].contiguous(), head_size, pack, True, is_base_e)
        for rank in range(num_ranks)
    ]
    return torch.cat([out for out, _ in merged], 1).double(), torch.cat([lse for _, lse in merged], 1)


def _over_ranks(merge: Merge, num_ranks_of: tuple[int, ...], *, has_lengths: bool) -> AttentionFunction:
    """Attention by the reference on each rank, and a merge.

    Args:
        num_ranks_of: numbers of ranks to choose from.
        has_lengths: whether the merge takes local lengths, and masks requests of which a rank has no key.
    """

    def attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        rng = rng_of_call(q, batch)
        num_ranks, interleave = rng.choice(num_ranks_of), rng.choice(INTERLEAVES)
        rows, num_tokens, num_heads = int(batch.query_start_loc[-1]), len(q), layer.num_heads
        # heads come in as many parts as there are ranks: further ones are copies of the first
        heads = [*range(num_heads), *[0] * (-num_heads % num_ranks)]
        dtype = parts_like(q, out, layer, rows).dtype
        outs = torch.full((num_ranks, num_tokens, num_heads, layer.value_size), torch.nan, dtype=dtype, device=q.device)
        lses = torch.full((num_ranks, num_heads, num_tokens), -torch.inf, device=q.device)
        for request in requests_of(q, k, v, kv_cache, layer, batch):
            for rank in range(num_ranks):
                held = context_parallel.local_request(request, rank, num_ranks, interleave)
                found = attn_reference.attend(held, context_parallel.local_layer(layer, rank))
                is_masked = has_lengths and not len(held.key)
                empty = LEFTOVER if is_masked else rng.choice(EVERY_OPTION.empty_lses)
                write_state(State(outs[rank], lses[rank]), request.rows, found.out, found.lse, empty)
        is_base_e = rng.random() < 0.5
        if not is_base_e:
            lses = (lses.double() / torch.tensor(2.0, dtype=torch.float64).log()).float()
        lengths: dict[str, Any] = {}
        if has_lengths:
            local = [
                [context_parallel.local_length(n, rank, num_ranks, interleave) for n in batch.seq_lens.tolist()]
                for rank in range(num_ranks)
            ]
            lengths["seq_lens"] = [torch.tensor(one, dtype=torch.int32, device=q.device) for one in local]
            lengths["query_start_loc"] = batch.query_start_loc
        by_row = lses[:, heads].transpose(1, 2)
        by_row = by_row if rng.random() < 0.5 else by_row.contiguous()
        merged, merged_lse = merge(outs[:, :, heads].contiguous(), by_row, is_base_e=is_base_e, **lengths)
        rows_of(out, layer, rows)[:] = rounded(merged[:rows, :num_heads], dtype)
        if lse is not None:
            natural = merged_lse.double() * (1 if is_base_e else torch.tensor(2.0, dtype=torch.float64).log())
            lse[:, :rows] = natural[:rows, :num_heads].T.float()

    return attention


def _support(device: str) -> Support:
    return dataclasses.replace(
        EVERYTHING,
        attn_types=(AttentionType.DECODER, AttentionType.ENCODER_DECODER),
        rules=tuple(name for name in EVERYTHING.rules if name != "sinks"),
        head_sizes=HEAD_SIZES,
        output_dtypes=(),
        # each token and head has a program of its own
        group_sizes=(1, 2, 3, 8),
        max_tokens=8,
        max_seq_len=128,
    )


def _target(name: str, attention: AttentionFunction, merged_parts: int, **fields: Any) -> Target:
    return Target(
        name=name,
        attention=attention,
        support=_support,
        refuses=False,
        rounding=lambda device: Rounding(keys_per_tile=64, merged_parts=merged_parts),
        unavailable=lambda device: (
            vllm_package.missing_files(*FILES)(device) and vllm_package.missing_files(*EARLIER_FILES)(device)
        ),
        **fields,
    )


VLLM_DCP_REDUCE_SCATTER = _target(
    "vllm-dcp-reduce-scatter",
    _over_ranks(_corrected, (2, 4, 8), has_lengths=False),
    3,  # the share of a rank is rounded once more
    description="correct_attn_out of vLLM 0.33.0 (decode context parallelism): the reference attends on each rank",
    findings=vllm.DCP_REDUCE_SCATTER,
)
VLLM_DCP_ALL_TO_ALL = _target(
    "vllm-dcp-all-to-all",
    _over_ranks(_packed, (2, 3, 4, 5, 8), has_lengths=True),
    2,
    description="pack and unpack kernels of vLLM 0.33.0 (decode context parallelism): the reference attends on each rank",
    findings=vllm.DCP_ALL_TO_ALL,
)
