"""A failure's script is code, and the line that runs its case again is a command, whatever the target is called."""

import ast
from pathlib import Path

import msgspec
import pytest
from attn_fuzz import report
from attn_fuzz.report import standalone
from attn_fuzz.verdict.verdict import Verdict

from tests.fuzz.explain.test_explain import PLAIN


@pytest.mark.parametrize("name", ['"""', "a'b", "a\\", "a\nb", "{q}", "\\N"])
def test_the_name_of_a_target_is_one_string_of_the_script(name):
    code = ast.parse(standalone.script(msgspec.structs.replace(PLAIN, target=name), Verdict(kind="value", message=name)))
    loaded = [
        node.args[0] for node in ast.walk(code) if isinstance(node, ast.Call) and ast.unparse(node.func) == "registry.load"
    ]
    assert [ast.literal_eval(each) for each in loaded] == [name]


@pytest.mark.parametrize(
    ("given", "on_path", "command"),
    [("bin/attn-parity", False, "bin/attn-parity"), ("bin/attn-parity", True, "attn-parity"), ("pytest", False, "attn-parity")],
)
def test_the_line_that_runs_a_case_again_works_in_a_new_shell(given, on_path, command, tmp_path, monkeypatch):
    if on_path:
        (tmp_path / "attn-parity").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.argv", [given])
    case = msgspec.structs.replace(PLAIN, target="my_target:TARGET@far")
    line = report.pasted(report.again(case, Path("runs/1 2.json"), None))
    assert line == f"{command} replay 'runs/1 2.json' --target my_target:TARGET@far"
