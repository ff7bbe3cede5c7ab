"""Splits cover the tiles of keys exactly once, and the reduction reads what they have written.

A program of split s takes [begin, end) of the order of tiles (see theorems/tiles.py). What it writes: the output, if its
split has all tiles of its tile of queries; else the state of its part. The reduction reads all parts.
"""

from collections.abc import Iterator
from typing import Any

import z3
from attn_fuzz.cases.case import Case
from attn_proofs import inputs, language
from attn_proofs.counterexamples import paged
from attn_proofs.extract import Access, Extraction
from attn_proofs.loops import Iteration
from attn_proofs.scenes import ATTEND_TILE, BLOCK_M, BLOCK_N, INTERPRETED_BLOCK_N
from attn_proofs.sources import Sources
from attn_proofs.theorem import Claim, Model, Term, Theorem
from attn_proofs.values import NEGATIVE_INFINITY, Record, Tensor, as_tensor, integers, memory, number, symbol

KERNELS = "attn_optimized.kernels"
LAUNCH = "attn_optimized.launch"
SPLITS, COUNT, SPLIT, PLACE = integers("num_splits num_tiles split place")
GIVEN = (SPLITS >= 1, SPLITS <= 256, COUNT >= 0, COUNT < 2**31, SPLIT >= 0, SPLIT < SPLITS, z3.Int("tiles_per_split") >= 1)

SPLITS_OF = {"most": "num_splits", "balanced": "balanced", "filling": "filling", "fewest_keys": "fewest_keys"}

BLOCK_D = 16
"""Dims of a program of the reduction, which reduces one of the two blocks of a row."""


def _parts(sources: Sources) -> tuple[Extraction, Term, Term, Term, Term]:
    """A split's tiles, and how many tiles each split has at most."""
    extraction = Extraction(sources)
    sizes = Record(
        "Sizes", {"num_splits": symbol("num_splits", "int32", least=1), "tiles_per_split": symbol("tiles_per_split", "int64")}
    )
    arguments = (number(SPLIT, "int64"), number(COUNT, "int64"), sizes, 1)
    begin, end, is_part = (value.term for value in extraction.call(f"{KERNELS}.split_keys.tiles_of_split", *arguments))
    return extraction, begin, end, is_part, extraction.local("tiles_of_split", "tiles_per_split").value.term


def _owner(extraction: Extraction, count: Term, most: Term) -> tuple[Term, list[Term]]:
    """The split that has the tile PLACE of a number of tiles, at most `most` a split, and facts about its quotients."""
    products, owner = extraction.products, extraction.quotient(PLACE, most)
    ceiling = extraction.quotient(count + SPLITS - 1, SPLITS)
    facts = [*products.apart(most, owner, SPLITS), *products.apart(SPLITS, ceiling, most)]
    return owner, [*facts, *products.apart(most, owner, SPLIT), *products.apart(SPLITS, z3.IntVal(0), ceiling)]


def _cover(sources: Sources) -> Iterator[Claim]:
    extraction, begin, end, _, most = _parts(sources)
    owner, facts = _owner(extraction, COUNT, most)
    given = (*GIVEN, PLACE >= 0, PLACE < COUNT, *facts, *extraction.assumptions)
    small = (COUNT >= 8, COUNT <= 12, SPLITS == 4, z3.Int("tiles_per_split") == 2, *extraction.products.exactly)
    is_split, has = z3.And(owner >= 0, owner < SPLITS), z3.And(begin <= PLACE, end > PLACE)
    yield Claim("the split that has a tile is one of the splits", given, is_split, small, extraction.lines)
    yield Claim("a split has a tile exactly if it is that split", given, has == (owner == SPLIT), small, extraction.lines)


def _whole(sources: Sources) -> Iterator[Claim]:
    extraction, begin, end, is_part, most = _parts(sources)
    facts = extraction.products.apart(most, z3.IntVal(1), SPLIT)
    small = (COUNT <= 8, SPLITS == 4, SPLITS > 1, *extraction.products.exactly)
    first = z3.And(z3.Implies(SPLIT == 0, z3.And(begin == 0, end == COUNT)), z3.Implies(SPLIT > 0, begin >= COUNT))
    given = (*GIVEN, *facts, *extraction.assumptions, z3.Not(is_part))
    yield Claim("all tiles are the first split's where no part is written", given, first, small, extraction.lines)


class Program:
    """A program of a call whose keys are split, from the host's plan to the tiles of keys that the program takes."""

    def __init__(self, sources: Sources, *, heads_first: bool, block_n: int) -> None:
        self.grid = z3.Int("num_programs")
        axes = (z3.Int("program_0"), z3.Int("programs_0")), (z3.Int("program_1"), z3.Int("programs_1")), (SPLIT, self.grid)
        self.extraction = Extraction(sources, grid=axes)
        plan = self._plan(heads_first, block_n)
        self.programs = as_tensor(language.attribute(self.extraction, plan, "launch_grid")[2]).term
        batch = Record("Batch", {"num_requests": symbol("num_requests"), "num_actual_tokens": symbol("num_tokens")})
        sizes = self.extraction.call(f"{LAUNCH}.attention._sizes", plan, batch)
        self.extraction.call(f"{KERNELS}.attention.attention_kernel", **self._arguments(sources, sizes, block_n))
        self.count = self.extraction.local("attend_tile", "tiles").value.count.term
        self.begin, self.end = (self.extraction.local("attend_tile", name, 1).value.term for name in ("begin", "end"))
        self.most = self.extraction.local("tiles_of_split", "tiles_per_split").value.term

    def _plan(self, heads_first: bool, block_n: int) -> Record:
        """The plan of any workload: any tiles, any grid, and any number of splits that `splits_of` may return."""
        parameters = {name: symbol(name, least=1) for name in ("keys_per_split", "programs_per_unit")}
        tiles = Record(
            "Tiles",
            {"parameters": Record("Parameters", parameters), "block_n": block_n, "queries": symbol("queries_per_tile"),
             "group": 1},
        )  # fmt: skip
        names = ("max_seq_len", "window_keys", "num_tokens", "num_requests", "num_heads", "v_head_size")
        workload = Record(
            "Workload",
            {name: symbol(name) for name in names} | {"batch_invariant": False, "has_short_window": symbol("is_short", "bool")},
        )
        chosen = {name: symbol(of, least=1) for name, of in SPLITS_OF.items()} | {"shares": symbol("shares", least=0)}
        self.extraction.given = {
            f"{LAUNCH}.tiles.attention_tiles": lambda *_: tiles,
            f"{LAUNCH}.plan.attention_grid": lambda *_: ((symbol("tiles"), symbol("heads")), symbol("is_one_tile", "bool")),
            f"{LAUNCH}.prompts.has_full_tiles": lambda *_: False,
            f"{LAUNCH}.splits.splits_of": lambda *_, **__: Record(f"{LAUNCH}.splits.Splits", chosen),
        }
        made = self.extraction.call(
            f"{LAUNCH}.plan.attention_plan",
            workload,
            architecture="gfx942",
            compute_units=symbol("units", least=1),
            parameters=None,
        )
        flags = {"heads_first": heads_first, "one_tile_per_request": True}  # which the kernel takes apart at once
        return Record(f"{LAUNCH}.plan.AttentionPlan", made.fields | flags)

    def _arguments(self, sources: Sources, sizes: dict[str, Any], block_n: int) -> dict[str, Any]:
        """The kernel's: the host's sizes as int32, and anything else."""
        kernel = sources.function(f"{KERNELS}.attention.attention_kernel").node
        names = [parameter.arg for parameter in kernel.args.args]  # type: ignore[union-attr]
        found = {name: inputs.pointer(name) if name.endswith("_ptr") else symbol(name, "int32") for name in names}
        found |= dict.fromkeys((name for name in names if name.startswith("has_")), 0) | {"writes_output": 1}
        found |= {"scale": symbol("scale", "float"), "logits_soft_cap": symbol("logits_soft_cap", "float")}
        for name, size in sizes.items():
            value = as_tensor(size)
            found[name] = size if isinstance(size, int) else number(value.term, "int32", value.least)
        return found | {"KIND": inputs.kind(is_partial=True, skips_masked_loop=True, block_n=block_n)}


def _call(sources: Sources) -> Iterator[Claim]:
    """In each launch, the programs' parts have each tile once."""
    for block_n in BLOCK_N:
        for heads_first in (False, True):
            program = Program(sources, heads_first=heads_first, block_n=block_n)
            extraction, count, most = program.extraction, program.count, program.most
            owner, facts = _owner(extraction, count, most)
            given = (
                SPLITS >= 1, SPLITS <= 256, z3.Int("keys_per_split") >= 1, SPLIT >= 0, program.programs > SPLIT,
                program.grid == program.programs, PLACE >= 0, *facts, *extraction.assumptions,
            )  # fmt: skip
            small = (count >= 8, count <= 12, SPLITS == 4, z3.Int("num_heads") <= 4, *extraction.products.exactly)
            small = small if block_n == INTERPRETED_BLOCK_N and not heads_first else None
            name = f"BLOCK_N {block_n}, {'heads first' if heads_first else 'tiles first'}"
            launched = z3.And(owner >= 0, owner < program.programs)
            is_tile = count > PLACE
            yield Claim(f"a program is launched for each tile, {name}", (*given, is_tile), launched, small, extraction.lines)
            has, wanted = z3.And(program.begin <= PLACE, program.end > PLACE), z3.And(is_tile, owner == SPLIT)
            yield Claim(f"one program has the tile, {name}", given, has == wanted, small, extraction.lines)


def _attend(sources: Sources) -> Extraction:
    key = "splits", "attend_tile"
    if key not in sources.scenes:
        extraction = Extraction(sources)
        arguments = inputs.arguments(sources, flags={"writes_output": 1}, num_splits=symbol("num_splits", "int32", least=1))
        extraction.call(
            ATTEND_TILE, inputs.tile(sources), arguments, inputs.kind(is_partial=True, skips_masked_loop=True), BLOCK_M
        )
        sources.scenes[key] = extraction
    return sources.scenes[key]


def _stores(extraction: Extraction, name: str, place: str | None = None) -> list[Access]:
    return [store for store in extraction.stores if store.pointer.name == name and place in (None, store.place)]


def _empty(sources: Sources) -> Iterator[Claim]:
    """A part without keys is written as such."""
    extraction = _attend(sources)
    begin = extraction.local("attend_tile", "begin", 1).value.term
    count = extraction.local("attend_tile", "tiles").value.count.term
    stores = [s for s in extraction.stores if s.place in ("attend_tile", "finish")]
    conditions = [z3.And(*store.path) for store in stores if store.pointer.name == "row_max_ptr"]
    given = (SPLIT >= 0, SPLIT > 0, begin >= count)
    m = z3.Int("m")
    (no_key,) = _stores(extraction, "row_max_ptr", "attend_tile")
    written = as_tensor(no_key.value).at(m) == NEGATIVE_INFINITY
    others = [z3.Not(z3.And(*store.path)) for store in extraction.stores if store is not no_key]
    yield Claim(
        "a split past the last tile",
        (*given, *extraction.assumptions),
        z3.And(*no_key.path, written, *others),
        (),
        extraction.lines,
    )
    yield Claim(
        "each split writes its largest logits", (SPLIT >= 0, *extraction.assumptions), z3.Or(*conditions), (), extraction.lines
    )


def _states(sources: Sources) -> tuple[Extraction, Extraction]:
    """A program that writes the state of a part of (token, head), and one that reads it to reduce it."""
    if "states" not in sources.scenes:
        sources.scenes["states"] = _executed(sources)
    return sources.scenes["states"]


def _executed(sources: Sources) -> tuple[Extraction, Extraction]:
    token, head, part = (symbol(name, "int64").term for name in ("token", "head", "part"))
    heads, rows, size = symbol("num_heads", "int32", least=1), symbol("num_rows", "int32", least=1), 2 * BLOCK_D
    reader = Extraction(sources, grid=((z3.Int("program"), z3.Int("programs")), (z3.Int("block"), z3.Int("blocks"))))
    reader.invariants = {"reduce_parts_kernel": _still_owned}
    of_pair, of_part = ("reduce_parts_kernel", "token"), ("reduce_parts_kernel", "part")
    reader.arbitrary = {
        of_pair: block(8, token),
        ("reduce_parts_kernel", "head"): block(8, head),
        of_part: Tensor((1, 4), "int64", lambda _: part),
    }
    pointers = ("out_ptr", "lse_ptr", "acc_ptr", "row_max_ptr", "row_sum_ptr", "output_scale_ptr", "query_start_loc_ptr")
    numbers = ("num_requests", "num_parts", "stride_out_row", "stride_out_head", "stride_lse_head")
    tiles = {"HEAD_SIZE": size, "BLOCK_ROWS": 8, "BLOCK_PARTS": 4, "BLOCK_D": BLOCK_D}
    constants = tiles | {"OUT_UNIT": 1, "OUT_FORMAT": "float", "IS_DEPENDENT": False}
    flags = {"has_lse": 0, "has_output_scale": 0, "num_heads": heads, "num_rows": rows}
    given = {name: inputs.pointer(name) for name in pointers} | {name: symbol(name, "int32") for name in numbers}
    reader.call(f"{KERNELS}.reduce_parts.reduce_parts_kernel", **given, **flags, **constants)

    writer = Extraction(sources)
    writer.arbitrary = {("rows_of_tile", "row"): block(BLOCK_M, token), ("rows_of_tile", "head"): block(BLOCK_M, head)}
    layer, batch = Record("Layer", {"num_heads": heads, "v_head_size": size}), Record("Batch", {"num_actual_tokens": rows})
    strides = writer.call("attn_optimized.launch.attention._state_strides", layer, batch)
    arguments = inputs.arguments(sources, flags={"writes_output": 1}, num_splits=symbol("num_splits", "int32", least=1))
    arguments.sizes.fields["first_part"] = 0
    arguments.strides.fields.update({name.removeprefix("stride_"): value for name, value in strides.items()})
    writer.call(
        ATTEND_TILE,
        inputs.tile(sources, split=number(part, "int64")),
        arguments,
        inputs.kind(is_partial=True, skips_masked_loop=True, v_head_size=size, block_v=size),
        BLOCK_M,
    )
    return writer, reader


def _still_owned(iteration: Iteration) -> list[Term]:
    """A row that the loop over parts owns was owned before it."""
    r = z3.Int("r")
    return [z3.Implies(iteration.now["owned"].at(r), iteration.before["owned"].at(r))]


def block(size: int, term: Term) -> Tensor:
    """A block whose lanes all hold one number."""
    return Tensor((size,), "int64", lambda _: term)


def _same_place(sources: Sources) -> Iterator[Claim]:
    writer, reader = _states(sources)
    r, b, d, block_of_dims = integers("r b d block")
    dim = block_of_dims * BLOCK_D + d
    for name, lane, other in (("row_max_ptr", (r, b), (r,)), ("row_sum_ptr", (r, b), (r,)), ("acc_ptr", (r, b, d), (r, dim))):
        (load,) = (load for load in reader.loads if load.pointer.name == name)
        store = _stores(writer, name, "store_dims" if name == "acc_ptr" else "finish")[0]
        found, at = as_tensor(load.pointer.offset).at(*lane), as_tensor(store.pointer.offset).at(*other)
        assumptions = (d >= 0, d < BLOCK_D, block_of_dims >= 0, block_of_dims < 2, *writer.assumptions, *reader.assumptions)
        yield Claim(f"{name[:-4]} of a part", assumptions, found == at, (), {**writer.lines, **reader.lines})


def _what_was_written(sources: Sources) -> Iterator[Claim]:
    """Which parts have which state, and that the reduction reads no other."""
    writer, reader = _states(sources)
    r, b, d, token, part, block_of_dims = integers("r b d token part block")
    inside = (r >= 0, r < 8, b >= 0, b < 4, d >= 0, d < BLOCK_D, block_of_dims >= 0, block_of_dims < 2)
    lines = {**writer.lines, **reader.lines}

    def loaded(name: str) -> tuple[Access, Term]:
        (load,) = (load for load in reader.loads if load.pointer.name == name)
        return load, as_tensor(load.mask).at(*((r, b, d) if name == "acc_ptr" else (r, b)))

    (row_max, max_read), (_, sum_read), (_, acc_read) = map(loaded, ("row_max_ptr", "row_sum_ptr", "acc_ptr"))
    saw_keys = as_tensor(row_max.value).at(r, b) > NEGATIVE_INFINITY
    end = memory("query_start_loc_ptr")(z3.Int("num_requests"))
    given = (*inside, *row_max.path, *writer.assumptions, *reader.assumptions)
    batch = z3.And(token < end, token < z3.Int("num_rows"), part < z3.Int("num_parts"))
    yield Claim("largest logits are read of the batch's rows and parts", given, z3.Implies(max_read, batch), None, lines)
    yield Claim("sums are read where the part saw a key", given, sum_read == z3.And(max_read, saw_keys), (), lines)
    unfinished = reader.local("reduce_parts_kernel", "owned", 1).value.at(r)  # in the loop
    wanted = z3.And(sum_read, unfinished)
    yield Claim("values are read where a part saw a key and is not all of the keys", given, acc_read == wanted, None, lines)
    for obligation in reader.obligations:
        yield Claim(obligation.name, (*given, *obligation.path), z3.And(*obligation.terms), None, lines)

    m = z3.Int("m")
    lane = (m >= 0, m < BLOCK_M, d >= 0, d < 2 * BLOCK_D, *writer.assumptions)
    for largest in _stores(writer, "row_max_ptr", "finish"):
        sums = [store for store in _stores(writer, "row_sum_ptr", "finish") if store.path == largest.path]
        masks = [as_tensor(store.mask).at(m) == as_tensor(largest.mask).at(m) for store in sums]
        goal = z3.Or(*masks) if masks else z3.BoolVal(False)
        yield Claim(f"the sum is written with the largest logit of line {largest.line}", lane, goal, None, lines)
    (values,) = _stores(writer, "acc_ptr", "store_dims")
    (largest,) = (store for store in _stores(writer, "row_max_ptr", "finish") if store.path == values.path)
    saw = z3.And(as_tensor(largest.mask).at(m), as_tensor(largest.value).at(m) > NEGATIVE_INFINITY)
    goal = as_tensor(values.mask).at(m, d) == saw
    yield Claim("values are written where a part saw a key", lane, goal, None, lines)


def _split(model: Model, shortest: int = 190) -> Case:
    """Requests of few queries, of which one has keys enough for several parts and the shortest has not. The longest has as many
    tiles of keys as the counterexample."""
    keys = INTERPRETED_BLOCK_N * model.within(COUNT, 8, 12) - 12
    heads = model.within("num_heads", 2, 4)
    return paged([(1, keys), (1, shortest), (2, 260)], scale=0.25, num_kv_heads=1, group_size=heads)


def _window(model: Model) -> Case:
    """A window of a decode that begins inside of a tile, and so touches a tile more than the plan counts: with the queries that
    a tile has room for, its keys are exactly two tiles."""
    keys = INTERPRETED_BLOCK_N * model.within(PLACE, 6, 9) + 16
    return paged([(1, keys)], scale=0.25, num_kv_heads=1, group_size=4, window=(124, -1))


AT_LEAST_ONE = "The host's fewest tiles of a part is at least 1 (launch/plan.py rounds up)."
THEOREMS = (
    Theorem(
        "splits.cover", "Each tile of keys is one split's, for every number of splits.", _cover,
        f"{KERNELS}.split_keys.tiles_of_split", "begin + tiles_per_split", "begin + tiles_per_split - 1", _split, AT_LEAST_ONE,
    ),
    Theorem(
        "splits.call",
            "The programs of a call whose keys are split have each tile of keys once: none is left out, none is of two.",
            _call,
        f"{KERNELS}.split_keys.tiles_of_split", "tl.maximum(sizes.tiles_per_split, tl.cdiv(num_tiles, sizes.num_splits))",
            "sizes.tiles_per_split", _window,
    ),
    Theorem(
        "splits.whole", "Where a split's tiles are no part, the first split has all tiles and the other splits have none.",
            _whole,
        f"{KERNELS}.split_keys.tiles_of_split", "num_tiles > tiles_per_split", "num_tiles > tiles_per_split * 2", _split,
            AT_LEAST_ONE,
    ),
    Theorem(
        "splits.empty",
            "Each split writes its largest logits, and a split without tiles writes that it saw no key, and nothing else.",
            _empty,
        f"{KERNELS}.attention.attend_tile", "(tile.split > 0) & (begin >= tiles.count)",
            "(tile.split > 1) & (begin >= tiles.count)", lambda model: _split(model, shortest=60),
    ),
    Theorem(
        "splits.reduced", "The reduction reads the state of a row and part where the part's program has written it.",
            _same_place,
        f"{KERNELS}.reduce_parts.reduce_parts_kernel", "(part * rows + token[:, None]) * heads + head[:, None]",
            "(part * rows + token[:, None]) * heads + part", _split,
    ),
    Theorem(
        "splits.read",
            "The reduction reads sums and values only of parts that saw a key, and so what their programs have written.",
            _what_was_written,
        f"{KERNELS}.reduce_parts.reduce_parts_kernel", 'there & (row_max > float("-inf"))', "there", _split,
    ),
)  # fmt: skip
