"""Which tiles of keys a program goes through: all that hold a visible key, each once, and without a mask only where all
is visible.

The loops of a tile of queries run over an order of tiles, 0 to `count`: sink tiles first, then the others. A split has
[begin, end) of the order. One loop takes the tiles that need no mask, the other loop the rest.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import msgspec
import z3
from attn_fuzz.cases.case import Case, Values
from attn_proofs.counterexamples import of_scene, paged
from attn_proofs.scenes import BLOCK_N, INTERPRETED_BLOCK_N, Scene, scene
from attn_proofs.sources import Sources
from attn_proofs.specification import Rules
from attn_proofs.theorem import Claim, Model, Term, Theorem, obligations
from attn_proofs.values import Tensor, memory

KEY_TILES = "attn_optimized.kernels.key_tiles"
UNMASKED, MASKED = 0, 1
HIDES_ALL = 5
"""A seed of values whose bias of one query and one key is -inf."""


class Order:
    """The order of tiles in a scene, and the loops over it, as the kernel computes them."""

    def __init__(self, made: Scene) -> None:
        self.scene, self.extraction = made, made.extraction
        self.tiles = self._record("attend_tile", "tiles")
        self.loops = self._record("attend_tile", "loops")

    def _record(self, function: str, name: str) -> dict[str, Term]:
        fields = self.extraction.local(function, name).value.fields
        return {field: value.term if isinstance(value, Tensor) else z3.IntVal(value) for field, value in fields.items()}

    def place_of(self, key: Term) -> Term:
        """The place in the order of the tile that holds a key: among the sink tiles if it is one of them."""
        tile, tiles = key / self.scene.block_n, self.tiles
        in_sinks = z3.And(tiles["first_sink_tile"] <= tile, tile < tiles["first_sink_tile"] + tiles["num_sink_tiles"])
        return z3.If(in_sinks, tile - tiles["first_sink_tile"], tile - tiles["first_tile"])

    def tile_at(self, place: Term) -> Term:
        """The tile at a place of the order."""
        tiles = self.tiles
        return z3.If(place < tiles["num_sink_tiles"], tiles["first_sink_tile"] + place, tiles["first_tile"] + place)

    def iteration(self, masked: int) -> tuple[Term, list[Term], Term, Tensor]:
        """A loop's index, the conditions of an iteration, its first key, and which of its keys some query may see."""
        at = -1 if masked else 0
        index = self.extraction.local("attend_keys", "i", at)
        first_key = self.extraction.local("attend_keys", "first_key", at)
        in_tile = self.extraction.local("attend_keys", "in_tile", -2 if masked else 0)
        return index.value.term, list(first_key.path), first_key.value.term, in_tile.value


def _scenes(sources: Sources, *, other_masks: bool | None = None) -> Iterator[Scene]:
    for block_n in BLOCK_N:
        if other_masks is not True:
            yield scene(sources, block_n=block_n, has_other_masks=False)
        if other_masks is not False:
            yield scene(sources, block_n=block_n, has_other_masks=True)
    if other_masks is not False:
        yield scene(sources, block_n=64, has_other_masks=True, has_chunks=True)


def _covered(seen: Callable[[Rules], Term], *, other_masks: bool | None = None):
    """A visible key lies in a tile of the order, and either loop loads it there."""

    def claims(sources: Sources) -> Iterator[Claim]:
        for made in _scenes(sources, other_masks=other_masks):
            order, rules = Order(made), made.rules
            place = order.place_of(rules.j)
            within = z3.And(place >= 0, place < order.tiles["count"])
            goal = [within, order.tile_at(place) == rules.j / made.block_n]
            if not made.kind.has_other_masks:  # else every visible key of a tile is loaded: theorem tiles.loaded
                goal.append(z3.And(order.tiles["first_key"] <= rules.j, rules.j < order.tiles["end_key"]))
            yield made.claim("some tile holds the key", [rules.is_key, seen(rules)], z3.And(*goal))

    return claims


def _visited(sources: Sources) -> Iterator[Claim]:
    """Each place of the order is that of an iteration of a loop, which has the tile's keys."""
    for made in _scenes(sources):
        order, place = Order(made), z3.Int("place")
        loops = order.loops
        unmasked = z3.And(loops["unmasked_begin"] <= place, place < loops["unmasked_end"])
        here = [loops["begin"] <= place, place < loops["end"]]
        skipped = loops["unmasked_end"] - loops["unmasked_begin"]
        masked_iteration = z3.If(place < loops["unmasked_begin"], place, place - skipped)
        for masked, iteration, conditions in ((UNMASKED, place, [unmasked]), (MASKED, masked_iteration, [z3.Not(unmasked)])):
            index, path, first_key, _ = order.iteration(masked)
            starts = order.tile_at(place) * made.block_n
            outer = [condition for condition in path if not _speaks_of(condition, index)]
            goal = z3.And(*(c for c in path if _speaks_of(c, index)), first_key == starts)
            index_is = index == iteration
            name = f"an iteration {'with' if masked else 'without'} a mask has the tile"
            yield _with_both_loops(made, made.claim(name, [*here, *conditions, *outer, index_is], goal))


def _speaks_of(term: Term, part: Term) -> bool:
    iteration = next(iter(_constants(part)), None)
    return any(constant.eq(iteration) for constant in _constants(term)) if iteration is not None else False


def _constants(term: Term) -> Iterator[Term]:
    seen, stack = set(), [term]
    while stack:
        part = stack.pop()
        if part.get_id() in seen:
            continue
        seen.add(part.get_id())
        is_unknown = z3.is_const(part) and part.decl().kind() == z3.Z3_OP_UNINTERPRETED
        if is_unknown and str(part).startswith("iteration of attend_keys"):
            yield part
        stack += part.children()


def _all_see(sources: Sources) -> Iterator[Claim]:
    for made in _scenes(sources):
        order, rules = Order(made), made.rules
        _, path, first_key, _ = order.iteration(UNMASKED)
        here = [*path, first_key <= rules.j, rules.j < first_key + made.block_n]
        yield _with_both_loops(made, made.claim("a tile without a mask", here, rules.visible))


def _none_hidden(sources: Sources) -> Iterator[Claim]:
    for block_n in BLOCK_N:
        made = scene(sources, block_n=block_n, has_other_masks=True, has_bias=True)
        rules = made.rules
        _, path, first_key, _ = Order(made).iteration(UNMASKED)
        here = [*path, first_key <= rules.j, rules.j < first_key + made.block_n, z3.Int("qq_bias_len") > 0]
        yield made.claim("a tile without a mask", here, rules.j < rules.seq_len - z3.Int("query_len"))


def _hidden_from_all(_: Model) -> Case:
    """A step of one query, whose bias hides its own key, the last one of a tile: no query sees the key, and it may be NaN."""
    return paged([(1, INTERPRETED_BLOCK_N)], qq_bias="hiding", values=Values("random", HIDES_ALL), recycled=True, writes=False)


def _with_both_loops(made: Scene, claim: Claim) -> Claim:
    """The claim, whose small counterexample has a long window: only then the host compiles the loop without a mask in."""
    rules = made.rules
    is_long = [z3.Or(rules.left < 0, rules.left > 256), *([] if rules.chunked_local is None else [rules.chunked_local > 256])]
    return replace(claim, small=None if claim.small is None else (*claim.small, *is_long))


def _once(sources: Sources) -> Iterator[Claim]:
    for made in _scenes(sources, other_masks=True):
        tiles = Order(made).tiles
        ends = tiles["first_sink_tile"] + tiles["num_sink_tiles"]
        first_other = tiles["first_tile"] + tiles["num_sink_tiles"]
        goal = z3.And(tiles["num_sink_tiles"] >= 0, z3.Implies(tiles["num_sink_tiles"] > 0, ends <= first_other))
        yield made.claim("sink tiles end before the others begin", [], goal)


def _loaded(sources: Sources) -> Iterator[Claim]:
    for made in _scenes(sources):
        order = Order(made)
        _, path, first_key, in_tile = order.iteration(MASKED)
        n = made.rules.j - first_key
        shown = made.extraction.local("attend_keys", "visible").value.at(z3.Int("m"), n)
        if made.kind.has_other_masks:  # which keys are loaded is then the largest of a column of the mask
            (column,) = (r for r in made.extraction.reductions if r.place == "visible_keys")
            loaded = column.result.at(n) > 0
            largest = [column.result.at(n) >= column.operand.at(z3.Int("m"), n)]
        else:
            loaded, largest = in_tile.at(n), []
        yield made.claim("a tile with a mask", [*path, n >= 0, n < made.block_n, *largest], z3.Implies(shown, loaded))


def _keys_only(sources: Sources) -> Iterator[Claim]:
    for made in _scenes(sources):
        order = Order(made)
        for masked in (UNMASKED, MASKED):
            _, path, first_key, in_tile = order.iteration(masked)
            n = made.rules.j - first_key
            loaded = in_tile.at(n) if masked else z3.BoolVal(True)
            goal = z3.Implies(loaded, made.rules.is_key)
            yield made.claim(f"a tile {'with' if masked else 'without'} a mask", [*path, n >= 0, n < made.block_n], goal)


def _looked_up(sources: Sources) -> Iterator[Claim]:
    """The first tile's blocks are looked up before the loop, and the others' in the iteration before."""
    for made in _scenes(sources):
        for claim in obligations(made.extraction, made.given()):
            if "loop of attend_keys" in claim.name:
                small = made.small if made.block_n == INTERPRETED_BLOCK_N else None
                yield _with_both_loops(made, replace(claim, name=f"{claim.name}, {made.name}", small=small))
        order, times = Order(made), made.extraction.times
        for masked in (UNMASKED, MASKED):
            _, path, first_key, _ = order.iteration(masked)
            n = made.rules.j - first_key
            shown = made.extraction.local("attend_keys", "visible").value.at(z3.Int("m"), n) if masked else z3.BoolVal(True)
            block = made.extraction.local("attend_keys", "block", -2 if masked else 0).value.at(n)
            entry = times(z3.Int("request"), z3.Int("block_table")) + made.rules.j / made.kind.block_size
            goal = z3.Implies(shown, block == memory("block_table_ptr")(entry))
            yield made.claim(f"a tile {'with' if masked else 'without'} a mask", [*path, n >= 0, n < made.block_n], goal)


VISIBILITY = "attn_optimized.kernels.visibility"
THEOREMS = (
    Theorem(
        "tiles.window",
            "No tile is skipped that holds a key which a query of the tile sees through its window and in its chunk.",
            _covered(lambda rules: z3.And(rules.is_causal, rules.in_window, rules.in_chunk)),
        f"{KEY_TILES}.key_tiles", "tl.cdiv(seen.end, KIND.block_n)", "seen.end // KIND.block_n", of_scene,
    ),
    Theorem(
        "tiles.sinks", "No tile is skipped that holds a visible sink token.",
        _covered(lambda rules: z3.And(rules.is_causal, rules.is_sink_token, rules.in_chunk), other_masks=True),
        f"{VISIBILITY}.seen_keys", "tl.cdiv(sink_end, KIND.block_n)", "sink_end // KIND.block_n", of_scene,
    ),
    Theorem(
        "tiles.ranges", "No tile is skipped that holds a key of a range that holds a query of the tile.",
        _covered(lambda rules: rules.in_range, other_masks=True),
        f"{VISIBILITY}.seen_keys", "begin, end = with_ranges(begin, end, tile, positions, args)",
        "_, end = with_ranges(begin, end, tile, positions, args)", of_scene,
    ),
    Theorem(
        "tiles.visited", "Each tile of a split is that of one iteration of one of the two loops.",
        _visited,
        f"{KEY_TILES}.keys_of_tile", "i + loops.unmasked_end - loops.unmasked_begin",
            "i + loops.unmasked_end - loops.unmasked_begin - 1", of_scene,
    ),
    Theorem(
        "tiles.unmasked", "A tile without a mask holds only keys that every query of the tile sees.",
        _all_see,
        f"{KEY_TILES}.loops_over", "end_key // KIND.block_n", "tl.cdiv(end_key, KIND.block_n)", of_scene,
    ),
    Theorem(
        "tiles.biased",
            "With a qq_bias, a tile without a mask holds no token of the step: a bias may hide it from all queries.",
            _none_hidden,
        f"{VISIBILITY}.keys_seen_by_all", "tl.minimum(end, positions.context_len)", "end", _hidden_from_all,
    ),
    Theorem(
        "tiles.once", "Sink tiles and the other tiles do not overlap.",
        _once,
        f"{VISIBILITY}.seen_keys", "tl.minimum(tl.cdiv(sink_end, KIND.block_n), begin // KIND.block_n)",
            "tl.cdiv(sink_end, KIND.block_n)",
            # a window that hides no key is none to the host: then there is one run of tiles
            lambda model: msgspec.structs.replace(of_scene(model), window=(0, -1)),
    ),
    Theorem(
        "tiles.loaded", "Every key that the mask shows to a query is loaded.",
        _loaded,
        f"{KEY_TILES}.keys_of_tile", "loops.first_key <= key", "loops.first_key < key", of_scene,
    ),
    Theorem(
        "tiles.keys", "A tile loads only keys of the request: what lies after them in the block table is garbage.",
        _keys_only,
        f"{KEY_TILES}.keys_of_tile", "key < loops.end_key", "key <= loops.end_key", of_scene,
    ),
    Theorem(
        "tiles.looked-up", "The block of a key that is loaded was looked up for this key, one tile ahead.", _looked_up,
        "attn_optimized.kernels.attention.attend_keys", "tl.minimum(begin, end - 1)", "tl.minimum(begin + 1, end - 1)",
            # several heads fill the interpreter: a part of the keys would have one tile, where both are the same
            lambda model: msgspec.structs.replace(of_scene(model), num_kv_heads=4),
    ),
)  # fmt: skip
