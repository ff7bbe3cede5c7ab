"""docs/guide/models.md shows what `attn-parity select` prints, for every model file beside it."""

import re
import shlex
from pathlib import Path

import pytest
from attn_parity import main
from attn_parity.options import results

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "guide" / "models.md").read_text()
EXAMPLES = re.findall(r"```\nattn-parity (.*?)\n```\n\n```\n(.*?)```", PAGE, flags=re.DOTALL)
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs" / "guide" / "models").glob("*.json"))


@pytest.mark.parametrize(("command", "printed"), EXAMPLES, ids=[command for command, _ in EXAMPLES])
def test_an_example_prints_what_the_page_shows(command, printed, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(results, "width", 140)
    with pytest.raises(SystemExit) as end:
        main(shlex.split(command))
    assert end.value.code == int(" not supported: " in printed)
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == printed.splitlines()


def test_every_model_has_an_example_and_the_page_shows_a_file_as_it_is():
    shown = {word for command, _ in EXAMPLES for word in shlex.split(command) if word.endswith(".json")}
    assert sorted(shown) == FILES
    json = re.search(r"```json\n(.*?)```", PAGE, flags=re.DOTALL)
    assert json is not None
    assert json[1] in [(ROOT / name).read_text() for name in FILES]
