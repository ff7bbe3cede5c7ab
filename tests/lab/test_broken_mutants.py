"""A mutant that does not import or run proves nothing: it is an error with a name and a reason, and never "found"."""

from pathlib import Path

import msgspec
import pytest
from attn_fuzz.patches.mutant import REFUSALS, MutantError, Patch
from attn_fuzz.run.processes.executor import Executor
from attn_lab import results_file
from attn_lab.zoo import results as zoo_results
from attn_lab.zoo.results import Results

from tests.support.bugs import planted, toml

VISIBILITY = "attn_optimized.kernels.visibility"
LOGITS = "attn_optimized.kernels.logits"
NO_SUCH_FUNCTION = Patch(place=f"{VISIBILITY}.in_window", find="tl.maximum", replace="tl.smallest")


SOUND = planted(
    "sound", Patch(place=f"{VISIBILITY}.in_window", find="end_position + right + 1", replace="end_position + right")
)
RAISES = planted(
    "raises",
    Patch(place=f"{LOGITS}.tanh", find="x * x", replace="tl.reshape(x, [3])"),
    raises="power of 2",
)
BROKEN = [
    (
        planted("not-defined-at-import", Patch(place=LOGITS, find="import triton", replace="import triton; del triton")),
        f"{LOGITS} does not import: NameError: name 'triton' is not defined",
    ),
    (
        planted(
            "no-such-attribute-at-import", Patch(place="attn_optimized.kv_cache", find="torch.int16", replace="torch.int17")
        ),
        "attn_optimized.kv_cache does not import: AttributeError: module 'torch' has no attribute 'int17'",
    ),
    (planted("no-such-function", NO_SUCH_FUNCTION), "it has no `raises`, and raised"),
    (
        planted("no-such-function-in-a-rule", Patch(place=f"{LOGITS}.alibi", find="tl.abs", replace="tl.size")),
        "it has no `raises`, and raised",
    ),
    (
        planted("announced-and-in-every-case", NO_SUCH_FUNCTION, raises="smallest"),
        "it ran none of the cases that have queries and keys",
    ),
    (planted("announced-otherwise", NO_SUCH_FUNCTION, raises="largest"), "it has raises = 'largest', and raised"),
]
"""Mutants, each with the beginning of why it does not run."""


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_a_broken_mutant_is_an_error_and_the_others_are_looked_for(attn_lab, tmp_path):
    (tmp_path / "bugs").mkdir()
    for mutant in [*(mutant for mutant, _ in BROKEN), SOUND, RAISES]:
        (tmp_path / "bugs" / f"{mutant.name}.toml").write_text(toml(mutant))
    kept = tmp_path / "docs" / "generated"
    kept.mkdir(parents=True)
    options = ("--workers", 2, "--examples", 25, "--no-shrink", "--json", "zoo.json", "--write")
    run = attn_lab("zoo", "run", "--dir", "bugs", *options)
    assert run.code == 2, run.err
    result = results_file.load(Path("zoo.json"), Results)
    rows = {row.name: row for row in result.mutants}
    assert rows.keys() == {"sound", "raises", *(mutant.name for mutant, _ in BROKEN)}
    for mutant, reason in BROKEN:
        row = rows[mutant.name]
        assert row.error is not None, mutant.name
        assert row.error.startswith(f"{mutant.name}: {reason}"), mutant.name
        assert row.found == ()
        assert f"{mutant.name}: {reason}" in run.err
    assert run.out.count(zoo_results.DOES_NOT_RUN) == len(BROKEN)
    assert "2 of 2 found" in run.out
    assert rows["sound"].by in ("value", "bitwise")
    assert rows["raises"].by == "raised"
    assert not [*kept.iterdir()]


OF_THE_FUZZER = Patch(place="attn_fuzz.cases.poison.bits", find="tensor.dtype in POISON", replace="True")
NOT_INSTALLED = planted("not-installed", OF_THE_FUZZER)
NO_TARGET = msgspec.structs.replace(planted("no-target", SOUND.patches[0]), target="backend-nowhere")


def test_a_mutant_that_cannot_be_installed_is_an_error_and_the_others_are_looked_for(attn_lab, tmp_path):
    """Nothing of the fuzzer can be patched; and a target may be missing on this machine."""
    (tmp_path / "bugs").mkdir()
    for mutant in (NOT_INSTALLED, NO_TARGET, SOUND):
        (tmp_path / "bugs" / f"{mutant.name}.toml").write_text(toml(mutant))
    run = attn_lab("zoo", "run", "--dir", "bugs", "--workers", 1, "--examples", 25, "--no-shrink", "--json", "zoo.json")
    assert run.code == 2
    rows = {row.name: row for row in results_file.load(Path("zoo.json"), Results).mutants}
    assert rows["not-installed"].error == "not-installed: attn_fuzz.cases.poison is imported already"
    assert "no target 'backend-nowhere'" in rows["no-target"].error
    assert rows["sound"].by in ("value", "bitwise")
    assert zoo_results.SURVIVED not in run.out


def test_a_stored_case_fails_no_broken_mutant(step_case, tmp_path):
    mutant = planted("broken", NO_SUCH_FUNCTION)
    with (
        Executor("triton", "cpu", 60.0, tmp_path / "ahead.json", mutant) as executor,
        pytest.raises(MutantError, match="smallest"),
    ):
        executor.run(step_case)


def test_an_exception_is_a_finding_only_if_it_is_announced():
    RAISES.check_announced("InterpreterError: must be a power of 2", "InterpreterError")
    with pytest.raises(MutantError, match=r"raises: it has raises = 'power of 2', and raised ValueError: no"):
        RAISES.check_announced("ValueError: no", "ValueError")
    with pytest.raises(MutantError, match="sound: it has no `raises`, and raised ValueError: no"):
        SOUND.check_announced("ValueError: no", "ValueError")


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_a_finding_without_a_word_and_a_word_that_is_given_counts(name):
    SOUND.check_announced(f"{name}: no", name)
    with pytest.raises(MutantError, match="raises: it has raises = 'power of 2'"):
        RAISES.check_announced(f"{name}: no", name)


def test_a_mutant_that_raises_in_two_ways_announces_both():
    two = msgspec.structs.replace(RAISES, raises=("power of 2", "outside"))
    two.check_announced("InterpreterError: must be a power of 2", "InterpreterError")
    two.check_announced("ValueError: outside of every argument", "ValueError")
    with pytest.raises(MutantError, match=r"raises: it has raises = \('power of 2', 'outside'\), and raised ValueError: no"):
        two.check_announced("ValueError: no", "ValueError")
