"""Targets for exact mode.

NUDGES: a fault below every bound, the sinks are off by one unit in the last place. ADDS: 2^-40 is added to each output, which
changes no bit of it. THROUGH_NUMPY: NumPy copies what is computed into the output, so nothing is known of its numbers.

`compared_alone` is a trial of an Executor.
"""

import dataclasses

import numpy as np
import torch
from attn_contract import AttentionType, Layout
from attn_fuzz.cases.case import Case
from attn_fuzz.run.case.trial import followed
from attn_fuzz.targets import registry
from attn_fuzz.targets.support import Support
from attn_fuzz.targets.target import Target
from attn_fuzz.verdict.verdict import Verdict


def compared_alone(case: Case, target: Target, device: str, *, exactly: bool, **accounts: object) -> Verdict:
    """The call is compared in exact mode, whatever the judge would say of it."""
    assert exactly
    return followed(case, target, device, Verdict(kind="agree", seconds={"judge": 0.0}))


def _attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    if layer.sinks is not None:
        sinks = layer.sinks.numpy()
        nudged = np.where(np.isinf(sinks), sinks, np.nextafter(sinks, np.float32(0)))  # towards 0: the largest stays legal
        layer = dataclasses.replace(layer, sinks=torch.from_numpy(nudged))
    _TRITON.attention(q, k, v, kv_cache, layer, batch, out=out, lse=lse)


_TRITON = registry.load("triton")
NUDGES = dataclasses.replace(
    _TRITON,
    name="nudges",
    attention=_attention,
    support=lambda device: Support(
        attn_types=(AttentionType.DECODER,),
        dtypes=("float16",),
        layouts=(Layout.BLOCKS_FIRST_NHD,),
        rules=("sinks",),
        head_sizes=(16,),
        group_sizes=(1,),
        max_tokens=8,
        max_seq_len=64,
    ),
    refuses=False,
)


def _adding(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    _TRITON.attention(q, k, v, kv_cache, layer, batch, out=out, lse=lse)
    out[: int(batch.query_start_loc[-1])] += 2.0**-40


ADDS = dataclasses.replace(NUDGES, name="adds", attention=_adding)


def _through_numpy(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    computed = torch.empty_like(out)
    _TRITON.attention(q, k, v, kv_cache, layer, batch, out=computed, lse=lse)
    rows = int(batch.query_start_loc[-1])
    np.copyto(out.numpy()[:rows], computed.numpy()[:rows])


THROUGH_NUMPY = dataclasses.replace(NUDGES, name="through-numpy", attention=_through_numpy)
