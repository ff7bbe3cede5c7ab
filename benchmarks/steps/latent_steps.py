"""Whole steps of latent attention, decodes and prefills, through the backend TRITON_MLA, and what the backend replaces."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from attn_contract import AttentionType, Batch, Layer
from attn_reference import context_parallel

from benchmarks.steps.calls import Call
from benchmarks.steps.cases import Attention
from benchmarks.steps.latent import latent_case
from benchmarks.steps.ranks import BLOCK_SIZE, SEED, cache_bytes, local_call, whole_call

NEVER = -1
"""The slot of a token that is not written."""


@dataclass(frozen=True)
class LatentCase:
    """A step of one layer, of DeepSeek-V3's sizes if nothing else is given.

    Args:
        query_lens, seq_lens: the lengths of each request. An engine puts decodes first.
        latent_size, rope_size, nope_size, v_head_dim: Lkv, R, P and V.
        num_speculative_tokens, context_chunk_keys: the builder's.
        interleave: the number of tokens that a rank is dealt at a time.
    """

    name: str
    query_lens: tuple[int, ...]
    seq_lens: tuple[int, ...]
    num_heads: int = 128
    latent_size: int = 512
    rope_size: int = 64
    nope_size: int = 128
    v_head_dim: int = 128
    dtype: torch.dtype = torch.bfloat16
    interleave: int = BLOCK_SIZE
    num_speculative_tokens: int = 0
    context_chunk_keys: int = 4096

    @property
    def attention(self) -> Attention:
        """Its call of paged attention, in the absorbed form."""
        sizes = {"num_heads": self.num_heads, "latent": self.latent_size, "rope": self.rope_size}
        return replace(latent_case(self.name, self.query_lens, self.seq_lens, **sizes), block_size=BLOCK_SIZE)

    @property
    def scale(self) -> float:
        """The scale of the expanded heads."""
        return (self.nope_size + self.rope_size) ** -0.5

    @property
    def has_prefill(self) -> bool:
        return max(self.query_lens) > 1 + self.num_speculative_tokens

    @property
    def cache_bytes(self) -> int:
        return cache_bytes(self.attention, self.dtype)


@dataclass(frozen=True, eq=False)
class LatentStep:
    """A step as one device has it, or one rank.

    Args:
        absorbed: its call of paged attention: queries [T, N, Lkv + R], and a cache that has this step's tokens already.
        q: [T, N, P + R].
        kv_b_proj: [N * (P + V), Lkv].
        new: [T, Lkv + R], this step's tokens.
        slots: [T], where they are written.
    """

    absorbed: Call
    q: torch.Tensor
    kv_b_proj: torch.Tensor
    new: torch.Tensor
    slots: torch.Tensor


def whole_step(case: LatentCase, device: torch.device) -> LatentStep:
    """The step on one device."""
    call = whole_call(case.attention, case.dtype, device)
    layer = replace(call.layer, scale=case.scale)
    generator = torch.Generator(device).manual_seed(SEED + 1)
    normal = functools.partial(torch.randn, generator=generator, device=device, dtype=case.dtype)
    q = normal(sum(case.query_lens), case.num_heads, case.nope_size + case.rope_size)
    rows = case.num_heads * (case.nope_size + case.v_head_dim)
    kv_b_proj = normal(rows, case.latent_size) * case.latent_size**-0.5
    of_step = slots_of(case, call.batch, BLOCK_SIZE)
    new = call.cache.flatten(0, 1)[of_step]
    return LatentStep(replace(call, q=absorbed(case, q, kv_b_proj), layer=layer), q, kv_b_proj, new, of_step)


def local_step_of(case: LatentCase, whole: LatentStep, rank: int, num_ranks: int) -> LatentStep:
    """A rank's part of a step: its heads, and its part of the cache."""
    call = local_call(case.interleave, whole.absorbed, rank, num_ranks)
    heads = case.num_heads // num_ranks
    own = slice(rank * heads, (rank + 1) * heads)
    assert call.batch.block_table is not None
    slots = [
        context_parallel.local_slots(positions, table, BLOCK_SIZE, rank, num_ranks, case.interleave)
        for table, positions in zip(call.batch.block_table.cpu(), _new_positions(case), strict=True)
    ]
    kv_b_proj = whole.kv_b_proj.unflatten(0, (case.num_heads, -1))[own].flatten(0, 1)
    return LatentStep(call, whole.q[:, own].contiguous(), kv_b_proj, whole.new, torch.cat(slots).to(whole.q.device))


def forget(step: LatentStep) -> None:
    """Make this step's tokens NaN in the cache, so that a layer that does not write them is wrong."""
    step.absorbed.cache.flatten(0, 1)[step.slots[step.slots != NEVER]] = torch.nan


def absorbed(case: LatentCase, q: torch.Tensor, kv_b_proj: torch.Tensor) -> torch.Tensor:
    """The queries [T, N, Lkv + R] of the absorbed form."""
    nope, rotated = q.split([case.nope_size, case.rope_size], dim=-1)
    w_uk = kv_b_proj.unflatten(0, (q.shape[1], -1))[:, : case.nope_size]
    return torch.cat([(nope.transpose(0, 1) @ w_uk).transpose(0, 1), rotated], dim=-1)


def up_projected(case: LatentCase, out: torch.Tensor, kv_b_proj: torch.Tensor) -> torch.Tensor:
    """[T, N, V] of the absorbed form's output."""
    w_uv = kv_b_proj.unflatten(0, (out.shape[1], -1))[:, case.nope_size :]
    return (out.transpose(0, 1) @ w_uv.transpose(1, 2)).transpose(0, 1)


def built(case: LatentCase, step: LatentStep, backend: Any, **options: Any) -> Callable[[], Any]:
    """A function that builds a step's metadata."""
    chunks = {"num_speculative_tokens": case.num_speculative_tokens, "context_chunk_keys": case.context_chunk_keys}
    builder = backend.builder(AttentionType.DECODER, **chunks, **options)
    return functools.partial(builder.build, common_metadata(step.absorbed.batch, step.slots))


def common_metadata(batch: Batch, slots: torch.Tensor) -> Any:
    """The metadata that an engine hands every backend, with all lengths known on the host."""
    from attn_optimized.backends import CommonAttentionMetadata

    return CommonAttentionMetadata(
        query_start_loc=batch.query_start_loc,
        query_start_loc_cpu=batch.query_start_loc.cpu(),
        seq_lens=batch.seq_lens,
        seq_lens_cpu=batch.seq_lens.cpu(),
        num_actual_tokens=batch.num_actual_tokens,
        max_query_len=batch.max_query_len,
        max_seq_len=batch.max_seq_len,
        block_table_tensor=batch.block_table,
        slot_mapping=slots,
    )


def layer_of(case: LatentCase, step: LatentStep, backend: Any, **options: Any) -> Any:
    """A layer of the backend, of the step's heads."""
    layer: Layer = replace(step.absorbed.layer, num_heads=step.q.shape[1])
    sizes = {"dtype": case.dtype, "block_size": BLOCK_SIZE, "v_head_dim": case.v_head_dim}
    return backend.impl(layer, kv_b_proj=step.kv_b_proj, **sizes, **options)


def through_layer(case: LatentCase, step: LatentStep, impl: Any, metadata: Any) -> torch.Tensor:
    """The step as an engine drives a layer: it writes this step's tokens, and attends. [T, N, V]."""
    kv_c, k_pe = step.new.split([case.latent_size, case.rope_size], dim=1)
    kv_cache = step.absorbed.cache
    impl.do_kv_cache_update(kv_c, k_pe, kv_cache, step.slots)
    out = step.q.new_empty(*step.q.shape[:2], case.v_head_dim)
    if (prefill := metadata.prefill) is not None:
        rows = prefill.rows
        assert isinstance(rows, slice), "an engine keeps the requests of a phase together"
        impl.forward_mha(step.q[rows], kv_c[rows], k_pe[rows], kv_cache, metadata, output=out[rows])
    if (decode := metadata.decode) is not None:
        rows = decode.rows
        assert isinstance(rows, slice), "an engine keeps the requests of a phase together"
        query = absorbed(case, step.q[rows], step.kv_b_proj)
        latent = query.new_empty(*query.shape[:2], case.latent_size)
        impl.forward_mqa(query, kv_cache, metadata, output=latent)
        out[rows] = up_projected(case, latent, step.kv_b_proj)
    return out


def through_function(case: LatentCase, step: LatentStep, attend: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """The same step without the backend: every row is absorbed, and `attend` makes its output. [T, N, V]."""
    from attn_optimized import write_latent_cache

    kv_c, k_pe = step.new.split([case.latent_size, case.rope_size], dim=1)
    write_latent_cache(kv_c, k_pe, step.absorbed.cache, step.absorbed.layer, step.slots)
    return up_projected(case, attend(absorbed(case, step.q, step.kv_b_proj)), step.kv_b_proj)


def slots_of(case: "LatentCase | Attention", batch: Batch, block_size: int) -> torch.Tensor:
    """[T] int64: where the step's tokens are written, the last ones of each request."""
    assert batch.block_table is not None
    slots = [
        table[positions // block_size].long() * block_size + positions % block_size
        for table, positions in zip(batch.block_table.cpu(), _new_positions(case), strict=True)
    ]
    return torch.cat(slots).to(batch.block_table.device)


def _new_positions(case: "LatentCase | Attention") -> list[torch.Tensor]:
    """The positions of each request's new tokens."""
    return [torch.arange(k - n, k) for n, k in zip(case.query_lens, case.seq_lens, strict=True)]
