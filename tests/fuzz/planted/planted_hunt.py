"""Targets with several faults at once, which a hunt is to tell apart although all of them make `out` wrong."""

import dataclasses

from attn_fuzz.targets.reference import REFERENCE_FP32
from planted import SMALL, attend

SUPPORT = dataclasses.replace(SMALL, output_dtypes=(), rules=("window", "logits_soft_cap", "sinks", "alibi_slopes"))


def _rows(batch) -> slice:
    return slice(0, int(batch.query_start_loc[-1]))


def three_bugs(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    """A soft cap is off by 1, sinks are off by 2, and slopes in a batch of several requests are NaN."""
    attend(q, k, v, kv_cache, layer, batch, out=out, lse=lse)
    if layer.logits_soft_cap is not None:
        out[_rows(batch)] += 1
    if layer.sinks is not None:
        out[_rows(batch)] += 2
    if layer.alibi_slopes is not None and batch.num_requests > 1:
        out[_rows(batch)] = float("nan")


def one_hides_the_other(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    """A soft cap is wrong where some request has more than 4 keys, and a soft cap beside sinks is wrong everywhere."""
    attend(q, k, v, kv_cache, layer, batch, out=out, lse=lse)
    capped = layer.logits_soft_cap is not None
    if capped and (batch.seq_lens > 4).any():
        out[_rows(batch)] += 1
    if capped and layer.sinks is not None:
        out[_rows(batch)] += 2


THREE = dataclasses.replace(
    REFERENCE_FP32,
    name="planted-three",
    attention=three_bugs,
    support=lambda device: SUPPORT,
    refuses=False,
)
HIDING = dataclasses.replace(THREE, name="planted-hiding", attention=one_hides_the_other)
SOUND = dataclasses.replace(THREE, name="planted-sound", attention=attend)
PICKY = dataclasses.replace(
    SOUND,
    name="planted-picky",
    support=lambda device: dataclasses.replace(SUPPORT, exclude=lambda case: "fused qkv" if case.fused_qkv else None),
)
