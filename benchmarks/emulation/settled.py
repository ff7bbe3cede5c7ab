"""The page of emulation: what ran on the emulator, and what that is worth."""

from benchmarks import PAGES

PAGE = PAGES / "emulation.md"
TITLE = """\
# What ran on the emulator, and what that is worth

Each part is made of a JSON file beside this page. `python -m benchmarks emulation --check` says whether the page is current.
"""


def settle(*, checks: bool) -> int:
    """Write the page; with `checks` only say whether it is current. The exit code."""
    from attn_lab import written

    from benchmarks.emulation import options, page, runs

    mutants = page.text(page.read(PAGE.with_suffix(".json")), page.read_reasons())
    parts = (TITLE, runs.text(runs.load()), options.text(page.of_lines(options.DATA, options.Trial)), mutants)
    return written.settle({PAGE: "\n".join(parts)}, "python -m benchmarks emulation --rewrite", checks=checks)
