"""All kinds of facts, and the page of them."""

from collections.abc import Mapping
from pathlib import Path

from attn_lab.pages import PAGES

from benchmarks.peers.binaries import BINARIES
from benchmarks.peers.bounds import BOUNDS
from benchmarks.peers.counts import COUNTS
from benchmarks.peers.results import Results, read

PAGE, FOLDER = PAGES / "peers.md", PAGES / "peers"
KINDS = {"binaries": BINARIES, "counts": COUNTS, "bounds": BOUNDS}
PREFACE = """\
# Others' kernels beside ours, without a GPU

`python -m benchmarks page` writes this page. Each participant's own host code plans its launches, and its kernels are
compiled for exactly what that code passes. The files in [peers/](peers), which `peers --write` keeps, have a line for each
launch.

"""


def page(found: Mapping[str, Results]) -> str:
    """The page of all kinds."""
    return PREFACE + "".join(f"{line}\n" for name, kind in KINDS.items() for line in kind.section(found[name]))


def texts() -> dict[Path, str]:
    """The page of the CSV files in FOLDER, by its path.

    Raises:
        InputError: one is missing, or no such file.
    """
    return {PAGE: page({name: read(FOLDER / f"{name}.csv", kind.facts) for name, kind in KINDS.items()})}
