"""Targets that promise checks, each with one that is missing: `planted_malformed:NAME`."""

import dataclasses
import os
import time

from attn_contract.layer import FLOAT_DTYPES
from attn_fuzz.targets.reference import REFERENCE_FP32
from attn_fuzz.targets.support import Support
from attn_fuzz.targets.target import AttentionFunction, Target


def _checked(q, k, v, kv_cache, layer, batch, *, out, lse, validate=True):
    REFERENCE_FP32.attention(q, k, v, kv_cache, layer, batch, out=out, lse=lse)


def _dies(q, k, v, kv_cache, layer, batch, *, out, lse):
    if q.dtype not in FLOAT_DTYPES:
        os.abort()
    _checked(q, k, v, kv_cache, layer, batch, out=out, lse=lse)


def _hangs(q, k, v, kv_cache, layer, batch, *, out, lse):
    if q.dtype not in FLOAT_DTYPES:
        time.sleep(3600)
    _checked(q, k, v, kv_cache, layer, batch, out=out, lse=lse)


def _raises(q, k, v, kv_cache, layer, batch, *, out, lse):
    if q.dtype not in FLOAT_DTYPES:
        raise RuntimeError("expected scalar type Float but found Double")
    _checked(q, k, v, kv_cache, layer, batch, out=out, lse=lse)


def _converts(q, k, v, kv_cache, layer, batch, *, out, lse):
    """A wide q is rounded, which is right, and a q of integers is what it was not."""
    if q.dtype not in FLOAT_DTYPES:
        q = q.to(kv_cache.dtype if kv_cache is not None else k.dtype)
    _checked(q, k, v, kv_cache, layer, batch, out=out, lse=lse)


def _clamps(q, k, v, kv_cache, layer, batch, *, out, lse, validate=True):
    """The block table is not checked: an entry beyond the cache reads its last block."""
    if kv_cache is not None:
        blocks = layer.view_of(kv_cache).num_blocks
        batch = dataclasses.replace(batch, block_table=batch.block_table.clamp(0, blocks - 1))
    _checked(q, k, v, kv_cache, layer, batch, out=out, lse=lse)


def _writes_first(q, k, v, kv_cache, layer, batch, *, out, lse):
    if q.dtype not in FLOAT_DTYPES:
        out.zero_()
    _checked(q, k, v, kv_cache, layer, batch, out=out, lse=lse)


def _target(name: str, attention: AttentionFunction) -> Target:
    def support(device: str) -> Support:
        return dataclasses.replace(REFERENCE_FP32.support(device), max_tokens=16, max_seq_len=32, long_seq_len=None)

    return dataclasses.replace(REFERENCE_FP32, name=name, attention=attention, support=support, checks_arguments=True)


CHECKED = _target("checked", _checked)
DIES, HANGS, RAISES = _target("dies", _dies), _target("hangs", _hangs), _target("raises", _raises)
CONVERTS, CLAMPS, WRITES_FIRST = (
    _target("converts", _converts),
    _target("clamps", _clamps),
    _target("writes-first", _writes_first),
)
