"""`docs/pages.py`, which says whether generated pages are current."""

import runpy

from tests.pages import ROOT

MAIN = runpy.run_path(str(ROOT / "docs" / "pages.py"))["main"]


def test_a_page_that_is_not_current_is_named_with_what_its_check_printed(capsys):
    wrong = "python -c 'import sys; print(\"a.md is not current\"); sys.exit(3)'"
    assert MAIN([wrong, "python -c pass"], 2) == 1
    printed = capsys.readouterr().out
    assert f"{wrong}: exit 3, " in printed
    assert "\na.md is not current\n" in f"\n{printed}"
    assert "python -c pass: current, " in printed


def test_current_pages_have_a_line_each(capsys):
    assert MAIN(["python -c 'print(1)'"] * 3, 2) == 0
    assert [line.partition(",")[0] for line in capsys.readouterr().out.splitlines()] == ["python -c 'print(1)': current"] * 3
