"""The warp specialized kernel: which tiles of keys it goes through, which keys it shows, and which rows it reads and writes.

Of any query t of any request, in the program of its tile (family `programs`), any head, and any iteration of the loop. Tiles
and heads are those that ship: 128 queries, 64 keys and 256 dims.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import z3
from attn_fuzz.cases.case import Case
from attn_proofs import inputs
from attn_proofs.counterexamples import paged
from attn_proofs.extract import Access, Extraction
from attn_proofs.sources import Sources
from attn_proofs.theorem import Claim, Model, Theorem
from attn_proofs.values import NEGATIVE_INFINITY, integers, memory, number, symbol

KERNEL = "attn_optimized.kernels.warp_specialized"
NAME = "warp_specialized_kernel"
BLOCK_M, BLOCK_N, HEAD_SIZE = 128, 64, 256
BLOCK_SIZES = (64, 128)
"""Blocks of one tile of keys, and of two."""
QSL, LENS, TABLE = memory("query_start_loc_ptr"), memory("seq_lens_ptr"), memory("block_table_ptr")
R, T, J, M, Y, D = integers("r t j m y d")


@dataclass(frozen=True)
class SpecializedScene:
    """The kernel in the program of the tile of query T of request R."""

    extraction: Extraction
    block_size: int

    def value(self, name: str, iteration: int = -1) -> Any:
        return self.extraction.local(NAME, name, iteration).value

    def claim(self, name: str, given: list[Any], goal: Any, small: tuple[Any, ...] = ()) -> Claim:
        query_len, seq_len = QSL(R + 1) - QSL(R), LENS(R)
        contract = [R >= 0, QSL(R) >= 0, T >= 0, query_len > T, query_len <= seq_len, QSL(R + 1) <= z3.Int("num_tokens")]
        sizes = [R == 0, QSL(0) == 0, query_len >= 70, query_len <= 140, seq_len <= 200, *self.extraction.products.exactly]
        return Claim(
            f"{name}, blocks of {self.block_size}",
            (*contract, *self.extraction.assumptions, *given),
            goal,
            (*sizes, *small),
            self.extraction.lines,
        )

    @property
    def position(self) -> Any:
        return LENS(R) - (QSL(R + 1) - QSL(R)) + T

    @property
    def iteration(self) -> list[Any]:
        """The path of an iteration of the loop."""
        return list(self.extraction.local(NAME, "first_key").path)


def _scenes(sources: Sources, **arbitrary: Any) -> Iterator[SpecializedScene]:
    for block_size in BLOCK_SIZES:
        key = "specialized", block_size, *arbitrary
        if key not in sources.scenes:
            sources.scenes[key] = SpecializedScene(_executed(sources, block_size, arbitrary), block_size)
        yield sources.scenes[key]


def _executed(sources: Sources, block_size: int, arbitrary: dict[str, Any]) -> Extraction:
    grid = tuple(zip(integers("program_0 program_1"), integers("programs_0 programs_1"), strict=True))
    tile = number(QSL(R) / BLOCK_M + R + T / BLOCK_M, "int32")
    arbitrary = {"tile": tile, "head": symbol("head", "int64", least=0), **arbitrary}
    extraction = Extraction(
        sources,
        grid=grid,
        arbitrary={(NAME, name): value for name, value in arbitrary.items()},
        given={"attn_optimized.kernels.query_tiles.request_of_tile": lambda *_: symbol("r", "int32", least=0)},
    )
    constants = {"BLOCK_SIZE": block_size, "BLOCK_M": BLOCK_M, "BLOCK_N": BLOCK_N, "BLOCK_D": HEAD_SIZE}
    kernel: Any = sources.function(f"{KERNEL}.{NAME}").node
    arguments: dict[str, Any] = {}
    for name in (parameter.arg for parameter in kernel.args.args if parameter.arg not in constants):
        if name.endswith("_ptr"):
            arguments[name] = inputs.pointer(name)
        else:
            arguments[name] = symbol(name, "float" if name == "scale" else "int32", least=1 if name == "group" else None)
    extraction.call(f"{KERNEL}.{NAME}", **arguments, **constants)
    return extraction


def _visited(sources: Sources) -> Iterator[Claim]:
    for scene in _scenes(sources):
        first_query, end = scene.value("first_query").term, scene.value("end").term
        yield scene.claim("the query is the tile's", [], z3.And(first_query <= T, first_query + BLOCK_M > T))
        seen = [J >= 0, scene.position >= J]
        yield scene.claim("a key that it sees is in an iteration", seen, end > J / BLOCK_N)
        first_key, end_key = scene.value("first_key").term, scene.value("end_key").term
        within = z3.And(first_key >= 0, first_key % BLOCK_N == 0, first_key < end_key, end_key <= LENS(R))
        yield scene.claim("an iteration has a key of the request", scene.iteration, within)


def _shown(sources: Sources) -> Iterator[Claim]:
    for scene in _scenes(sources):
        before, after = scene.value("logits", -2), scene.value("logits")
        key, m = scene.value("first_key").term + Y, T - scene.value("first_query").term
        lanes = [*scene.iteration, Y >= 0, Y < BLOCK_N]
        expected = z3.If(key <= scene.position, before.at(m, Y), NEGATIVE_INFINITY)
        yield scene.claim("a logit", lanes, after.at(m, Y) == expected)


def _reads(sources: Sources) -> Iterator[tuple[str, SpecializedScene, Access, Any, list[Any]]]:
    """A lane of each load of K and V, from any block: its name, scene and access, its key, and what holds of it."""
    for scene in _scenes(sources, block=symbol("block", "int32")):
        for name, access in zip("KV", (load for load in scene.extraction.loads if load.pointer.name == "k_ptr"), strict=True):
            lane = [*access.path, Y >= 0, Y < BLOCK_N, D >= 0, D < HEAD_SIZE]
            yield name, scene, access, scene.value("first_key").term + Y, lane


def _read(sources: Sources) -> Iterator[Claim]:
    for scene in _scenes(sources):
        key, times = scene.value("first_key").term + Y, scene.extraction.products.times
        named = TABLE(times(R, z3.Int("stride_block_table")) + key / scene.block_size)
        yield scene.claim("the block", [*scene.iteration, Y >= 0, Y < BLOCK_N], scene.value("block").term == named)
    for name, scene, access, key, lane in _reads(sources):
        (address, is_read), times = access.at(0, Y, D), scene.extraction.products.times
        of_k, of_head = scene.value("k_row").term + Y, times(scene.value("kv_head").term, z3.Int("stride_kv_head"))
        if name == "K":
            in_block = times(z3.Int("block"), z3.Int("rows_of_block")) + key % scene.block_size
            yield scene.claim("the row of a key", lane, of_k == in_block)
        row = of_k + (z3.Int("rows_to_v") if name == "V" else 0)
        # the contract's: rows of keys are rows of the cache
        in_cache = [key < scene.value("end_key").term, row >= 0, row < z3.Int("num_rows")]
        goal = z3.And(is_read, address == times(row, z3.Int("stride_kv_row")) + of_head + D)
        yield scene.claim(f"a row of {name}", [*lane, *in_cache], goal)


def _nothing_past_the_keys(sources: Sources) -> Iterator[Claim]:
    for name, scene, access, key, lane in _reads(sources):
        ends = z3.And(key < scene.value("end_key").term, key < LENS(R))
        # a run shows what is read after all keys of the request
        yield scene.claim(f"a row of {name}", lane, z3.Implies(access.at(0, Y, D)[1], ends), (key >= LENS(R),))


def _queries(sources: Sources) -> Iterator[Claim]:
    for scene in _scenes(sources):
        (access,) = (access for access in scene.extraction.loads if access.pointer.name == "q_ptr")
        times, row = scene.extraction.products.times, QSL(R) + scene.value("first_query").term + M
        address, is_read = access.at(M, D)
        of_head = times(scene.value("head").term, z3.Int("stride_q_head"))
        lanes = [M >= 0, M < BLOCK_M, D >= 0, D < HEAD_SIZE]
        goal = z3.And(is_read == (row < QSL(R + 1)), address == times(row, z3.Int("stride_q_row")) + of_head + D)
        yield scene.claim("a lane of q", lanes, goal)


def _written(sources: Sources) -> Iterator[Claim]:
    for scene in _scenes(sources):
        (access,) = (access for access in scene.extraction.stores if access.pointer.name == "out_ptr")
        times, row = scene.extraction.products.times, QSL(R) + scene.value("first_query").term + M
        address, is_written = access.at(M, D)
        of_head = times(scene.value("head").term, z3.Int("stride_out_head"))
        lanes = [M >= 0, M < BLOCK_M, D >= 0, D < HEAD_SIZE]
        goal = z3.And(is_written == (row < QSL(R + 1)), address == times(row, z3.Int("stride_out_row")) + of_head + D)
        yield scene.claim("a lane of the output", lanes, goal)


def _case(model: Model) -> Case:
    """A prompt after a context, or without one, of a target that this kernel serves."""
    query_len = max(70, min(140, model(QSL(1)) - model(QSL(0))))
    seq_len = max(query_len, min(200, model(LENS(0))))
    sizes = {"head_size": HEAD_SIZE, "block_size": BLOCK_N, "dtype": "float16"}
    return paged([(query_len, seq_len), (30, 30)], target="triton@prompts", scale=0.25, lse=True, **sizes)


THEOREMS = (
    Theorem(
        "specialized.visited",
            "The loop has an iteration for each key that a query of the tile sees, and none without a key of the request.",
            _visited,
        f"{KERNEL}.{NAME}", "end = tl.cdiv(end_key, BLOCK_N)", "end = end_key // BLOCK_N", _case,
    ),
    Theorem(
        "specialized.shown", "A query is shown the keys at or before its position, and no other.", _shown,
        f"{KERNEL}.{NAME}", "key[None, :] <= position[:, None]", "key[None, :] < position[:, None]", _case,
    ),
    Theorem(
        "specialized.read", "An iteration reads the rows of K and V that the block table names for its keys.", _read,
        f"{KERNEL}.load_rows", "row + (BLOCK_N - missing)", "row + (BLOCK_N - 2 * missing)", _case,
    ),
    Theorem(
        "specialized.nothing-behind", "No row of K and V is read after the last key that a query of the tile sees.",
            _nothing_past_the_keys,
        f"{KERNEL}.load_rows", "first_key + BLOCK_N - end_key", "first_key + BLOCK_N - end_key - 1", _case,
    ),
    Theorem(
        "specialized.queries", "The tile of q has the rows of the request's queries, and no row of another request is read.",
            _queries,
        f"{KERNEL}.{NAME}", "tl.minimum(first_row + query_len, num_tokens)",
            "tl.minimum(first_row + query_len - 1, num_tokens)", _case,
    ),
    Theorem(
        "specialized.written", "Each row of the output that is a query of the tile is written, and no other.", _written,
        f"{KERNEL}.{NAME}", "(query < query_len)", "(query <= query_len)", _case,
    ),
)  # fmt: skip
