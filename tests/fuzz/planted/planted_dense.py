"""Targets that read the keys of this step's tokens from k and v, and targets that only say so, or do not say so."""

import dataclasses

import attn_reference
import torch
from attn_contract import AttentionType, Layout
from attn_fuzz.targets import Engine, Rounding, Support, Target
from planted import attend


def is_prefill(length: int) -> bool:
    return length > 1


def attend_to_dense_keys(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    for request in attn_reference.paged_requests(q, kv_cache, layer, batch, torch.float64):
        length, keys = len(request.query), len(request.key)
        if is_prefill(length):
            position = torch.arange(keys) - (keys - length)  # of each key among the step's tokens
            row = request.rows.start + position.clamp(min=0)
            own = (position >= 0)[:, None, None]
            request = dataclasses.replace(
                request,
                key=torch.where(own, k[row].double(), request.key),
                value=torch.where(own, v[row].double(), request.value),
            )
        found = attn_reference.attend(request, layer).out
        out.view(q.shape)[request.rows] = found.to(out.dtype)


def support(device: str) -> Support:
    return Support(
        attn_types=(AttentionType.DECODER,),
        dtypes=("float16",),
        layouts=(Layout.KV_FIRST_NHD,),
        rules=("window", "non_causal"),
        cache_dtypes=("fp8_e4m3fn",),
        scales=("tensor",),
        head_sizes=(16,),
        engine=Engine(writes=(True,), unwritten=False, saturated=False),
        max_tokens=32,
        max_seq_len=64,
    )


DENSE = Target(
    name="planted-dense",
    description="reads this step's keys of prefills from k and v",
    attention=attend_to_dense_keys,
    support=support,
    rounding=lambda device: Rounding(keys_per_tile=64),
    refuses=False,
    dense_keys=lambda case: [is_prefill(request.query_len) for request in case.requests],
)
CACHED = dataclasses.replace(DENSE, name="planted-cached", attention=attend)
UNSAID = dataclasses.replace(DENSE, name="planted-unsaid", dense_keys=None)
UNWRITTEN = dataclasses.replace(
    DENSE, name="planted-unwritten", support=lambda device: dataclasses.replace(support(device), engine=Engine())
)
