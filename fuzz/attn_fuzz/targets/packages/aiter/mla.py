"""AITER's Triton kernels of latent attention: the split decode with and without a rotation, and the attention over chosen keys.

mla_decode_rope.py (`decode_attention_fwd_grouped_rope`) decodes one row of q for each request. Its keys are given one by one,
as rows of a buffer without blocks. With `use_rope` it rotates q and the last key of each request itself, and hands the rotated
key back. Here q and that key are turned back before the call, by a multiple of 90 degrees for each pair of dims: such a turn is
exact.

unified_attention_sparse_mla.py sees, for each row of q, the slots of the tokens that an indexer has chosen, and skips entries
of -1, wherever they are. A row has at least one key: the file says that tests fail where all entries of a row are -1.

`ATTN_PARITY_AITER=FOLDER` takes the sources of another release.
"""

import dataclasses
import functools
import random

import torch
from attn_contract import Layer
from attn_fuzz.findings.aiter.mla import MLA_DECODE_ROPE, SPARSE_MLA
from attn_fuzz.targets.packages.aiter import package as aiter_package
from attn_fuzz.targets.packages.latent_rows import SPARSE_TOKENS, decoded_rows, latent_support, selected_slots
from attn_fuzz.targets.rng import rng_of
from attn_fuzz.targets.rows import rows_of
from attn_fuzz.targets.support import LatentSizes
from attn_fuzz.verdict.rounding import Rounding

DECODE, SPARSE = aiter_package.ops("mla_decode_rope"), aiter_package.ops("unified_attention_sparse_mla")
SPLITS = (1, 4, 8)
COSINES, SINES = (1.0, 0.0, -1.0, 0.0), (0.0, 1.0, 0.0, -1.0)
"""Cosines and sines of turns by 0, 90, 180 and 270 degrees."""


def _decode(q, k, v, kv_cache, layer, batch, *, out, lse, rotates: bool) -> None:
    [module] = DECODE.load()
    request, seq_lens = decoded_rows(batch)
    rows, block_size = len(request), kv_cache.shape[1]
    if not rows:
        return
    rng = rng_of((q.shape, batch.seq_lens))
    position = torch.cat([torch.arange(seq_len, device=q.device) for seq_len in seq_lens.tolist()])
    table = batch.block_table[request.repeat_interleave(seq_lens)].gather(1, (position // block_size)[:, None])[:, 0]
    indices = table * block_size + position % block_size
    ends = seq_lens.cumsum(0)
    keys, queries = kv_cache.flatten(0, 1), q[:rows].clone()
    rotation, rotated = {}, None
    if rotates:
        # each row has its own copy of its last key, which another row sees rotated
        last = keys[indices[ends - 1]]
        indices[ends - 1] = len(keys) + torch.arange(rows, device=q.device)
        rotation = _Rotation(layer, rows, rng, q)
        rotated, last[:, layer.v_head_size :] = last[:, layer.v_head_size :].clone(), rotation.back(last[:, None])[:, 0]
        queries[..., layer.v_head_size :] = rotation.back(queries)
        keys = torch.cat([keys, last])
        rotation = rotation.arguments
    new_out = torch.zeros(rows, layer.num_heads, layer.v_head_size, dtype=q.dtype, device=q.device)
    splits = rng.choice(SPLITS)
    tokens_out = torch.full((rows, layer.head_size - layer.v_head_size), torch.nan, dtype=q.dtype, device=q.device)
    module.decode_attention_fwd_grouped_rope(
        q=queries,
        k_buffer=keys[:, None],
        v_buffer=keys[:, None, : layer.v_head_size],
        o=new_out,
        kv_indptr=torch.cat([ends.new_zeros(1), ends]).int(),
        kv_indices=indices.int(),
        k_pe_tokens=tokens_out if rotates else None,
        kv_lora_rank=layer.v_head_size,
        attn_logits=torch.full((rows, layer.num_heads, splits, layer.v_head_size + 1), torch.nan, device=q.device),
        num_kv_splits=splits,
        sm_scale=layer.scale,
        logit_cap=layer.logits_soft_cap or 0.0,
        use_rope=rotates,
        **(rotation or {"rotary_dim": 0, "cos_sin_cache": None, "positions": None}),
    )
    if rotated is not None and not torch.equal(tokens_out, rotated):
        new_out.fill_(torch.nan)  # the key that it hands back is not the one that was turned back
    rows_of(out, layer, rows)[:] = new_out


class _Rotation:
    """A quarter turn, or several or none, for each pair of dims at each of a few positions."""

    def __init__(self, layer: Layer, rows: int, rng: random.Random, q: torch.Tensor) -> None:
        rotated = layer.head_size - layer.v_head_size
        self.first, self.dim, self.neox = layer.v_head_size, rng.choice((rotated, rotated // 2)), rng.choice((False, True))
        turns = torch.tensor([[rng.randrange(4) for _ in range(self.dim // 2)] for _ in range(8)])
        table = torch.cat([torch.tensor(COSINES)[turns], torch.tensor(SINES)[turns]], dim=1)
        self.table = table.to(q)
        self.positions = torch.tensor([rng.randrange(8) for _ in range(rows)], device=q.device)

    @property
    def arguments(self) -> dict[str, object]:
        names = {"rotary_dim": self.dim, "is_neox_style": self.neox}
        return {**names, "cos_sin_cache": self.table, "positions": self.positions}

    def back(self, x: torch.Tensor) -> torch.Tensor:
        """The dims of x [rows, heads, D] after the latent ones, turned back."""
        x = x[..., self.first :].clone()
        cos, sin = self.table[self.positions][:, None].chunk(2, dim=-1)
        pairs = (slice(0, self.dim // 2), slice(self.dim // 2, self.dim))
        one, two = pairs if self.neox else (slice(0, self.dim, 2), slice(1, self.dim, 2))
        x[..., one], x[..., two] = x[..., one] * cos + x[..., two] * sin, x[..., two] * cos - x[..., one] * sin
        return x


def _sparse(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    [module] = SPARSE.load()
    rows = int(batch.query_start_loc[-1])
    if rows:
        module.unified_attention_sparse_mla(
            q=q[:rows],
            kv=kv_cache.unsqueeze(2),
            out=rows_of(out, layer, rows),
            cu_seqlens_q=batch.query_start_loc,
            max_seqlen_q=batch.max_query_len,
            seqused_k=batch.seq_lens,
            max_seqlen_k=batch.max_seq_len,
            softmax_scale=layer.scale,
            topk_indices=selected_slots(layer, batch, kv_cache.shape[1])[0],
            block_table=batch.block_table,
            kv_lora_rank=layer.v_head_size,
        )


_RULES = ("non_causal", "per_request_causal", "head_size_v")
_DECODE_SIZES = LatentSizes(widths=((512, 64), (256, 32), (96, 48)), group_sizes=(16, 12, 24), block_sizes=(16, 1, 64))
_SPARSE_ENGINE = dataclasses.replace(SPARSE_TOKENS, empty_selections=False)
_SPARSE_SIZES = LatentSizes(widths=((512, 64), (256, 32)), group_sizes=(16, 32, 12), block_sizes=(16, 64))
AITER_MLA_DECODE = DECODE.target(
    unavailable=aiter_package.needs_rocm(DECODE),
    name="aiter-mla-decode",
    description="AITER's Triton decode of latent attention, mla_decode_rope without its rotation",
    attention=functools.partial(_decode, rotates=False),
    support=latent_support(rules=(*_RULES, "logits_soft_cap"), latent=_DECODE_SIZES),
    rounding=Rounding(keys_per_tile=32, splits=max(SPLITS)),
)
AITER_MLA_DECODE_ROPE = dataclasses.replace(
    AITER_MLA_DECODE,
    name="aiter-mla-decode-rope",
    description="AITER's Triton mla_decode_rope, which rotates q and each last key by quarter turns",
    attention=functools.partial(_decode, rotates=True),
    findings=MLA_DECODE_ROPE,
    races="Each program that has the last keys of a request writes its rotated key: one for each group of heads.",
)
AITER_SPARSE_MLA = SPARSE.target(
    name="aiter-sparse-mla",
    description="AITER's Triton unified_attention_sparse_mla, over the tokens that each row selects",
    attention=_sparse,
    support=latent_support(rules=(*_RULES, "selection_unit"), latent=_SPARSE_SIZES, engine=_SPARSE_ENGINE),
    rounding=Rounding(keys_per_tile=64),
    findings=SPARSE_MLA,
)
