"""Mutants patch memory and never a file; they apply or are an error; and the fuzzer finds what they plant."""

import ast
import importlib
import importlib.resources
import inspect
import re
import shutil
import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest
from attn_contract import Batch, Layer
from attn_contract.rules import held_rules
from attn_fuzz.cases import case_file
from attn_fuzz.corpus import files
from attn_fuzz.patches import installation
from attn_fuzz.patches.mutant import INSTALLED, MutantError, Patch
from attn_fuzz.patches.source import patched_sources, text_of
from attn_fuzz.run.processes.executor import Executor
from attn_fuzz.run.runner import Outcome
from attn_fuzz.run.shard import Progress
from attn_fuzz.verdict.verdict import VerdictKind
from attn_lab import results_file
from attn_lab.commands import zoo as zoo_command
from attn_lab.finders import PARTS_OF_FUZZER
from attn_lab.zoo import known_bugs
from attn_lab.zoo import results as zoo_results
from attn_lab.zoo import run as zoo_run
from attn_lab.zoo.page import DATA
from attn_lab.zoo.results import Results, Row
from click.testing import CliRunner

from tests.support.bugs import planted, toml
from tests.support.mostly_nightly import mostly_nightly
from tests.support.pages import ROOT

SHIPPED = [known_bugs.read(path) for path in sorted(known_bugs.FOLDER.glob("*.toml"))]
KEPT = results_file.load(ROOT / DATA, Results)


@pytest.fixture
def victim(tmp_path, monkeypatch):
    """A package that nobody has imported. After it nothing is installed, and the search for modules is as it was."""
    installed = list(INSTALLED)
    package = tmp_path / "victim"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "sums.py").write_text("ZERO = 0\n\n\ndef add(a, b):\n    return a + b\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield package
    INSTALLED[:] = installed
    for name in [name for name in sys.modules if name.split(".")[0] == "victim"]:
        del sys.modules[name]


SUBTRACTS = Patch(place="victim.sums.add", find="a + b", replace="a - b")


def test_a_patched_module_is_imported_and_its_file_stays_as_it_is(victim):
    before = (victim / "sums.py").read_bytes()
    installation.install(planted("planted", SUBTRACTS))
    sums = importlib.import_module("victim.sums")
    assert sums.add(5, 3) == 2
    assert "a - b" in inspect.getsource(sums.add), "Triton reads kernels so"
    assert (victim / "sums.py").read_bytes() == before


def test_a_patched_package_finds_the_files_beside_it(victim):
    (victim / "table.txt").write_text("42")
    (victim / "__init__.py").write_text("from pathlib import Path\n\nTABLE = Path(__file__).with_name('tables.txt')\n")
    installation.install(planted("planted", Patch(place="victim", find="'tables.txt'", replace="'table.txt'")))
    package = importlib.import_module("victim")
    assert package.TABLE.read_text() == "42"
    assert importlib.resources.files("victim").joinpath("table.txt").read_text() == "42"
    assert importlib.import_module("victim.sums").add(5, 3) == 8, "other modules of the package are files"


def test_patches_of_one_module_apply_together(victim):
    installation.install(planted("planted", SUBTRACTS, Patch(place="victim.sums", find="ZERO = 0", replace="ZERO = 1")))
    sums = importlib.import_module("victim.sums")
    assert (sums.add(5, 3), sums.ZERO) == (2, 1)


def test_a_patch_that_does_not_apply_is_an_error(victim):
    with pytest.raises(MutantError, match=r"planted: victim.sums.add: its `find` stands there 0 times"):
        installation.install(planted("planted", Patch(place="victim.sums.add", find="a * b", replace="1")))


def test_a_module_that_is_imported_already_is_an_error(victim):
    importlib.import_module("victim.sums")
    with pytest.raises(MutantError, match="imported already"):
        installation.install(planted("planted", SUBTRACTS))


def test_the_five_reports_are_in_the_zoo():
    origins = " ".join(bug.origin for bug in SHIPPED)
    assert all(report in origins for report in ("#38450", "#39119", "#40176", "#43945", "#43817"))
    assert len({bug.name for bug in SHIPPED}) == len(SHIPPED)


@pytest.mark.parametrize("bug", SHIPPED, ids=lambda bug: bug.name)
def test_the_patch_of_a_shipped_bug_applies(bug):
    for module, patched in patched_sources(bug.patches).items():
        assert ast.dump(ast.parse(patched)) != ast.dump(ast.parse(text_of(module)))


@pytest.mark.parametrize("name", [*held_rules(Layer), *held_rules(Batch)])
def test_every_rule_is_broken_by_a_mutant(name):
    """Whose trigger names the rule."""
    assert any(name in bug.trigger for bug in SHIPPED), f"{name}: nothing shows that the fuzzer finds a kernel without it"


def test_all_classes_are_in_the_zoo_and_each_bug_has_results():
    assert {bug.kind for bug in SHIPPED} == set(get_args(known_bugs.BugKind))
    assert {row.name for row in KEPT.mutants} == {bug.name for bug in SHIPPED}


def zoo(attn_lab, *arguments):
    run = attn_lab("zoo", "run", "--workers", 2, "--json", "zoo.json", *arguments)
    return run, results_file.load(Path("zoo.json"), Results)


LATE = {
    row.name for row in KEPT.mutants if row.found and (row.found[0] or 0) > 8 and (files.SHIPPED / f"{row.name}.json").exists()
}
"""Bugs that are looked for by their stored case alone."""
SOONEST = {
    row.name: min((number, seed) for number, seed in zip(row.found, KEPT.seeds, strict=True) if number is not None)[1]
    for row in KEPT.mutants
    if any(number is not None for number in row.found) and row.name not in LATE
}
"""The seed that has found each bug after the fewest examples."""


FIRST = {row.name: min(number for number in row.found if number is not None) for row in KEPT.mutants if row.name in SOONEST}
QUICK = {
    min((bug.name for bug in SHIPPED if bug.kind == kind and bug.name in FIRST), key=lambda name: FIRST[name])
    for kind in {bug.kind for bug in SHIPPED if bug.name in FIRST}
}
"""The bug of each class that is found soonest: `tox run -e nightly -- zoo` looks for a third of all."""


@pytest.mark.parametrize("name", mostly_nightly(sorted(QUICK), sorted(QUICK, key=lambda name: (FIRST[name], name))[:6]))
def test_a_bug_is_found(name, fuzz_apart):
    """From random drawing, without being told where to look."""
    (bug,) = [bug for bug in SHIPPED if bug.name == name]
    progress = fuzz_apart(bug.target, examples=500, seed=SOONEST[name], mutant=bug.mutant, on_failure="stop")
    assert progress.failure is not None, f"survived {progress.examples} examples"


@pytest.mark.parametrize("name", sorted(LATE)[::8])
def test_a_bug_fails_on_its_stored_case(name, tmp_path):
    (bug,) = [bug for bug in SHIPPED if bug.name == name]
    case = case_file.load(files.SHIPPED / f"{name}.json")
    with Executor(bug.target, "cpu", 60.0, tmp_path / "ahead.json", bug) as executor:
        assert executor.run(case).failed


@pytest.mark.parametrize(
    ("place", "find", "replace", "message"),
    [
        ("validation.values.check_lengths", "seq_lens > batch.max_seq_len", "seq_lens >= batch.max_seq_len", "ContractError: "),
        pytest.param(
            "layer.Layer.__post_init__",
            "self._check_cache()",
            "raise KeyError('no layer')",
            "in the fuzzer, which calls what is ",
            marks=pytest.mark.nightly,
        ),
    ],
    ids=["that the target calls", "that the fuzzer calls, too"],
)
def test_a_part_of_the_contract_is_patched(place, find, replace, message, step_case, tmp_path):
    """In a process that has not imported it, and there alone."""
    fault = planted("planted", Patch(f"attn_contract.{place}", find, replace), raises="")
    with Executor("triton", "cpu", 60.0, tmp_path / "ahead.json", fault.mutant) as executor:
        verdict = executor.run(step_case)
    assert (verdict.kind, verdict.message[: len(message)]) == ("raised", message)
    with Executor("triton", "cpu", 60.0, tmp_path / "ahead.json") as executor:
        assert executor.run(step_case).kind == "agree"


@pytest.mark.nightly
def test_seeds_are_medians_and_only_the_first_is_shrunk(attn_lab):
    run, result = zoo(attn_lab, "--only", "diagonal", "--seeds", 3)
    assert run.code == 0, run.out
    (row,) = result.mutants
    assert result.seeds == (0, 1, 2)
    assert len(row.found) == 3
    assert row.examples == statistics.median(row.found)
    assert row.size[0] == 1


def test_what_needs_a_gpu_is_not_run_without_one(attn_lab):
    run, result = zoo(attn_lab, "--only", "tf32", "--device", "cpu")
    assert run.code == 0
    assert "needs a GPU" in run.out
    (row,) = result.mutants
    assert row.found == ()


def test_every_kind_of_failure_is_of_one_judge():
    failures = set(get_args(VerdictKind)) - {"agree", "refused", "limit"}
    counted = Counter(kind for kinds in PARTS_OF_FUZZER.values() for kind in kinds)
    assert failures <= counted.keys()
    assert set(counted.values()) == {1}


def test_a_bug_of_ones_own_is_found(attn_lab, tmp_path):
    nothing = Patch("attn_optimized.kv_cache.write_kv_cache", "_run(write, signature)", "")
    (tmp_path / "no_write.toml").write_text(toml(planted("no-write", nothing)))
    run, result = zoo(attn_lab, "--dir", tmp_path, "--examples", 50, "--corpus", "small")
    assert run.code == 0, run.err
    (row,) = result.mutants
    assert (row.name, row.by) == ("no-write", "cache")
    told = rf"^no-write: \w+ after {row.found[0]} examples$"
    assert re.search(told, run.err, re.MULTILINE), "each finding is told when it is made"
    assert row.seconds > 0
    assert row.size[0] <= 2
    assert len(case_file.load(Path("small/no-write.json")).requests) == row.size[0]


@pytest.mark.nightly
def test_a_mutant_that_changes_nothing_survives(attn_lab, tmp_path):
    same = ("validate or signature not in _LAUNCHES", "signature not in _LAUNCHES or validate")
    harmless = planted("harmless", Patch("attn_optimized.kv_cache.write_kv_cache", *same))
    (tmp_path / "harmless.toml").write_text(toml(harmless))
    run, result = zoo(attn_lab, "--dir", tmp_path, "--examples", 10)
    assert run.code == 1
    assert "SURVIVED" in run.out
    (row,) = result.mutants
    assert (row.found, row.examples, row.size) == ((None,), None, None)


def test_a_part_of_the_zoo_keeps_what_came_of_the_others():
    def results(*rows, at_most=500):
        return zoo_results.of_run("CPU", [0], at_most, [Row(name, found=(number,), by="value") for name, number in rows])

    kept, found = results(("a", 1), ("gone", 1), ("c", 1)), results(("d", 2), ("a", 2))
    whole = zoo_results.updated(kept, found, ["a", "b", "c", "d"])
    assert [(row.name, row.found) for row in whole.mutants] == [("a", (2,)), ("c", (1,)), ("d", (2,))]
    zoo_results.check_alike(kept, found)
    with pytest.raises(MutantError, match=r"--write: the other bugs ran with CPU, .* seeds \(0,\) and 500 examples"):
        zoo_results.check_alike(kept, results(at_most=30))


def test_a_run_unlike_the_one_that_is_kept_is_refused_before_it_begins(attn_lab):
    DATA.parent.mkdir(parents=True)
    shutil.copy(ROOT / DATA, DATA)
    run = attn_lab("zoo", "run", "--only", "tf32", "--write", "--examples", "7")
    assert run.code == 2
    assert "--write: the other bugs ran with" in run.err


KERNEL_BUGS = known_bugs.on_target(SHIPPED, "triton@gfx942", compiles=True)


def test_another_target_gets_the_bugs_of_kernels_alone():
    names = {bug.name for bug in KERNEL_BUGS}
    assert {bug.target for bug in KERNEL_BUGS} == {"triton@gfx942"}
    assert "cap-after-mask" in names
    assert names.isdisjoint(["sglang-1469", "vllm-33688", "nan-of-an-empty-part"]), "host code, and kernels of other targets"
    assert not next(bug for bug in KERNEL_BUGS if bug.name == "tf32").needs_gpu, "the compiler makes TF32 of it"
    assert next(bug for bug in known_bugs.on_target(SHIPPED, "mine", compiles=False) if bug.name == "tf32").needs_gpu


def test_with_an_architecture_each_bug_of_a_kernel_keeps_its_target():
    bugs, left_out = zoo_run.on_target(SHIPPED, "@gfx942")
    targets = {bug.name: bug.target for bug in bugs}
    assert targets["cap-after-mask"] == "triton@gfx942"
    assert targets["nan-of-an-empty-part"] == "triton-merge-parts@gfx942"
    assert "sglang-1469" not in targets, "host code"
    in_kernels = {bug.name for bug in SHIPPED if bug.in_kernel}
    unseen = {bug.name for bug in SHIPPED if bug.not_emulated}
    planned_already = {bug.name for bug in SHIPPED if bug.in_kernel and bug.target.endswith("@planned")}
    assert in_kernels - {*targets} == {*left_out} == unseen | planned_already


def test_a_bug_is_found_in_compiled_code(attn_lab):
    run, result = zoo(attn_lab, "--target", "triton@gfx942", "--no-shrink", "--only", "diagonal", "--examples", "60")
    assert run.code == 0, run.out + run.err
    assert result.target == "triton@gfx942"
    assert {row.name for row in result.mutants if row.by} == {"diagonal"}


def test_results_on_another_target_are_not_kept(attn_lab):
    run = attn_lab("zoo", "run", "--target", "triton@gfx942", "--only", "diagonal", "--write")
    assert run.code == 2
    assert "--write keeps what each bug's own target finds" in run.err


def test_an_interrupted_run_writes_what_has_ended_and_names_the_rest(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    DATA.parent.mkdir(parents=True)
    ended = Outcome([Progress(examples=5), Progress(examples=2)], interrupted=True, finished={0})
    monkeypatch.setattr(zoo_run, "run_plans", lambda plans, workers: ended)
    only = ["--only", "diagonal", "--only", "scale-of-zero"]
    arguments = ["run", *only, "--device", "cpu", "--write"]
    result = CliRunner().invoke(zoo_command.command, arguments, standalone_mode=False)
    assert result.return_value == 130
    (row,) = results_file.load(DATA, Results).mutants
    assert (row.name, row.found) == ("diagonal", (None,))
    assert "without a result: --only scale-of-zero" in result.output
