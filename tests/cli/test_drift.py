"""`attn-parity drift`: a wrong kernel is told from an adapter that does not fit, and an interrupted call goes on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from attn_fuzz import current_folder
from attn_parity.commands.drift import changes
from attn_parity.commands.drift.look import Look, look
from attn_parity.commands.drift.sides import Failed, Ran, Side

KERNELS = """
def scaled(run, q, kv_cache, layer, batch, *, out, factor=1):
    run(q, kv_cache, layer, batch, out=out)


def renamed(run, q, kv_cache, layer, batch, *, out, factor=1):
    run(q, kv_cache, layer, batch, out=out)
"""
LATER = """
def scaled(run, q, kv_cache, layer, batch, *, out, factor=1):
    out.fill_(7)


def renamed(run, q, kv_cache, layer, batch, *, out, by=1):
    run(q, kv_cache, layer, batch, out=out)
"""
TARGETS = '''
"""The declaration is read from ops.py:2-3."""

import functools
import attn_reference
from attn_contract import AttentionType, Layout
from attn_fuzz import foreign
from attn_fuzz.targets import Rounding, Support, Target


def modules():
    return foreign.load("planted", ("ops.py",))


def call(name, q, k, v, kv_cache, layer, batch, *, out, lse):
    [ops] = modules()
    ops.FUNCTION(attn_reference.paged_attention, q, kv_cache, layer, batch, out=out, factor=1)


def target(name):
    return Target(
        name=name, description="planted", attention=functools.partial(call, name), refuses=False, modules=modules,
        support=lambda device: Support(
            attn_types=(AttentionType.DECODER,), dtypes=("float32",), layouts=(Layout.KV_FIRST_NHD,)
        ),
        rounding=lambda device: Rounding(keys_per_tile=64),
    )


TARGET = target("FUNCTION")
'''


def plant(folder: Path) -> None:
    for night, text in (("old", KERNELS), ("new", LATER)):
        (folder / night / "planted").mkdir(parents=True)
        (folder / night / "planted" / "ops.py").write_text(text)
    for function in ("scaled", "renamed"):
        (folder / f"planted_{function}.py").write_text(TARGETS.replace("FUNCTION", function))


@pytest.mark.nightly
def test_a_wrong_kernel_is_told_from_an_adapter_that_does_not_fit(tmp_path, attn_parity):
    plant(tmp_path)
    names = ["--target", "planted_scaled:TARGET", "--target", "planted_renamed:TARGET"]
    command = ["drift", "planted", *names, "--examples", "5", "--seed", "1"]
    first = attn_parity(*command, "old")
    assert first.code == 0, first
    assert "the next call compares with these sources" in first.out
    second = attn_parity(*command, "new")
    assert second.code == 1, second
    result = json.loads(Path("attn-parity-runs/drift-planted.json").read_text())
    wrong, misfit = (result["changes"][name] for name in names[1::2])
    assert "value" in {failure.partition(":")[0] for failure in wrong["failures"]}
    assert misfit["failures"] == misfit["still_failing"] == []
    assert misfit["not_judged"] == ["the adapter does not fit renamed: parameter 'factor' is gone"]
    assert misfit["sources"] == ["signature: ops.renamed: by=1 new; factor=1 gone"]
    shutil.rmtree("old")
    again = attn_parity(*command, "new")
    assert (again.code, again.out) == (1, second.out), "nothing ran again, and the first night is still what it compares with"
    assert " examples, " not in again.err


def test_what_a_target_finds_in_its_sources(tmp_path, monkeypatch):
    plant(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(current_folder, "folders", {})
    monkeypatch.setenv("ATTN_PARITY_PLANTED", "old")
    found = look("planted_scaled:TARGET", "cpu", None)
    assert found["missing"] is None
    parameters = ["run", "q", "kv_cache", "layer", "batch", "out", "factor=1"]
    assert found["functions"] == {"ops.scaled": parameters}, "what the adapter names"
    assert found["declared"]["dtypes"] == "('float32',)"
    Path("old/planted/ops.py").rename("old/planted/gone.py")
    assert "has no ops.py" in str(look("planted_scaled:TARGET", "cpu", None)["missing"])


def looked(*parameters: str, **fields: Any) -> Look:
    given: Any = {"missing": None, "functions": {"ops.attend": ["q", "k", *parameters]}, "positional": {"ops.attend": 2}}
    return {**given, "declared": {"dtypes": "float16"}, "cited": {}, "findings": ["a-bug"], **fields}


def ran(*failures: tuple[str, str], **fields: Any) -> Ran:
    failed = [Failed(kind=kind, message=message, case_file=None) for kind, message in failures]
    return Ran(**{**dict.fromkeys(Ran.__annotations__, 0), "known": {}, "no_longer_failing": [], "limits": {}, "error": None,
                  "examples": 9, "failures": failed, **fields})  # fmt: skip


def changed(old: Look, new: Look, earlier: Ran, later: Ran) -> dict[str, list[str]]:
    before, after = (
        Side(folder="nowhere", digest="", looks={"t": look}, ran={"t": run}) for look, run in ((old, earlier), (new, later))
    )
    return {field: words for field, words in changes.of_target("t", before, after, "package").items() if words}


WRONG = ("value", "out is wrong")
NEW = ("raised", "TypeError: attend() missing 1 required keyword-only argument: 'plan' (attn_fuzz/one.py:7, in call)")
KEY = ("raised", "KeyError: 3 (package/ops.py:7, in attend)")
STUB = ("raised", "ImportError: cannot import name 'x' from 'package.envs' (package/ops.py:7, in attend)")
ORDER = looked("scale", functions={"ops.attend": ["k", "q", "scale"]})


@pytest.mark.parametrize(
    ("new", "later", "expected"),
    [
        (looked("scale"), ran(), {}),
        (looked("scale"), ran(WRONG), {"failures": "value: out is wrong"}),
        (looked("scale", "plan=None"), ran(WRONG), {"failures": "value", "sources": "signature: ops.attend: plan=None new"}),
        (looked("scale", "plan"), ran(WRONG), {"not_judged": "it fails, perhaps by its adapter", "sources": "signature: "}),
        (ORDER, ran(WRONG), {"not_judged": "it fails, perhaps", "sources": "signature: ops.attend: another order"}),
        (looked("scale"), ran(NEW), {"not_judged": "the adapter does not fit attend: parameter 'plan' is new"}),
        (looked("scale"), ran(KEY), {"failures": "raised: KeyError"}),
        (looked("scale"), ran(STUB), {"not_judged": "the adapter does not fit: ImportError"}),
        (looked(missing="no ops.py"), ran(), {"not_judged": "it does not load: no ops.py"}),
        (looked("scale", declared={"dtypes": "bfloat16"}), ran(), {"sources": "declaration: dtypes was float16, is bfloat16"}),
        (looked("scale"), ran(limits={"tl.foo": 9}), {"not_judged": "not run: tl.foo"}),
        (looked("scale"), ran(examples=0), {"not_judged": "not run: no example within 0 s"}),
        (looked("scale"), ran(no_longer_failing=["a-bug"]), {"findings": "finding a-bug is gone"}),
        (looked("scale", findings=["a-bug", "of-today"]), ran(), {"findings": "finding of-today is new"}),
    ],
)
def test_what_changed_is_told_of_the_kernel_only_where_it_is_the_kernels(new, later, expected):
    found = changed(looked("scale"), new, ran(), later)
    assert found.keys() == expected.keys()
    for field, begin in expected.items():
        assert found[field][0].startswith(begin)


def test_a_failure_of_the_night_before_is_no_new_one():
    assert changed(looked(), looked(), ran(WRONG), ran(WRONG)) == {"still_failing": ["value: out is wrong"]}


def test_a_failure_that_is_gone_is_told_where_as_many_examples_ran():
    assert changed(looked(), looked(), ran(WRONG), ran()) == {"findings": ["no longer fails: value: out is wrong"]}
    assert changed(looked(), looked(), ran(WRONG), ran(examples=8)) == {}
    assert changed(looked(), looked(), ran(NEW), ran()) == {}, "it was the adapter's"


def test_lines_that_an_adapter_cites_are_looked_for_wherever_they_went(tmp_path):
    from attn_parity.commands.drift.look import line_digests, still_there

    before = tmp_path / "ops.py"
    before.write_text("a\nif window:\n    window -= 1\nb\n")
    cited = line_digests(before)[1:3]
    (tmp_path / "moved").mkdir()
    before.rename(tmp_path / "moved" / "ops.py")
    assert still_there(cited, "kernels/ops.py", tmp_path)
    assert not still_there([*reversed(cited)], "kernels/ops.py", tmp_path)
