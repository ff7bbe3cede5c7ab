"""Error over bound in logarithmic bins: how the elements of a run are distributed, and one step's picture by row and head.

There are four bins to a factor of 2. Bin 0 holds all ratios below 2^-20, and the last bin ratios of 2 and more. `EDGES[i]` lies
between bin i and bin i + 1. Bins from `BROKEN` on hold elements that break their bounds.
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
"""In a picture, instead of a bin: a row of no request; a row of no request that was written; a row of a request that was never
written; a row with NaN or an infinity."""


def count(ratio: torch.Tensor, group: torch.Tensor, num_groups: int) -> list[list[int]]:
    """The number of elements of each group of rows in each of the NUM_BINS bins. The last bin also holds non-finite ones.

    Args:
        ratio: [T, ...].
        group: [T] int64, the group of each row. It is num_groups for a row that is not counted.
    """
    places = _bins(ratio.flatten(1)) + NUM_BINS * group[:, None]
    counts = torch.bincount(places.flatten(), minlength=NUM_BINS * (num_groups + 1))
    return counts.view(-1, NUM_BINS)[:num_groups].tolist()


def counts(case: Case, judgement: Judgement) -> dict[str, list[int]]:
    """Counts of the elements that have a bound, by tensor, dtype and phase, such as "out float16 decode".

    If the case has an output_dtype, this is the dtype of `out`.
    """
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
    """The picture of each tensor: a byte per row and head."""
    got = {"out": step.out if step.out.dim() == 3 else step.out.unflatten(1, (case.num_heads, case.v_head_size))}
    if step.lse is not None:
        got["lse"] = step.lse.T
    return {name: picture(ratio, got[name], case.query_start_loc[-1]) for name, ratio in judgement.of_bound.items()}


def picture(ratio: torch.Tensor, got: torch.Tensor, owned_rows: int) -> bytes:
    """A byte per row and head: the bin of the largest ratio, or UNOWNED, STRAY, UNWRITTEN or NOT_FINITE.

    Args:
        ratio: [T, H, D] or [T, H], error over bound. Rows from owned_rows on may hold anything.
        got: the output of that shape, as the target left it.
        owned_rows: the number of rows that belong to requests.
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
