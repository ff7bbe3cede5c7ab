"""The kernels access the inside of the allocation: no element before the first of a view, and none after its last.

The last element of a view is at the sum of (size - 1) * stride over its dimensions, and its memory exists: torch makes
no other tensor, and the argument checks take no negative stride. So a sum of 64 bits that is an accessed address fits, too.
Table entries are blocks of the cache, and the head of a row is one of the heads: theorems on programs and the contract say so.

Heads are 48 dims wide in tiles of 64, so that a tile has lanes which no head has.
"""

from collections.abc import Iterator
from typing import Any

import z3
from attn_contract import Layout
from attn_fuzz.cases.case import Case
from attn_proofs import inputs
from attn_proofs.counterexamples import paged
from attn_proofs.extract import Extraction
from attn_proofs.scenes import ATTEND_TILE, BLOCK_M
from attn_proofs.sources import Sources
from attn_proofs.specification import DIMS
from attn_proofs.theorem import Claim, Model, Term, Theorem
from attn_proofs.theorems import addresses, writer
from attn_proofs.theorems.splits import block
from attn_proofs.values import integers, memory

KERNELS = "attn_optimized.kernels"
SIZES = {"head_size": 48, "block_size": 48, "x": 8}
BLOCK_D = 64
LAYOUTS = (*addresses.ROWS, addresses.SCALED, *addresses.X_PACKED)


def _last(extraction: Extraction, layout: str, strides: dict[str, Term], sizes: dict[str, int]) -> tuple[Term, list[Term]]:
    """The offset of a view's last element, and that a number below a size is at most the last one, times the stride."""
    size, (*outer, dense) = addresses.size_of(layout, sizes), DIMS[layout]
    last, facts = size[dense] - 1, []
    for dim in outer:
        last = last + extraction.times(z3.IntVal(size[dim]) if isinstance(size[dim], int) else size[dim], strides[dim])
        last = last - strides[dim]
        facts.append(strides[dim] >= 1)
    return last, facts


def _below(extraction: Extraction, stride: Term, value: Term, size: Any) -> list[Term]:
    return extraction.products.apart(stride, value, z3.IntVal(size) if isinstance(size, int) else size)


def _read(sources: Sources) -> Iterator[Claim]:
    n, d, key, head, heads, blocks = integers("n d key kv_head num_kv_heads num_blocks")
    for layout in LAYOUTS:
        extraction, strides = addresses.executed(sources, layout, 1, SIZES, block_d=BLOCK_D)
        last, facts = _last(extraction, layout, strides, SIZES)
        slot, block_of = key % SIZES["block_size"], memory("block_table_ptr")
        place = extraction.times(z3.Int("request"), z3.Int("block_table")) + key / SIZES["block_size"]
        block = block_of(place)
        facts += [block >= 0, block < blocks, *_below(extraction, strides["block"], block, blocks)]
        for name, value, size in (("slot", slot, SIZES["block_size"]), ("head", head, heads)):
            facts += _below(extraction, strides[name], value, size) if name in strides else []
        for kv, tensor in enumerate(("k_ptr", "v_ptr")):
            for masked, access in enumerate(addresses.loads(extraction, tensor)):  # tiles without a mask come first
                first_key = extraction.local("attend_keys", "first_key", -1 if masked else 0).value.term
                lane = addresses.lane_of(access, SIZES["x"])
                found, is_read = access.at(*lane)
                given = (
                    n >= 0, n < addresses.BLOCK_N, d >= 0, d < BLOCK_D, key == first_key + n, first_key >= 0,
                    first_key % addresses.BLOCK_N == 0, key < 2**31, place >= 0, head >= 0, head < heads,
                    *addresses.tile_of_request(), *access.path, *facts,
                    *addresses.largest(extraction, access, lane), *extraction.assumptions,
                )  # fmt: skip
                name = f"{'KV'[kv]} of {layout}, {'masked' if masked else 'without a mask'}"
                goal = z3.Implies(is_read, z3.And(found >= 0, found <= last))
                yield Claim(name, given, goal, () if layout == "BLOCKS_FIRST_NHD" else None, extraction.lines)


def _written(sources: Sources) -> Iterator[Claim]:
    sizes = writer.SIZES | {"head_size": SIZES["head_size"]}
    heads, slots, blocks, token, head = integers("num_kv_heads num_cache_slots num_blocks token head")
    for layout in writer.LAYOUTS:
        blocks_of = {"token": block(writer.BLOCK_ROWS, token), "head": block(writer.BLOCK_ROWS, head)}
        extraction, strides = writer.executed(sources, layout, 1, sizes, block_d=BLOCK_D, **blocks_of)
        last, facts = _last(extraction, layout, strides, sizes)
        slot = writer.MAPPED(token)
        facts.append(slots == blocks * sizes["block_size"])
        facts += _below(extraction, strides["block"], slot / sizes["block_size"], blocks)
        for name, value, size in (("slot", slot % sizes["block_size"], sizes["block_size"]), ("head", head, heads)):
            facts += _below(extraction, strides[name], value, size) if name in strides else []
        for kv, store in enumerate(extraction.stores):
            found, mask = store.at(writer.ROW, writer.D)
            given = (*writer.given(extraction, BLOCK_D), token >= 0, head >= 0, head < heads, *facts)
            goal = z3.Implies(mask, z3.And(found >= 0, found <= last))
            small = () if layout == "BLOCKS_FIRST_NHD" else None
            yield Claim(f"{'KV'[kv]} of {layout}", given, goal, small, extraction.lines)


def _rows(sources: Sources) -> Iterator[Claim]:
    """q, out and lse are of num_tokens rows."""
    m, d, tokens, heads, row, head = integers("m d num_tokens num_heads row head")
    extraction = Extraction(sources)
    extraction.arbitrary = {("rows_of_tile", "row"): block(BLOCK_M, row), ("rows_of_tile", "head"): block(BLOCK_M, head)}
    kind = inputs.kind(head_size=12)
    extraction.call(ATTEND_TILE, inputs.tile(sources), inputs.arguments(sources, flags={"has_lse": 1}), kind, BLOCK_M)
    tensors = {"q": extraction.loads, "out": extraction.stores, "lse": extraction.stores}
    for name, accesses in tensors.items():
        by_row = z3.IntVal(1) if name == "lse" else z3.Int(f"{name}_row")
        by_head = z3.Int(f"{name}_head")
        last = extraction.times(tokens, by_row) - by_row + extraction.times(heads, by_head) - by_head
        facts = [by_row >= 1, by_head >= 1, head >= 0, head < heads]
        facts += [*_below(extraction, by_row, row, tokens), *_below(extraction, by_head, head, heads)]
        for access in (access for access in accesses if access.pointer.name == f"{name}_ptr"):
            lane = (m,) if name == "lse" else (m, d)
            found, mask = access.at(*lane)
            end = last if name == "lse" else last + 11
            given = (m >= 0, m < BLOCK_M, d >= 0, d < 16, *facts, *extraction.assumptions)
            goal = z3.Implies(mask, z3.And(found >= 0, found <= end))
            yield Claim(f"{name}, line {access.line}", given, goal, (), extraction.lines)


def _case(model: Model) -> Case:
    heads, keys = model.within("num_kv_heads", 2, 4), model.within("key", 120, 300)
    fields: dict[str, Any] = {"layout": Layout.BLOCKS_FIRST_NHD, "block_size": 48, "head_size": 12, "padding": 8}
    return paged([(20, keys), (3, 40)], num_kv_heads=heads, scale=0.25, **fields)


THEOREMS = (
    Theorem(
        "inside.read", "What is read of K and V lies inside of the cache, for all sizes and strides, in each layout.", _read,
        f"{KERNELS}.load.load_rows", "tl.arange(0, KIND.block_v)[None, :] < KIND.first_v_head_size",
        "tl.arange(0, KIND.block_v)[None, :] <= KIND.first_v_head_size", _case,
    ),
    Theorem(
        "inside.written", "What is written of K and V lies inside of the cache, for all sizes and strides, in each layout.",
            _written,
        f"{KERNELS}.write_kv_cache.write_keys_and_values", "dim < KIND.head_size", "dim < KIND.block_d", _case,
    ),
    Theorem(
        "inside.rows", "q is read, and the output and the LSE are written, inside of their tensors.", _rows,
        f"{KERNELS}.load.load_queries", "dim < KIND.first_size", "dim <= KIND.first_size", _case,
    ),
)  # fmt: skip
