"""The keys and values that a step attends to, as rows of slots, and the fields of steps that have other keys and values.

A slot is `block * block_size + offset` of the cache. In a step without a cache, a slot is a row of k and v.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import torch
from attn_contract import Batch, KVCacheView
from attn_contract.layouts import K, V
from attn_fuzz.cases.poison import bits
from attn_fuzz.cases.tensors import Step


def elements(view: KVCacheView, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """[NB, BS, HK, row] int64 twice: the index in the allocation of each element of K and of V, inline scales included."""
    block = torch.arange(view.num_blocks, device=device).view(-1, 1, 1, 1)
    k, v = (inside.to(device) + block * view.block_stride for inside in view.first_block_elements())
    return k, v


def _elements_of_numbers(step: Step, raw: torch.Tensor, view: KVCacheView) -> tuple[torch.Tensor, torch.Tensor]:
    """[slots, HK, D] and [slots, HK, Dv] int64: the same without scales. V of a latent cache is all of K."""
    k, v = elements(view, raw.device)
    sizes = (view.head_size, view.head_size if has_latent_value(step) else step.layer.v_head_size)
    return k[..., : sizes[K]].flatten(0, 1), v[..., : sizes[V]].flatten(0, 1)


def rows_of_slots(step: Step) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V as they are stored, [slots, HK, D] and [slots, HK, Dv]."""
    if step.raw is None or step.view is None:
        assert step.k is not None
        assert step.v is not None
        return step.k, step.v
    k, v = _elements_of_numbers(step, step.raw, step.view)
    return step.raw[k], step.raw[v]


def with_rows(step: Step, k: torch.Tensor | None = None, v: torch.Tensor | None = None) -> dict[str, Any]:
    """The fields of a step whose slots hold other stored K or V. The scales stay."""
    if step.raw is None or step.view is None:
        return {name: rows for name, rows in (("k", k), ("v", v)) if rows is not None}
    raw = step.raw.clone()
    for places, rows in zip(_elements_of_numbers(step, raw, step.view), (k, v), strict=True):
        if rows is not None:
            # copied as integers: copying floats may change the bits of a NaN
            bits(raw)[places] = bits(rows)
    return {"raw": raw}


def slots_of_keys(step: Step) -> torch.Tensor:
    """[slots] bool: whether a slot holds a key of some request."""
    if step.view is None:
        assert step.k is not None
        return torch.arange(len(step.k), device=step.q.device) < step.batch.query_start_loc[-1]
    table, size = step.batch.block_table, step.view.block_size
    assert table is not None
    holds = torch.zeros(step.view.num_blocks * size, dtype=torch.bool, device=step.q.device)
    for r, num_keys in enumerate(step.layer.num_keys(step.batch.seq_lens).tolist()):
        key = torch.arange(num_keys, device=step.q.device)
        holds[table[r].long()[key // size] * size + key % size] = True
    return holds


def slots_of_selected_keys(step: Step) -> torch.Tensor:
    """[slots] bool: whether a query selects the key in a slot. Without a selection, as `slots_of_keys`."""
    batch, unit, view = step.batch, step.layer.selection_unit, step.view
    if batch.selected is None or batch.block_table is None or unit is None or view is None:
        return slots_of_keys(step)
    holds = torch.zeros(view.num_blocks * view.block_size, dtype=torch.bool, device=step.q.device)
    lengths = step.layer.num_keys(batch.seq_lens).tolist()
    for r, (begin, end) in enumerate(itertools.pairwise(batch.query_start_loc.tolist())):
        units = batch.selected[:, begin:end].unique().long()
        key = (units[units >= 0, None] * unit + torch.arange(unit, device=units.device)).flatten()
        key = key[key < lengths[r]]
        holds[batch.block_table[r].long()[key // view.block_size] * view.block_size + key % view.block_size] = True
    return holds


def used_entries(step: Step) -> torch.Tensor:
    """[R, max_blocks] bool: the entries of the block table that lead to keys."""
    assert step.batch.block_table is not None
    assert step.view is not None
    used = -(-step.layer.num_keys(step.batch.seq_lens) // step.view.block_size)
    return torch.arange(step.batch.block_table.shape[1], device=step.q.device) < used[:, None]


def without_first_blocks(step: Step, blocks: list[int]) -> Batch:
    """The batch without the first blocks of its requests. The cache stays as it is.

    Args:
        blocks: for each request, how many of its blocks are left out.
    """
    batch, device = step.batch, step.q.device
    assert batch.block_table is not None
    assert step.view is not None
    dropped = torch.tensor(blocks, dtype=torch.int32, device=device)
    columns = torch.arange(batch.block_table.shape[1], device=device) + dropped[:, None]
    table = batch.block_table.gather(1, columns.clamp(max=batch.block_table.shape[1] - 1))
    return dataclasses.replace(batch, block_table=table, seq_lens=batch.seq_lens - dropped * step.view.block_size)


def replaced_scales(step: Step, v_scale: Callable[[torch.Tensor], torch.Tensor]) -> Step:
    """A step with other scales of V.

    Args:
        v_scale: makes the new scales, [1] or [HK] or those of the tokens, of the old ones.
    """
    scales = {name: v_scale(getattr(step.layer, name)) for name in ("v_scale", "v_scale_cache") if name in step.layer.tensors}
    return dataclasses.replace(step, layer=dataclasses.replace(step.layer, **scales))


def has_latent_value(step: Step) -> bool:
    """True if V is a part of K, so that neither can be changed alone."""
    return step.layer.layout is not None and step.layer.layout.has_latent_value


def has_inline_scales(step: Step) -> bool:
    return step.layer.layout is not None and step.layer.layout.has_inline_scales
