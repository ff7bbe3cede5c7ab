"""Calls of kernels that decode one row at a time: each row of q is a request of its own, with the keys that it sees."""

import dataclasses
import random
from typing import Any, NamedTuple

import torch
from attn_contract import AttentionType, Batch, Layer, Layout
from attn_fuzz.cases.case import Case
from attn_fuzz.targets.engine import VLLM
from attn_fuzz.targets.target import Support

SPARSE_TOKENS = dataclasses.replace(
    VLLM, selection_units=(1,), selections=("top", "some", "holes", "all"), selected_per_head=(False,)
)
"""Selections of tokens that all heads share, and none of which causality hides: kernels know no causality beside them. An
engine puts -1 behind the tokens of a row, and where a token is another rank's."""


class DecodedRows(NamedTuple):
    """Each is [rows], of the rows that requests own."""

    request: torch.Tensor
    seq_lens: torch.Tensor
    """int32; 0 of a row that sees no key"""


def decoded_rows(batch: Batch) -> DecodedRows:
    """The request of each row, and how many of its first keys the row sees: causal or not, and nothing else."""
    starts, device = batch.query_start_loc.long(), batch.query_start_loc.device
    request = torch.repeat_interleave(torch.arange(batch.num_requests, device=device), starts.diff())
    behind = starts[1:][request] - 1 - torch.arange(len(request), device=device)
    causal = batch.causal[request] if isinstance(batch.causal, torch.Tensor) else torch.tensor(batch.causal, device=device)
    seq_lens = torch.where(causal, (batch.seq_lens[request] - behind).clamp(min=0), batch.seq_lens[request])
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
    blocks = batch.block_table[request].expand(len(tokens), -1, -1).gather(2, (tokens.clamp(min=0) // block_size).long())
    return torch.where(tokens < 0, -1, blocks * block_size + tokens % block_size)


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
    """Why a case is left out: such a row divides by 0. It is padding, or a rank's part that the merge selects away."""
    empty = any(request.query_len > request.seq_len and (request.causal or not request.seq_len) for request in case.requests)
    return "a row without keys" if empty else None


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
