"""A case's launches with parameters of one's own, on a device or on meta."""

from collections.abc import Iterator

import attn_fuzz.cases.call
import torch
from attn_fuzz.verdict.judge import Judgement, judge_call
from attn_fuzz.verdict.rounding import Rounding
from attn_optimized import plan_of
from attn_optimized.attention import paged_attention_calls
from attn_optimized.kernel_call import KernelCall
from attn_optimized.launch.table import Parameters

from benchmarks.speed.calls import Call, attention_call
from benchmarks.speed.cases import Attention

SEED = 1


def launches(
    call: Call,
    parameters: Parameters,
    *,
    out: torch.Tensor,
    lse: torch.Tensor | None = None,
    architecture: str | None = None,
    compute_units: int | None = None,
) -> Iterator[KernelCall]:
    """See `paged_attention_calls`."""
    assert call.kv_cache is not None, "classes of calls are told apart by cases that read a cache"
    gpu = {"architecture": architecture, "compute_units": compute_units}
    plan = plan_of(call.q, call.layer, call.batch, **gpu, parameters=parameters)
    return paged_attention_calls(call.q, call.kv_cache, call.layer, call.batch, plan, out=out, lse=lse)


def judged(case: Attention, parameters: Parameters, device: torch.device) -> Judgement:
    """A case run with these parameters, beside the reference."""
    call = attention_call(case, device, SEED)
    out = torch.full_like(call.q, torch.nan)
    lse = torch.full(call.q.shape[1::-1], torch.nan, device=device)
    for launch in launches(call, parameters, out=out, lse=lse):
        launch.run(device)
    splits = plan_of(call.q, call.layer, call.batch, parameters=parameters).splits
    rounding = Rounding(keys_per_tile=parameters.block_n, dot_is_chained=device.type != "cpu", splits=splits)
    given = attn_fuzz.cases.call.Call(q=call.q, layer=call.layer, batch=call.batch, kv_cache=call.kv_cache)
    return judge_call(given, out, lse, rounding, generic=True)
