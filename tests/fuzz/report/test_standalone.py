"""A failure's script is code, whatever the target is called."""

import ast

import msgspec
import pytest
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
