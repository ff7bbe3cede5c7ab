"""A layer of latent attention: decodes absorbed, prefills expanded."""

from typing import Any, TypedDict

import torch
from attn_contract import ContractError, Layer, UnsupportedError
from attn_contract.arguments import check_dims, check_int
from attn_contract.validation.shapes import check_cache, given
from attn_contract.validation.tensors import check_tensors
from attn_contract.validation.values import check_block_table

import attn_optimized
from attn_optimized.backends.base import MLAAttentionImpl
from attn_optimized.backends.phases import check_host_lengths
from attn_optimized.backends.triton_mla.context import attend_to_context, expanded_layer
from attn_optimized.backends.triton_mla.metadata import NAME, ContextChunk, MlaMetadata, MlaPrefillMetadata
from attn_optimized.launch.widths import MAX_HEAD_SIZE
from attn_optimized.merge import merge_attn_states


class _Options(TypedDict):
    batch_invariant: bool
    validate: bool


class TritonMlaImpl(MLAAttentionImpl[MlaMetadata]):
    """A layer on the Triton kernels: decodes on the paged kernel over the latent cache, prefills on the dense one.

    Args:
        kv_b_proj: [N * (P + V), Lkv], the checkpoint's weight: of each head W_UK, then W_UV.
        v_head_dim: V.

    The other arguments are AttentionImplBase's.

    Raises:
        UnsupportedError: expanded heads that the kernels do not hold.
    """

    def __init__(self, layer: Layer, *, dtype: torch.dtype, kv_b_proj: torch.Tensor, v_head_dim: int, **arguments: Any) -> None:
        super().__init__(layer, dtype=dtype, **arguments)
        self._check_dtype("kv_b_proj", kv_b_proj)
        check_dims("kv_b_proj", kv_b_proj, ("N * (P + V)", "Lkv"))
        check_int("v_head_dim", v_head_dim, minimum=1)
        num_heads, latent_size = layer.num_heads, layer.v_head_size
        nope_size, rest = divmod(kv_b_proj.shape[0] - num_heads * v_head_dim, num_heads)
        if kv_b_proj.shape[1] != latent_size or rest or nope_size < 1:
            expected = f"({num_heads} * (P + {v_head_dim}), {latent_size}): W_UK and W_UV of each head"
            raise ContractError("kv_b_proj", f"shape {tuple(kv_b_proj.shape)}", expected)
        head_size = nope_size + layer.head_size - latent_size
        if head_size > MAX_HEAD_SIZE or v_head_dim > head_size:
            reason = f"a prefill expands K to at most {MAX_HEAD_SIZE} dims, and V to no more than K"
            raise UnsupportedError(NAME, f"expanded heads of {head_size} dims, and {v_head_dim} of V", reason)
        self.kv_b_proj, self.v_head_dim, self.nope_size = kv_b_proj, v_head_dim, nope_size
        self.expanded = expanded_layer(num_heads, head_size, v_head_dim, layer.scale)

    def forward_mqa(
        self,
        query: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: MlaMetadata,
        *,
        output: torch.Tensor,
        lse: torch.Tensor | None = None,
    ) -> torch.Tensor:
        self._check_metadata(attn_metadata)
        self._check_step(query, attn_metadata.step, output, lse)
        if attn_metadata.decode is None:
            raise ContractError("attn_metadata.decode", None, "decodes: this step has none")
        batch = attn_metadata.decode.batch
        return attn_optimized.paged_attention(
            query, self._own_view(kv_cache), self.layer, batch, out=output, lse=lse, **self._options
        )

    def forward_mha(
        self,
        query: torch.Tensor,
        kv_c: torch.Tensor,
        k_pe: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: MlaMetadata,
        *,
        output: torch.Tensor,
        lse: torch.Tensor | None = None,
    ) -> torch.Tensor:
        prefill, kv_cache = self._checked_prefill(query, kv_c, k_pe, kv_cache, attn_metadata, output, lse)
        key, value = self._expand(kv_c, k_pe).split([self.expanded.head_size, self.v_head_dim], dim=-1)
        if lse is None and prefill.context_chunks:
            lse = query.new_empty(query.shape[1], len(query), dtype=torch.float32)
        attn_optimized.varlen_attention(query, key, value, self.expanded, prefill.own, out=output, lse=lse, **self._options)
        out = output.view(len(output), self.layer.num_heads, self.v_head_dim)
        for chunk in prefill.context_chunks:
            own = slice(0, chunk.batch.num_actual_tokens)
            rows = self._expand(*self._gathered(kv_cache, prefill, chunk))
            context, context_lse = attend_to_context(query[own], rows, self.expanded, chunk.batch, **self._options)
            assert lse is not None
            merge_attn_states(context, context_lse, out[own], lse[:, own], out=out[own], lse=lse[:, own])
        return output

    @property
    def _options(self) -> _Options:
        return {"batch_invariant": self.config.asks("batch_invariant"), "validate": self.validate}

    def _expand(self, kv_c: torch.Tensor, k_pe: torch.Tensor) -> torch.Tensor:
        """[n, N, P + R + V]: the keys of all heads, and after each its value."""
        num_heads, head_size = self.layer.num_heads, self.expanded.head_size
        rows = kv_c.new_empty(len(kv_c), num_heads, head_size + self.v_head_dim)
        by_head, latent = rows.transpose(0, 1), kv_c.expand(num_heads, -1, -1)
        weights = self.kv_b_proj.unflatten(0, (num_heads, -1)).transpose(1, 2)
        w_uk, w_uv = weights.split([self.nope_size, self.v_head_dim], dim=-1)
        # each product is written to its place: copying it there would take longer than computing it
        torch.bmm(latent, w_uk, out=by_head[..., : self.nope_size])
        torch.bmm(latent, w_uv, out=by_head[..., head_size:])
        rows[..., self.nope_size : head_size] = k_pe[:, None]
        return rows

    def _gathered(
        self, kv_cache: torch.Tensor, prefill: MlaPrefillMetadata, chunk: ContextChunk
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The latent vectors [n, Lkv] and rotated keys [n, R] of a chunk, dequantized."""
        assert prefill.batch.block_table is not None
        block_size = kv_cache.shape[1]
        block = prefill.batch.block_table[chunk.request, chunk.position // block_size].long()
        rows = kv_cache[block, chunk.position % block_size]
        if self.layer.k_scale is not None:
            rows = (rows.float() * self.layer.k_scale).to(self.config.dtype)
        latent_size = self.layer.v_head_size
        return rows[:, :latent_size], rows[:, latent_size:]

    def _checked_prefill(
        self,
        query: torch.Tensor,
        kv_c: torch.Tensor,
        k_pe: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: MlaMetadata,
        output: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> tuple[MlaPrefillMetadata, torch.Tensor]:
        """The step's prefills, and the cache as this layer addresses it.

        It checks the tensors that the kernels do not see: the latent vectors, and the cache to gather from.
        """
        self._check_metadata(attn_metadata)
        self._check_step(query, attn_metadata.step, output, lse)
        prefill = attn_metadata.prefill
        if prefill is None:
            raise ContractError("attn_metadata.prefill", None, "prefills: this step has none")
        kv_cache = self._own_view(kv_cache)
        check_dims("query", query, ("T", "N", "P + R"))
        num_tokens = prefill.batch.num_actual_tokens
        widths = {"kv_c": (kv_c, self.layer.v_head_size), "k_pe": (k_pe, self.layer.head_size - self.layer.v_head_size)}
        for name, (tensor, width) in widths.items():
            self._check_dtype(name, tensor)
            if tuple(tensor.shape) != (num_tokens, width):
                raise ContractError(name, f"shape {tuple(tensor.shape)}", f"shape {(num_tokens, width)}: the prefills' rows")
        if len(query) != num_tokens:
            raise ContractError("query", f"{len(query)} rows", f"{num_tokens}, those of the prefills")
        inputs = {"q": query, "kv_c": kv_c, "k_pe": k_pe, "kv_cache": kv_cache, "kv_b_proj": self.kv_b_proj}
        check_tensors({**inputs, **self.layer.tensors}, given(out=output, lse=lse), step=prefill.batch)
        view = check_cache(kv_cache, self.layer, self.config.dtype)
        check_host_lengths(attn_metadata, prefill.max_seq_len, view.block_size, values=self.validate)
        if self.validate:
            assert prefill.batch.block_table is not None
            check_block_table(prefill.batch.block_table, prefill.batch.seq_lens, view)
        return prefill, kv_cache
