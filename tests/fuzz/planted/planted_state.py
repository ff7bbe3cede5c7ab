"""Targets `planted_state:NAME` that keep something between calls under a key that lacks something of a call.

Beside that each of them is the reference in float32; and all of it is where PLANTED_REPAIRED is set.
"""

import dataclasses
import os
from collections.abc import Callable, Hashable
from typing import Any

from attn_contract import Batch, Layer
from attn_fuzz.targets.reference import REFERENCE_FP32
from attn_fuzz.targets.target import Target
from planted import SMALL

Change = Callable[[Layer, Batch, Any], tuple[Layer, Batch]]


def keeping(name: str, key: Callable[[Layer, Batch], Hashable], kept: Callable[[Layer, Batch], Any], change: Change) -> Target:
    """The reference on a Layer and a Batch that `change` makes of what was kept at the first call with that key."""
    memory: dict[Hashable, Any] = {}

    def attention(q, k, v, kv_cache, layer, batch, *, out, lse):
        if "PLANTED_REPAIRED" not in os.environ:
            layer, batch = change(layer, batch, memory.setdefault((q.shape, key(layer, batch)), kept(layer, batch)))
        REFERENCE_FP32.attention(q, k, v, kv_cache, layer, batch, out=out, lse=lse)

    return dataclasses.replace(
        REFERENCE_FP32,
        name=name,
        description="keeps too much",
        attention=attention,
        support=lambda device: SMALL,
        forget=memory.clear,
    )


KEEPS_SCALE = keeping(
    "keeps-scale",
    key=lambda layer, batch: layer.attn_type,
    kept=lambda layer, batch: layer.scale,
    change=lambda layer, batch, kept: (dataclasses.replace(layer, scale=kept), batch),
)


def _keeping_strides() -> Target:
    """The reference, which writes rows of k by the strides of the first k of that shape."""
    memory: dict[Hashable, Any] = {}

    def write_kv_cache(k, v, kv_cache, layer, slot_mapping):
        if "PLANTED_REPAIRED" not in os.environ:
            k = k.as_strided(k.shape, memory.setdefault(k.shape, k.stride()))
        REFERENCE_FP32.write_kv_cache(k, v, kv_cache, layer, slot_mapping)

    return dataclasses.replace(
        REFERENCE_FP32,
        name="keeps-strides",
        description="keeps too much",
        write_kv_cache=write_kv_cache,
        support=lambda device: SMALL,
        forget=memory.clear,
    )


KEEPS_STRIDES = _keeping_strides()


def _never_forgetting() -> Target:
    """Right in the first call of a process. All later ones take its scale."""
    scales: list[float] = []

    def attention(q, k, v, kv_cache, layer, batch, *, out, lse):
        scales.append(layer.scale)
        REFERENCE_FP32.attention(q, k, v, kv_cache, dataclasses.replace(layer, scale=scales[0]), batch, out=out, lse=lse)

    return dataclasses.replace(
        REFERENCE_FP32, name="never-forgets", description="keeps a scale", attention=attention, support=lambda device: SMALL
    )


NEVER_FORGETS = _never_forgetting()
