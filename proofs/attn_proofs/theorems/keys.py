"""Keys that several tokens share: a query sees a key if all tokens of the key, of any number, are at or before it.

The number of tokens is any from 2 on: it is no constant here, as it is of the kernel. A layer that has it has no other rule of
positions, and its queries are causal.
"""

from collections.abc import Iterator

import z3
from attn_fuzz.cases.case import Case
from attn_proofs import inputs
from attn_proofs.counterexamples import paged
from attn_proofs.extract import Extraction
from attn_proofs.scenes import BLOCK_N, Scene, scene
from attn_proofs.sources import Sources
from attn_proofs.theorem import Claim, Model, Theorem
from attn_proofs.theorems.tiles import UNMASKED, Order
from attn_proofs.values import integers, symbol

VISIBILITY = "attn_optimized.kernels.visibility"


def _last(sources: Sources) -> Iterator[Claim]:
    """The last key of a position, beside any key; and of the last token, beside the number of the request's keys."""
    extraction = Extraction(sources)
    p, j, unit = integers("p j key_unit")
    products = extraction.products
    last = extraction.call(
        f"{VISIBILITY}.last_key", symbol("p", "int32"), inputs.kind(key_unit=symbol("key_unit", least=2))
    ).term
    number = products.quotient(p + 1, unit)
    beside = products.apart(unit, j, number)
    given = (unit >= 2, p >= -1, j >= 0, *beside, *extraction.assumptions)
    small = (p >= 0, p <= 600, unit <= 8, *products.exactly)
    is_seen = products.times(j + 1, unit) - 1 <= p
    yield Claim("a key of a position", given, is_seen == (j <= last), small, extraction.lines)
    yield Claim("the number of keys", given, last + 1 == number, small, extraction.lines)


def _scenes(sources: Sources) -> Iterator[Scene]:
    for block_n in BLOCK_N:
        yield scene(sources, block_n=block_n, has_other_masks=False, shares_keys=True)


def _mask(sources: Sources) -> Iterator[Claim]:
    for made in _scenes(sources):
        mask, key = made.extraction.local("attend_keys", "visible"), made.extraction.local("attend_keys", "key").value
        n = made.rules.j - key.at(0)
        lane = [*mask.path, n >= 0, n < made.block_n]
        yield made.claim("the mask", lane, mask.value.at(z3.Int("m"), n) == made.rules.visible)


def _covered(sources: Sources) -> Iterator[Claim]:
    for made in _scenes(sources):
        order, j = Order(made), made.rules.j
        place = order.place_of(j)
        goal = z3.And(
            place >= 0, place < order.tiles["count"], order.tile_at(place) == j / made.block_n,
            order.tiles["first_key"] <= j, j < order.tiles["end_key"],
        )  # fmt: skip
        yield made.claim("some tile holds the key", [made.rules.visible], goal)


def _all_see(sources: Sources) -> Iterator[Claim]:
    for made in _scenes(sources):
        _, path, first_key, _ = Order(made).iteration(UNMASKED)
        here = [*path, first_key <= made.rules.j, made.rules.j < first_key + made.block_n]
        yield made.claim("a tile without a mask", here, made.rules.visible)


def _of_position(model: Model) -> Case:
    """One query at the position, which is the request's last one."""
    return paged([(1, model("p") + 1)], key_unit=model("key_unit"), scale=0.25, lse=True)


def _case(model: Model) -> Case:
    lengths = [(model("query_len"), model("seq_len"))]
    return paged(lengths, key_unit=model("key_unit"), scale=0.25, lse=True)


THEOREMS = (
    Theorem(
        "keys.last",
            "Up to a position's last key are the keys all of whose tokens are at or before it: as many as so many tokens have.",
            _last,
        f"{VISIBILITY}.last_key", "tl.maximum(position + 1, 0)", "tl.maximum(position, 0)", _of_position,
    ),
    Theorem(
        "keys.mask", "The mask shows a query exactly the keys all of whose tokens are at or before it.",
        _mask,
        f"{VISIBILITY}.positions_of", "each=last_key(context_len + rows.query, KIND)",
        "each=last_key(context_len + rows.query * 0 + tile.end_query - 1, KIND)", _case,
    ),
    Theorem(
        "keys.tiles", "No tile is skipped that holds a key which a query of the tile sees.",
        _covered,
        f"{VISIBILITY}.positions_of", "last=last_key(context_len + tile.end_query - 1, KIND)",
        "last=last_key(context_len + tile.first_query, KIND)", _case,
    ),
    Theorem(
        "keys.unmasked", "A tile without a mask holds only keys that every query of the tile sees.",
        _all_see,
        f"{VISIBILITY}.positions_of", "first=last_key(context_len + tile.first_query, KIND)",
        "first=last_key(context_len + tile.end_query - 1, KIND)", _case,
    ),
)  # fmt: skip
