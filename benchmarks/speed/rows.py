"""Operations on rows: our call, and what it is to give, of every row."""

import functools
from collections.abc import Callable

import attn_optimized
import torch
from attn_contract.layouts import K, V

from benchmarks.speed.calls import DTYPE, FLOAT8, random_cache, raw_and_view, row_layer
from benchmarks.speed.cases import RowOp
from benchmarks.speed.participants import Prepared

NUM_POSITIONS = 32768


def row_op(case: RowOp, device: torch.device, seed: int) -> tuple[Prepared, torch.Tensor]:
    """The call, and the float64 rows that its first run gives."""
    generator = torch.Generator(device).manual_seed(seed)
    return {"write": _write, "rope": _rope, "merge": _merge}[case.op](case, device, generator)


def _write(case: RowOp, device: torch.device, generator: torch.Generator) -> tuple[Prepared, torch.Tensor]:
    k, v, kv_cache, layer, slots, read = _writing(case, device, generator)
    run = functools.partial(attn_optimized.write_kv_cache, k, v, kv_cache, layer, slots)
    return Prepared(run, lambda _: read()), _stored(k, v, case, layer)


def _rope(case: RowOp, device: torch.device, generator: torch.Generator) -> tuple[Prepared, torch.Tensor]:
    k, v, kv_cache, layer, slots, read = _writing(case, device, generator)
    q = _normal((case.num_tokens, case.num_heads, case.head_size), device, generator)
    positions = torch.randint(NUM_POSITIONS, (case.num_tokens,), device=device, generator=generator)
    frequencies = 1e4 ** -(torch.arange(0, case.head_size, 2, device=device) / case.head_size)
    angles = torch.arange(NUM_POSITIONS, device=device).outer(frequencies)
    cos_sin = torch.cat([angles.cos(), angles.sin()], dim=1).to(DTYPE)
    expected = torch.cat(
        [_rotated(q, positions, cos_sin).flatten(1), _stored(_rotated(k, positions, cos_sin), v, case, layer)], dim=1
    )
    run = functools.partial(
        attn_optimized.rope_and_write_kv_cache, q, k, v, positions, cos_sin, kv_cache, layer, slots, is_neox=True
    )
    return Prepared(run, lambda _: torch.cat([q.double().flatten(1), read()], dim=1)), expected


def _merge(case: RowOp, device: torch.device, generator: torch.Generator) -> tuple[Prepared, torch.Tensor]:
    shape = (case.num_tokens, case.num_heads, case.head_size)
    out_a, out_b = (_normal(shape, device, generator) for _ in "ab")
    lse_a, lse_b = torch.randn((2, case.num_heads, case.num_tokens), device=device, generator=generator)
    out = torch.full_like(out_a, torch.nan)
    share = torch.sigmoid(lse_a.double() - lse_b.double()).t().unsqueeze(2)  # of the first side in both
    expected = share * out_a.double() + (1 - share) * out_b.double()
    run = functools.partial(attn_optimized.merge_attn_states, out_a, lse_a, out_b, lse_b, out=out)
    return Prepared(run, lambda _: out), expected


def _writing(case: RowOp, device: torch.device, generator: torch.Generator):
    """k, v, a cache of twice as many slots, its layer, random slots, and a function that reads these: [T, 2 * HK * D]."""
    k, v = _normal((2, case.num_tokens, case.num_kv_heads, case.head_size), device, generator)
    layer = row_layer(case, device)
    kv_cache = random_cache(case, -(-2 * case.num_tokens // case.block_size), device, generator)
    raw, view = raw_and_view(kv_cache, layer)
    slots = torch.randperm(view.num_slots, device=device, generator=generator)[: case.num_tokens]
    return k, v, kv_cache, layer, slots, _reader(raw, view, slots)


def _reader(raw: torch.Tensor, view, slots: torch.Tensor) -> Callable[[], torch.Tensor]:
    block, slot = (slots // view.block_size).view(-1, 1, 1), (slots % view.block_size).view(-1, 1, 1)
    head = torch.arange(view.num_kv_heads, device=raw.device).view(-1, 1)
    dim = torch.arange(view.head_size, device=raw.device)
    element = torch.stack([view.element(kv, block, slot, head, dim) for kv in (K, V)], dim=1)

    def read() -> torch.Tensor:
        rows = raw.view(torch.uint8)[element].view(FLOAT8) if raw.dtype == FLOAT8 else raw[element]
        return rows.double().flatten(1)

    return read


def _stored(k: torch.Tensor, v: torch.Tensor, case: RowOp, layer) -> torch.Tensor:
    """[T, 2 * HK * D] float64: what a cache holds of k and v."""
    rows = [k.double(), v.double()]
    if case.float8_cache:
        largest = torch.finfo(FLOAT8).max
        scales = (layer.k_scale, layer.v_scale)
        rows = [(x / s.double()).clamp(-largest, largest) for x, s in zip(rows, scales, strict=True)]
        rows = [x.float().to(FLOAT8).double() for x in rows]
    return torch.stack(rows, dim=1).flatten(1)


def _rotated(x: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
    cos, sin = cos_sin[positions].double().unsqueeze(1).chunk(2, dim=2)
    first, second = x.double().chunk(2, dim=2)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=2)


def _normal(shape: tuple[int, ...], device: torch.device, generator: torch.Generator) -> torch.Tensor:
    return torch.empty(shape, dtype=DTYPE, device=device).normal_(generator=generator)
