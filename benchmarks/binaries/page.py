"""The page of the peers' binaries, made of the CSV file beside it and nothing else."""

from benchmarks.binaries.results import COLUMNS, NUMBERS, Results
from benchmarks.side_by_side import page_text

CASES = (
    "decode, 64 x 8k",
    "decode, 1 x 128k",
    "decode, fp8 cache, 64 x 8k",
    "decode, H64/HK8/D64 + sinks, 64 x 8k",
    "prefill, 4 x 4k",
    "prefill, window 1k, 2 x 8k",
    "prefill, soft cap 50, H16/HK8 D256, 2 x 4k",
    "encoder (Whisper), 16 x 1500, H20 D64, no cache",
)
ARCHITECTURES = ("gfx942", "gfx1201", "sm90")
"""What is on the page, if nobody asks for something else."""

PREFACE = """\
# What the compilers make of others' kernels beside ours

Written by `python -m benchmarks binaries --page FILE` on a machine without a GPU, with {versions}.
The CSV file beside this page keeps the facts, and `--check` says whether the page is what they say. Each kernel is compiled
for exactly what its wrapper passes in a case of [performance.md](performance.md): constants, warps, stages and, on AMD, the
waves that AITER asks for, which are then the most that it has. The columns are those of [binaries.md](binaries.md). None of
this says how fast a kernel is: nothing was run, and programs differ in how much is theirs to do.
"""


def text(results: Results) -> str:
    """The page, whole."""
    return page_text(PREFACE, results, lambda row: row.cells, COLUMNS, NUMBERS)
