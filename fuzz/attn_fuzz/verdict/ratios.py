"""Error over bound in logarithmic bins: how the elements of a run are distributed, and one step's picture by row and head.

Bins are a quarter of a factor of 2 wide. Bin 0 is all below 2^-20, the last one 2 and more, and `EDGES[i]` lies between bin i
and bin i + 1; what breaks its bound is in a bin from `BROKEN` on.
"""

from collections.abc import Mapping

import torch
from attn_fuzz.cases.case import Case
from attn_fuzz.cases.features import phase
from attn_fuzz.cases.poison import bits, canary
from attn_fuzz.cases.tensors import Step
from attn_fuzz.verdict.judge import Judgement

BINS_PER_OCTAVE = 4
OCTAVES = range(-20, 1)
EDGES = tuple(2.0 ** (OCTAVES.start + i / BINS_PER_OCTAVE) for i in range(BINS_PER_OCTAVE * len(OCTAVES) + 1))
NUM_BINS = len(EDGES) + 1
BROKEN = EDGES.index(1.0) + 1
UNOWNED, STRAY, UNWRITTEN, NOT_FINITE = range(252, 256)
"""In a picture, instead of a bin: a row of no request; one that was written all the same; never written; NaN or infinite."""


def count(ratio: torch.Tensor, group: torch.Tensor, num_groups: int) -> list[list[int]]:
    """How many elements lie in each of the NUM_BINS bins, of each group of rows; what is not finite is in the last.

    Args:
        ratio: [T, ...].
        group: [T] int64, of each row; num_groups for a row that is not counted.
    """
    places = _bins(ratio.flatten(1)) + NUM_BINS * group[:, None]
    counts = torch.bincount(places.flatten(), minlength=NUM_BINS * (num_groups + 1))
    return counts.view(-1, NUM_BINS)[:num_groups].tolist()


def counts(case: Case, judgement: Judgement) -> dict[str, list[int]]:
    """Of the elements that have a bound, by tensor, dtype and phase: "out float16 decode". The dtype of `out` is the case's
    output_dtype where it has one."""
    phases = [phase(case, request) for request in case.requests]
    names = list(dict.fromkeys(name for name, request in zip(phases, case.requests, strict=True) if request.query_len))
    rows = [names.index(name) for name, r in zip(phases, case.requests, strict=True) for _ in range(r.query_len)]
    rows += [len(names)] * (case.num_rows - len(rows))
    found, dtype = {}, {"out": case.output_dtype or case.dtype, "lse": case.dtype}
    for tensor, ratio in judgement.of_bound.items():
        if names and not (judgement.bitwise and tensor == "out"):
            group = torch.tensor(rows, device=ratio.device)
            for name, bins in zip(names, count(ratio, group, len(names)), strict=True):
                found[f"{tensor} {dtype[tensor]} {name}"] = bins
    return found


def added(counts: Mapping[str, list[int]], more: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """The sums of counts of the same name."""
    sums = dict(counts)
    for name, new in more.items():
        sums[name] = [a + b for a, b in zip(sums[name], new, strict=True)] if name in sums else new
    return sums


def pictures(case: Case, step: Step, judgement: Judgement) -> dict[str, bytes]:
    """By tensor, a byte per row and head."""
    got = {"out": step.out if step.out.dim() == 3 else step.out.unflatten(1, (case.num_heads, case.head_size))}
    if step.lse is not None:
        got["lse"] = step.lse.T
    return {name: picture(ratio, got[name], case.query_start_loc[-1]) for name, ratio in judgement.of_bound.items()}


def picture(ratio: torch.Tensor, got: torch.Tensor, owned_rows: int) -> bytes:
    """A byte per row and head: the bin of the largest ratio, or UNOWNED, STRAY, UNWRITTEN or NOT_FINITE.

    Args:
        ratio: [T, H, D] or [T, H], error over bound; anything in rows from owned_rows on.
        got: of that shape, what the target left there.
        owned_rows: rows of requests.
    """
    ratio, got = (x.unflatten(1, (x.shape[1], -1)) if x.dim() == 2 else x for x in (ratio, got))
    fresh = bits(got) == bits(canary((1,), got.dtype, got.device))
    strange = ~got.float().isfinite() & ~(ratio <= 1)  # an LSE of -inf may be right
    codes = _bins(ratio.amax(-1))
    codes = torch.where(strange.any(-1), NOT_FINITE, codes)
    codes = torch.where(fresh.any(-1), UNWRITTEN, codes)
    codes[owned_rows:] = torch.where(fresh[owned_rows:].all(-1), UNOWNED, STRAY)
    return codes.to(device="cpu", dtype=torch.uint8).numpy().tobytes()


def _bins(ratio: torch.Tensor) -> torch.Tensor:
    edges = torch.tensor(EDGES, device=ratio.device)
    return torch.bucketize(ratio.float().nan_to_num(nan=torch.inf), edges, right=True)
