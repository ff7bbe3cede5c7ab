"""Which theorems are false of a source with a known bug.

The bug's patch is applied to the text of the modules in memory, and each theorem is stated about the patched text. A claim
without a source line in a patched module is a claim about the source as it ships: `attn-parity prove` proves it, and it is not
decided here.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from attn_fuzz.zoo.mutants import Mutant
from attn_fuzz.zoo.patches import patched_sources
from attn_proofs.errors import UnsupportedConstructError
from attn_proofs.sources import Sources
from attn_proofs.theorem import Theorem, decide


@dataclass(frozen=True)
class Broken:
    """What became of the theorems.

    Attributes:
        theorems: those that are false.
        claims, seconds: how many claims were decided, and the time with their extraction, until the first false one, or to the
            end.
        undecided: theorems of which a claim needs more effort than there is, or whose assumptions contradict each other.
        refused: by theorem, what the extractor does not understand of the patched source.
        is_whole: whether all theorems were looked at.
    """

    theorems: tuple[str, ...]
    claims: int
    seconds: float
    undecided: tuple[str, ...] = ()
    refused: dict[str, str] | None = None
    is_whole: bool = True


def broken(mutant: Mutant, theorems: Sequence[Theorem], until: float | None = None) -> Broken:
    """The theorems that are false of the source with a mutant's patch. A theorem ends with its first false claim.

    Args:
        until: when to stop (`time.time()`).
    """
    started, patched = time.monotonic(), Sources(patched_sources(mutant.patches))
    false: list[str] = []
    undecided: list[str] = []
    refused: dict[str, str] = {}
    claims, at_first = 0, (0, 0.0)
    for theorem in theorems:
        if until is not None and time.time() > until:
            break
        try:
            for claim in theorem.claims(patched):
                if not claim.lines.keys() & patched.patched.keys():
                    continue
                claims += 1
                outcome = decide(claim).outcome
                if outcome == "refuted":
                    false.append(theorem.name)
                    at_first = (claims, time.monotonic() - started) if len(false) == 1 else at_first
                    break
                if outcome != "proved" and theorem.name not in undecided:
                    undecided.append(theorem.name)
        except UnsupportedConstructError as error:
            refused[theorem.name] = str(error)
    else:
        theorems = ()
    spent = at_first if false else (claims, time.monotonic() - started)
    return Broken(tuple(false), *spent, tuple(undecided), refused, is_whole=not theorems)
