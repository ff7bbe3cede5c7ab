"""The plugin as a target, and the example of a target of transformers' interface: wrong ones are found.

That transformers' sdpa agrees is on docs/guide/transformers.md.
"""

import pytest
from attn_fuzz.cases import case_file
from attn_fuzz.cases.case import Case, Request
from attn_fuzz.patches.mutant import Mutant, Patch
from attn_fuzz.run import shard
from attn_fuzz.run.shard import FuzzPlan
from attn_transformers import target as plugin_target

from tests.support.mostly_nightly import mostly_nightly
from tests.support.pages import ROOT, run_command

pytest.importorskip("transformers")

EXAMPLE = (ROOT / "examples" / "transformers_target.py").read_text()
FUZZ = "attn-parity fuzz --target mine:TARGET --seed 1 --workers 1 --corpus none --examples"
SIMPLEST = (Request(query_len=1, seq_len=1, blocks=(0,), causal=True),)
MINE = """
import transformers_target
from transformers_target import TARGET
from transformers.integrations.sdpa_attention import sdpa_attention_forward

def function(module, query, key, value, mask, dropout, scaling):
    {statement}
    return sdpa_attention_forward(module, query, key, value, mask, dropout=dropout, scaling=scaling)

transformers_target.function = function
"""


@pytest.fixture
def ended(tmp_path):
    """Fuzzes transformers' sdpa after a statement that changes its arguments."""
    (tmp_path / "transformers_target.py").write_text(EXAMPLE)

    def run(statement: str, examples: int):
        (tmp_path / "mine.py").write_text(MINE.format(statement=statement))
        return run_command(f"{FUZZ} {examples}", tmp_path)

    return run


WRONG = {
    "the scale is lost": ("scaling = 1.0", {"scale"}),
    "a decode has lost its mask": ("if query.shape[2] == 1: mask = None", {"window", "chunked_local"}),
    "a query reads the head of another": ("key, value = (x.flip(1) for x in (key, value))", {"num_kv_heads"}),
    "a prompt without a mask sees ahead": ("module.is_causal = False", {"requests"}),
}
"""A change of the arguments, and fields of a case: it needs one of them in order to show the change."""
FIRST = ("the scale is lost", "beams share the page that they write")
"""The faults that each run of the tests plants: a process that imports transformers takes seconds."""


@pytest.mark.parametrize("name", mostly_nightly(WRONG, FIRST))
def test_a_wrong_function_is_found(name, ended, tmp_path):
    statement, needed = WRONG[name]
    run = ended(statement, 100)
    assert run.returncode == 1, run.stdout + run.stderr
    case = case_file.load(tmp_path / "attn-parity-runs" / "my-transformers-attention-1.json")
    simplest = Case(target=case.target, head_size=case.head_size, requests=SIMPLEST, cache=case.cache)
    assert any(getattr(case, name) != getattr(simplest, name) for name in needed), case_file.dumps(case)


PLUGIN = "attn_transformers.target:TRANSFORMERS_ATTENTION"
FAULTS = {
    "scales of pages that grow are lost": (
        "paged_cache.PagedLayer._allocate",
        "zip(self._by_block(), old, strict=False)",
        "zip(self._by_block()[:1], old[:1], strict=False)",
    ),
    "beams share the page that they write": (
        "paged_cache.PagedLayer.reorder_cache",
        "tensor.index_copy_(dim, self._index(own), tensor.index_select(dim, self._index(shared)))",
        "None",
    ),
    "the least number hides no key": ("biases.split_mask", "mask > torch.finfo(mask.dtype).min / 2", "mask > -torch.inf"),
}


@pytest.fixture
def fuzzed(tmp_path):
    """Fuzzes the plugin, patched or not, in a process of its own."""

    def run(*patches: Patch, examples: int) -> shard.Progress:
        mutant = Mutant(name="fault", patches=patches, raises="") if patches else None
        plan = FuzzPlan(
            target=PLUGIN, device="cpu", examples=examples, seed=1, folder=tmp_path, mutant=mutant, on_failure="stop"
        )
        with shard.start_executor(plan) as executor:
            return shard.fuzz(plan, executor)

    return run


def test_the_plugin_agrees(fuzzed):
    progress = fuzzed(examples=4)
    assert progress.failure is None, progress.failure.verdict.message


@pytest.mark.parametrize("name", mostly_nightly(FAULTS, FIRST))
def test_a_fault_of_the_plugin_is_found(name, fuzzed):
    place, find, replace = FAULTS[name]
    assert fuzzed(Patch(f"attn_transformers.{place}", find, replace), examples=60).failure is not None


def test_without_transformers_the_target_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(plugin_target.extras, "MODULES", {"transformers": ("no_such_module",)})
    plugin_target._missing.cache_clear()
    assert "no_such_module" in plugin_target.TRANSFORMERS_ATTENTION.unavailable("cpu")
    plugin_target._missing.cache_clear()
