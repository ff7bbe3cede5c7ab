"""Targets with a bug behind their kernels: planted_second:BUG__aiter_pa_assembly__gfx942, with a function's name as BUG.

A target keeps its findings. What their predicates say of the bug is what they would say of any other that is not known yet.
"""

import dataclasses

import attn_reference
import torch
from attn_fuzz.targets import Target, registry
from attn_fuzz.targets.target import FUNCTIONS
from attn_fuzz.verdict.oracle import Call, requests


def head(rows: torch.Tensor, call: Call) -> None:
    """The first head is multiplied by 1.5."""
    rows[:, 0] *= 1.5


def row(rows: torch.Tensor, call: Call) -> None:
    """The last row is zero."""
    rows[-1:] = 0


def key(rows: torch.Tensor, call: Call) -> None:
    """One key in 64 is lost."""
    for each in requests(call):
        lost = (torch.arange(len(each.key)) % 64 == 63).view(-1, 1, 1).double()
        weight = attn_reference.attend(dataclasses.replace(each, value=lost.expand_as(each.value)), call.layer).out
        part = attn_reference.attend(dataclasses.replace(each, value=lost * each.value), call.layer).out
        rows[each.rows] = (rows[each.rows] - part / (call.layer.output_scale or 1.0)) / (1 - weight)


def _with(bug, attention):
    def attend(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        attention(q, k, v, kv_cache, layer, batch, out=out, lse=lse)
        own = out.view(len(out), layer.num_heads, -1)[: int(batch.query_start_loc[-1])]
        rows = own.double()
        bug(rows, Call(q=q, k=k, v=v, kv_cache=kv_cache, layer=layer, batch=batch))
        own.copy_(rows)

    return attend


def __getattr__(name: str) -> Target:
    bug, _, target = name.partition("__")
    if bug not in ("head", "row", "key"):
        raise AttributeError(name)
    target = registry.load(target.replace("__", "@").replace("_", "-"))
    return target.wrapped(lambda field, function: _with(globals()[bug], function) if field == FUNCTIONS[0] else function)
