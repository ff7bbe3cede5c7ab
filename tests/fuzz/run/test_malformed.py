"""`--malformed`: what becomes of one corrupted call in each case, and a failure that is shrunk and replayed."""

import json

import msgspec
import pytest
from attn_fuzz.cases.case import Values
from attn_fuzz.run.case.malformed import corruption_of
from attn_fuzz.run.processes.executor import Executor
from attn_fuzz.targets import registry


def with_corruption(case, target: str, words: str):
    """The case with the least seed that draws a corruption."""
    seeds = (msgspec.structs.replace(case, values=Values("random", seed)) for seed in range(20_000))
    return next(each for each in seeds if corruption_of(each, registry.load(target)).what == words)


@pytest.mark.parametrize("is_after_legal", [False, True])
@pytest.mark.parametrize(
    ("name", "words", "kind", "outcome"),
    [
        ("CHECKED", "q of another dtype", "refused", "refused"),
        ("CHECKED", "an entry of block_table in use of -1", "refused", "refused"),
        ("RAISES", "q of another dtype", "raised", "crashed"),
        ("DIES", "q of another dtype", "crashed", "crashed"),
        ("HANGS", "q of another dtype", "hung", "hung"),
        ("CONVERTS", "q of another dtype", "agree", "accepted with the right output"),
        ("CONVERTS", "q of other numbers", "value", "accepted and wrong"),
        ("CLAMPS", "an entry of block_table in use of -1", "value", "accepted and wrong"),
        ("WRITES_FIRST", "q of another dtype", "guard", "accepted and wrong"),
    ],
)
def test_what_becomes_of_a_corrupted_call(name, words, kind, outcome, is_after_legal, step_case, tmp_path):
    target = f"planted_malformed:{name}"
    case = msgspec.structs.replace(step_case, earlier=("same",) * is_after_legal)
    case = with_corruption(case, target, words)
    with Executor(target, "cpu", 3.0 if name == "HANGS" else 60.0, tmp_path / "ahead.json", malformed=True) as executor:
        verdict = executor.run(case)
    assert (verdict.kind, verdict.of_wrong_call) == (kind, outcome), verdict
    if verdict.failed:
        assert verdict.message.startswith(f"with {words}: ")


FUZZ = ("fuzz", "--malformed", "--device", "cpu", "--workers", 1, "--seed", 1)


def test_a_run_counts_what_became_of_its_calls(attn_parity, tmp_path):
    run = attn_parity(*FUZZ, "--target", "planted_malformed:CHECKED", "--examples", 60, "--json", "run.json")
    assert run.code == 0, run
    found = json.loads((tmp_path / "run.json").read_text())
    assert found["wrong_calls"] == {"refused": 60}
    assert "wrong calls: 60 refused" in run.out
    kinds = {f"malformed: {kind}" for kind in ("dtype", "shape", "stride", "device", "length", "table", "alias")}
    assert kinds <= found["events"].keys()
    assert "not seen" not in run.err, "an account of mistakes is of legal calls"


def test_a_wrong_output_is_shrunk_and_replayed(attn_parity, tmp_path):
    target = ("--target", "planted_malformed:CLAMPS")
    run = attn_parity(*FUZZ, *target, "--examples", 300)
    assert run.code == 1, run
    assert "accepted and wrong" in run.out
    assert ": with an entry of block_table in use of " in run.out
    again = run.out.partition("again: ")[2]
    assert "--malformed" in again
    [smallest] = tmp_path.glob("attn-parity-runs/clamps-1.json")
    assert len(json.loads(smallest.read_text())["requests"]) == 1
    assert attn_parity("replay", smallest, *target, "--device", "cpu").code == 0
    replayed = attn_parity("replay", smallest, *target, "--device", "cpu", "--malformed")
    assert (replayed.code, "block_table" in replayed.out) == (1, True), replayed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--target", "reference-fp32"), "target reference-fp32 promises no checks (Target.checks_arguments)"),
        (("--fence",), "got --fence too, which looks at legal calls"),
        (("--exact",), "got --exact too, which looks at legal calls"),
    ],
)
def test_it_is_refused_where_nothing_is_promised_and_beside_other_modes(options, message, attn_parity):
    run = attn_parity(*FUZZ, *options)
    assert run.code == 2
    assert f"--malformed: {message}" in run.err
