"""Numbers of 32 bits: the statements about integers hold of the machine, because each sum, product and cast fits its type.

They hold for any sizes that the argument checks accept: lengths, rows and numbers of heads are int32
(contract/attn_contract/arguments.py).
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import z3
from attn_proofs.counterexamples import of_scene, paged
from attn_proofs.extract import Extraction
from attn_proofs.kernels import run_kernel
from attn_proofs.scenes import BLOCK_M, scene
from attn_proofs.sources import Sources
from attn_proofs.theorem import Claim, Theorem
from attn_proofs.theorems import writer
from attn_proofs.theorems.programs import cut_groups, inverse_of, max_rows, one_tile, rows_of_group
from attn_proofs.values import RANGES, as_tensor, integers, symbol

INT32_MAX = 2**31 - 1
KERNELS = "attn_optimized.kernels"
MAX_PARTS = 2**20
"""The most parts of a reduction: more than any plan makes."""
TILED = {"HEAD_SIZE": 12, "BLOCK_ROWS": 8, "BLOCK_D": 16, "OUT_FORMAT": "float"}


def _fits(sources: Sources) -> Iterator[Claim]:
    for has_other_masks in (False, True):
        made = scene(Sources(sources.patched), block_n=64, has_other_masks=has_other_masks)  # no other theorem's lanes
        extraction, m, n, d = made.extraction, z3.Int("m"), z3.Int("n"), z3.Int("d")
        extraction.local("attend_keys", "visible").value.at(m, n)
        for access in extraction.loads:
            shape = as_tensor(access.pointer.offset).shape
            lane = {(): (), (BLOCK_M,): (m,), (made.block_n,): (n,), (BLOCK_M, 16): (m, d), (made.block_n, 16): (n, d)}[shape]
            as_tensor(access.pointer.offset).at(*lane)
        first_row, tokens = integers("first_row num_tokens")
        sizes = [n >= 0, n < made.block_n, first_row >= 0, first_row + z3.Int("query_len") <= tokens, tokens <= INT32_MAX]
        sizes += [d >= 0, d < 16]
        # the loop over ranges is looked at from key j of its tile
        in_tile = made.rules.j - extraction.local("attend_keys", "key").value.at(0)
        sizes += [in_tile >= 0, in_tile < made.block_n]
        known = set()
        for note in extraction.notes:
            key = (note.dtype, note.term.get_id(), len(note.path))
            if note.dtype == "int64" or note.place == "rows_of_tile" or key in known:
                continue
            known.add(key)
            low, high = RANGES[note.dtype]
            claim = made.claim(
                f"{note.dtype} in {note.place}, line {note.line}",
                [*sizes, *note.path],
                z3.And(low <= note.term, note.term <= high),
            )
            # a query before the sequence sees no key, for any wrapped number, and a whole tile may need no mask
            seen = (z3.Int("query_len") <= z3.Int("seq_len"), z3.Int("window_right") == -1, z3.Int("seq_len") % 64 == 30)
            yield replace(claim, small=None if claim.small is None else (*claim.small, *seen))


def _rows_fit(sources: Sources) -> Iterator[Claim]:
    """Rows, queries and heads of a tile, for each group that a tile holds, with the host's inverse of the group, and for each
    number of heads that one group does not hold."""
    head, kv_head, first, length = integers("head_group kv_head first_query query_len")
    most = max_rows(sources)
    for group in range(1, most + 1):
        given = (head >= 0, (head + 1) * group <= INT32_MAX - most)
        small = (first == 0, length >= 20) if group == 1 else None
        yield _rows_of_group_fit(sources, f"group {group}", group, given, small)
    for heads, group in cut_groups(sources):
        groups = -(-heads // group)
        number = head - kv_head * groups
        given = (kv_head >= 0, number >= 0, number < groups, (kv_head + 1) * groups * group <= INT32_MAX - most)
        yield _rows_of_group_fit(
            sources,
            f"{heads} heads, {group} in a group",
            group,
            given,
            None,
            groups_per_kv_head=groups,
            heads_per_kv_head=heads,
        )


def _rows_of_group_fit(
    sources: Sources, name: str, group: int, of_heads: tuple[Any, ...], small: tuple[Any, ...] | None, **cut: int
) -> Claim:
    m, most = z3.Int("m"), max_rows(sources)
    first, end, length, row, tokens = integers("first_query end_query query_len first_row num_tokens")
    extraction, rows = rows_of_group(sources, group, inverse_of(sources, group)[1], **cut)
    for part in (rows.query, rows.head, rows.row, rows.owned):
        part.at(m)
    given = (
        m >= 0, m < most, first >= 0, first < end, end <= length, row >= 0, row + length <= tokens, tokens <= INT32_MAX - most,
        *of_heads, *extraction.assumptions,
    )  # fmt: skip
    fits = [z3.And(term >= low, term <= high) for term, low, high in _narrow(extraction)]
    return Claim(name, given, z3.And(*fits), small, extraction.lines)


def _narrow(extraction: Extraction) -> Iterator[tuple[Any, int, int]]:
    """The numbers that a program holds in 32 bits, and the ends of their types."""
    for note in extraction.notes:
        if note.dtype in ("int32", "uint32"):
            yield note.term, *RANGES[note.dtype]


def _written(sources: Sources) -> Extraction:
    extraction, _ = writer.executed(sources, "BLOCKS_FIRST_NHD", 1, writer.SIZES, block_d=64)
    return extraction


def _reduced(sources: Sources) -> Extraction:
    tensors = dict.fromkeys(("out_ptr", "lse_ptr", "acc_ptr", "row_max_ptr", "row_sum_ptr", "output_scale_ptr"), "float")
    constants = TILED | {
        "OUT_UNIT": 1,
        "BLOCK_PARTS": 4,
        "IS_DEPENDENT": False,
        "has_lse": 1,
        "has_output_scale": 0,
        "num_heads": _HEADS,
    }
    return run_kernel(
        f"{KERNELS}.reduce_parts.reduce_parts_kernel", constants, tensors | {"query_start_loc_ptr": "int32"}, sources=sources
    )


def _merged_parts(sources: Sources) -> Extraction:
    tensors: dict[str, str] = dict.fromkeys(("out_ptr", "lse_ptr", "outs_ptr", "lses_ptr", "output_scale_ptr"), "float")
    constants = TILED | {"STRIDE_UNIT": 1, "num_heads": _HEADS}
    place = f"{KERNELS}.merge_attn_parts.merge_attn_parts_kernel"
    return run_kernel(place, constants, tensors, ("to_base_2", "to_base_e"), sources=sources)


def _merged_states(sources: Sources) -> Extraction:
    names = ("out_ptr", "lse_ptr", "out_a_ptr", "lse_a_ptr", "out_b_ptr", "lse_b_ptr", "output_scale_ptr")
    constants = TILED | {"STRIDE_UNIT": 1, "num_heads": _HEADS}
    place = f"{KERNELS}.merge_attn_states.merge_attn_states_kernel"
    return run_kernel(place, constants, dict.fromkeys(names, "float"), sources=sources)


_HEADS = symbol("num_heads", "int32", least=1)


def _offsets_fit(*kernels: Callable[[Sources], Extraction]):
    """In each of some kernels, what a program computes in 32 bits fits, for any sizes and strides of 32 bits."""

    def claims(sources: Sources) -> Iterator[Claim]:
        for kernel in kernels:
            extraction = kernel(Sources(sources.patched))  # no other theorem's lanes
            lanes: dict[tuple[int, int], Any] = {}
            for access in (*extraction.loads, *extraction.stores):
                for part in (access.pointer.offset, access.mask):
                    shape = as_tensor(part).shape if part is not True else ()
                    lane = [lanes.setdefault((i, size), z3.Int(f"lane_{i}_{size}")) for i, size in enumerate(shape)]
                    as_tensor(part).at(*lane) if shape else None
            sizes = [z3.And(z3.Int(name) >= 0, z3.Int(name) <= INT32_MAX) for name in _SIZES]
            given = [
                *sizes, *(z3.And(lane >= 0, lane < size) for (_, size), lane in lanes.items()), z3.Int("num_heads") >= 1,
                z3.Int("num_kv_heads") >= 1, z3.Int("num_parts") <= MAX_PARTS, *extraction.assumptions,
            ]  # fmt: skip
            known = set()
            for note in extraction.notes:
                if note.dtype == "int64" or (note.term.get_id(), len(note.path)) in known:
                    continue
                known.add((note.term.get_id(), len(note.path)))
                low, high = RANGES[note.dtype]
                name = f"{note.dtype} in {note.place}, line {note.line}"
                goal = z3.And(low <= note.term, note.term <= high)
                yield Claim(name, (*given, *note.path), goal, (), extraction.lines)
            wide = sum(note.dtype == "int64" for note in extraction.notes)
            yield Claim(
                f"{kernel.__name__[1:]} multiplies in 64 bits", tuple(given), z3.BoolVal(wide > 0), None, extraction.lines
            )

    return claims


_SIZES = (
    *("program", "program_0", "num_query_tiles", "num_positions", "num_mapped", "num_cache_slots", "num_heads", "num_kv_heads"),
    *("num_rows", "num_tokens", "num_requests", "num_parts", "prefill_tokens_with_context"),
)


def _far(target: str, requests: list[tuple[int, int]]):
    """The target puts rows 2^32 units apart: no number of the counterexample is left to choose."""
    return lambda model: paged(requests, target=target, num_kv_heads=2, head_size=16, scale=0.25)


THEOREMS = (
    Theorem(
        "widths.rows",
            "Queries, heads and rows of a tile fit the 32 bits that `rows_of_tile` holds them in, for each group, and where "
            "the query heads of a KV head are cut into groups.", _rows_fit,
        f"{KERNELS}.query_tiles.rows_of_tile", "(tile_row * sizes.inverse_heads_per_group) >> 16",
            "(tile_row * (sizes.inverse_heads_per_group * 1024)) >> 26", one_tile,
    ),
    Theorem(
        "widths.writer",
            "write_kv_cache computes no number in 32 bits that may not fit: tokens, heads and slots are of 64 bits.",
            _offsets_fit(_written),
        f"{KERNELS}.write_kv_cache.write_kv_cache_kernel", "tl.program_id(0).to(tl.int64)", "tl.program_id(0)",
            _far("triton@far", [(20, 150), (3, 40)]),
    ),
    Theorem(
        "widths.reduction",
            "The reduction computes no number in 32 bits that may not fit: its tokens, heads, rows and parts are of 64 bits.",
            _offsets_fit(_reduced),
        f"{KERNELS}.reduce_parts.reduce_parts_kernel", "tl.program_id(0).to(tl.int64)", "tl.program_id(0)",
            _far("triton@far", [(20, 150), (3, 40)]), "At most 2^20 parts.",
    ),
    Theorem(
        "widths.merges", "The merges of parts and of two states compute no number in 32 bits that may not fit.",
            _offsets_fit(_merged_parts, _merged_states),
        f"{KERNELS}.merge_attn_parts.merge_attn_parts_kernel", "tl.program_id(0).to(tl.int64)", "tl.program_id(0)",
            _far("triton-merge-parts", [(4, 60), (3, 40)]), "At most 2^20 parts.",
    ),
    Theorem(
        "widths.positions",
            "Positions, keys and tiles fit 32 bits where the attention kernel holds them so, for all rules but chunks.", _fits,
        "attn_optimized.kernels.visibility.seen_keys", "in_window(each, each, rules, seq_len)",
            "in_window(each.to(tl.int32), each.to(tl.int32), rules, seq_len)", of_scene,
            "The rows of a tile fit (theorem programs.rows has them in integers).",
    ),
)  # fmt: skip
