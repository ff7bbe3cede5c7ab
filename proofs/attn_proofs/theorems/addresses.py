"""The kernels read and write where the contract's formulas say, for all strides: K, V, q, the output, the tables.

The strides of a cache come from its tensor by `attn_optimized.strides.kv_cache_strides`, and count units of one or of
several elements.
"""

from collections.abc import Iterator
from typing import Any

import z3
from attn_contract import Layout
from attn_fuzz.cases.case import Case
from attn_proofs import inputs
from attn_proofs.counterexamples import paged
from attn_proofs.extract import Access, Extraction
from attn_proofs.scenes import ATTEND_TILE, BLOCK_M
from attn_proofs.sources import Sources
from attn_proofs.specification import DIMS, element
from attn_proofs.theorem import Claim, Model, Term, Theorem
from attn_proofs.values import Record, Tensor, as_tensor, integers, memory, number

STRIDES = "attn_optimized.strides.kv_cache_strides"
ROWS = ("BLOCKS_FIRST_NHD", "BLOCKS_FIRST_HND", "KV_FIRST_NHD", "KV_FIRST_HND", "CONTENT_PACKED")
SCALED = "CONTENT_PACKED_SCALED"
X_PACKED = ("X_PACKED", "SHUFFLED")
SIZES = {"head_size": 64, "block_size": 48, "x": 8}
PADDED = SIZES | {"head_size": 48}
BLOCK_D = BLOCK_N = 64
FEW_ROWS = 16
"""The rows of a tile that loads V by two dims at once (kernels/load.py)."""
TABLE = memory("block_table_ptr")


def strides_of(extraction: Extraction, layout: str, unit: int, sizes: dict[str, int]) -> tuple[Record, dict[str, Term]]:
    """The record that the host makes of a cache of a layout, and the cache's strides by dimension: multiples of the unit."""
    size, dims = size_of(layout, sizes), DIMS[layout]
    strides = {dim: z3.Int(f"stride_{dim}") * unit if unit > 1 else z3.Int(f"stride_{dim}") for dim in dims[:-1]}
    shape = tuple(as_number(size[dim]) for dim in dims)
    steps = (*(number(strides[dim]) for dim in dims[:-1]), 1)
    if layout in X_PACKED:  # the shape gives the block size: pages are dense
        shape = (2, number(size["block"]), number(z3.Int("page")))
    cache = Record("Tensor", {"shape": shape, "stride": lambda: steps})
    layer = Record("Layer", {"layout": layout, "num_kv_heads": number(size["head"], least=1), "head_size": sizes["head_size"]})
    return extraction.call(STRIDES, cache, layer), strides


def size_of(layout: str, sizes: dict[str, int]) -> dict[str, Any]:
    """The size of each dimension that a cache of a layout may have."""
    heads, scale = z3.Int("num_kv_heads"), 4 if layout == SCALED else 0
    size = {"kv": 2, "block": z3.Int("num_blocks"), "slot": sizes["block_size"], "head": heads, "dim": sizes["head_size"]}
    return size | {"content": 2 * (sizes["head_size"] + scale), "page": heads * (sizes["block_size"] * sizes["head_size"])}


def as_number(value: Any) -> Any:
    return value if isinstance(value, int) else number(value)


def _run(sources: Sources, layout: str, unit: int) -> tuple[Extraction, dict[str, Term]]:
    """`attend_tile` on a cache of a layout, whose strides count `unit` elements."""
    if ("addresses", layout, unit) not in sources.scenes:
        sources.scenes["addresses", layout, unit] = executed(sources, layout, unit, SIZES, block_d=SIZES["head_size"])
    return sources.scenes["addresses", layout, unit]


def executed(
    sources: Sources, layout: str, unit: int, sizes: dict[str, int], *, block_d: int, rows: int = BLOCK_M, **kind: Any
) -> tuple[Extraction, dict[str, Term]]:
    """`attend_tile` on a cache of a layout, and the strides of the cache."""
    extraction = Extraction(sources)
    found, strides = strides_of(extraction, layout, unit, sizes)
    arguments = inputs.arguments(sources)
    names = {
        "kv": found.kv,
        "block": found.block,
        "k_slot": found.slot,
        "v_slot": found.slot,
        "k_head": found.head,
        "v_head": found.head,
    }
    if layout in X_PACKED:  # theorem addresses.packed-head
        head = sizes["head_size"] * sizes["block_size"]
        names |= {"k_head": head, "v_head": head}
    arguments.fields["strides"].fields.update({name: in_units(value, unit) for name, value in names.items()})
    made = inputs.kind(
        kv_unit=unit,
        interior=layout.lower() if layout in X_PACKED else "rows",
        block_n=BLOCK_N,
        block_d=block_d,
        **sizes,
        **kind,
    )
    extraction.call(ATTEND_TILE, inputs.tile(sources), arguments, made, rows)
    return extraction, strides


def in_units(stride: Any, unit: int) -> Tensor:
    """A stride as the kernel gets it: `launch.in_units` divides only multiples."""
    if isinstance(stride, int):
        return number(z3.IntVal(stride // unit), "int64")
    term = as_tensor(stride).term
    if unit == 1:
        return number(term, "int64")
    dimension = term.arg(0) if term.children() else term
    if not z3.is_true(z3.simplify(term == dimension * unit)):
        raise NotImplementedError(f"{term} is not {unit} times a number")
    return number(dimension, "int64")


def loads(extraction: Extraction, name: str) -> list[Access]:
    return [access for access in extraction.loads if access.pointer.name == name and access.place in _PLACES]


_PLACES = ("load_dims", "load_packed_keys", "load_packed_values")


def _read(kv: int, layouts: tuple[str, ...]):
    """A key's K or V is read where the contract says, with a mask and without one."""

    def claims(sources: Sources) -> Iterator[Claim]:
        for layout in layouts:
            for unit in (1, 4 if layout == SCALED else 8):  # the scale after a row is four elements wide
                extraction, strides = _run(sources, layout, unit)
                for access in loads(extraction, "v_ptr" if kv else "k_ptr"):
                    is_masked = access.mask is not True
                    yield _at_element(extraction, strides, access, kv, layout, unit, SIZES, is_masked=is_masked)

    return claims


def _pairs(sources: Sources) -> Iterator[Claim]:
    """Two dims of a key's V are read at once, both of them in its row, from an even element on."""
    for layout in (*ROWS, SCALED):
        unit = 4 if layout == SCALED else 16
        extraction, strides = executed(sources, layout, unit, PADDED, block_d=BLOCK_D, rows=FEW_ROWS, has_value_pairs=True)
        # the loop without a mask comes first, and masks the padding of dims
        for is_masked, access in zip((False, True), loads(extraction, "v_ptr"), strict=True):
            yield _at_element(extraction, strides, access, 1, layout, unit, PADDED, is_masked=is_masked)


def _at_element(
    extraction: Extraction,
    strides: dict[str, Term],
    access: Access,
    kv: int,
    layout: str,
    unit: int,
    sizes: dict[str, int],
    *,
    is_masked: bool,
) -> Claim:
    """All elements that are read from dim d on lie where they should, in the row of a head."""
    n, d, key, head = integers("n d key kv_head")
    first_key = extraction.local("attend_keys", "first_key", -1 if is_masked else 0).value.term
    size, lane, step = sizes["block_size"], lane_of(access, sizes["x"]), access.pointer.step
    place = extraction.times(z3.Int("request"), z3.Int("block_table")) + key / size
    block, slot = TABLE(place), key % size
    expected = element(extraction.products, layout, strides, sizes, kv=kv, block=block, slot=slot, head=head, dim=d)
    found, is_read = access.at(*lane)
    assumptions = (
        n >= 0, n < BLOCK_N, d >= 0, d < BLOCK_D, d % step == 0, key == first_key + n, first_key >= 0,
        first_key % BLOCK_N == 0, key < 2**31, place >= 0, *access.path, *(stride >= 0 for stride in strides.values()),
            *largest(extraction, access, lane),
        *extraction.assumptions,
    )  # fmt: skip
    in_row = z3.And(found == expected, d + step <= sizes["head_size"], found % step == 0)
    small = () if layout in ("BLOCKS_FIRST_NHD", "X_PACKED", "SHUFFLED", SCALED) and (unit == 1 or step > 1) else None
    name = f"{'V' if kv else 'K'} of {layout}, strides of {unit} elements, {'masked' if is_masked else 'without a mask'}"
    return Claim(name, assumptions, z3.Implies(is_read, in_row), small, extraction.lines)


def lane_of(access: Access, x: int) -> tuple[Term, ...]:
    """The place of key n, dim d of a tile in a load's block: [N, D], [D/x, N, x] or [N/S, D, S], for S slots side by side."""
    n, d = integers("n d")
    step = access.pointer.step
    side = as_tensor(access.pointer.offset).shape[-1]
    return {
        "load_dims": (n, d if step == 1 else d / step),
        "load_packed_keys": (d / x, n, d % x),
        "load_packed_values": (n / side, d, n % side),
    }[access.place]


def largest(extraction: Extraction, access: Access, lane: tuple[Term, ...]) -> list[Term]:
    """The largest of the lanes of a slot group is at least that of this lane: whether the group's block is looked up."""
    if access.place != "load_packed_values" or access.mask is True:
        return []
    found = [reduction for reduction in extraction.reductions if reduction.place == access.place][-1]
    return [found.result.at(lane[0]) >= found.operand.at(lane[0], lane[2])]


def _table(sources: Sources) -> Iterator[Claim]:
    """The block table is read in the request's row, at an entry that is used."""
    extraction, _ = _run(sources, "KV_FIRST_NHD", 1)
    n, seq_len = integers("n seq_len")
    for access in (a for a in extraction.loads if a.pointer.name == "block_table_ptr"):
        offset, is_read = access.at(n)
        row = extraction.times(z3.Int("request"), z3.Int("block_table"))
        used = (seq_len + SIZES["block_size"] - 1) / SIZES["block_size"]
        given = (n >= 0, n < BLOCK_N, *access.path, *tile_of_request(), *extraction.assumptions)
        goal = z3.Implies(is_read, z3.And(row <= offset, offset < row + used))
        small = (z3.Int("first_query") == 0, seq_len < 200)
        yield Claim(f"in {access.place}, line {access.line}", given, goal, small, extraction.lines)


def _both(*readings: Any):
    """The claims of several statements."""
    return lambda sources: (claim for claims in readings for claim in claims(sources))


def tile_of_request() -> list[Term]:
    first, end, length, seq_len = integers("first_query end_query query_len seq_len")
    edges = [z3.And(z3.Int(name) >= 0, z3.Int(name) < 2**31) for name in ("window_left", "window_right", "max_ahead")]
    return [
        first >= 0,
        first < end,
        end <= length,
        length < 2**31,
        seq_len >= 0,
        seq_len < 2**31,
        z3.Int("inverse_heads_per_group") >= 1,
        *edges,
    ]


def _rows(name: str, is_store: bool):
    """q is read, and the output written, at row, head and dim: their strides count q_unit elements."""

    def claims(sources: Sources) -> Iterator[Claim]:
        for unit in (1, 8):
            extraction = Extraction(sources)
            kind = inputs.kind(q_unit=unit, head_size=12)
            extraction.call(ATTEND_TILE, inputs.tile(sources), inputs.arguments(sources), kind, BLOCK_M)
            (access,) = (a for a in (extraction.stores if is_store else extraction.loads) if a.pointer.name == f"{name}_ptr")
            m, d = integers("m d")
            rows = {field: extraction.local("rows_of_tile", field, 0).value.at(m) for field in ("row", "head", "owned")}
            row, head = (z3.Int(f"{name}_{dim}") for dim in ("row", "head"))
            at = (extraction.times(rows["row"], row) + extraction.times(rows["head"], head)) * unit + d
            offset, mask = access.at(m, d)
            given = (m >= 0, m < BLOCK_M, d >= 0, d < 16, *extraction.assumptions)
            goal = z3.And(mask == z3.And(rows["owned"], d < 12), z3.Implies(mask, offset == at))
            yield Claim(f"{name}, strides of {unit} elements", given, goal, () if unit == 1 else None, extraction.lines)

    return claims


def _case(layout: str, *, queries: int = 20, **fields: Any):
    def case(model: Model) -> Case:
        wide: dict[str, Any] = {
            "block_size": 48,
            "layout": Layout(layout),
            "num_kv_heads": model.within("kv_head", 1, 3) + 1,
            "head_size": 64 if layout in X_PACKED else 12,
            "padding": 8,
        }
        arguments: dict[str, Any] = wide | {"scale": 0.25} | fields
        return paged([(queries, model.within("key", 120, 300)), (min(queries, 3), 40)], **arguments)

    return case


KERNELS = "attn_optimized.kernels"
THEOREMS = (
    Theorem(
        "addresses.key-rows", "K is read where the contract says, in the layouts whose slots are rows of dims.", _read(0, ROWS),
        f"{KERNELS}.load.source_of_keys", "tile.kv_head * args.strides.k_head * KIND.kv_unit",
            "tile.kv_head * args.strides.k_slot * KIND.kv_unit",
        _case("BLOCKS_FIRST_HND"),
    ),
    Theorem(
        "addresses.value-rows", "V is read where the contract says, in the layouts whose slots are rows of dims.",
            _read(1, ROWS),
        f"{KERNELS}.load.source_of_keys", "args.strides.kv + tile.kv_head * args.strides.v_head",
            "args.strides.block + tile.kv_head * args.strides.v_head", _case("KV_FIRST_NHD"),
    ),
    Theorem(
        "addresses.value-pairs",
            "Where a load takes two dims of V at once, of a byte each, both are read where the contract says, in their key's "
            "row, from an even element on.",
            _pairs,
        f"{KERNELS}.load.load_value_pairs", "(KIND.kv_unit // 2)", "KIND.kv_unit",
        _case("BLOCKS_FIRST_NHD", queries=1, head_size=48, padding=16, cache={"dtype": "fp8_e4m3fn", "scales": "tensor"}),
    ),
    Theorem(
        "addresses.packed-keys", "K is read where the contract says, in pages that are packed in units of x elements.",
            _read(0, X_PACKED),
        f"{KERNELS}.kv_layout.load_packed_keys", "page + slot * X", "page + slot", _case("X_PACKED"),
    ),
    Theorem(
        "addresses.packed-values", "V is read where the contract says, in the packed pages of X_PACKED and of SHUFFLED.",
            _read(1, X_PACKED),
        f"{KERNELS}.kv_layout.load_packed_values", 'first_slot * (HEAD_SIZE if INTERIOR == "shuffled" else 1)',
            "first_slot * HEAD_SIZE", _case("X_PACKED"),
    ),
    Theorem(
        "addresses.scaled-rows",
            "K and V are read where the contract says, in the layout whose rows of bytes have a scale after each of them.",
            _both(_read(0, (SCALED,)), _read(1, (SCALED,))),
        STRIDES, "half = shape[3] // 2", "half = layer.head_size", _case(SCALED, cache={"dtype": "int8"}),
    ),
    Theorem(
        "addresses.block-table",
            "The block table is read in the request's row, and at no entry after the request's keys: those are garbage.",
            _table,
        f"{KERNELS}.load.load_blocks", "mask=in_tile & (key < end_key)", "mask=key >= 0", _case("KV_FIRST_NHD"),
    ),
    Theorem(
        "addresses.queries", "q is read at the row, head and dims of each row that the tile has.", _rows("q", is_store=False),
        f"{KERNELS}.load.load_queries", "rows.head.to(tl.int64) * args.strides.q_head",
            "rows.head.to(tl.int64) * args.strides.q_row", _case("KV_FIRST_NHD"),
    ),
    Theorem(
        "addresses.output", "The output is written at the row, head and dims of each row that the tile has, and nowhere else.",
            _rows("out", is_store=True),
        f"{KERNELS}.store.store_dims", "dim < END", "dim <= END", _case("KV_FIRST_NHD"),
    ),
)  # fmt: skip
