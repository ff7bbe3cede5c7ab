"""Mutants patch memory and never a file; they apply or are an error; and the fuzzer finds what they plant."""

import importlib
import inspect
import json
import sys
from pathlib import Path

import pytest
from attn_fuzz.zoo import mutants
from attn_fuzz.zoo.mutants import Mutant, MutantError, Patch

SHIPPED = mutants.load_all()


def mutant(*patches: Patch) -> Mutant:
    return Mutant(name="planted", origin="", kind="", what="", trigger="", target="", patches=patches)


@pytest.fixture
def victim(tmp_path, monkeypatch):
    """A package that nobody has imported, and the search for modules as it was."""
    package = tmp_path / "victim"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "sums.py").write_text("def add(a, b):\n    return a + b\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield package
    for name in [name for name in sys.modules if name.split(".")[0] == "victim"]:
        del sys.modules[name]


SUBTRACTS = Patch(module="victim.sums", find="a + b", replace="a - b")


def test_a_patched_module_is_imported_and_its_file_stays_as_it_is(victim):
    before = (victim / "sums.py").read_bytes()
    mutants.install(mutant(SUBTRACTS))
    sums = importlib.import_module("victim.sums")
    assert sums.add(5, 3) == 2
    assert "a - b" in inspect.getsource(sums.add), "Triton reads kernels so"
    assert (victim / "sums.py").read_bytes() == before


def test_patches_of_one_module_apply_together(victim):
    mutants.install(mutant(SUBTRACTS, Patch(module="victim.sums", find="def add", replace="def subtract")))
    assert importlib.import_module("victim.sums").subtract(5, 3) == 2


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        (Patch(module="victim.sums", find="a * b", replace=""), "0 times"),
        (Patch(module="victim.sums", find="a", replace=""), "times, expected once"),
        (Patch(module="victim.products", find="a", replace=""), "victim.products"),
    ],
)
def test_a_patch_that_does_not_apply_is_an_error(patch, message, victim):
    with pytest.raises(MutantError, match=message):
        mutants.install(mutant(patch))


def test_a_module_that_is_imported_already_is_an_error(victim):
    importlib.import_module("victim.sums")
    with pytest.raises(MutantError, match="imported already"):
        mutants.install(mutant(SUBTRACTS))


def test_the_five_reports_are_in_the_zoo():
    origins = " ".join(animal.origin for animal in SHIPPED)
    assert all(report in origins for report in ("#38450", "#39119", "#40176", "#43945", "#43817"))
    assert len({animal.name for animal in SHIPPED}) == len(SHIPPED)


@pytest.mark.parametrize("animal", SHIPPED, ids=lambda animal: animal.name)
def test_a_shipped_mutant_applies_and_is_python(animal):
    for module in {patch.module for patch in animal.patches}:
        patched = mutants.patched_source(module, animal.patches)
        assert patched != mutants.patched_source(module, ())
        compile(patched, module, "exec")


def zoo(attn_parity, *arguments):
    run = attn_parity("zoo", "--workers", 2, "--json", "zoo.json", *arguments)
    return run, json.loads(Path("zoo.json").read_text())


@pytest.mark.timeout(1500)  # two dozen mutants, on two cores that other tests use too
def test_every_resident_is_found_and_made_small(attn_parity):
    """From random drawing, without being told where to look; in what is left, no field can be lowered."""
    run, result = zoo(attn_parity)
    assert run.code == 0, run.out
    assert {row["name"] for row in result["mutants"]} == {mutant.name for mutant in SHIPPED}
    for row in result["mutants"]:
        assert row["found"], row["name"]
        assert row["minimal"], row["name"]
        # what depends on the batch needs one
        assert len(row["case"]["requests"]) <= (4 if row["by"] == "property" else 2), row["name"]


def test_a_mutant_of_ones_own_is_found(attn_parity, tmp_path):
    (tmp_path / "no_write.toml").write_text(
        """
        name = "no-write"
        origin = "planted"
        class = "planted"
        what = "the cache write does nothing"
        trigger = "any write"
        target = "triton"

        [[patch]]
        module = "attn_optimized.kv_cache"
        find = "def write_kv_cache("
        replace = '''
def write_kv_cache(*args, **kwargs):
    pass


def _unused('''
        """
    )
    run, result = zoo(attn_parity, "--dir", tmp_path, "--examples", 50)
    assert run.code == 0, run.err
    (row,) = result["mutants"]
    assert result["schema"] == "attn-parity.zoo/1"
    assert (row["name"], row["origin"], row["found"], row["by"]) == ("no-write", "planted", True, "cache")
    assert row["seconds"] > 0
    assert row["minimal"]
    assert len(row["case"]["requests"]) <= 2


def test_a_mutant_that_changes_nothing_survives(attn_parity, tmp_path):
    (tmp_path / "harmless.toml").write_text(
        """
        name = "harmless"
        origin = "planted"
        class = "planted"
        what = "nothing"
        trigger = "never"
        target = "triton"

        [[patch]]
        module = "attn_optimized.kv_cache"
        find = "def write_kv_cache("
        replace = "def write_kv_cache(  # harmless"
        """
    )
    run, result = zoo(attn_parity, "--dir", tmp_path, "--examples", 10)
    assert run.code == 1
    assert "SURVIVED" in run.out
    (row,) = result["mutants"]
    assert (row["found"], row["examples"], row["case"]) == (False, 10, None)


def test_a_shipped_mutant_is_found(attn_parity):
    run, result = zoo(attn_parity, "--only", "seed-39119")
    assert run.code == 0, run.out
    (row,) = result["mutants"]
    assert row["found"]
    assert len(row["case"]["requests"]) <= 2
