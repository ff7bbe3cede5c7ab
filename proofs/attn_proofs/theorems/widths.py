"""Numbers of 32 bits: the statements about integers hold of the machine, because each sum, product and cast fits its type.

Of any sizes that the border accepts: lengths, rows and numbers of heads are int32 (contract/attn_contract/arguments.py).
"""

from collections.abc import Iterator
from dataclasses import replace

import z3
from attn_fuzz.zoo.patches import Patch
from attn_proofs.counterexamples import of_scene
from attn_proofs.scenes import BLOCK_M, scene
from attn_proofs.sources import Sources
from attn_proofs.theorem import Claim, Theorem
from attn_proofs.values import RANGES, as_tensor, integers

INT32_MAX = 2**31 - 1
GROUPS = (1, 3, 8, 64)


def _fits(sources: Sources) -> Iterator[Claim]:
    for has_gaps in (False, True):
        made = scene(Sources(sources.patched), block_n=64, has_gaps=has_gaps)  # no other theorem's lanes
        extraction, m, n, d = made.extraction, z3.Int("m"), z3.Int("n"), z3.Int("d")
        extraction.local("attend_tile", "visible").value.at(m, n)
        for access in extraction.loads:
            shape = as_tensor(access.pointer.offset).shape
            lane = {(): (), (BLOCK_M,): (m,), (made.block_n,): (n,), (BLOCK_M, 16): (m, d), (made.block_n, 16): (n, d)}[shape]
            as_tensor(access.pointer.offset).at(*lane)
        first_row, tokens = integers("first_row num_tokens")
        sizes = [n >= 0, n < made.block_n, first_row >= 0, first_row + z3.Int("query_len") <= tokens, tokens <= INT32_MAX]
        # the loop over ranges is looked at from key j of its tile
        in_tile = made.rules.j - extraction.local("attend_tile", "key").value.at(0)
        sizes += [in_tile >= 0, in_tile < made.block_n]
        known = set()
        for note in extraction.notes:
            key = (note.dtype, note.term.get_id(), len(note.path))
            if note.dtype == "int64" or note.place == "rows_of_tile" or key in known:
                continue
            known.add(key)
            low, high = RANGES[note.dtype]
            claim = made.claim(
                f"{note.dtype} in {note.place}, line {note.line}",
                [*sizes, *note.path],
                z3.And(low <= note.term, note.term <= high),
            )
            # a query before the sequence sees nothing, whatever a wrapped number says, and a whole tile may need no mask
            seen = (z3.Int("query_len") <= z3.Int("seq_len"), z3.Int("window_right") == -1, z3.Int("seq_len") % 64 == 30)
            yield replace(claim, small=None if claim.small is None else (*claim.small, *seen))


THEOREMS = (
    Theorem(
        name="widths.positions",
        says="Positions, keys and tiles fit 32 bits where the attention kernel holds them so, for all rules but chunks.",
        assumes="The rows of a tile fit (theorem programs.rows has them in integers).",
        claims=_fits, case=of_scene,
        mutant=(Patch("attn_optimized.kernels.visibility.seen_keys", "in_window(each, each, rules, seq_len)",
            "in_window(each.to(tl.int32), each.to(tl.int32), rules, seq_len)"),),
    ),
)  # fmt: skip
