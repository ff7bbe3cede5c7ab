"""docs/guide/models.md has a row for each layer of every model file, and the row is what `attn-parity select` answers."""

import json
import re

import pytest

from tests.support.pages import PAGES, ROOT, run_command

PAGE = PAGES["docs/guide/models.md"]
FILES = sorted((ROOT / "examples" / "models").glob("*.json"))
ROW = re.compile(r"^\| ([\w.-]+) \| ([\w.]+) \| (\w+) \| (\w*)\s*\|$", re.MULTILINE)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_table_says_what_is_selected(file, tmp_path):
    run = run_command(f"attn-parity select {file} --arch gfx942 --aiter 2026-08 --json {tmp_path / 'selected.json'}", ROOT)
    assert run.returncode == 0, run.stderr
    layers = json.loads((tmp_path / "selected.json").read_text())["layers"]
    selected = {(name, layer["backend"], layer["layout"] or "") for name, layer in layers.items()}
    assert {(layer, backend, layout) for name, layer, backend, layout in ROW.findall(PAGE) if name == file.stem} == selected
