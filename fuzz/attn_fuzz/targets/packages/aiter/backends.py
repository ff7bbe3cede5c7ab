"""The two backends on AITER as targets. What the AITER that is here can do is what they declare, and so what they serve."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import torch
from attn_contract import AttentionType
from attn_fuzz.cases.case import Case
from attn_fuzz.cases.tensors import Step
from attn_fuzz.findings.aiter.unified import BACKENDS
from attn_fuzz.targets.backends.layers import BackendLayers, backend_target, declared_by, installed, named
from attn_fuzz.targets.engine import Engine
from attn_fuzz.targets.packages.aiter.unified import AITER_UNIFIED_ATTENTION, readable_aiter, usable_aiter
from attn_fuzz.targets.support import Support
from attn_fuzz.targets.triton import TRITON


@functools.cache
def interpreted_on_a_cpu(device: str) -> Any:
    """The installed AITER; on a CPU that of `readable_aiter`, with its unified_attention under Triton's interpreter.

    There it has no qq_bias: the kernel joins two masks with `and`, which the interpreter takes for the last one alone.
    """
    aiter = readable_aiter() if device == "cpu" else installed(device)
    if device != "cpu" or "unified_attention" not in aiter.signatures:
        return aiter
    signature = aiter.signatures["unified_attention"]
    arguments = tuple(name for name in signature.arguments if name != "qq_bias")
    return dataclasses.replace(
        aiter,
        signatures={**aiter.signatures, "unified_attention": dataclasses.replace(signature, arguments=arguments)},
        functions={"unified_attention": lambda **options: usable_aiter(device).functions["unified_attention"](**options)},
    )


def unified_sizes(device: str) -> Support:
    """The support of ROCM_AITER_UNIFIED_ATTN. AITER's kernel, and with it the device's own float8 types, serves only decoders;
    this project's kernels serve the other types.
    """
    kernel = AITER_UNIFIED_ATTENTION.support(device)

    def exclude(case: Case) -> str | None:
        if case.attn_type is not AttentionType.DECODER:
            return None
        if case.output_dtype not in (None, *kernel.output_dtypes):
            return f"an output of {case.output_dtype}"
        cache_dtype = case.cache and case.cache.dtype
        return f"a cache of {cache_dtype}" if cache_dtype not in (None, *kernel.cache_dtypes) else None

    return dataclasses.replace(TRITON.support(device), unused_slots=kernel.unused_slots, exclude=exclude)


def _unified_events(step: Step) -> Iterable[str]:
    """The paths of AITER's kernel, which serves only decoders, or of this project's kernels."""
    return (AITER_UNIFIED_ATTENTION if step.layer.attn_type is AttentionType.DECODER else TRITON).events(step)


def fa_sizes(device: str) -> Support:
    """The support of ROCM_AITER_FA: its prefill and extend attend to the step's own tensors, and not to the cache's."""

    engine = Engine(more_queries_than_keys=False, writes=(True,), unwritten=False)
    return dataclasses.replace(TRITON.support(device), cache_dtypes=(), unused_slots="mostly finite", engine=engine)


def _needs_an_amd_gpu(device: str) -> str | None:
    if device == "cpu" or torch.version.hip is None:
        return "AITER's flash attention is compiled for AMD's GPUs"
    return _FA.unavailable(device)


_FA = BackendLayers(named("ROCM_AITER_FA"), installed)
_UNIFIED = BackendLayers(named("ROCM_AITER_UNIFIED_ATTN"), interpreted_on_a_cpu)

BACKEND_AITER_UNIFIED = backend_target(
    "backend-aiter-unified",
    _UNIFIED,
    kernels=AITER_UNIFIED_ATTENTION,
    description="the backend ROCM_AITER_UNIFIED_ATTN on the installed AITER",
    support=declared_by(_UNIFIED, unified_sizes),
    events=_unified_events,
    findings=BACKENDS["ROCM_AITER_UNIFIED_ATTN"],
)
BACKEND_AITER_FA = backend_target(
    "backend-aiter-fa",
    _FA,
    kernels=AITER_UNIFIED_ATTENTION,
    description="the backend ROCM_AITER_FA on the installed AITER",
    support=declared_by(_FA, fa_sizes),
    unavailable=_needs_an_amd_gpu,
    refuses=False,
    events=lambda step: (),  # most steps are served by other kernels of AITER
    findings=BACKENDS["ROCM_AITER_FA"],
)
