"""The addresses that the attention kernel accesses beside a paged cache of K and V: scales, sinks, biases, the LSE, dense rows.

And the unit in which it counts strides, which the host chooses.
"""

from collections.abc import Iterator
from typing import Any

import z3
from attn_contract import Layout
from attn_fuzz.cases.case import Case
from attn_proofs import inputs
from attn_proofs.counterexamples import dense, paged
from attn_proofs.extract import Access, Extraction
from attn_proofs.scenes import ATTEND_TILE, BLOCK_M
from attn_proofs.sources import Sources
from attn_proofs.theorem import Claim, Model, Term, Theorem
from attn_proofs.values import as_tensor, integers, memory, symbol

KERNELS = "attn_optimized.kernels"
UNITS = "attn_optimized.launch.units.in_units"
BLOCK_SIZE, BLOCK_N = 16, 64
TABLE = memory("block_table_ptr")


def _run(sources: Sources, *, flags: dict[str, int] | None = None, **kind: Any) -> Extraction:
    """`attend_tile` on any tile, with some flags of a launch."""
    key = ("beside", tuple(sorted((flags or {}).items())), tuple(sorted(kind.items())))
    if key not in sources.scenes:
        extraction = Extraction(sources)
        made = inputs.kind(block_size=BLOCK_SIZE, block_n=BLOCK_N, **kind)
        extraction.call(ATTEND_TILE, inputs.tile(sources), inputs.arguments(sources, flags=flags), made, BLOCK_M)
        sources.scenes[key] = extraction
    return sources.scenes[key]


def _row(extraction: Extraction, name: str) -> Term:
    """A field of row m of the tile."""
    return extraction.local("rows_of_tile", name, 0).value.at(z3.Int("m"))


def _given(extraction: Extraction, *more: Term) -> tuple[Term, ...]:
    m, n = integers("m n")
    return (m >= 0, m < BLOCK_M, n >= 0, n < BLOCK_N, z3.Int("inverse_heads_per_group") >= 1, *more, *extraction.assumptions)


def _accesses(extraction: Extraction, name: str, *, stores: bool = False) -> list[Access]:
    found = [access for access in (extraction.stores if stores else extraction.loads) if access.pointer.name == name]
    assert found, name
    return found


def _lse(sources: Sources) -> Iterator[Claim]:
    extraction = _run(sources, flags={"has_lse": 1})
    m = z3.Int("m")
    for access in _accesses(extraction, "lse_ptr", stores=True):
        found, mask = access.at(m)
        at = extraction.times(_row(extraction, "head"), z3.Int("lse_head")) + _row(extraction, "row")
        goal = z3.And(mask == _row(extraction, "owned"), z3.Implies(mask, found == at))
        yield Claim(f"line {access.line}", _given(extraction), goal, (), extraction.lines)


def _sinks(sources: Sources) -> Iterator[Claim]:
    """With sinks, the first part of the keys reads that of the row's head; without, a row reads the one element there is."""
    for has_sinks in (0, 1):
        extraction = _run(sources, flags={"has_sinks": has_sinks})
        for access in _accesses(extraction, "sinks_ptr"):
            found, mask = access.at(z3.Int("m"))
            at = z3.If(z3.And(z3.Int("split") == 0, has_sinks == 1), _row(extraction, "head"), 0)
            goal = z3.And(mask == _row(extraction, "owned"), z3.Implies(mask, found == at))
            words = "with sinks" if has_sinks else "without sinks"
            yield Claim(f"{words}, line {access.line}", _given(extraction, *access.path), goal, (), extraction.lines)


def _token_scales(sources: Sources) -> Iterator[Claim]:
    """The scale of a key is read at its block, slot and KV head, and of no key that is not loaded."""
    extraction = _run(sources, has_token_scales=True, kv_format="int8")
    n, key, head = integers("n key kv_head")
    for name in ("k_scale", "v_scale"):
        for access in (a for a in _accesses(extraction, f"{name}_ptr") if a.place == "scores"):
            found, mask = access.at(n)
            is_masked = access.mask is not True
            local = extraction.local("attend_keys", "key", 0 if access is _first(extraction, name) else -1).value.at(n)
            entry = extraction.times(z3.Int("request"), z3.Int("block_table")) + key / BLOCK_SIZE
            parts = ((TABLE(entry), "block"), (key % BLOCK_SIZE, "slot"), (head, "head"))
            at = sum((extraction.times(value, z3.Int(f"{name}_{part}")) for value, part in parts), z3.IntVal(0))
            given = (key == local, key >= 0, key < 2**31, *access.path)
            goal = z3.Implies(mask, found == at)
            words = f"{name}, {'masked' if is_masked else 'without a mask'}, iteration {extraction.loads.index(access)}"
            yield Claim(words, _given(extraction, *given), goal, (), extraction.lines)


def _first(extraction: Extraction, name: str) -> Access:
    return next(access for access in extraction.loads if access.pointer.name == f"{name}_ptr" and access.place == "scores")


def _dense(sources: Sources) -> Iterator[Claim]:
    """A key without a cache is row `first_row + key` of k and v."""
    for unit in (1, 8):
        extraction = _run(sources, is_paged=False, kv_unit=unit)
        n, d, head, first_row = integers("n d kv_head first_row")
        for name in ("k", "v"):
            loads = [access for access in _accesses(extraction, f"{name}_ptr") if access.place == "load_dims"]
            for iteration, access in enumerate(loads):
                found, mask = access.at(n, d)
                key = extraction.local("attend_keys", "key", iteration).value.at(n)
                row = extraction.times(first_row + key, z3.Int(f"{name}_slot"))
                offset = extraction.times(head, z3.Int(f"{name}_head")) + (z3.Int("kv") if name == "v" else 0)
                given = (d >= 0, d < 16, z3.Int("kv") == 0, *access.path)
                goal = z3.Implies(mask, found == (row + offset) * unit + d)
                words = f"{name}, strides of {unit} elements, {'masked' if access.mask is not True else 'without a mask'}"
                small = () if unit == 1 else None
                yield Claim(words, _given(extraction, *given), goal, small, extraction.lines)


def _biases(sources: Sources) -> Iterator[Claim]:
    """The slope of the row's head, and the bias between query and key where both are tokens of the step that it knows."""
    extraction = _run(sources, flags={"has_alibi_slopes": 1}, has_bias=True)
    m, n, length = integers("m n qq_bias_len")
    query = _row(extraction, "query")
    for access in _accesses(extraction, "alibi_slopes_ptr"):
        found, mask = access.at(m)
        goal = z3.And(mask == _row(extraction, "owned"), z3.Implies(mask, found == _row(extraction, "head")))
        yield Claim(f"slopes, line {access.line}", _given(extraction, *access.path), goal, (), extraction.lines)
    for iteration, access in enumerate(_accesses(extraction, "qq_bias_ptr")):
        found, mask = access.at(m, n)
        new = extraction.local("attend_keys", "key", iteration).value.at(n) - (z3.Int("seq_len") - z3.Int("query_len"))
        at = extraction.times(query, z3.Int("qq_bias")) + new
        known = z3.And(query < length, new >= 0, new < length)
        goal = z3.And(mask == known, z3.Implies(mask, found == at))
        yield Claim(f"qq_bias, iteration {iteration}", _given(extraction, *access.path), goal, (), extraction.lines)


def _units(sources: Sources) -> Iterator[Claim]:
    """The strides in units, times the unit, are the strides."""
    for itemsize in (1, 2, 4, 8):
        extraction = Extraction(sources)
        strides = {name: symbol(f"stride_{name}", "int") for name in ("a", "b", "c")}
        unit, counted = extraction.call(UNITS, itemsize, **strides)
        widest, terms = 16 // itemsize, [stride.term for stride in strides.values()]
        facts: list[Term] = [term >= 0 for term in terms]
        for gcd in extraction.reductions:
            facts.append((gcd.result.term % widest == 0) == z3.And(*(term % widest == 0 for term in terms)))
        unit_term = as_tensor(unit).term
        products = [extraction.times(as_tensor(counted[name]).term, unit_term) for name in strides]
        goal = z3.And(
            z3.Or(unit_term == 1, unit_term == widest),
            *(product == term for product, term in zip(products, terms, strict=True)),
        )
        given = (*facts, *extraction.assumptions)
        yield Claim(f"elements of {itemsize} bytes", given, goal, (), extraction.lines)


def _paged(**fields: Any):
    def case(model: Model) -> Case:
        made: dict[str, Any] = {
            "layout": Layout.KV_FIRST_NHD,
            "num_kv_heads": model.within("kv_head", 1, 3) + 1,
            "group_size": 2,
            "head_size": 12,
            "scale": 0.25,
        }
        return paged([(20, model.within("key", 120, 300)), (3, 40)], **made | fields)

    return case


THEOREMS = (
    Theorem(
        "addresses.lse", "The LSE is written at the head and row of each row that the tile has, and nowhere else.", _lse,
        f"{KERNELS}.store.store_output", "head * strides.lse_head", "head * strides.out_head", _paged(lse=True),
    ),
    Theorem(
        "addresses.sinks", "The first part of the keys reads the sink of the head; a layer without sinks reads one element.",
            _sinks,
        f"{KERNELS}.online_softmax.begin_rows", "rows.head * has_sinks", "rows.query * has_sinks", _paged(sinks="near"),
    ),
    Theorem(
        "addresses.token-scales", "The scales of a key are read at its block, slot and KV head.", _token_scales,
        f"{KERNELS}.logits.scores", "slot * strides.v_scale_slot", "slot * strides.k_scale_slot",
        _paged(cache={"dtype": "int8", "scales": "token"}, unlike_strides=True),
    ),
    Theorem(
        "addresses.dense-rows", "Without a cache, a key is the row of k and v that its request begins at, and its number.",
            _dense,
        f"{KERNELS}.load.load_keys_and_values", "source.first_row + key", "key",
            lambda model: dense([model.within("first_row", 5, 60), 33], num_kv_heads=2, head_size=12, scale=0.25),
    ),
    Theorem(
        "addresses.biases", "The slope is that of the row's head; qq_bias is read at query and key where it knows both.",
            _biases,
        f"{KERNELS}.logits.qq_bias", "new_key < bias_len", "new_key <= bias_len", _paged(qq_bias="random"),
    ),
    Theorem(
        "addresses.units", "The strides in units of the host's unit, times this unit, are the strides.", _units,
        UNITS, "math.gcd(*strides.values()) % widest == 0", "math.gcd(*strides.values()) % 2 == 0", _paged(dtype="float16"),
    ),
)  # fmt: skip
