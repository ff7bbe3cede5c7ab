"""Theorems: statements that are extracted from the source, and what the solver says about them."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import z3
from attn_fuzz.cases.case import Case
from attn_fuzz.patches.mutant import Mutant, Patch
from attn_fuzz.patches.source import patched_sources
from attn_proofs.errors import UnknownTheoremError
from attn_proofs.extract import Extraction
from attn_proofs.sources import Sources
from attn_proofs.values import Term

EFFORT = 60_000_000
"""The work that the solver may do for a claim, in its own unit, which is the same on every machine, unlike seconds. A claim
that needs more is undecided."""
SEED = 7
Outcome = Literal["proved", "refuted", "undecided", "vacuous"]


@dataclass(frozen=True)
class Claim:
    """One question to the solver: whether a goal follows from assumptions.

    Attributes:
        name: which part of the theorem it is.
        assumptions: the contract's, and the conditions under which the program is there.
        goal: the statement to prove.
        small: further conditions on a counterexample that becomes a case: lengths that the interpreter runs in seconds, and
            the tiles that it uses. None: no counterexample is searched for.
        lines: the executed source lines, by module.
    """

    name: str
    assumptions: tuple[Term, ...]
    goal: Term
    small: tuple[Term, ...] | None = None
    lines: dict[str, set[int]] = field(default_factory=dict)


class Model:
    """A counterexample: the value of each number by name."""

    def __init__(self, model: z3.ModelRef) -> None:
        self.model = model

    def __call__(self, name: str | Term) -> int:
        """A number, by its name or its term."""
        term = z3.Int(name) if isinstance(name, str) else name
        value: Any = self.model.eval(term, model_completion=True)
        return value.as_long()

    def within(self, name: str | Term, least: int, most: int) -> int:
        """A number, or the nearest one that a small case can have: a theorem holds of sizes that no case has."""
        return min(max(self(name), least), most)

    def holds(self, name: str | Term) -> bool:
        """A condition, by its name or its term."""
        term = z3.Bool(name) if isinstance(name, str) else name
        return z3.is_true(self.model.eval(term, model_completion=True))


@dataclass(frozen=True)
class Theorem:
    """A statement about the shipped source.

    Attributes:
        name: FAMILY.NAME.
        says: the statement, in a sentence.
        claims: makes the statement from sources.
        place: of the mutant, a change of the source that makes the statement false: the function that it changes.
        find: the code that the mutant replaces.
        replace: the mutant's code.
        case: makes a case of a counterexample, which fails on the changed source.
        assumes: its assumptions beyond those of the family.
    """

    name: str
    says: str
    claims: Callable[[Sources], Iterable[Claim]]
    place: str
    find: str
    replace: str
    case: Callable[[Model], Case]
    assumes: str = ""

    @property
    def family(self) -> str:
        return self.name.partition(".")[0]

    @property
    def mutant(self) -> Mutant:
        return Mutant(name=self.name, patches=(Patch(self.place, self.find, self.replace),))

    @property
    def mutated(self) -> Sources:
        """The sources with the mutant's change."""
        return Sources(patched_sources(self.mutant.patches))


@dataclass(frozen=True)
class Result:
    """A counterexample refutes a claim. More effort than EFFORT leaves it undecided: no proof."""

    outcome: Outcome
    claim: Claim
    seconds: float
    model: Model | None = None


def decide(claim: Claim, *, effort: int = EFFORT) -> Result:
    """The solver's answer to a claim."""
    started = time.monotonic()
    solver = _solver(effort, claim.assumptions)
    possible = _answer(solver)
    if possible != z3.sat:
        return Result("vacuous" if possible == z3.unsat else "undecided", claim, time.monotonic() - started)
    solver.add(z3.Not(claim.goal))
    answer = _answer(solver)
    outcome: Outcome = "proved" if answer == z3.unsat else "refuted" if answer == z3.sat else "undecided"
    model = Model(solver.model()) if answer == z3.sat else None
    return Result(outcome, claim, time.monotonic() - started, model)


def small_counterexample(claim: Claim, *, effort: int = EFFORT) -> Model | None:
    """A counterexample that becomes a case; None if none is found."""
    if claim.small is None:
        return None
    solver = _solver(effort, (*claim.assumptions, *claim.small, z3.Not(claim.goal)))
    return Model(solver.model()) if _answer(solver) == z3.sat else None


def prove(theorem: Theorem, sources: Sources | None = None) -> Iterator[Result]:
    """Decide the claims of a theorem, in order."""
    for claim in theorem.claims(sources or Sources()):
        yield decide(claim)


def _answer(solver: z3.Solver) -> z3.CheckSatResult:
    """
    Raises:
        KeyboardInterrupt: Ctrl-C came. The solver itself takes it, and then answers as if it had used up its effort.
    """
    answer = solver.check()
    if answer == z3.unknown and solver.reason_unknown() == "interrupted from keyboard":
        raise KeyboardInterrupt
    return answer


def _solver(effort: int, terms: Iterable[Term]) -> z3.Solver:
    solver = z3.Solver()
    solver.set("rlimit", effort)
    solver.set("random_seed", SEED)
    solver.add(*terms)
    return solver


def obligations(extraction: Extraction, assumptions: Iterable[Term], small: tuple[Term, ...] = ()) -> Iterator[Claim]:
    """The claims that the invariants of an extraction's loops need. A small counterexample is in a loop's first iteration."""
    for obligation in extraction.obligations:
        for i, term in enumerate(obligation.terms):
            name = f"{obligation.name}, part {i + 1} of its invariant"
            first = (*small, *obligation.first) if obligation.first else None
            yield Claim(name, (*assumptions, *obligation.path), term, first, extraction.lines)


def chosen(theorems: Iterable[Theorem], names: Iterable[str]) -> list[Theorem]:
    """The theorems with these names, or of these families; all if there are no names.

    Raises:
        UnknownTheoremError: a name is neither.
    """
    theorems, names = list(theorems), list(names)
    for name in names:
        if not any(name in (theorem.name, theorem.family) for theorem in theorems):
            raise UnknownTheoremError(f"no theorem is named {name!r}; `attn-parity prove --list` lists them")
    return [theorem for theorem in theorems if not names or theorem.name in names or theorem.family in names]
