"""`python -m attn_lab pages`, which says whether generated pages are current."""

from attn_lab.commands.pages import check_all


def test_a_page_that_is_not_current_is_named_with_what_its_check_printed(capsys):
    wrong = "python -c 'import sys; print(\"a.md is not current\"); sys.exit(3)'"
    assert check_all([wrong, "python -c pass"], 2) == 1
    printed = capsys.readouterr().out
    assert f"{wrong}: exit 3, " in printed
    assert "\na.md is not current\n" in f"\n{printed}"
    assert "python -c pass: current, " in printed


def test_current_pages_have_a_line_each(capsys):
    assert check_all(["python -c 'print(1)'"] * 3, 2) == 0
    assert [line.partition(",")[0] for line in capsys.readouterr().out.splitlines()] == ["python -c 'print(1)': current"] * 3
