"""Each theorem's mutant is refuted, and the case of the counterexample fails on the mutated kernel.

`tox run -e nightly -- proofs` proves all theorems of the shipped source; here are those that take the solver least.
"""

import functools
import os
import signal
import threading

import pytest

pytest.importorskip("z3")
import z3
from attn_fuzz.patches.mutant import Patch
from attn_fuzz.patches.source import patched_sources
from attn_lab.proofs.mutants import refuted
from attn_proofs import counterexamples, lemmas
from attn_proofs.sources import Sources
from attn_proofs.theorem import Claim, Model, decide, prove
from attn_proofs.theorems import THEOREMS

from tests.support.mostly_nightly import mostly_nightly

QUICK = ("rules", "keys", "select", "splits", "writer", "specialized")
"""Families whose theorems are proved in seconds."""
RUN = (
    *("mask.causal", "mask.window-right", "rules.causal", "rules.sinks-off", "tiles.once", "programs.search", "programs.rows"),
    *("splits.cover", "splits.call", "splits.read", "addresses.key-rows", "addresses.value-pairs", "addresses.units"),
    *("inside.read", "inside.written", "tiles.biased", "writer.slots", "writer.keys", "widths.writer"),
    *("selection.row", "selection.visited", "selection.shown", "keys.mask", "keys.tiles"),
    *("select.range", "select.once", "select.rest"),
    *("specialized.visited", "specialized.nothing-behind", "specialized.written"),
)
"""Theorems whose mutants' cases are run here, in a minute; `python -m attn_lab proofs --mutants` runs all."""
FIRST = (
    *("mask.window-right", "rules.sinks-off", "splits.read", "inside.written", "writer.slots", "widths.writer"),
    *("selection.row", "keys.mask", "select.once", "specialized.nothing-behind"),
)
"""The theorems of RUN in each run of the tests: one of each family."""
WITHOUT_NUMBERS = {"widths.writer", "widths.reduction", "widths.merges", "tiles.biased"}
"""Theorems about numbers beyond 2^31, whose target, and not the counterexample, says how far rows lie apart; and one about
-inf in a bias, which one case has for all queries of a tile."""


class Numbers(Model):
    """A counterexample in which each number is one number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, name: object) -> int:
        return self.number

    def holds(self, name: object) -> bool:
        return False


refutation = functools.cache(refuted)
"""The solver takes seconds, and a counterexample is looked at and run."""


def named(name: str):
    return next(theorem for theorem in THEOREMS if theorem.name == name)


def test_theorems_have_names_and_mutants_of_their_own():
    assert len({theorem.name for theorem in THEOREMS}) == len(THEOREMS)
    assert len({theorem.mutant for theorem in THEOREMS}) == len(THEOREMS)


@pytest.mark.parametrize("theorem", THEOREMS, ids=lambda theorem: theorem.name)
def test_claims_are_made_of_the_source_with_the_mutant(theorem):
    """A theorem names variables and functions of the source, which a refactoring can move."""
    assert next(iter(theorem.claims(theorem.mutated)))


@pytest.mark.parametrize(
    "theorem",
    mostly_nightly([t for t in THEOREMS if t.family in QUICK], [t for t in THEOREMS if t.name != "splits.call"]),
    ids=lambda theorem: theorem.name,
)
def test_a_theorem_is_proved(theorem):
    assert [(result.claim.name, result.outcome) for result in prove(theorem) if result.outcome != "proved"] == []


SIZES, GRID = "launch.attention._sizes", "launch.plan.AttentionPlan.launch_grid"
SPLIT, KERNEL = "kernels.split_keys.tiles_of_split", "kernels.attention.attention_kernel"
ENDS = "tl.minimum(begin + tiles_per_split, num_tiles)"
PARTS_OF_A_CALL = {
    "a part more than programs": (SIZES, '"num_splits": plan.splits', '"num_splits": plan.splits + 1'),
    "parts of balanced batches": (SIZES, '"num_splits": plan.splits', '"num_splits": plan.balanced_splits'),
    "a program less than parts": (GRID, "(tiles, heads, self.splits)", "(tiles, heads, self.splits - 1)"),
    "parts rounded down": (SPLIT, "tl.cdiv(num_tiles, sizes.num_splits)", "num_tiles // sizes.num_splits"),
    "parts that overlap": (SPLIT, ENDS, "tl.minimum(begin + tiles_per_split + 1, num_tiles)"),
    "a part past the last tile": (SPLIT, ENDS, "begin + tiles_per_split"),
    "another number of parts in the kernel": (KERNEL, "num_splits=num_splits", "num_splits=balanced_splits"),
}  # fmt: skip
"""Changes of the host and of the kernel, each of which leaves a tile of keys without a program, or gives one to two."""


@pytest.mark.parametrize("name", mostly_nightly(PARTS_OF_A_CALL, ("a program less than parts", "parts rounded down")))
def test_parts_that_miss_a_tile_or_have_one_twice_are_refuted(name):
    place, find, replace = PARTS_OF_A_CALL[name]
    sources = Sources(patched_sources((Patch(f"attn_optimized.{place}", find, replace),)))
    assert any(decide(claim).outcome == "refuted" for claim in named("splits.call").claims(sources))


IN_EACH_RUN = [named(name) for name in (*FIRST, "tiles.once", "programs.search", "addresses.units")]


@pytest.mark.parametrize("theorem", mostly_nightly(THEOREMS, IN_EACH_RUN), ids=lambda theorem: theorem.name)
def test_the_mutant_is_refuted_by_a_counterexample_that_becomes_a_case(theorem):
    assert refutation(theorem) is not None


def test_two_counterexamples_are_two_cases():
    """The solver's numbers are in the case, within what a case of seconds can have."""
    alike = set()
    for theorem in THEOREMS:
        cases = {theorem.case(Numbers(number)) for number in (1, 3, 7, 40, 200)}
        if len(cases) == 1:
            alike.add(theorem.name)
    assert alike == WITHOUT_NUMBERS


@pytest.mark.parametrize("name", mostly_nightly(RUN, FIRST))
def test_a_counterexample_fails_on_the_mutant_and_agrees_as_shipped(name):
    theorem = named(name)
    found = refutation(theorem)
    assert found is not None
    assert counterexamples.run(found[1], theorem.mutant).failed
    assert not counterexamples.run(found[1], None).failed


@pytest.mark.parametrize("lemma", [lemmas.multiples, lemmas.floors], ids=lambda lemma: lemma.__name__)
def test_each_lemma_is_proved(lemma):
    assert {decide(claim).outcome for claim in lemma()} == {"proved"}


def test_contradicting_assumptions_prove_nothing():
    a = z3.Int("a")
    assert decide(Claim("", (a > 0, a < 0), a == 7)).outcome == "vacuous"


def test_little_effort_is_no_proof():
    a, b, c = z3.Ints("a b c")
    assert decide(Claim("", (a > 1, b > 1, c > 1), a**3 + b**3 != c**3), effort=1000).outcome == "undecided"


def test_ctrl_c_ends_a_run_and_leaves_no_claim_undecided():
    """The solver itself takes Ctrl-C."""
    a, b, c = z3.Ints("a b c")
    claim = Claim("cubes", (a * a * a + b * b * b + c * c * c == 33, a > 1, b > 1), a > b)
    interrupt = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        decide(claim, effort=1 << 31)
    interrupt.join()
