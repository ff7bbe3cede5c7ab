"""The page of counts, made of the CSV file beside it and nothing else."""

from attn_amdgcn.counts import CLASSES

from benchmarks.counts.results import Results, Row
from benchmarks.side_by_side import page_text

PREFACE = """\
# What our kernels execute beside others'

Written by `python -m benchmarks counts --page FILE` on a machine without a GPU, with {versions}.
The CSV file beside this page keeps the counts, and `--check` says whether the page is what they say. Each participant's own
host code plans its launches for the GPU, its kernels are compiled, and [the emulator](../reference/emulator.md) runs them. The
outputs were compared with attention in float64.

**These are counts and no times.** How long an instruction takes, what runs beside it and what a cache holds is not known here.
The cases are small. Small cases are split into parts more eagerly than large ones, so programs and reductions weigh more.

| column | is |
|---|---|
| programs | workgroups x waves of each |
| instructions | of all waves, and then by class: matrix, vector, global memory, scratch memory (spills), LDS, and all others |
| padding | multiply-adds of matrix instructions over those of visible pairs of a query and a key |
| lines | of 128 bytes that vector instructions touch in global memory |
| over least | those lines over the fewest that each instruction's bytes could fill |
| conflicts | passes of LDS beyond the first one, for each phase |
| known | the share of accesses to LDS whose phases AMD documents. The conflicts are of these alone |
"""
_CLASSES = ("matrix", "vector", "global memory", "scratch memory", "LDS")
_OTHERS = tuple(name for name in CLASSES if name not in _CLASSES)
NUMBERS = (
    *("programs", "instructions", "matrix", "vector", "global", "scratch", "LDS", "others"),
    *("padding", "lines", "over least", "conflicts", "known"),
)
COLUMNS = ("case", "whose", "kernel", *NUMBERS)


def cells(row: Row) -> tuple[str, ...]:
    """In the order of COLUMNS."""
    kernel = ": ".join(filter(None, (row.kernel.removesuffix("_kernel"), row.why)))
    found = row.counts
    if not found:
        return (row.case, row.whose, kernel, *[""] * len(NUMBERS))
    return (
        row.case,
        row.whose,
        kernel,
        f"{row.programs} x {row.num_warps}",
        _short(sum(found[name] for name in CLASSES)),
        *(_short(found[name]) for name in _CLASSES),
        _short(sum(found[name] for name in _OTHERS)),
        _ratio(found["multiply-adds"], row.needed) if found["multiply-adds"] else "",
        _short(found["lines of 128"]),
        _ratio(found["lines of 128"], found["least lines of 128"]),
        _ratio(found["LDS conflicts"], found["LDS phases"]),
        f"{found['LDS accesses with known phases'] / found['LDS accesses']:.0%}" if found["LDS accesses"] else "",
    )


def text(results: Results) -> str:
    """The page, whole."""
    return page_text(PREFACE, results, cells, COLUMNS, NUMBERS)


def _short(number: int) -> str:
    """Three digits, in thousands or millions."""
    for unit, name in ((10**6, "M"), (1000, "k")):
        if number >= unit:
            return f"{number / unit:#.3g}".rstrip(".") + name
    return str(number)


def _ratio(part: int, whole: int) -> str:
    return f"{part / whole:.2f}" if whole else ""
