"""vLLM's merges over ranks (v1/attention/ops/dcp.py), both of whose exchanges are called as their engine calls them:

* cp_lse_ag_out_rs (:471) gathers LSEs, `correct_attn_out` weights the output of each rank, and the network sums. The sum is in
  float64 here, because it is NCCL's and not a kernel's.
* dcp_a2a_lse_reduce (:939) packs outputs and LSEs into one buffer, and `_dcp_a2a_unpack_combine` merges what has come. It gets
  the local lengths and the starts of requests, as from MLA: where a rank has no key of a request, the LSE may then be anything.

An LSE is float32, or has the dtype of the output, as TRITON_MLA's has (v1/attention/backends/mla/triton_mla.py:265). It is
-inf, +inf or NaN where a rank has no key (:172, :797). The output is then NaN, which the kernels select away (:206, :833).
`correct_attn_out` takes numbers of ranks that are powers of two (`tl.arange(0, N_ROUNDED)`, :164). No call of vLLM's attention
over ranks passes sinks (v1/attention/backends/flash_attn.py:1574).
"""

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from attn_fuzz import foreign
from attn_fuzz.findings import vllm
from attn_fuzz.foreign.loading import Stubs
from attn_fuzz.targets.packages import VLLM, rank_merges
from attn_fuzz.targets.packages.declaring import Sources
from attn_fuzz.targets.packages.vllm import package as vllm_package


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


def _stubs() -> Stubs:
    nothing = SimpleNamespace()
    names = {
        "vllm.config": {"VllmConfig": nothing},
        "vllm.distributed": {"get_dcp_group": nothing},
        "vllm.distributed.parallel_state": {"GroupCoordinator": nothing},
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
    return vllm_package.stubs(is_rocm=False) | names


def _count_constants(modules: list[ModuleType]) -> None:
    """For a launcher of theirs; an interpreted kernel has no such list."""
    kernel = modules[0].CorrectAttnCPOutKernel.kernel
    kernel.constexprs = getattr(kernel, "constexprs", ())


SOURCES = Sources(VLLM, ("dcp",), _stubs, (vllm_package.OPS,), change=_count_constants)
EARLIER = Sources(VLLM, ("common", "dcp_alltoall"), _stubs, (vllm_package.OPS,))
"""Before 0.29."""


def _module() -> SimpleNamespace:
    """The names that the modules define."""
    modules = (EARLIER if SOURCES.unavailable("cpu") else SOURCES).load()
    return SimpleNamespace(**{name: value for module in modules for name, value in vars(module).items()})


def _corrected(outs: torch.Tensor, lses: torch.Tensor, *, is_base_e: bool, **lengths: torch.Tensor) -> Any:
    module = _module()
    total, lse = torch.zeros(outs.shape[1:], dtype=torch.float64, device=outs.device), None
    for rank, out in enumerate(outs):
        share, lse = module.correct_attn_out(out, lses, rank, _Context(), is_lse_base_on_e=is_base_e)
        total += share.double()
    return total, lse


def _packed(outs: torch.Tensor, lses: torch.Tensor, *, is_base_e: bool, **lengths: Any) -> Any:
    """Each rank packs for all, and merges what all have packed for it."""
    module, num_ranks = _module(), len(outs)
    seq_lens = lengths.get("seq_lens", (None,) * num_ranks)
    sent: list[torch.Tensor] = []
    network = SimpleNamespace(all_to_all_single=lambda received, packed, **_: sent.append(packed) or SimpleNamespace(wait=int))
    for_pack = {
        "dist": network,
        "_dcp_a2a_send_recv_buffers": lambda shape, **like: (torch.full(shape, torch.nan, **like),) * 2,
        "_dcp_a2a_unpack_combine": lambda *_: None,
    }
    with mock.patch.dict(module.dcp_a2a_lse_reduce.__globals__, for_pack):
        for rank in range(num_ranks):
            hints = {"seq_lens": seq_lens[rank], "query_start_loc": lengths.get("query_start_loc")}  # 0.28 masks by them
            group = SimpleNamespace(world_size=num_ranks, device_group=None)
            foreign.call(module.dcp_a2a_lse_reduce, outs[rank], lses[rank], group, hints=hints)
    _, num_tokens, num_heads, head_size = outs.shape
    pack = module._dcp_a2a_lse_pack_dim(outs.dtype)
    packed = torch.stack(sent).view(num_ranks, num_ranks, num_tokens, num_heads // num_ranks, head_size + pack)
    merged = [
        module._dcp_a2a_unpack_combine(packed[:, rank].contiguous(), head_size, pack, True, is_base_e)
        for rank in range(num_ranks)
    ]
    return torch.cat([out for out, _ in merged], 1).double(), torch.cat([lse for _, lse in merged], 1)


def _unavailable(device: str) -> str | None:
    return SOURCES.unavailable(device) and EARLIER.unavailable(device)


VLLM_DCP_REDUCE_SCATTER = rank_merges.rank_target(
    "vllm-dcp-reduce-scatter",
    rank_merges.over_ranks(_corrected, (2, 4, 8), narrow_lses=True),
    merged_parts=3,  # the share of a rank is rounded once more
    unavailable=_unavailable,
    description="correct_attn_out of vLLM (decode context parallelism): the reference attends on each rank",
    findings=vllm.DCP_REDUCE_SCATTER,
)
VLLM_DCP_ALL_TO_ALL = rank_merges.rank_target(
    "vllm-dcp-all-to-all",
    rank_merges.over_ranks(_packed, (2, 3, 4, 5, 8), has_lengths=True, narrow_lses=True),
    unavailable=_unavailable,
    description="pack and unpack kernels of vLLM (decode context parallelism): the reference attends on each rank",
    findings=vllm.DCP_ALL_TO_ALL,
)
