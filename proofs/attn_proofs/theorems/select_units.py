"""select: each id is a unit that the query sees, no unit is selected twice, and no entry is left out or written twice.

What tells the units apart is arbitrary: a code for each unit, and the code of the last one that is selected (`last_selected`).
That eight rounds find this code is not proved but assumed, where the number of ids depends on it: fewer than top_k units have a
greater code, at least top_k have one that is not smaller, and `ties` is what is missing. tests/optimized and the fuzzer compare
the selection with the reference's.

`tl.cumsum` and `tl.sum` give what the lanes' numbers add up to. They are compared, lane by lane, with two counts that a
statement is made of: `above(u)` and `tied(u)`, how many units before u have a greater code, and the same one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import z3
from attn_fuzz.cases.case import Case
from attn_proofs import inputs
from attn_proofs.counterexamples import paged
from attn_proofs.extract import Extraction, Reduction
from attn_proofs.loops import Iteration
from attn_proofs.sources import Sources
from attn_proofs.theorem import Claim, Model, Term, Theorem, obligations
from attn_proofs.values import Record, Tensor, as_tensor, integers, memory, number, symbol

SELECT = "attn_optimized.kernels.select_units"
KERNEL = "select_units_kernel"
KINDS = ((1, 1), (4, 1), (4, 4), (128, 1))
"""Tokens of a unit, and of an index key."""
BLOCKS = (64, 4096)
"""Units of an iteration, of the interpreter and of GPUs; less than 2^15, so that two counts are in one number."""
POSITION, TOP_K, TIES, THRESHOLD, NUM_UNITS = integers("position top_k ties_of_last threshold num_units")
U, V, LANE = integers("u v lane")
CODE, ABOVE, TIED = memory("code"), memory("above"), memory("tied")
"""The code of a unit, and the numbers of units before it that are above the threshold, and that tie with it."""


@dataclass
class _Made:
    """The kernel of one kind, executed for an arbitrary row."""

    extraction: Extraction
    unit: int
    key_unit: int
    block: int

    def local(self, name: str) -> Any:
        return self.extraction.local(KERNEL, name)

    @property
    def count(self) -> Term:
        """n: the units that the query sees."""
        return as_tensor(self.local("n").value).term

    @property
    def threshold(self) -> Term:
        return z3.If(self.count > TOP_K, THRESHOLD, 0)

    @property
    def ties(self) -> Term:
        return z3.If(self.count > TOP_K, TIES, TOP_K)

    def is_above(self, unit: Term) -> Term:
        return z3.And(unit < self.count, CODE(unit) > self.threshold)

    def is_tied(self, unit: Term) -> Term:
        return z3.And(unit < self.count, CODE(unit) == self.threshold)

    def next(self, unit: Term) -> tuple[Term, ...]:
        """The counts at the next unit, by what they count."""
        return (
            ABOVE(unit + 1) == ABOVE(unit) + z3.If(self.is_above(unit), 1, 0),
            TIED(unit + 1) == TIED(unit) + z3.If(self.is_tied(unit), 1, 0),
        )

    def entry(self, unit: Term) -> Term:
        """The entry of a unit that is selected: as many are selected before it."""
        return ABOVE(unit) + z3.If(TIED(unit) <= self.ties, TIED(unit), self.ties)

    def is_selected(self, unit: Term) -> Term:
        return z3.Or(self.is_above(unit), z3.And(self.is_tied(unit), TIED(unit) < self.ties))

    @property
    def iteration(self) -> tuple[tuple[Term, ...], Term]:
        """The path of an arbitrary iteration over units, and its first unit."""
        unit = self.local("unit")
        return unit.path, unit.value.at(0)

    def given(self) -> tuple[Term, ...]:
        """The facts about a row, and about the sums of the iteration over units."""
        known = (*_ROW, ABOVE(0) == 0, TIED(0) == 0, *self.extraction.assumptions)
        _, first = self.iteration
        sums = [(reduction, LANE if reduction.kind == "cumsum" else z3.IntVal(self.block)) for reduction in self.reductions]
        return (*known, *(fact for each in sums for fact in self.added(*each, first)))

    @property
    def reductions(self) -> list[Reduction]:
        return [each for each in self.extraction.reductions if each.place == KERNEL]

    def added(self, reduction: Reduction, lane: Term, first: Term) -> tuple[Term, ...]:
        """The sum of the numbers of the lanes before one: both counts in one number (the lemma of `_sums`)."""
        of_lanes = (
            reduction.result.at(lane) - reduction.operand.at(lane) if reduction.kind == "cumsum" else reduction.result.term
        )
        return (of_lanes == _packed(first, lane), *_bounds(first, lane))


_ROW = (POSITION >= -1, POSITION < 2**31 - 1, NUM_UNITS >= 0, TOP_K >= 1, TIES >= 1, LANE >= 0)


def _packed(first: Term, lane: Term) -> Term:
    return ABOVE(first + lane) - ABOVE(first) + 2**16 * (TIED(first + lane) - TIED(first))


def _bounds(first: Term, lane: Term) -> tuple[Term, ...]:
    found = (count(first + lane) - count(first) for count in (ABOVE, TIED))
    return tuple(term for count in found for term in (count >= 0, count <= lane))


def _counts(iteration: Iteration) -> list[Term]:
    """Before each iteration over units, the kernel has counted those before its first one."""
    if "num_above" not in iteration.now:
        return []
    first = iteration.count * iteration.outside["KIND"].fields["block"]
    return [iteration.now["num_above"].term == ABOVE(first), iteration.now["num_ties"].term == TIED(first)]


def _made(sources: Sources) -> Iterator[tuple[str, _Made]]:
    for unit, key_unit in KINDS:
        for block in BLOCKS:
            key = "select_units", unit, key_unit, block
            if key not in sources.scenes:
                sources.scenes[key] = _executed(sources, unit, key_unit, block)
            yield f"units of {unit}, keys of {key_unit}, {block} at a time", sources.scenes[key]


def _executed(sources: Sources, unit: int, key_unit: int, block: int) -> _Made:
    grid = tuple((z3.Int(name), z3.Int(f"{name}s")) for name in ("row", "selection"))
    extraction = Extraction(sources, grid=grid, invariants={KERNEL: _counts})
    extraction.given = {
        f"{SELECT}.position_of_row": lambda *_: number(POSITION, "int32"),
        f"{SELECT}.last_selected": lambda *_: (number(THRESHOLD, "uint32"), number(TIES, "int32")),
        f"{SELECT}.codes_of": lambda _, of, *__: Tensor(of.shape, "uint32", lambda index: CODE(of.at(*index))),
    }
    node = sources.function(f"{SELECT}.{KERNEL}").node
    names = [parameter.arg for parameter in node.args.args if parameter.arg != "KIND"]  # type: ignore[union-attr]
    arguments = {
        name: inputs.pointer(name) if name.endswith("_ptr") else symbol(name, "int64" if "stride" in name else "int32")
        for name in names
    }
    kind = {"selection_unit": unit, "key_unit": key_unit, "block": block, "block_requests": 16}
    extraction.call(f"{SELECT}.{KERNEL}", **arguments, KIND=Record("SelectKind", kind))
    return _Made(extraction, unit, key_unit, block)


def _claim(name: str, made: _Made, assumptions: tuple[Term, ...], goal: Term) -> Claim:
    return Claim(name, (*made.given(), *assumptions), goal, (), made.extraction.lines)


def _range(sources: Sources) -> Iterator[Claim]:
    """Each id that is stored is one of a unit whose first token the query sees."""
    for name, made in _made(sources):
        store = made.extraction.stores[0]
        unit, is_stored = as_tensor(store.value).at(LANE), as_tensor(store.mask).at(LANE)
        here = (*store.path, made.block > LANE, is_stored)
        sees = z3.And(unit >= 0, unit < NUM_UNITS, unit * made.unit <= POSITION)
        yield _claim(f"a unit, {name}", made, here, sees)
        if made.key_unit > 1:
            last = made.extraction.stores[-1]
            opened = as_tensor(last.value).term
            goal = z3.Implies(opened != -1, z3.And(opened >= made.count, opened * made.unit <= POSITION))
            yield _claim(f"the open unit, {name}", made, (*last.path, made.count < NUM_UNITS), goal)


def _sums(made: _Made, name: str) -> Iterator[Claim]:
    """By induction over the lanes: the lanes' numbers add up to both counts in one number, and no count is above the lanes."""
    path, first = made.iteration
    (added,) = integers("added")
    own = as_tensor(made.local("own").value).at(LANE)
    lane = (*path, made.block > LANE, first >= 0, added == _packed(first, LANE))
    here = (*lane, *_bounds(first, LANE), *made.next(first + LANE))
    goal = z3.And(added + own == _packed(first, LANE + 1), *_bounds(first, LANE + 1))
    yield Claim(f"a lane more, {name}", (*_ROW, *made.extraction.assumptions, *here), goal, (), made.extraction.lines)
    end = z3.IntVal(made.block)
    yield Claim(f"32 bits hold both, {name}", _bounds(first, end), _packed(first, end) < 2**31, (), made.extraction.lines)


def _grown(made: _Made, name: str) -> Iterator[Claim]:
    """By induction over v > u: where a unit counts, both counts are greater after it."""
    known = (*_ROW, *made.extraction.assumptions, U >= 0, U < V, *made.next(V))
    grown = _is_grown(made, V)
    yield Claim(f"counts grow, {name}", (*known, grown), _is_grown(made, V + 1), (), made.extraction.lines)
    at_first = (*_ROW, *made.extraction.assumptions, *made.next(U))
    yield Claim(f"counts grow at once, {name}", at_first, _is_grown(made, U + 1), (), made.extraction.lines)


def _is_grown(made: _Made, unit: Term) -> Term:
    above, tied = z3.If(made.is_above(U), 1, 0), z3.If(made.is_tied(U), 1, 0)
    return z3.And(ABOVE(unit) >= ABOVE(U) + above, TIED(unit) >= TIED(U) + tied)


def _once(sources: Sources) -> Iterator[Claim]:
    """A unit is stored in the entry of its own, and of two that are selected the later one has a later entry."""
    for name, made in _made(sources):
        yield from _sums(made, name)
        yield from _grown(made, name)
        yield from obligations(made.extraction, made.given())
        path, first = made.iteration
        store = made.extraction.stores[0]
        here = (*path, made.block > LANE)
        to = as_tensor(made.local("to_ptr").value.offset)
        entry = as_tensor(store.pointer.offset).at(LANE) - to.term
        unit, is_stored = as_tensor(store.value).at(LANE), as_tensor(store.mask).at(LANE)
        yield _claim(f"a lane has a unit of its own, {name}", made, here, unit == first + LANE)
        yield _claim(f"a lane stores, {name}", made, here, is_stored == made.is_selected(unit))
        yield _claim(f"the entry of a unit, {name}", made, (*here, is_stored), entry == made.entry(unit))
        more = made.entry(U) + z3.If(made.is_selected(U), 1, 0)
        yield _claim(f"the next entry, {name}", made, made.next(U), made.entry(U + 1) == more)
        later = (U >= 0, U < V, _is_grown(made, V), made.is_selected(U))
        yield _claim(f"two units, {name}", made, later, made.entry(U) < made.entry(V))


def _rest(sources: Sources) -> Iterator[Claim]:
    """After the entries of units are as many of -1 as top_k leaves; units have as many entries as there are, or top_k."""
    (e,) = integers("e")
    for name, made in _made(sources):
        counted, fill = as_tensor(made.local("count").value).term, made.extraction.stores[1]
        iterations: Term = z3.If(made.count > 0, (made.count + made.block - 1) / made.block, 0)
        end = iterations * made.block
        yield _claim(f"the entry after those of units, {name}", made, (), z3.And(counted == made.entry(end), end >= made.count))
        known = (*_ROW, *made.extraction.assumptions, U >= 0, CODE(U) >= 0, made.count <= TOP_K)
        goal = z3.Implies(_sees_all(made, U), _sees_all(made, U + 1))
        yield Claim(f"a unit counts once, {name}", (*known, *made.next(U)), goal, (), made.extraction.lines)
        few = (counted == made.entry(end), _sees_all(made, end), ABOVE(end) >= 0, made.count >= 0)
        yield _claim(f"all units of a few, {name}", made, (*few, made.count <= TOP_K), counted == made.count)
        exact = (counted == made.entry(end), ABOVE(end) < TOP_K, TIED(end) >= TIES, TOP_K - ABOVE(end) == TIES)
        yield _claim(f"top_k of more, {name}", made, (*exact, made.count > TOP_K), counted == TOP_K)
        first = made.local("entry").value.at(0)
        lane = e - first
        here = (e >= counted, e < TOP_K, first == counted + (e - counted) / made.block * made.block)
        goal = z3.And(
            *(lane >= 0, lane < made.block, *fill.path),
            as_tensor(fill.mask).at(lane),
            as_tensor(fill.pointer.offset).at(lane) - as_tensor(made.local("to_ptr").value.offset).term == e,
            as_tensor(fill.value).at(lane) == -1,
        )
        yield _claim(f"an entry after those of units, {name}", made, here, goal)


def _sees_all(made: _Made, unit: Term) -> Term:
    """Both counts together are the units before one that the query sees."""
    return ABOVE(unit) + TIED(unit) == z3.If(unit <= made.count, unit, made.count)


def _case(model: Model) -> Case:
    """A step of an index layer: decodes of requests of many units and of few."""
    lengths = [(1, model.within("position", 100, 200)), (1, 3), (2, 40)]
    return paged(lengths, target="triton-indexer", selection_unit=4, selected="some", scale=0.25)


THEOREMS = (
    Theorem(
        "select.range", "Each id is a unit whose first token the query sees, and an open unit is none of the others.",
        _range,
        f"{SELECT}.{KERNEL}", "is_above, is_tie = (unit < n) & (code > threshold), (unit < n) & (code == threshold)",
        "is_above, is_tie = code > threshold, (unit < n) & (code == threshold)", _case,
    ),
    Theorem(
        "select.once", "No unit is selected twice, and each has an entry of its own: they are in the order of the units.",
        _once,
        f"{SELECT}.{KERNEL}", "tl.cumsum(own, 0) - own", "tl.cumsum(own, 0)", _case,
    ),
    Theorem(
        "select.rest", "A row has as many ids as it sees units, or top_k if it sees more, and -1 in each entry after them.",
        _rest,
        f"{SELECT}.{KERNEL}", "entry < top_k", "entry < top_k - 1", _case,
        assumes="Where it sees more, `last_selected` is taken to find the code of the last one that is selected.",
    ),
)  # fmt: skip
