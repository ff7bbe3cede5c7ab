"""Tiles of every kernel that ships, for each size that the contract allows, by borders: no compiler gets more than it can take.

`write_latent_cache` of 1 latent dim and 64 rotated ones had 2048 rows of both in 4 warps, for which ptxas did not end in 200 s.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from attn_contract import KVCacheView, Layer, Layout, UnsupportedError
from attn_optimized.kernel_call import KernelCall
from attn_optimized.kv_cache import rope_and_write_kv_cache_call, write_kv_cache_call
from attn_optimized.latent_cache import write_latent_cache_call
from attn_optimized.launch.tiles import MAX_ROW_SIZE, attention_tiles, reduce_tiles
from attn_optimized.launch.widths import MAX_HEAD_SIZE, MAX_LATENT_SIZE, MAX_REST_SIZE
from attn_optimized.launch.workload import Workload
from attn_optimized.merge import merge_attn_parts_call, merge_attn_states_call

from tests.optimized.launch.test_launch import CALL, COMPUTE_UNITS, PHASES

SHARED_KIB = {"sm90": 227, "gfx942": 64, "gfx950": 160, "gfx1100": 64, "gfx1201": 64}
"""Shared memory of a program at most, on an architecture of each table of parameters. Others have a table of these."""
MOST_OF_ATTENTION, MOST_REDUCED, MOST_OF_ROWS = 8192, 4096, 1024
"""Elements of one tile for each warp."""
each_architecture = pytest.mark.parametrize("architecture", SHARED_KIB)


def borders(least: int, most: int, unit: int = 1) -> list[int]:
    """Powers of two with their neighbours, in units, and both ends."""
    powers = [1 << exponent for exponent in range(most.bit_length())]
    near = {unit * (power + more) for power in powers for more in (-1, 0, 1)}
    return sorted({least, most} | {size for size in near if least <= size <= most})


def row_tile(call: KernelCall) -> int:
    """Elements of the largest tile of a write or of a merge."""
    constants = call.launch.constants
    if "KIND" not in constants:
        return constants["BLOCK_ROWS"] * constants["BLOCK_D"]
    sizes = {name: size for name, size in vars(constants["KIND"]).items() if name.startswith("block_")}
    widths = {"block_d": 1, "block_latent": 1, "block_rope": 1, "block_kept": 1}
    widths["block_scales"] = getattr(constants["KIND"], "scale_dims", 0)
    rows = sizes.pop("block_rows")
    dims = {name: size * widths.get(name, 0) for name, size in sizes.items()}
    assert all(dims.keys() & {"block_d", "block_latent", "block_scales"}), dims
    assert all(widths.get(name) for name in dims), f"a dimension of a tile that nothing bounds: {dims}"
    return rows * max(dims.values())


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def latent_write(layout: Layout, latent: int, rotated: int, dtype: torch.dtype | None, architecture: str) -> KernelCall:
    sizes: dict[str, Any] = {"num_kv_heads": 1, "head_size": latent + rotated, "head_size_v": latent}
    itemsize = 2 if dtype is None else 1
    view = KVCacheView.dense(layout, num_blocks=2, block_size=16, itemsize=itemsize, **sizes)
    k_scale = meta(1, dtype=torch.float32) if dtype is not None and layout is Layout.LATENT else None
    layer = Layer(num_heads=1, scale=1.0, layout=layout, kv_cache_dtype=dtype, k_scale=k_scale, **sizes)
    cache = view.tensor(meta(view.end, dtype=dtype or torch.bfloat16))
    slots = meta(4, dtype=torch.int64)
    return write_latent_cache_call(meta(4, latent), meta(4, rotated), cache, layer, slots, architecture=architecture)


def latent_writes(architecture: str) -> Iterator[KernelCall]:
    float8 = torch.float8_e4m3fnuz if architecture == "gfx942" else torch.float8_e4m3fn
    for latent, rotated in itertools.product(borders(1, MAX_ROW_SIZE), borders(0, MAX_ROW_SIZE)):
        yield latent_write(Layout.LATENT, latent, rotated, float8, architecture)
    for latent, rotated in itertools.product(borders(128, MAX_ROW_SIZE, 128), borders(0, MAX_ROW_SIZE, 2)):
        yield latent_write(Layout.LATENT_SCALED, latent, rotated, float8, architecture)
    for latent in borders(32, MAX_ROW_SIZE, 32):
        yield latent_write(Layout.LATENT_E8M0, latent, 0, float8, architecture)
    for latent in borders(128, MAX_ROW_SIZE, 64):
        yield latent_write(Layout.LATENT_E8M0_PLANES, latent, 0, float8, architecture)


def writes(architecture: str) -> Iterator[KernelCall]:
    for size, size_v in itertools.product(borders(1, MAX_ROW_SIZE), borders(1, MAX_ROW_SIZE)):
        view = KVCacheView.dense(
            Layout.CONTENT_PACKED, num_blocks=2, block_size=16, num_kv_heads=2, head_size=size, head_size_v=size_v, itemsize=2
        )
        sizes = {"num_heads": 2, "num_kv_heads": 2, "head_size": size, "head_size_v": size_v}
        layer = Layer(scale=1.0, layout=Layout.CONTENT_PACKED, **sizes)
        k, v, cache = meta(4, 2, size), meta(4, 2, size_v), view.tensor(meta(view.end))
        yield write_kv_cache_call(k, v, cache, layer, meta(4, dtype=torch.int64), architecture=architecture)
        if size > 1:
            positions, table = meta(4, dtype=torch.int64), meta(9, size // 2 * 2)
            q, slots = meta(4, 2, size), meta(4, dtype=torch.int64)
            rotated = (q, k, v, positions, table, cache, layer, slots)
            yield rope_and_write_kv_cache_call(*rotated, is_neox=True, architecture=architecture)


def merges(architecture: str) -> Iterator[KernelCall]:
    for size in borders(1, MAX_ROW_SIZE):
        out, lse = meta(4, 2, size), meta(2, 4, dtype=torch.float32)
        yield merge_attn_states_call(out, lse, out, lse, out=out, architecture=architecture)
        outs, lses = meta(3, 4, 2, size), meta(3, 2, 4, dtype=torch.float32)
        yield merge_attn_parts_call(outs, lses, out=out, architecture=architecture)


@each_architecture
@pytest.mark.parametrize("calls", [latent_writes, writes, merges])
def test_tiles_of_rows_fit_registers(calls, architecture):
    for call in calls(architecture):
        most = row_tile(call) / call.launch.options["num_warps"]
        assert most <= MOST_OF_ROWS, call.launch.constants


def test_a_row_that_no_tile_holds_is_refused():
    with pytest.raises(UnsupportedError, match=f"a row of {MAX_ROW_SIZE + 1} dims .*at most {MAX_ROW_SIZE}"):
        latent_write(Layout.LATENT, 1, MAX_ROW_SIZE + 1, None, "sm90")


def workloads() -> Iterator[Workload]:
    for phase, quantized, itemsize, is_paged in itertools.product(PHASES.values(), (False, True), (2, 4), (False, True)):
        form = CALL | phase | {"quantized": quantized, "itemsize": itemsize, "is_paged": is_paged}
        for size, size_v, heads in itertools.product(borders(1, MAX_HEAD_SIZE), (1, 16, 129, MAX_HEAD_SIZE), (1, 16, 1000)):
            yield Workload(**form | {"head_size": size, "head_size_v": size_v, "num_heads": heads, "num_kv_heads": 1})
    for latent, rest in itertools.product(borders(1, MAX_LATENT_SIZE), borders(0, MAX_REST_SIZE)):
        for is_scaled, queries, heads in itertools.product((False, True), (1, 99), (1, 16, 128)):
            form = CALL | {"is_latent": True, "quantized": is_scaled, "has_scaled_rows": is_scaled, "num_heads": heads}
            sizes = {"head_size": latent + rest, "head_size_v": latent, "num_kv_heads": 1}
            yield Workload(**form | sizes | {"num_tokens": queries, "max_query_len": queries})


@each_architecture
def test_tiles_of_attention_fit_registers(architecture):
    for workload in workloads():
        tiles = attention_tiles(workload, architecture, COMPUTE_UNITS)
        kind = tiles.kind
        dims = max(kind["block_d"], kind["block_rest"], kind["block_v"] + kind["block_v_rest"])
        sides = (kind["block_m"], dims), (kind["block_n"], dims), (kind["block_m"], kind["block_n"])
        most = max(map(math.prod, sides)) / tiles.options["num_warps"]
        assert most <= MOST_OF_ATTENTION, workload
        queries = kind["block_m"] * max(kind["block_d"], kind["block_rest"]) * workload.itemsize
        assert queries <= SHARED_KIB[architecture] << 10, workload


@each_architecture
def test_tiles_of_reductions_fit_registers(architecture):
    for size, num_parts in itertools.product(borders(1, MAX_LATENT_SIZE), borders(2, 300)):
        tiles = reduce_tiles(architecture, head_size=size, num_parts=num_parts)
        assert tiles.block_rows * tiles.block_parts * tiles.block_d / tiles.num_warps <= MOST_REDUCED
