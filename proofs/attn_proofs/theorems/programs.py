"""Every query row of every request, for every head, belongs to exactly one program and one row of its tile.

`start(r) = query_start_loc[r] // queries_per_tile + r` is the first tile of request r. Query t of request r belongs to
the program of tile `start(r) + t // queries_per_tile`. `find_tile` counts the requests whose first tile is not above its
own, a few at once.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import z3
from attn_fuzz.cases.case import Case
from attn_proofs import lemmas
from attn_proofs.counterexamples import paged
from attn_proofs.extract import Extraction
from attn_proofs.inputs import kind, pointer, tile
from attn_proofs.loops import Iteration
from attn_proofs.sources import Sources, path_of
from attn_proofs.specification import INT32_MAX
from attn_proofs.theorem import Claim, Model, Term, Theorem
from attn_proofs.values import Record, integers, memory, number, symbol

QUERY_TILES = "attn_optimized.kernels.query_tiles"
PLAN = "attn_optimized.launch.plan"
LAUNCH = "attn_optimized.launch.attention"
WORKLOAD = "attn_optimized.launch.workload"
FIRST_WRONG_GROUP = 257
"""The first group whose inverse of 16 bits gives a wrong query, in a tile of as many rows as its power of two."""


def max_group(sources: Sources) -> int:
    """The most query heads of a group: the host cuts a KV head's heads into groups of at most this size."""
    return _literal(sources, "MAX_GROUP")


def _literal(sources: Sources, name: str) -> int:
    found = sources.find(WORKLOAD, name)
    assert found is not None
    return ast.literal_eval(found.node)


def cut_groups(sources: Sources) -> Iterator[tuple[int, int]]:
    """Heads of a KV head and the size of their groups, wherever `Workload.most_heads` cuts them into more than one."""
    for heads in range(2, MAX_HEADS + 1):
        sizes = {Extraction(sources).call(f"{WORKLOAD}.group_of", heads, most) for most in _most_heads(sources, heads)}
        yield from ((heads, size) for size in sorted(sizes, reverse=True) if size < heads)


def _most_heads(sources: Sources, heads: int) -> Iterator[int]:
    """The most heads of a group, for layers with so many heads of a KV head: `Workload.most_heads`, or `rows_that_fit`."""
    yield max_group(sources)
    yield max_group(sources) // 2  # 512 dims of float32, of which 64 KiB hold 32 rows
    rows, queries, groups = (_literal(sources, name) for name in ("DECODE_TILE_ROWS", "MAX_SPECULATED", "MAX_GROUPS"))
    yield from (rows // n for n in range(1, queries + 1) if rows // n * groups >= heads)


@cache
def max_block_m() -> int:
    """The most rows of a tile that a launch table names. A latent cache's groups are as large as a tile."""
    tables = path_of("attn_optimized.launch.table").parent.glob("*.json")
    return max(int(rows) for table in tables for rows in re.findall(r'"block_m": (\d+)', table.read_text()))


def max_rows(sources: Sources) -> int:
    """The most rows of any tile, and the largest group of any call."""
    return max(max_block_m(), 1 << (max_group(sources) - 1).bit_length())


INTERPRETED_QUERIES = 64
MAX_HEADS, FALCON_HEADS = 256, 71
QSL = memory("query_start_loc_ptr")
R, Q, TILE, T, REQUEST = integers("num_requests queries_per_tile tile t r")
TOKENS = z3.Int("num_tokens")


class Search:
    """`find_tile` for many tiles per request, looked at by one request r."""

    def __init__(self, sources: Sources, *, interprets: bool, owns: bool) -> None:
        self.at_once = 4 if interprets else 256
        self.extraction = Extraction(sources, interprets=interprets, invariants={"request_of_tile": self._invariant})
        self.queries = symbol("queries_per_tile", "int32", least=1)
        # any tile, or that of query t of request r
        self.tile = self.start(REQUEST) + self.extraction.quotient(T, Q) if owns else TILE
        arguments = (
            pointer("query_start_loc_ptr"),
            symbol("num_requests", "int32"),
            self.queries,
            0,
            number(self.tile, "int32"),
        )
        self.found = self.extraction.call(f"{QUERY_TILES}.find_tile", *arguments)

    def start(self, request: Term) -> Term:
        """The first tile of a request."""
        return self.extraction.quotient(QSL(request), Q) + request

    def begins(self, request: Term) -> Term:
        return self.start(request) <= self.tile

    def _counted(self, count: Term, found: Term, request: Term) -> Term:
        """A request among the first `count` is at most the found one exactly if it begins at or before the tile."""
        looked_at = z3.And(request >= 0, request < count * self.at_once, request < R)
        return z3.Implies(looked_at, (request <= found) == self.begins(request))

    def _invariant(self, iteration: Iteration) -> list[Term]:
        found, count = iteration.now["request"].term, iteration.count
        end: Any = z3.If(count * self.at_once <= R, count * self.at_once, R)
        # r is arbitrary, so its assumptions hold for every request, also for the last one in the search
        last = count * self.at_once - 1
        terms = [self._counted(count, found, REQUEST), found >= -1, found <= end - 1]
        if not z3.is_int_value(count) and z3.is_const(count):
            self.extraction.assumptions += [self._counted(count, found, last), *self.rising(last, count * self.at_once)]
            self.extraction.assumptions += [*self.rising(last, REQUEST), *self.rising(REQUEST, last)]
        return terms

    def rising(self, a: Term, b: Term) -> list[Term]:
        """The contract's: a prefix sum of lengths that are not negative."""
        inside = z3.And(a >= 0, a <= b, b <= R)
        return [z3.Implies(inside, z3.And(QSL(a) >= 0, QSL(a) <= QSL(b), QSL(b) <= TOKENS))]

    def sums(self) -> list[Term]:
        """`tl.sum` of a block whose ones come first is how many they are: looked at from three lanes, r's, 0 and the first
        after the requests."""
        (reduction,) = self.extraction.reductions
        ones, total = reduction.operand, reduction.result.term
        first = self.extraction.local("request_of_tile", "first").value.term
        lanes = (REQUEST - first, R - first)
        inside = [z3.And(lane >= 0, lane < self.at_once) for lane in lanes]
        counted = [
            z3.Implies(within, (lane < total) == (ones.at(lane) == 1)) for within, lane in zip(inside, lanes, strict=True)
        ]
        return [total >= 0, total <= self.at_once, *counted, (total > 0) == (ones.at(0) == 1)]

    def given(self) -> list[Term]:
        following = REQUEST + 1
        return [
            R >= 1, R <= INT32_MAX // 2, Q >= 1, Q <= 2**16, self.tile >= 0, self.tile <= INT32_MAX, QSL(0) == 0,
            TOKENS <= INT32_MAX, REQUEST >= 0, REQUEST < R, *self.rising(REQUEST, following),
            *self.rising(z3.IntVal(0), REQUEST),
        ]  # fmt: skip

    def small(self) -> tuple[Term, ...]:
        lengths = [z3.And(QSL(i + 1) - QSL(i) >= 0, QSL(i + 1) - QSL(i) <= 100) for i in range(4)]
        sizes = [R == 4, Q == INTERPRETED_QUERIES, QSL(4) == TOKENS, z3.Or(*(QSL(i + 1) - QSL(i) > 64 for i in range(4)))]
        return (*lengths, *sizes, *self.extraction.products.exactly)


def _search(sources: Sources, *, steps: bool) -> Iterator[Claim]:
    for interprets in (True, False):
        search = Search(sources, interprets=interprets, owns=not steps)
        extraction = search.extraction
        first = extraction.local("request_of_tile", "first").value.term
        (reduction,) = extraction.reductions
        a, b = integers("lane_a lane_b")
        lanes = [a >= 0, a <= b, b < search.at_once, *search.rising(first + a, first + b)]
        falls = z3.Implies(reduction.operand.at(b) == 1, reduction.operand.at(a) == 1)
        facts = search.sums()
        for request in (REQUEST, first):
            search.begins(request)  # the claims need facts about its quotient
        given = [*search.given(), *extraction.assumptions]
        name = f"{search.at_once} requests at once"
        small = search.small() if interprets else None
        if steps:
            yield Claim(
                f"in a block, requests that begin come first, {name}",
                (*given, first >= 0, *lanes),
                falls,
                None,
                extraction.lines,
            )
            for obligation in extraction.obligations:
                for i, term in enumerate(obligation.terms):
                    assumed = (*given, *obligation.path, *(facts if obligation.first else ()))
                    at_first = None if small is None or not obligation.first else (*small, *obligation.first)
                    yield Claim(f"{obligation.name}, part {i + 1}, {name}", assumed, term, at_first, extraction.lines)
        else:
            yield _owner(search, name, small)
    if not steps:
        yield from lemmas.multiples()
        yield from lemmas.floors()


def _owner(search: Search, name: str, small: tuple[Term, ...] | None) -> Claim:
    """Query t of request r belongs to the tile start(r) + t // Q; and it is among the queries that find_tile gives that
    tile."""
    extraction = search.extraction
    request, first_row, query_len, first_query, end_query = (value.term for value in search.found)
    length = QSL(REQUEST + 1) - QSL(REQUEST)
    place = extraction.quotient(T, Q)
    both = extraction.quotient(QSL(REQUEST) + T, Q)
    found = extraction.local("request_of_tile", "request", -2).value.term
    iterations = z3.If(R > 0, (R - 0 + search.at_once - 1) / search.at_once, 0)
    after = [search._counted(iterations, found, REQUEST + 1), *search.rising(REQUEST + 1, REQUEST + 1)]
    next_start = search.start(REQUEST + 1)
    assumed = [
        *search.given(), T >= 0, length > T, *after, both >= 0, next_start >= 0,
        extraction.quotient(QSL(REQUEST), Q) + place <= both,  # lemmas.floors
    ]  # fmt: skip
    goal = z3.And(
        request == REQUEST, first_row == QSL(REQUEST), query_len == length, first_query == extraction.times(place, Q),
        first_query <= T, end_query > T, end_query <= length,
    )  # fmt: skip
    return Claim(f"query t of request r, {name}", (*assumed, *extraction.assumptions), goal, small, extraction.lines)


def _grid(sources: Sources) -> Iterator[Claim]:
    """The grid has the tile of every query, in both of its forms."""
    extraction = Extraction(sources)
    names = ("num_requests", "num_tokens", "max_query_len", "num_kv_heads")
    workload = Record("Workload", {name: symbol(name) for name in names})
    (tiles, _), single = extraction.call(
        f"{PLAN}.attention_grid",
        workload,
        Record(
            "AttentionTiles",
            {"queries": symbol("queries_per_tile", least=1), "groups_per_kv_head": symbol("groups_per_kv_head")},
        ),
    )
    length = QSL(REQUEST + 1) - QSL(REQUEST)
    before, place = extraction.quotient(QSL(REQUEST), Q), extraction.quotient(T, Q)
    both = extraction.quotient(QSL(REQUEST) + T, Q)
    given = [
        Q >= 1, REQUEST >= 0, REQUEST < R, R <= INT32_MAX, QSL(REQUEST) >= 0, QSL(REQUEST) <= QSL(REQUEST + 1),
            QSL(REQUEST + 1) <= TOKENS,
        T >= 0, length > T, length <= z3.Int("max_query_len"), before + place <= both,  # lemmas.floors
        *extraction.products.apart(Q, extraction.quotient(-TOKENS, Q), -both),
    ]  # fmt: skip
    one = single.term
    small = [
        R == 2, QSL(0) == 0, QSL(2) == TOKENS, TOKENS <= 200, Q == INTERPRETED_QUERIES, QSL(1) >= 0, QSL(2) >= QSL(1),
        z3.Or(QSL(1) > 64, QSL(2) - QSL(1) > 64), z3.Int("max_query_len") <= 128, *extraction.products.exactly,
    ]  # fmt: skip
    goal = z3.If(one, z3.And(tiles.term > REQUEST, length <= Q), before + REQUEST + place < tiles.term)
    yield Claim("query t of request r has a program", (*given, *extraction.assumptions), goal, tuple(small), extraction.lines)


def rows_of_group(sources: Sources, group: int, inverse: Any, **cut: int) -> tuple[Extraction, Any]:
    """The rows of any tile for a group of heads. `cut`: of a KV head whose query heads are cut into groups."""
    extraction = Extraction(sources)
    of_group = {"heads_per_group": group, "inverse_heads_per_group": inverse}
    sizes = Record("Sizes", of_group | {"num_tokens": symbol("num_tokens", "int32")})
    rows = extraction.call(f"{QUERY_TILES}.rows_of_tile", tile(sources), sizes, 0, kind(**cut), max_rows(sources))
    return extraction, rows


def _rows(sources: Sources) -> Iterator[Claim]:
    """The rows of a tile: for each group, each of its queries and heads is one row, and each row is one of them."""
    m, t, h = integers("m t h")
    most = max_rows(sources)
    for group in range(1, most + 1):
        extraction, rows = rows_of_group(sources, group, -(-(1 << 16) // group))
        first, head = integers("first_query head_group")
        lanes = (m >= 0, m < most, t >= 0, h >= 0, h < group, t * group + h < most)
        lane = t * group + h
        goal = z3.And(
            rows.query.at(m) == first + m / group, rows.head.at(m) == head * group + m % group,
            rows.query.at(lane) == first + t, rows.head.at(lane) == head * group + h,
            rows.row.at(m) == z3.Int("first_row") + rows.query.at(m),
        )  # fmt: skip
        small = (head == 1, first == 0) if group == 3 else None
        yield Claim(f"group {group}", (*lanes, *extraction.assumptions), goal, small, extraction.lines)


def _groups(sources: Sources) -> Iterator[Claim]:
    """The groups that the query heads of a KV head are cut into, for each number of heads that one group does not hold."""
    m, h, kv_head, head_group = integers("m h kv_head head_group")
    most = max_rows(sources)
    for heads_per_kv_head, group in cut_groups(sources):
        groups = -(-heads_per_kv_head // group)
        cut = {"groups_per_kv_head": groups, "heads_per_kv_head": heads_per_kv_head}
        extraction, rows = rows_of_group(sources, group, -(-(1 << 16) // group), **cut)
        number = head_group - kv_head * groups
        lanes = (m >= 0, m < most, h >= 0, h < heads_per_kv_head, number >= 0, number < groups, kv_head >= 0)
        in_group = number * group + m % group
        in_tile = z3.And(rows.query.at(m) < z3.Int("end_query"), rows.row.at(m) >= 0, rows.row.at(m) < z3.Int("num_tokens"))
        goal = z3.And(
            group <= max_group(sources),
            rows.owned.at(m) == z3.And(in_tile, in_group < heads_per_kv_head),
            rows.head.at(m) == kv_head * heads_per_kv_head + in_group,
            # head h is head h % group of group h // group, which there is
            h / group < groups, (h / group) * group + h % group == h,
        )  # fmt: skip
        is_shown = (heads_per_kv_head, groups) == (FALCON_HEADS, 2)
        small = (kv_head == 1, z3.Int("first_query") == 0) if is_shown else None
        yield Claim(
            f"{heads_per_kv_head} heads, {group} in a group", (*lanes, *extraction.assumptions), goal, small, extraction.lines
        )


def _owned(sources: Sources) -> Iterator[Claim]:
    extraction = Extraction(sources)
    names = ("heads_per_group", "inverse_heads_per_group", "num_tokens")
    sizes = Record("Sizes", {name: symbol(name, "int32") for name in names})
    rows = extraction.call(f"{QUERY_TILES}.rows_of_tile", tile(sources), sizes, 0, kind(), max_rows(sources))
    m = z3.Int("m")
    first, end, row = z3.Int("first_query"), z3.Int("end_query"), rows.row.at(m)
    given = (m >= 0, m < max_rows(sources), *_contract_of_tile(), rows.query.at(m) >= first)
    goal = rows.owned.at(m) == (rows.query.at(m) < end)
    small = (z3.Int("query_len") <= 30, z3.Int("first_row") == 0)
    yield Claim(
        "a row is there exactly if its query is the tile's", (*given, *extraction.assumptions), goal, small, extraction.lines
    )
    yield Claim("its row is one of the request's", (*given, *extraction.assumptions, rows.owned.at(m)),
                z3.And(z3.Int("first_row") <= row, row < z3.Int("first_row") + z3.Int("query_len")),
                    small, extraction.lines)  # fmt: skip


def _contract_of_tile() -> list[Term]:
    first, end, length, row = integers("first_query end_query query_len first_row")
    return [first >= 0, first < end, end <= length, length <= INT32_MAX, row >= 0, row + length <= TOKENS, TOKENS <= INT32_MAX]


def inverse_of(sources: Sources, group: int) -> tuple[Extraction, Any]:
    """The host's inverse of a group, from its source."""
    extraction = Extraction(sources)
    names = (
        "one_tile_per_request",
        "heads_first",
        "splits",
        "balanced_splits",
        "filling_splits",
        "work_shares",
        "min_tiles_per_split",
        "max_tiles",
    )
    tiles = Record("Tiles", {"queries": symbol("queries"), "group": group})
    plan = Record("Plan", {"tiles": tiles} | {name: symbol(name) for name in names})
    batch = Record("Batch", {"num_requests": symbol("num_requests"), "num_actual_tokens": symbol("num_tokens")})
    return extraction, extraction.call(f"{LAUNCH}._sizes", plan, batch)["inverse_heads_per_group"]


def _inverse(sources: Sources) -> Iterator[Claim]:
    """(row * inverse) >> 16 is row // group, with the inverse that the host gives; and the limit of it."""
    m: Any = z3.Int("m")
    for group in range(1, FIRST_WRONG_GROUP):
        exact = -(-(1 << 16) // group)
        lines: dict[str, set[int]] = {}
        if group <= max_rows(sources):
            extraction, inverse = inverse_of(sources, group)
            lines, given = extraction.lines, inverse.term if hasattr(inverse, "term") else z3.IntVal(inverse)
            yield Claim(f"the inverse of group {group}", (), given == exact, () if group == 3 else None, lines)
        rows = max(max_rows(sources), 1 << (group - 1).bit_length())
        goal = (m * exact) / 2**16 == m / group
        yield Claim(f"the query of a row, group {group}", (m >= 0, m < rows), goal, None, lines)
    group, exact = FIRST_WRONG_GROUP, -(-(1 << 16) // FIRST_WRONG_GROUP)
    wrong = next(row for row in range(1 << group.bit_length()) if (row * exact) >> 16 != row // group)
    goal = z3.And((m * exact) / 2**16 != m / group, max_rows(sources) < group, max_group(sources) < group)
    yield Claim(f"row {wrong} of group {group} is given a wrong query, and no tile has such a group", (m == wrong,), goal, None)


def _ragged(model: Model) -> Case:
    """The case of a counterexample with several requests, of which one is longer than a tile."""
    count = model(R)
    lengths = [model(QSL(i + 1)) - model(QSL(i)) for i in range(count)]
    return paged([(length, length) for length in lengths], scale=0.25)


def _grouped(model: Model) -> Case:
    """Several queries a tile, of groups of three heads: the group of the claim that is refuted."""
    queries = model.within("t", 5, 25) + model.within("m", 5, 25)
    return paged([(queries, 60), (5, 70)], group_size=3, num_kv_heads=model.within("kv_head", 1, 3) + 1, scale=0.25)


def _cut(model: Model) -> Case:
    """A few queries with two KV heads, whose query heads form two groups."""
    return paged([(model.within("t", 1, 3), 60), (2, 70)], group_size=FALCON_HEADS, num_kv_heads=2, scale=0.25)


def one_tile(model: Model) -> Case:
    return paged([(model.within("query_len", 2, 30), 30), (7, 50)], scale=0.25)


LIMIT = (
    "A precondition: groups of at most `MAX_GROUP` of launch/workload.py heads, and of a latent cache of at most a tile's "
    "rows, `block_m` of the launch tables. Both are read from the source."
)
THEOREMS = (
    Theorem(
        "programs.search", "find_tile finds the last request whose first tile is not above the tile, among any number.",
            lambda sources: _search(sources, steps=True),
        f"{QUERY_TILES}.request_of_tile", "row // queries_per_tile + candidate <= tile",
            "row // queries_per_tile + candidate < tile", _ragged,
    ),
    Theorem(
        "programs.query",
            "The program of tile start(r) + t // queries_per_tile has query t of request r, and no other program has it.",
            lambda sources: _search(sources, steps=False),
        f"{QUERY_TILES}.find_tile", "tile - request - first_row // queries_per_tile",
            "tile - request - (first_row + 1) // queries_per_tile", _ragged,
    ),
    Theorem(
        "programs.grid", "The grid has the tile of every query of every request.", _grid,
        f"{PLAN}.attention_grid", "-(-workload.num_tokens // tiles.queries) + num_requests - 1",
            "workload.num_tokens // tiles.queries + num_requests - 1", _ragged,
    ),
    Theorem(
        "programs.rows",
            "Each query of a tile and each head of its group is one row of the tile, for each group that a tile holds.", _rows,
        f"{QUERY_TILES}.rows_of_tile", "tile.head_group.to(tl.int32) * sizes.heads_per_group", "tile.head_group.to(tl.int32)",
        _grouped, LIMIT,
    ),
    Theorem(
        "programs.groups",
            "Where the query heads of a KV head are cut into groups, however the host cuts them, each of them is a "
            "row of one group for each query, and no row is written for a head that is another KV head's.", _groups,
        f"{QUERY_TILES}.rows_of_tile", "head < (tile.kv_head.to(tl.int32) + 1) * KIND.heads_per_kv_head",
            "head <= (tile.kv_head.to(tl.int32) + 1) * KIND.heads_per_kv_head", _cut,
            f"A precondition: at most {MAX_HEADS} query heads for each KV head.",
    ),
    Theorem(
        "programs.owned",
            "A row is written exactly if its query is one of the tile's queries; it is then a row of its request.", _owned,
        f"{QUERY_TILES}.rows_of_tile", "query < tile.end_query.to(tl.int32)", "query <= tile.end_query.to(tl.int32)", one_tile,
    ),
    Theorem(
        "programs.inverse",
            "The host's inverse gives the query of each row of a tile, for groups of up to 256; with 257 it does not.",
            _inverse,
        f"{LAUNCH}._sizes", "-(-(1 << 16) // plan.tiles.group)", "(1 << 16) // plan.tiles.group", _grouped, LIMIT,
    ),
)  # fmt: skip
