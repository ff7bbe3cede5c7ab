"""Which theorems are false of a source with a known bug, and which source is refused."""

import pytest

pytest.importorskip("z3")
from attn_lab.proofs.mutants import broken
from attn_lab.zoo import known_bugs
from attn_proofs.theorem import chosen
from attn_proofs.theorems import THEOREMS


def bug(name: str) -> known_bugs.KnownBug:
    return known_bugs.load(known_bugs.FOLDER / f"{name}.toml")


def test_a_theorem_is_false_of_a_bug():
    found = broken(bug("vllm-3385"), chosen(THEOREMS, ["mask.window-left", "mask.causal"]))
    assert found.theorems == ("mask.window-left",)
    assert found.refused == {}


def test_source_that_is_not_understood_is_refused_and_no_finding():
    found = broken(bug("aiter-3062"), chosen(THEOREMS, ["addresses.block-table"]))
    assert found.theorems == ()
    assert "int16" in found.refused["addresses.block-table"]


def test_claims_about_other_modules_are_not_decided(monkeypatch):
    monkeypatch.setattr("attn_lab.proofs.mutants.decide", lambda claim: pytest.fail(f"{claim.name} was decided"))
    assert broken(bug("vllm-3385"), chosen(THEOREMS, ["writer.slots"])).theorems == ()
