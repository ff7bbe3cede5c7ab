"""Generated pages that are not current are named, and written where nothing is checked."""

from attn_lab.commands.pages import check_all
from attn_lab.pages import write_or_check


def test_what_is_not_current_is_named_and_written_again(capsys, tmp_path):
    texts = {tmp_path / "same": "a", tmp_path / "edited": "b", tmp_path / "none": "c"}
    for name in ("same", "edited"):
        (tmp_path / name).write_text("a")
    assert write_or_check(texts, "write", checks=True) == 1
    named = [f"{tmp_path / name} is not current: run `write`" for name in ("edited", "none")]
    assert capsys.readouterr().out.splitlines() == named
    assert not (tmp_path / "none").exists()
    assert write_or_check(texts, "write", checks=False) == 0
    assert {path: path.read_text() for path in texts} == texts
    assert write_or_check(texts, "write", checks=True) == 0


def test_a_page_that_is_not_current_is_named_with_what_its_check_printed(capsys):
    wrong = "python -c 'import sys; print(\"a.md is not current\"); sys.exit(3)'"
    assert check_all([wrong, "python -c pass"], 2) == 1
    printed = capsys.readouterr().out
    assert f"{wrong}: exit 3, " in printed
    assert "\na.md is not current\n" in f"\n{printed}"
    assert "python -c pass: passed, " in printed
