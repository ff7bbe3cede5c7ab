"""The keys of a query that selects units of tokens: those of the units that its row of `selected` names, each once.

The places of a selection are the tokens of all its entries, one entry after the other, and a tile of keys is one of places. So
a key is where its entry is. All claims are of one query, since a tile has one then, and of a selection as the contract has it:
no unit is named twice. Units have 1, 2, 3, 4, 16 or 128 tokens, and tiles any size of the launch tables.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import z3
from attn_fuzz.cases.case import Case
from attn_proofs import inputs
from attn_proofs.counterexamples import paged
from attn_proofs.extract import Extraction
from attn_proofs.scenes import BLOCK_N, Scene, scene
from attn_proofs.sources import Sources
from attn_proofs.theorem import Claim, Model, Term, Theorem
from attn_proofs.values import Pointer, Record, as_tensor, integers, memory, number, symbol

SELECTION = "attn_optimized.kernels.selection"
KEY_TILES = "attn_optimized.kernels.key_tiles"
VISIBILITY = "attn_optimized.kernels.visibility"
UNITS = (1, 2, 3, 4, 16, 128)
SELECTED = memory("selected_ptr")


def _scenes(sources: Sources) -> Iterator[Scene]:
    """Programs whose query selects units. The loop over tiles with a mask is the only one."""
    for unit in UNITS:
        for block_n in BLOCK_N:
            yield scene(sources, block_n=block_n, has_other_masks=False, has_unmasked_loop=False, selection_unit=unit)


def _entries(made: Scene) -> tuple[Any, Term]:
    """The unit of each entry of the query, by its number, and how many entries there are."""
    selection = made.extraction.local("attend_tile", "selection").value
    first = as_tensor(selection.ptr.offset).term
    return lambda entry: SELECTED(first + entry), as_tensor(selection.count).term


def _claim(made: Scene, name: str, assumptions: list[Term], goal: Term) -> Claim:
    """A claim about a scene, whose counterexample becomes a case for any size of tiles."""
    claim = made.claim(f"{name}, units of {made.kind.selection_unit}", assumptions, goal)
    return replace(claim, small=made.small)


def _local(made: Scene, name: str) -> Any:
    return made.extraction.local("attend_keys", name)


def _places(sources: Sources) -> Iterator[Claim]:
    """The key of any lane of any iteration, by the entry of its place."""
    n = z3.Int("n")
    for made in _scenes(sources):
        unit_of, count = _entries(made)
        size, first = made.kind.selection_unit, _local(made, "first_key")
        entry, token = (first.value.term + n) / size, (first.value.term + n) % size
        names_one = z3.And(entry < count, unit_of(entry) >= 0)
        key = z3.If(names_one, unit_of(entry) * size + token, -1)
        lane = [*first.path, n >= 0, n < made.block_n]
        yield _claim(made, "the key of a lane", lane, _local(made, "key").value.at(n) == key)


def _visited(sources: Sources) -> Iterator[Claim]:
    """Each token of each entry is the key of a lane of an iteration."""
    e, t = integers("e t")
    for made in _scenes(sources):
        unit_of, count = _entries(made)
        size, index, first = made.kind.selection_unit, _local(made, "i"), _local(made, "first_key")
        place = e * size + t
        here = [e >= 0, e < count, t >= 0, t < size, unit_of(e) >= 0, index.value.term == place / made.block_n]
        goal = z3.And(
            *first.path,
            first.value.term == index.value.term * made.block_n,
            _local(made, "key").value.at(place % made.block_n) == unit_of(e) * size + t,
        )
        yield _claim(made, "a token of an entry", here, goal)


def _shown(sources: Sources) -> Iterator[Claim]:
    """A lane without a key is hidden, and one that is shown is loaded."""
    n, m = integers("n m")
    for made in _scenes(sources):
        visible, key, in_tile = _local(made, "visible"), _local(made, "key").value.at(n), _local(made, "in_tile").value.at(n)
        lane = [*visible.path, n >= 0, n < made.block_n]
        goal = z3.Implies(visible.value.at(m, n), z3.And(key >= 0, key < made.rules.seq_len, in_tile))
        yield _claim(made, "a lane that is shown", lane, goal)


def _once(sources: Sources) -> Iterator[Claim]:
    """Two places have two keys, if two entries name two units."""
    a, b, first, count = integers("a b first count")
    for size in UNITS:
        extraction = Extraction(sources)
        kind = inputs.kind(selection_unit=size)
        ptr = Pointer("selected_ptr", "int32", number(first, "int64"))
        held = Record("Selection", {"ptr": ptr, "count": symbol("count", "int32")})
        keys = [extraction.call(f"{SELECTION}.keys_at", number(place, "int32"), held, kind).term for place in (a, b)]
        apart = z3.Implies(a / size != b / size, SELECTED(first + a / size) != SELECTED(first + b / size))
        given = (a >= 0, b >= 0, a != b, count >= 0, apart, keys[0] >= 0, *extraction.assumptions)
        yield Claim(f"two places, units of {size}", given, keys[0] != keys[1], (), extraction.lines)


def _row(sources: Sources) -> Iterator[Claim]:
    """The entries are those of the query's row for its KV head. A row that does not exist has no entry."""
    extraction = Extraction(sources)
    tile = inputs.tile(sources)
    found = extraction.call(f"{SELECTION}.selection_of", tile, inputs.arguments(sources), inputs.kind(selection_unit=4))
    head, of_heads, of_rows = integers("kv_head selected_head selected_row")
    first_row, query, num_tokens, num_selected = integers("first_row first_query num_tokens num_selected")
    row = first_row + query
    offset = extraction.times(head, of_heads) + extraction.times(row, of_rows)
    is_row = z3.And(row >= 0, row < num_tokens)
    goal = z3.And(found.ptr.offset.term == offset, found.count.term == z3.If(is_row, num_selected, 0))
    yield Claim("the first entry", tuple(extraction.assumptions), goal, (), extraction.lines)


def _case(model: Model) -> Case:
    """Three queries with selections of their own. Entries that name no unit stand among the others."""
    lengths = [(3, model.within("seq_len", 150, 300))]
    return paged(lengths, selection_unit=3, selected="holes", scale=0.25)


THEOREMS = (
    Theorem(
        "selection.row", "The entries of a query are those of its row for its KV head. A row that is no token's has none.",
        _row,
        f"{SELECTION}.selection_of", "tile.first_row + tile.first_query", "tile.first_row", _case,
    ),
    Theorem(
        "selection.places", "Each key of a tile is a token of the unit that its entry names, or -1: no other key is visited.",
        _places,
        f"{SELECTION}.keys_at", "other=-1", "other=0", _case,
    ),
    Theorem(
        "selection.visited", "Each token of each entry is a key of a tile: the tiles that are skipped hold no selected key.",
        _visited,
        f"{KEY_TILES}.key_tiles", "tl.cdiv(selection.count.to(tl.int64) * KIND.selection_unit, KIND.block_n)",
        "selection.count.to(tl.int64) * KIND.selection_unit // KIND.block_n", _case,
    ),
    Theorem(
        "selection.once", "No key is visited twice, if no unit is named twice.",
        _once,
        f"{SELECTION}.keys_at", "place % KIND.selection_unit", "place % KIND.selection_unit // 2", _case,
    ),
    Theorem(
        "selection.shown", "A place that holds no key is hidden, and a key that is shown is the request's, and loaded.",
        _shown,
        f"{VISIBILITY}.among", "(key[None, :] - begin.to(tl.int32)[:, None]).to(tl.uint32, bitcast=True)",
        "(key[None, :] - begin.to(tl.int32)[:, None]).to(tl.int64)", _case,
    ),
)  # fmt: skip
