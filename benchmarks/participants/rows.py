"""Operations on rows: our call, and its expected results by the reference."""

import functools

import attn_optimized
import attn_reference
import torch
from attn_contract import Layer

from benchmarks.participants.attention import Prepared
from benchmarks.steps.calls import DTYPE, normal, random_cache, row_layer
from benchmarks.steps.cases import RowOp

NUM_POSITIONS = 32768


def row_op(case: RowOp, device: torch.device, seed: int) -> tuple[Prepared, torch.Tensor]:
    """The call, and the results of its first run as one row of float64: all tensors that it writes."""
    generator = torch.Generator(device).manual_seed(seed)
    return {"write": _write, "rope": _rope, "merge": _merge}[case.op](case, device, generator)


def _write(case: RowOp, device: torch.device, generator: torch.Generator) -> tuple[Prepared, torch.Tensor]:
    k, v, kv_cache, layer, slots = _writing(case, device, generator)
    expected = kv_cache.clone()
    attn_reference.write_kv_cache(k, v, expected, layer, slots)
    run = functools.partial(attn_optimized.write_kv_cache, k, v, kv_cache, layer, slots)
    return Prepared(run, lambda _: _row(kv_cache)), _row(expected)


def _rope(case: RowOp, device: torch.device, generator: torch.Generator) -> tuple[Prepared, torch.Tensor]:
    k, v, kv_cache, layer, slots = _writing(case, device, generator)
    q = normal((case.num_tokens, case.num_heads, case.head_size), device, generator)
    positions = torch.randint(NUM_POSITIONS, (case.num_tokens,), device=device, generator=generator)
    frequencies = 1e4 ** -(torch.arange(0, case.head_size, 2, device=device) / case.head_size)
    angles = torch.arange(NUM_POSITIONS, device=device).outer(frequencies)
    cos_sin = torch.cat([angles.cos(), angles.sin()], dim=1).to(DTYPE)
    rotated, written = q.clone(), kv_cache.clone()
    rest = (v, positions, cos_sin)
    attn_reference.rope_and_write_kv_cache(rotated, k, *rest, written, layer, slots, is_neox=True)
    run = functools.partial(attn_optimized.rope_and_write_kv_cache, q, k, *rest, kv_cache, layer, slots, is_neox=True)
    return Prepared(run, lambda _: _row(q, kv_cache)), _row(rotated, written)


def _merge(case: RowOp, device: torch.device, generator: torch.Generator) -> tuple[Prepared, torch.Tensor]:
    shape = (case.num_tokens, case.num_heads, case.head_size)
    out_a, out_b = (normal(shape, device, generator) for _ in "ab")
    lse_a, lse_b = torch.randn((2, case.num_heads, case.num_tokens), device=device, generator=generator)
    out, expected = (torch.full_like(out_a, torch.nan) for _ in "ab")
    attn_reference.merge_attn_states(out_a, lse_a, out_b, lse_b, out=expected)
    run = functools.partial(attn_optimized.merge_attn_states, out_a, lse_a, out_b, lse_b, out=out)
    return Prepared(run, lambda _: _row(out)), _row(expected)


def _writing(
    case: RowOp, device: torch.device, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Layer, torch.Tensor]:
    """k, v, a cache of twice as many slots, its layer, and random slots."""
    k, v = normal((2, case.num_tokens, case.num_kv_heads, case.head_size), device, generator)
    num_blocks = -(-2 * case.num_tokens // case.block_size)
    kv_cache = random_cache(case, num_blocks, device, generator)
    slots = torch.randperm(num_blocks * case.block_size, device=device, generator=generator)[: case.num_tokens]
    return k, v, kv_cache, row_layer(case, device), slots


def _row(*tensors: torch.Tensor) -> torch.Tensor:
    return torch.cat([tensor.double().flatten() for tensor in tensors])[None]
