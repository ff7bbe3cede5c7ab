"""Our launches for a step, on a device or on meta, as they ship or with launch parameters of one's own."""

from collections.abc import Iterator

import torch
from attn_optimized import plan_of
from attn_optimized.attention import paged_attention_calls, varlen_attention_calls
from attn_optimized.cascade import cascade_attention_calls
from attn_optimized.kernel_call import KernelCall
from attn_optimized.launch.table import Parameters

from benchmarks.steps.calls import Call


def launches(
    call: Call,
    parameters: Parameters | None = None,
    *,
    out: torch.Tensor,
    lse: torch.Tensor | None = None,
    architecture: str | None = None,
    compute_units: int | None = None,
) -> Iterator[KernelCall]:
    """See `paged_attention_calls`. A common prefix is attended to once, if no parameters are given."""
    q, layer, batch, outputs = call.q, call.layer, call.batch, {"out": out, "lse": lse}
    gpu = {"architecture": architecture, "compute_units": compute_units}
    if call.kv_cache is not None and call.case.common_prefix_len and parameters is None:
        return cascade_attention_calls(q, call.kv_cache, layer, batch, call.case.common_prefix_len, **outputs, **gpu)
    plan = plan_of(q, layer, batch, **gpu, parameters=parameters)
    if call.kv_cache is not None:
        return paged_attention_calls(q, call.kv_cache, layer, batch, plan, **outputs)
    assert call.k is not None
    assert call.v is not None
    return varlen_attention_calls(q, call.k, call.v, layer, batch, plan, **outputs)
