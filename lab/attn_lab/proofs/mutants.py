"""The mutant of each theorem, which makes it false."""

from dataclasses import dataclass

from attn_fuzz.cases.case import Case
from attn_fuzz.verdict.verdict import Verdict
from attn_proofs import counterexamples
from attn_proofs.theorem import Theorem, small_counterexample


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
        """True if the interpreter shows what the solver says."""
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
