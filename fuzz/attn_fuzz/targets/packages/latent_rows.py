"""Calls of kernels that decode one row at a time: each row of q is a request of its own, with the keys that it sees."""

import random
from typing import NamedTuple

import attn_reference
import torch
from attn_contract import Batch, Layer
from attn_fuzz.cases.case import Case


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


def chosen_slots(q: torch.Tensor, kv_cache: torch.Tensor, layer: Layer, batch: Batch, rng: random.Random) -> list[list[int]]:
    """The slots of the keys that each row sees, as an indexer chooses them: as many of each row, with -1 for none.

    Either a key that a row does not see is -1 in its place, or the keys are in any order, and -1 stands behind them.
    """
    table_of, block_size, in_place = batch.block_table, kv_cache.shape[1], rng.choice((False, True))
    assert table_of is not None
    chosen: list[list[int]] = []
    for request in attn_reference.paged_requests(q, kv_cache, layer, batch, torch.float32):
        table = table_of[request.index].tolist()
        for seen in request.visible:
            slots = [table[key // block_size] * block_size + key % block_size for key in range(len(seen))]
            visible = [slot for slot, is_seen in zip(slots, seen, strict=True) if is_seen]
            hidden = [slot if is_seen else -1 for slot, is_seen in zip(slots, seen, strict=True)]
            chosen.append(hidden if in_place else rng.sample(visible, len(visible)))
    most = max(map(len, chosen), default=0) + rng.choice((0, 1, block_size))
    return [slots + [-1] * (most - len(slots)) for slots in chosen]


def has_row_without_keys(case: Case) -> str | None:
    """Why a case is left out: such a row divides by 0. It is padding, or a rank's part that the merge selects away."""
    empty = any(request.query_len > request.seq_len and (request.causal or not request.seq_len) for request in case.requests)
    return "a row without keys" if empty else None
