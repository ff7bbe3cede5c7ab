"""A decoder's layer, phase by phase."""

import dataclasses

import torch
from attn_contract import Batch, ContractError, Layer
from attn_contract.layer import UNLIMITED
from attn_contract.validation import check_own_tokens, check_paged_attention

from attn_optimized.aiter_adapter import flash_attn_varlen, paged_attention_v1, unified_attention
from attn_optimized.aiter_adapter.key_values import key_value_rows
from attn_optimized.aiter_adapter.paged_attention_v1 import has_packed_heads
from attn_optimized.backends.base import AttentionImpl
from attn_optimized.backends.phases import KeySpan, PhaseMetadata, check_host_lengths
from attn_optimized.backends.rocm_aiter_fa.metadata import (
    NAME,
    AiterFlashAttentionMetadata,
    ExtendMetadata,
)
from attn_optimized.merge import merge_attn_states

_FUNCTIONS = ("flash_attn_varlen_func", "unified_attention", "paged_attention_v1")


class AiterFlashAttentionImpl(AttentionImpl[AiterFlashAttentionMetadata]):
    """A decoder's layer: each phase of a step by a kernel of AITER's."""

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor | None,
        kv_cache: torch.Tensor | None,
        attn_metadata: AiterFlashAttentionMetadata,
        *,
        output: torch.Tensor,
        lse: torch.Tensor | None = None,
    ) -> torch.Tensor:
        self._check_metadata(attn_metadata)
        step = attn_metadata.step
        self._check_step(query, step, output, lse)
        kv_cache = self._own_view(kv_cache)
        view = check_paged_attention(query, kv_cache, self.layer, step, output, lse, values=self.validate)
        phases = (attn_metadata.decode, attn_metadata.extend, attn_metadata.prefill)
        longest = max((phase.batch.max_seq_len for phase in phases if phase is not None), default=0)
        check_host_lengths(attn_metadata, longest, view.block_size, values=self.validate)
        for function in _FUNCTIONS:
            self.aiter.load(function)  # a phase whose function is missing would be found after others have written
        by_head = output.view(query.shape)
        if attn_metadata.prefill is not None or attn_metadata.extend is not None:
            key, value = _given("key", key), _given("value", value)
            check_own_tokens(key, value, query, self.layer, step, output)
            if attn_metadata.prefill is not None:
                self._prefill(query, key, value, attn_metadata.prefill, by_head)
            if attn_metadata.extend is not None:
                self._extend(query, key, value, kv_cache, attn_metadata.extend, by_head)
        if attn_metadata.decode is not None:
            self._decode(query, kv_cache, attn_metadata.decode, by_head)
        return output

    def _prefill(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, prefill: PhaseMetadata, output: torch.Tensor
    ) -> None:
        q, out = query[prefill.rows], output[prefill.rows]
        self._attend(q, key[prefill.rows], value[prefill.rows], self.layer, prefill.batch, out=out)
        _put_back(output, prefill, out)

    def _extend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        extend: ExtendMetadata,
        output: torch.Tensor,
    ) -> None:
        q, out = query[extend.rows], output[extend.rows]
        left = self.layer.window[0]
        if left != UNLIMITED:
            reach = extend.reach(left)
            k, v = self._gather(kv_cache, extend.batch, reach, q.dtype)
            self._attend(q, k, v, self.layer, extend.batch, reach, out=out)
        else:
            lse = q.new_empty((self.layer.num_heads, len(q)), dtype=torch.float32)
            chunk_out, chunk_lse = torch.empty_like(out), torch.empty_like(lse)
            self._attend(q, key[extend.rows], value[extend.rows], self.layer, extend.batch, out=out, lse=lse)
            # a sink counts once: this step's own keys had it. All of the context lies to the left of a window's right edge
            context_layer = dataclasses.replace(self.layer, sinks=None, window=(UNLIMITED, UNLIMITED))
            for chunk in extend.context_chunks:
                k, v = self._gather(kv_cache, extend.batch, chunk, q.dtype)
                self._attend(q, k, v, context_layer, extend.batch, chunk, causal=False, out=chunk_out, lse=chunk_lse)
                merge_attn_states(out, lse, chunk_out, chunk_lse, out=out, lse=lse)
        _put_back(output, extend, out)

    def _decode(self, query: torch.Tensor, kv_cache: torch.Tensor, decode: PhaseMetadata, output: torch.Tensor) -> None:
        q, out = query[decode.rows], output[decode.rows]
        layer = self.layer
        is_plain = decode.batch.max_query_len == 1 and layer.sinks is None and layer.window[0] == UNLIMITED
        # paged_attention_v1 steps over rows of q and out as if they were dense
        is_dense = has_packed_heads(q) and out.is_contiguous()
        kernel = paged_attention_v1 if is_plain and is_dense else unified_attention
        kernel(self.aiter, q, kv_cache, layer, decode.batch, out=out)
        _put_back(output, decode, out)

    def _attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: Layer,
        batch: Batch,
        span: KeySpan | None = None,
        *,
        causal: bool = True,
        out: torch.Tensor,
        lse: torch.Tensor | None = None,
    ) -> None:
        """Attend to the keys of a span, or to those of the queries' own tokens."""
        flash_attn_varlen(
            self.aiter,
            q,
            k,
            v,
            layer,
            query_start_loc=batch.query_start_loc,
            key_start_loc=batch.query_start_loc if span is None else span.key_start_loc,
            max_query_len=batch.max_query_len,
            max_key_len=batch.max_query_len if span is None else span.max_key_len,
            causal=causal,
            out=out,
            lse=lse,
        )

    def _gather(
        self, kv_cache: torch.Tensor, batch: Batch, span: KeySpan, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values of a span, dense [num_keys, HK, D] and dequantized."""
        k, v = key_value_rows(kv_cache, self.layer, NAME)
        block_size = k.shape[1]
        requests = torch.arange(batch.num_requests, device=k.device)
        request = torch.repeat_interleave(requests, span.key_start_loc.diff(), output_size=span.num_keys)
        before = span.key_start_loc[:-1] - span.begins
        position = torch.arange(span.num_keys, device=k.device) - before[request]
        assert batch.block_table is not None
        block = batch.block_table[request, position // block_size].long()
        slot = position % block_size
        k, v = k[block, slot], v[block, slot]
        if self.layer.k_scale is not None and self.layer.v_scale is not None:
            k, v = (k.float() * self.layer.k_scale).to(dtype), (v.float() * self.layer.v_scale).to(dtype)
        return k, v


def _put_back(output: torch.Tensor, phase: PhaseMetadata, out: torch.Tensor) -> None:
    """A slice of the output is the output; scattered rows of it are a copy."""
    if not isinstance(phase.rows, slice):
        output[phase.rows] = out


def _given(name: str, tensor: torch.Tensor | None) -> torch.Tensor:
    if tensor is None:
        raise ContractError(name, None, f"a tensor: {NAME} reads this step's keys and values in prefill and extend")
    return tensor
