"""Describes which rows, heads and dims of an output are wrong."""

from collections.abc import Sequence

import torch
from attn_contract import Batch
from attn_fuzz.verdict.judge import Judgement


def wrong_places(judgement: Judgement, batch: Batch) -> list[str]:
    """A line for each wrong tensor: how many rows, the first of them, and in which heads and dims."""
    lines = []
    for name, ratio in judgement.of_bound.items():
        wrong = ratio > 1
        if not wrong.any():
            continue
        rows = wrong.flatten(1).any(1)
        first = int(rows.nonzero()[0])
        start_loc = batch.query_start_loc.tolist()
        request = next(r for r in range(batch.num_requests) if start_loc[r] <= first < start_loc[r + 1])
        position = int(batch.seq_lens[request]) - start_loc[request + 1] + first
        where = f"the first is row {first}, request" if int(rows.sum()) > 1 else "request"
        parts = [
            f"wrong in {name}: {_of(rows[: start_loc[-1]], 'row')} ({where} {request}, position {position})",
            _of(wrong.flatten(2).any(2).any(0) if wrong.dim() > 2 else wrong.any(0), "head"),
        ]
        if wrong.dim() > 2:
            parts.append(_of(wrong.any(1).any(0), "dim"))
        lines.append("; ".join(parts))
    return lines


def _of(wrong: torch.Tensor, noun: str) -> str:
    """The wrong indices of a dimension, in words: "rows 3 to 7 of 9", "all 4 heads"."""
    indices, count = wrong.nonzero().flatten().tolist(), len(wrong)
    if len(indices) == count:
        return f"all {count} {noun}s" if count > 1 else f"the only {noun}"
    return f"{noun}{'s' * (len(indices) > 1)} {spans(indices)} of {count}"


def spans(indices: Sequence[int], most: int = 4) -> str:
    """Ascending integers as stretches: "0, 3 to 7"."""
    found: list[list[int]] = []
    for index in indices:
        if found and index == found[-1][1] + 1:
            found[-1][1] = index
        else:
            found.append([index, index])
    words = [str(low) if low == high else f"{low} to {high}" for low, high in found[:most]]
    return ", ".join([*words, *["..."] * (len(found) > most)])
