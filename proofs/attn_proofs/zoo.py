"""Which theorems are false of a source with a known bug.

The bug's patch is applied to the text of the modules in memory, and each theorem is stated about the patched text. A claim
without a source line in a patched module is a claim about the source as it ships: `attn-parity prove` proves it, and it is not
decided here.
"""

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
