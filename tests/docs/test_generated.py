"""Each page of docs/generated is what its command makes of the code, or of the results beside it."""

from collections.abc import Callable

import pytest
from attn_lab import pages, results_file
from attn_lab.findings import page as findings
from attn_lab.matrix import backends
from attn_lab.zoo import known_bugs
from attn_lab.zoo import page as zoo
from attn_lab.zoo.results import Results

from benchmarks.speed import page as speed
from benchmarks.speed import performance
from tests.support.pages import ROOT


def zoo_page() -> str:
    return zoo.text(results_file.load(ROOT / zoo.DATA, Results), known_bugs.load_all())


WRITERS: dict[str, tuple[Callable[[], str], str]] = {
    backends.PAGE.name: (backends.backend_page, "python -m attn_lab matrix page"),
    findings.PAGE.name: (findings.text, "python -m attn_lab findings page"),
    speed.PAGE.name: (lambda: speed.text(performance.read(ROOT / speed.DATA)), "python -m benchmarks speed --page"),
    zoo.PAGE.name: (zoo_page, "python -m attn_lab zoo page"),
}
"""What makes each page, and the command that writes it."""


@pytest.mark.parametrize("path", sorted((ROOT / pages.PAGES).glob("*.md")), ids=lambda path: path.name)
def test_a_page_is_current(path):
    make, command = WRITERS[path.name]
    assert path.read_text(encoding="utf-8") == make(), f"run `{command}`"


def test_each_writer_has_a_page():
    assert all((ROOT / pages.PAGES / name).is_file() for name in WRITERS)
