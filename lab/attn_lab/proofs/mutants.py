"""Theorems and mutants: the mutant of each theorem, which makes it false; and theorems that are false of a known bug.

A bug's patch is applied to the text of the modules in memory, and each theorem is stated about the patched text. A claim
without a source line in a patched module is a claim about the source as it ships: `attn-parity prove` proves it, and it is not
decided here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from attn_fuzz.cases.case import Case
from attn_fuzz.patches.mutant import Mutant
from attn_fuzz.patches.source import patched_sources
from attn_fuzz.verdict.verdict import Verdict
from attn_proofs import counterexamples
from attn_proofs.errors import UnsupportedConstructError
from attn_proofs.sources import Sources
from attn_proofs.theorem import Theorem, decide, small_counterexample


@dataclass(frozen=True)
class Confirmation:
    """The result of a mutant: the claim that its source refutes, the counterexample's case, and the verdict on it.

    Attributes:
        claim: None if no claim is refuted by a counterexample that becomes a case.
    """

    claim: str | None = None
    case: Case | None = None
    verdict: Verdict | None = None

    @property
    def confirmed(self) -> bool:
        """Whether the interpreter shows what the solver says."""
        return self.verdict is not None and self.verdict.failed


def refuted(theorem: Theorem) -> tuple[str, Case] | None:
    """The first claim that is false of the mutated source, and the counterexample's case; None if there is none."""
    for claim in theorem.claims(theorem.mutated):
        model = small_counterexample(claim)
        if model is not None:
            return claim.name, theorem.case(model)
    return None


def confirm(theorem: Theorem) -> Confirmation:
    """Put a theorem's mutant in, look for a counterexample, and run its case on the mutated kernel."""
    found = refuted(theorem)
    if found is None:
        return Confirmation()
    claim, case = found
    return Confirmation(claim, case, counterexamples.run(case, theorem.mutant))


@dataclass(frozen=True)
class Broken:
    """The theorems on a mutant's source.

    Attributes:
        theorems: those that are false.
        undecided: theorems of which a claim needs more effort than there is, or whose assumptions contradict each other.
        refused: by theorem, what the extractor does not understand of the patched source.
    """

    theorems: tuple[str, ...]
    undecided: tuple[str, ...]
    refused: dict[str, str]


def broken(mutant: Mutant, theorems: Sequence[Theorem]) -> Broken:
    """The theorems that are false of the source with a mutant's patch. A theorem ends with its first false claim."""
    patched = Sources(patched_sources(mutant.patches))
    false: list[str] = []
    undecided: list[str] = []
    refused: dict[str, str] = {}
    for theorem in theorems:
        try:
            for claim in theorem.claims(patched):
                if not claim.lines.keys() & patched.patched.keys():
                    continue
                outcome = decide(claim).outcome
                if outcome == "refuted":
                    false.append(theorem.name)
                    break
                if outcome != "proved" and theorem.name not in undecided:
                    undecided.append(theorem.name)
        except UnsupportedConstructError as error:
            refused[theorem.name] = str(error)
    return Broken(tuple(false), tuple(undecided), refused)
