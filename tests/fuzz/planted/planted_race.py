"""A Triton kernel with a race, offered as a third party would: `--target planted_race:RACE`.

Its programs copy rows of the reference's output. Each also writes 0 into the next row, which the next program writes too.
"""

import dataclasses
import importlib

import torch
import triton
import triton.language as tl
from attn_fuzz.targets.target import Target
from planted import SMALL, attend
from planted import _target as planted_target


@triton.jit
def copy_rows_kernel(source_ptr, target_ptr, stride, num_rows, columns, COLUMNS: tl.constexpr, IS_WRONG: tl.constexpr):
    row = tl.program_id(0)
    column = tl.arange(0, COLUMNS)
    values = tl.load(source_ptr + row * columns + column, mask=column < columns)
    tl.store(target_ptr + row * stride + column, values, mask=column < columns)
    if IS_WRONG:
        is_there = (column < columns) & (row + 1 < num_rows)
        tl.store(target_ptr + (row + 1) * stride + column, tl.zeros_like(values), mask=is_there)


def _attention(is_wrong: bool, times: int = 1):
    def attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        right = torch.empty_like(out)
        attend(q, k, v, kv_cache, layer, batch, out=right, lse=lse)
        num_rows = int(batch.query_start_loc[-1])
        rows = right[:num_rows].flatten(1).contiguous()
        if rows.dtype.itemsize == 1:
            rows = rows.view(torch.uint8)
        if num_rows:
            sizes = {"COLUMNS": triton.next_power_of_2(rows.shape[1]), "IS_WRONG": is_wrong}
            target = out.view(rows.dtype)
            copy_rows_kernel[(num_rows, times)](rows, target, out.stride(0), num_rows, rows.shape[1], **sizes)

    return attention


RACE: Target = planted_target("race", _attention(True), repaired=_attention(False), support=lambda device: SMALL)


def _compiled(target: Target) -> Target:
    return dataclasses.replace(target, modules=lambda: [importlib.import_module("planted_race")], sanitizes=False)


COMPILED = _compiled(RACE)
TWICE = dataclasses.replace(COMPILED, name="twice", attention=_attention(False, times=2))
"""Two programs write each row, the same numbers."""
MEANT = dataclasses.replace(TWICE, name="meant", races="Two programs copy each row.")
"""It declares that two programs write each row."""
