"""Relations between a target's own outputs, which need no oracle and no tolerance.

A property takes a step whose outputs have been judged, calls the target again on parts of it, and compares bit by bit.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator

import torch
from attn_contract import Batch
from attn_fuzz.poison import bits
from attn_fuzz.tensors import Step

Attend = Callable[[Step], None]
Property = Callable[[Step, Attend], str | None]
"""Takes a step and what attends to one; says what does not hold, or None."""


def batch_composition(step: Step, attend: Attend) -> str | None:
    """A request gives the same bits alone as in its batch."""
    for r, (start, end) in enumerate(itertools.pairwise(step.batch.query_start_loc.tolist())):
        if start < end:
            alone = _run(step, r, start, end, end, attend)
            if message := _compare(step, alone, start, end):
                return f"request {r} alone: {message}"
    return None


def chunked_prefill(queries_per_tile: Callable[[Step], int]) -> Property:
    """A causal request gives the same bits in one step as in steps of whole tiles of queries.

    Args:
        queries_per_tile: of the kernel, for a step.
    """

    def holds(step: Step, attend: Attend) -> str | None:
        if step.batch.bidirectional_ranges is not None or step.batch.qq_bias is not None:
            return None  # queries of an earlier step would see less
        tile = queries_per_tile(step)
        for r, start, end in _causal_requests(step.batch):
            for first in range(start, end, tile) if end - start > tile else ():
                last = min(first + tile, end)
                if int(step.batch.seq_lens[r]) < end - last:
                    continue  # these rows come before the sequence
                if message := _compare(step, _run(step, r, first, last, end, attend), first, last):
                    return f"rows {first} to {last - 1} of request {r} in a step of their own: {message}"
        return None

    return holds


def _causal_requests(batch: Batch) -> Iterator[tuple[int, int, int]]:
    causal = batch.causal.tolist() if isinstance(batch.causal, torch.Tensor) else [batch.causal] * batch.num_requests
    for r, (start, end) in enumerate(itertools.pairwise(batch.query_start_loc.tolist())):
        if causal[r]:
            yield r, start, end


def _run(step: Step, r: int, first: int, last: int, end: int, attend: Attend) -> Step:
    """Attend to rows `first` to `last - 1` of request r, whose rows end at `end`, in a step of their own."""
    batch, queries = step.batch, last - first
    seq_lens = batch.seq_lens[r : r + 1] - (end - last)
    sizes = {"max_query_len": queries, "max_seq_len": max(0, int(seq_lens)), "num_actual_tokens": queries}
    per_request = {
        name: getattr(batch, name)[r : r + 1]
        for name in ("block_table", "bidirectional_ranges", "causal")
        if isinstance(getattr(batch, name), torch.Tensor)
    }
    alone = dataclasses.replace(
        batch,
        query_start_loc=torch.tensor([0, queries], dtype=torch.int32, device=step.q.device),
        seq_lens=seq_lens,
        slot_mapping=None,
        **sizes,
        **per_request,
    )
    out = torch.zeros_like(step.out[first:last])
    lse = None if step.lse is None else torch.zeros_like(step.lse[:, first:last])
    dense = step.kv_cache is None
    part = dataclasses.replace(
        step,
        batch=alone,
        q=step.q[first:last],
        k=step.k[first:last] if dense and step.k is not None else step.k,
        v=step.v[first:last] if dense and step.v is not None else step.v,
        out=out,
        lse=lse,
    )
    attend(part)
    return part


def _compare(step: Step, part: Step, first: int, last: int) -> str | None:
    pairs = {"out": (step.out[first:last], part.out)}
    if step.lse is not None and part.lse is not None:
        pairs["lse"] = (step.lse[:, first:last], part.lse)
    for name, (together, apart) in pairs.items():
        changed = bits(together.contiguous()) != bits(apart.contiguous())
        if changed.any():
            place = tuple(changed.nonzero()[0].tolist())
            got, expected = float(apart[place]), float(together[place])
            return f"{int(changed.sum())} elements of {name} differ, first {place}: {got:.9g} instead of {expected:.9g}"
    return None
