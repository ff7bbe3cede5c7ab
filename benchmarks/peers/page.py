"""All kinds of facts, and the page of them."""

from pathlib import Path

from attn_lab.pages import PAGES

from benchmarks.peers.binaries import BINARIES
from benchmarks.peers.bounds import BOUNDS
from benchmarks.peers.counts import COUNTS
from benchmarks.peers.results import read

PAGE, FOLDER = PAGES / "peers.md", PAGES / "peers"
KINDS = {"binaries": BINARIES, "counts": COUNTS, "bounds": BOUNDS}
PREFACE = """\
# Others' kernels beside ours, without a GPU

`python -m benchmarks page` writes this page from [peers/](peers), which has a line for each launch. Each participant's own
host code plans its launches, and its kernels are compiled for exactly what that code passes.

"""


def texts() -> dict[Path, str]:
    """The page of the CSV files in FOLDER, by its path.

    Raises:
        InputError: one is missing, or no such file.
    """
    lines = [line for name, kind in KINDS.items() for line in kind.section(read(FOLDER / f"{name}.csv", kind.facts))]
    return {PAGE: PREFACE + "".join(f"{line}\n" for line in lines)}
