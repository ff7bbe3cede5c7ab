"""Calls of kernels that decode one row at a time: each row of q is a request of its own, with the keys that it sees."""

import dataclasses
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from attn_contract import AttentionType, Batch, Layer, Layout
from attn_fuzz.cases.case import Case
from attn_fuzz.targets.engine import VLLM
from attn_fuzz.targets.packages.declaring import triton_target
from attn_fuzz.targets.packages.slots import slots_of_tokens
from attn_fuzz.targets.rng import rng_of_lengths
from attn_fuzz.targets.rows import rows_of
from attn_fuzz.targets.support import LatentSizes, Support
from attn_fuzz.targets.target import AttentionFunction, Target

SPARSE_TOKENS = dataclasses.replace(
    VLLM, selection_units=(1,), selections=("top", "some", "holes", "all"), selected_per_head=(False,), least_scales=False
)
"""Selections of tokens that all heads share, and none of which causality hides: kernels know no causality beside them. An
engine puts -1 after the tokens of a row, and where a token is another rank's."""


_SLOT = 584
"""Bytes of a slot of ENTRIES."""


class DecodedRows(NamedTuple):
    """Each is [rows], of the rows that requests own."""

    request: torch.Tensor
    seq_lens: torch.Tensor
    """int32; 0 of a row that sees no key"""


def decoded_rows(batch: Batch) -> DecodedRows:
    """The request of each row, and how many of its first keys the row sees: causal or not, and nothing else."""
    starts, device = batch.query_start_loc.long(), batch.query_start_loc.device
    request = torch.repeat_interleave(torch.arange(batch.num_requests, device=device), starts.diff())
    from_end = starts[1:][request] - 1 - torch.arange(len(request), device=device)
    causal = batch.causal[request] if isinstance(batch.causal, torch.Tensor) else torch.tensor(batch.causal, device=device)
    seq_lens = torch.where(causal, (batch.seq_lens[request] - from_end).clamp(min=0), batch.seq_lens[request])
    return DecodedRows(request, seq_lens.int())


def selected_tokens(layer: Layer, batch: Batch) -> torch.Tensor:
    """[1 or HK, rows, W * selection_unit] int32: the positions of the tokens that each row selects and sees by causality.

    In the order of the selection; -1 in the place of every other token.
    """
    assert batch.selected is not None
    assert layer.selection_unit is not None
    request, seq_lens = decoded_rows(batch)
    units = batch.selected[:, : len(request), :, None]
    tokens = units * layer.selection_unit + torch.arange(layer.selection_unit, dtype=torch.int32, device=units.device)
    return torch.where((units >= 0) & (tokens < seq_lens[:, None, None]), tokens, -1).flatten(2)


def selected_slots(layer: Layer, batch: Batch, block_size: int) -> torch.Tensor:
    """[1 or HK, rows, W * selection_unit] int32: the slots of `selected_tokens`."""
    assert batch.block_table is not None
    tokens, (request, _) = selected_tokens(layer, batch), decoded_rows(batch)
    return slots_of_tokens(tokens, batch.block_table[request], block_size)


def ragged(slots: torch.Tensor, rng: random.Random, least: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Slots [rows, W] one row after the other, and where each row begins, [rows + 1] int32.

    A row ends with its last slot that is not -1, or has W entries. It has `least` at least, if only of -1.
    """
    width = slots.shape[1]
    places = torch.arange(1, width + 1, device=slots.device)
    last = torch.where(slots >= 0, places, 0).amax(1) if width else places.new_zeros(len(slots))
    lengths = torch.full_like(last, width) if rng.choice((False, True)) else last
    lengths = lengths.clamp(min=least)
    padded = torch.nn.functional.pad(slots, (0, least), value=-1)
    flat = padded[torch.arange(width + least, device=slots.device) < lengths[:, None]]
    return flat, torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()


def has_row_without_keys(case: Case) -> str | None:
    """The reason why a case is left out: such a row divides by 0. It is padding, or a rank's part that the merge selects
    away."""
    empty = any(request.query_len > request.seq_len and (request.causal or not request.seq_len) for request in case.requests)
    return "a row without keys" if empty else None


def dealt(slots: torch.Tensor, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Slots [rows, W] as those of two sources, -1 in each where the other one has the slot: none, all, or some of each row."""
    share = rng.choice((0.0, 0.3, 0.7, 1.0))
    drawn = [[rng.random() < share for _ in range(slots.shape[1])] for _ in range(len(slots))]
    is_second = torch.tensor(drawn, dtype=torch.bool, device=slots.device).view(slots.shape)
    return torch.where(is_second, -1, slots), torch.where(is_second, slots, -1)


def shuffled(
    blocks: torch.Tensor, slots: torch.Tensor, block_size: int, rng: random.Random
) -> tuple[torch.Tensor, torch.Tensor]:
    """A copy of a cache with its blocks in another order, of the same strides, and where `slots` are in it."""
    order = torch.tensor(rng.sample(range(len(blocks)), len(blocks)), device=blocks.device)
    moved = torch.empty_strided(blocks.shape, blocks.stride(), dtype=blocks.dtype, device=blocks.device)
    moved[order] = blocks
    return moved, torch.where(slots < 0, -1, order[slots.clamp(min=0) // block_size].int() * block_size + slots % block_size)


def two_caches(
    kv_cache: torch.Tensor, slots: torch.Tensor, layer: Layer, rng: random.Random
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A cache of ENTRIES as DeepSeek-V4's two: rows [NB, BS, 584] of bytes and slots of the tokens, and those of the entries.

    A slot's bytes lie in two planes of its block.
    """
    block_size = layer.view_of(kv_cache).block_size
    pages = kv_cache.view(torch.uint8)
    tokens, entries = dealt(slots, rng)
    moved, entries = shuffled(pages, entries, block_size, rng)
    rows = (each[:, : block_size * _SLOT].unflatten(1, (block_size, _SLOT)) for each in (pages, moved))
    return next(rows), tokens, next(rows), entries


def over_slots(attend: Callable[..., object]) -> AttentionFunction:
    """Attention by `attend(q, slots, kv_cache, layer, out, rng)`: of the rows that requests own, each with slots [rows, W]."""

    def attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        slots = selected_slots(layer, batch, layer.view_of(kv_cache).block_size)[0]
        if rows := len(slots):
            attend(q[:rows], slots, kv_cache, layer, rows_of(out, layer, rows), rng_of_lengths(batch))

    return attention


def selection_target(attend: Callable[..., object], *, support: dict[str, Any], **declared: Any) -> Target:
    """A target of kernels that attend to the slots that each row selects, by `over_slots`.

    Args:
        support: fields of Support; `rules` are those beside the selection.
        declared: for `triton_target`.
    """
    rules = ("selection_unit", "head_size_v", *support.get("rules", ()))
    drawn = latent_support(**{"engine": SPARSE_TOKENS, **support, "rules": rules})
    return triton_target(attention=over_slots(attend), support=drawn, **declared)


ENTRIES: dict[str, Any] = {
    "dtypes": ("bfloat16",),
    "layouts": (Layout.LATENT_E8M0_PLANES,),
    "cache_dtypes": ("fp8_e4m3fn",),
    "scales": ("tensor",),
    "rules": ("sinks",),
    "latent": LatentSizes(widths=((512, 0),), group_sizes=(16, 12, 64), block_sizes=(16, 4, 64)),
}
"""The support of a target of DeepSeek-V4's caches of 584 bytes a slot, for `selection_target`."""


def latent_support(**fields: Any) -> Support:
    """Latent decodes whose rows all have keys, with more fields. A kernel of selections serves no other layer."""
    drawn: dict[str, Any] = {
        "attn_types": (AttentionType.DECODER,),
        "dtypes": ("float16", "bfloat16"),
        "layouts": (Layout.LATENT,),
        "required_rules": tuple(rule for rule in fields["rules"] if rule == "selection_unit"),
        "engine": VLLM,
        "exclude": has_row_without_keys,
        "max_tokens": 8,
        "max_seq_len": 160,
    }
    return Support(**{**drawn, **fields})
