"""A TOML file of the laboratory with another field is refused by its path, and no traceback is shown."""

import pytest
from attn_fuzz.errors import InputError
from attn_lab.binaries import budgets
from attn_lab.findings import reports
from attn_lab.miscompile import page as miscompiled
from attn_lab.mutate import reasons
from attn_lab.releases import alarms, runner
from attn_lab.zoo import known_bugs


@pytest.mark.parametrize(
    ("module", "name", "read"),
    [
        (runner, "FIXES", runner.fixes),
        (alarms, "READ", alarms.entries),
        (budgets, "SHIPPED", budgets.load),
        (miscompiled, "REASONS", miscompiled.read_reasons),
        (reasons, "EQUIVALENT", lambda: reasons.load(reasons.EQUIVALENT)),
        (known_bugs, "FOLDER", lambda: known_bugs.read(known_bugs.FOLDER)),
        (reports, "file_of", lambda: reports.load("vllm-planted")),
    ],
    ids=["fixes", "alarms", "budgets", "survivors", "reasons", "bug", "report"],
)
def test_a_wrong_toml_file_is_refused(module, name, read, monkeypatch, tmp_path):
    file = tmp_path / "wrong.toml"
    file.write_text("[planted]\nwrong = 1\n")
    monkeypatch.setattr(module, name, (lambda *of: file) if name == "file_of" else file)
    with pytest.raises(InputError, match=r"wrong\.toml: Object "):
        read()
