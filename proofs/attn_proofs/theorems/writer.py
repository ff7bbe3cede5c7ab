"""write_kv_cache: each row of k and v is written to its slot, once; slot -1 is written nowhere; nothing else is written."""

from collections.abc import Iterator
from typing import Any

import z3
from attn_contract import Layout
from attn_fuzz.cases.case import Case
from attn_proofs.counterexamples import paged
from attn_proofs.extract import Extraction
from attn_proofs.inputs import pointer
from attn_proofs.sources import Sources
from attn_proofs.specification import element
from attn_proofs.theorem import Claim, Model, Theorem
from attn_proofs.theorems.addresses import ROWS, X_PACKED, in_units, strides_of
from attn_proofs.values import Record, as_tensor, integers, memory, symbol

WRITE = "attn_optimized.kernels.write_kv_cache"
SIZES = {"head_size": 64, "block_size": 16, "x": 8}
BLOCK_ROWS = 32
LAYOUTS = (*ROWS, *X_PACKED)
"""CONTENT_PACKED_SCALED has a writer of its own."""
MAPPED = memory("slot_mapping_ptr")
PROGRAM, ROW, D = integers("program i d")


def _run(sources: Sources, layout: str, unit: int) -> tuple[Extraction, dict[str, Any]]:
    """The kernel on a cache of a layout whose heads fill their tiles."""
    key = "writer", layout, unit
    if key not in sources.scenes:
        sources.scenes[key] = executed(sources, layout, unit, SIZES, block_d=SIZES["head_size"])
    return sources.scenes[key]


def executed(
    sources: Sources, layout: str, unit: int, sizes: dict[str, int], *, block_d: int, **arbitrary: Any
) -> tuple[Extraction, dict[str, Any]]:
    """The kernel on a cache of a layout, without a rotation, and the strides of the cache.

    Args:
        arbitrary: replacements for `token` and `head`.
    """
    extraction = Extraction(sources, grid=((PROGRAM, z3.Int("programs")),))
    extraction.arbitrary = {("write_keys_and_values", name): value for name, value in arbitrary.items()}
    found, strides = strides_of(extraction, layout, unit, sizes)
    head = sizes["head_size"] * sizes["block_size"] if layout.startswith(("X_", "SH")) else found.head
    names = {"stride_kv": found.kv, "stride_block": found.block, "stride_slot": found.slot, "stride_kv_head": head}
    kernel = sources.function(f"{WRITE}.write_kv_cache_kernel").node
    arguments: dict[str, Any] = {}
    for parameter in kernel.args.args:  # type: ignore[union-attr]
        name = parameter.arg
        if name.endswith("_ptr"):
            arguments[name] = pointer(name)
        elif name != "KIND":
            arguments[name] = symbol(name, "int32", least=1 if name in ("num_kv_heads",) else None)
    arguments |= {name: in_units(value, unit) for name, value in names.items()}
    arguments |= {"block_size": sizes["block_size"]}
    kind = {
        "row_unit": 1, "kv_unit": unit, "interior": layout.lower() if layout.startswith(("X_", "SH")) else "rows",
            "x": sizes["x"],
        "kv_format": "float", "has_token_scales": False, "rotary_dim": 0, "is_neox": True, "cos_sin_unit": 1,
        "head_size": sizes["head_size"], "v_head_size": sizes["head_size"], "block_rows": BLOCK_ROWS, "block_d": block_d,
    }  # fmt: skip
    extraction.call(f"{WRITE}.write_kv_cache_kernel", **arguments, KIND=Record("WriteKind", kind))
    return extraction, strides


def given(extraction: Extraction, block_d: int = SIZES["head_size"]) -> tuple[Any, ...]:
    heads, mapped = integers("num_kv_heads num_mapped")
    lane = (ROW >= 0, ROW < BLOCK_ROWS, D >= 0, block_d > D, PROGRAM >= 0, heads >= 1, mapped >= 0)
    return (*lane, *extraction.assumptions)


def pairs(extraction: Extraction) -> tuple[Any, Any]:
    """The token and head of row i of a program."""
    return tuple(extraction.local("write_keys_and_values", name).value.at(ROW) for name in ("token", "head"))


def _masks(sources: Sources) -> Iterator[Claim]:
    """A row is written exactly if its slot is one of the cache's: not -1."""
    extraction, _ = _run(sources, "BLOCKS_FIRST_NHD", 1)
    token, _ = pairs(extraction)
    for store in extraction.stores:
        mask = as_tensor(store.mask).at(ROW, D)
        slots = z3.And(token < z3.Int("num_mapped"), MAPPED(token) >= 0, MAPPED(token) < z3.Int("num_cache_slots"))
        yield Claim(f"line {store.line}", (*given(extraction), MAPPED(token) >= -1), mask == slots, (), extraction.lines)


def _addresses(layouts: tuple[str, ...], kv: int):
    def claims(sources: Sources) -> Iterator[Claim]:
        for layout in layouts:
            for unit in (1, 8):
                extraction, strides = _run(sources, layout, unit)
                store = extraction.stores[kv]
                token, head = pairs(extraction)
                slot = MAPPED(token)
                found, mask = store.at(ROW, D)
                at = element(
                    extraction.products, layout, strides, SIZES, kv=kv, block=slot / SIZES["block_size"],
                    slot=slot % SIZES["block_size"], head=head, dim=D,
                )  # fmt: skip
                goal = z3.Implies(mask, found == at)
                name = f"{'V' if kv else 'K'} of {layout}, strides of {unit} elements"
                yield Claim(name, given(extraction), goal, () if layout in layouts[:1] else None, extraction.lines)

    return claims


def _programs(sources: Sources) -> Iterator[Claim]:
    """Each (token, head) is one row of one program of the grid."""
    extraction, _ = _run(sources, "BLOCKS_FIRST_NHD", 1)
    token, head = pairs(extraction)
    t, h, heads, mapped = integers("t h num_kv_heads num_mapped")
    products = extraction.products
    pair = products.times(t, heads) + h
    program, lane = pair / BLOCK_ROWS, pair % BLOCK_ROWS
    grid = Extraction(sources)
    tiles = Record("RowTiles", {"block_rows": BLOCK_ROWS})
    (programs,) = grid.call("attn_optimized.launch.tiles.row_grid", tiles, symbol("rows"))
    pair_given = (t >= 0, t < mapped, h >= 0, h < heads, heads >= 1, z3.Int("rows") == products.times(mapped, heads))
    facts = (*products.apart(heads, t, mapped), *products.apart(heads, token, t))
    here = (program == PROGRAM, lane == ROW)
    all_given = (*pair_given, *facts, *given(extraction), *grid.assumptions)
    yield Claim("the pair's program is in the grid", (*pair_given, *facts, *extraction.assumptions, *grid.assumptions),
                z3.And(program >= 0, program < programs.term), (), extraction.lines)  # fmt: skip
    same = z3.And(token == t, head == h)
    yield Claim(
        "a row is the pair's exactly if it is that row of that program", all_given, same == z3.And(*here), (), extraction.lines
    )


def _case(layout: str, **fields: Any):
    def case(model: Model) -> Case:
        wide: dict[str, Any] = {
            "layout": Layout(layout),
            "num_kv_heads": model.within("num_kv_heads", 2, 5),
            "head_size": 64 if layout.startswith(("X_", "SH")) else 12,
            "padding": 8,
        }
        arguments: dict[str, Any] = wide | {"scale": 0.25} | fields
        queries = model.within("num_mapped", 20, 40)
        return paged([(queries, 40), (33, 40)], **arguments)

    return case


THEOREMS = (
    Theorem(
        "writer.slots",
            "A row of k and v is written exactly if its slot is one of the cache's slots: slot -1 is written nowhere.",
            _masks,
        f"{WRITE}.write_keys_and_values", "(mapped >= 0) & (mapped < cache.num_slots)", "mapped < cache.num_slots",
        _case("BLOCKS_FIRST_NHD", unwritten=(3, 4)),
    ),
    Theorem(
        "writer.pairs",
            "Each row of k and v, and each of its heads, is one row of one program: what is written is written once.",
            _programs,
        f"{WRITE}.pairs_of_tile", "pair // num_heads, pair % num_heads", "pair % num_heads, pair // num_heads",
            _case("BLOCKS_FIRST_NHD"),
    ),
    Theorem(
        "writer.keys", "K is written to the element of its slot, head and dim that the contract says.", _addresses(LAYOUTS, 0),
        f"{WRITE}.store_elements", "block * cache.stride_block + head * cache.stride_head",
            "block * cache.stride_block + head * cache.stride_slot",
        _case("BLOCKS_FIRST_HND"),
    ),
    Theorem(
        "writer.values", "V is written to the element of its slot, head and dim that the contract says.",
            _addresses(LAYOUTS, 1),
        f"{WRITE}.store_elements", "cache.stride_kv.to(tl.int64) * KIND.kv_unit",
            "cache.stride_block.to(tl.int64) * KIND.kv_unit", _case("KV_FIRST_HND"),
    ),
)  # fmt: skip
