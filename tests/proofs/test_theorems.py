"""Each theorem's mutant is refuted, and the case of the counterexample fails on the mutated kernel.

`tox run -e proofs` proves all theorems of the shipped source; here are those that take the solver least.
"""

import pytest

pytest.importorskip("z3")
from attn_fuzz.zoo.patches import patched_sources
from attn_proofs import counterexamples, lemmas
from attn_proofs.mutants import refuted
from attn_proofs.theorem import Claim, Model, decide, prove
from attn_proofs.theorems import THEOREMS

QUICK = ("rules", "splits", "writer")
"""Families whose theorems are proved in seconds."""
RUN = (
    *("mask.causal", "mask.window-right", "rules.causal", "rules.sinks-off", "tiles.once", "programs.search", "programs.rows"),
    *("splits.cover", "splits.read", "addresses.key-rows", "addresses.value-pairs", "addresses.units", "inside.read"),
    *("inside.written", "tiles.biased", "writer.slots", "writer.keys", "widths.writer"),
)
"""Theorems whose mutants' cases are run here, in a minute; `attn-parity prove --mutants` runs all."""
WITHOUT_NUMBERS = {"widths.writer", "widths.reduction", "widths.merges"}
"""Theorems about numbers beyond 2^31: the target of their cases, and not the counterexample, says how far rows lie apart."""


class Numbers(Model):
    """A counterexample in which each number is one number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, name: object) -> int:
        return self.number

    def holds(self, name: object) -> bool:
        return False


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


@pytest.mark.parametrize("theorem", THEOREMS, ids=lambda theorem: theorem.name)
def test_the_mutant_is_refuted_by_a_counterexample_that_becomes_a_case(theorem):
    assert refuted(theorem) is not None


def test_two_counterexamples_are_two_cases():
    """The solver's numbers are in the case, within what a case of seconds can have."""
    alike = set()
    for theorem in THEOREMS:
        cases = {theorem.case(Numbers(number)) for number in (1, 3, 7, 40, 200)}
        if len(cases) == 1:
            alike.add(theorem.name)
    assert alike == WITHOUT_NUMBERS


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
