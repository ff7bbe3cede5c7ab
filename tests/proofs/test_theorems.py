"""Each theorem's mutant is refuted, and the case of the counterexample fails on the mutated kernel.

`tox run -e proofs` proves all theorems of the shipped source; here are those that take the solver least.
"""

import pytest

pytest.importorskip("z3")
from attn_fuzz.zoo.patches import patched_sources
from attn_proofs import counterexamples, lemmas
from attn_proofs.mutants import refuted
from attn_proofs.theorem import Claim, decide, prove
from attn_proofs.theorems import THEOREMS

QUICK = ("rules", "splits", "writer")
"""Families whose theorems are proved in seconds."""
RUN = (
    *("mask.causal", "tiles.once", "programs.search", "splits.cover", "addresses.key-rows", "addresses.units"),
    *("writer.slots", "rules.causal"),
)
"""A theorem of each family whose mutant's case is run here; `attn-parity prove --mutants` runs all."""


def named(name: str):
    return next(theorem for theorem in THEOREMS if theorem.name == name)


def test_there_are_thirty_theorems_with_names_and_mutants_of_their_own():
    assert len(THEOREMS) >= 30
    assert len({theorem.name for theorem in THEOREMS}) == len(THEOREMS)
    assert len({theorem.mutant for theorem in THEOREMS}) == len(THEOREMS)


@pytest.mark.parametrize("theorem", THEOREMS, ids=lambda theorem: theorem.name)
def test_the_mutant_applies(theorem):
    assert patched_sources(theorem.mutant)


@pytest.mark.parametrize("theorem", [t for t in THEOREMS if t.family in QUICK], ids=lambda theorem: theorem.name)
def test_proved(theorem):
    assert [(result.claim.name, result.outcome) for result in prove(theorem) if result.outcome != "proved"] == []


@pytest.mark.parametrize("name", RUN)
def test_a_counterexample_fails_on_the_mutant_and_agrees_as_shipped(name):
    theorem = named(name)
    found = refuted(theorem)
    assert found is not None
    assert counterexamples.run(found[1], theorem.known_bug).failed
    assert not counterexamples.run(found[1], None).failed


@pytest.mark.parametrize("lemma", [lemmas.multiples, lemmas.floors], ids=lambda lemma: lemma.__name__)
def test_lemma(lemma):
    assert {decide(claim).outcome for claim in lemma()} == {"proved"}


def test_contradicting_assumptions_prove_nothing():
    import z3

    a = z3.Int("a")
    assert decide(Claim("", (a > 0, a < 0), a == 7)).outcome == "vacuous"


def test_little_effort_is_no_proof():
    import z3

    a, b, c = z3.Ints("a b c")
    assert decide(Claim("", (a > 1, b > 1, c > 1), a**3 + b**3 != c**3), effort=1000).outcome == "undecided"
