"""The reference on whole sequences: the right outputs of a served model's layers, without a cache or earlier steps.

A token's key and value depend only on the layer, the token and its position, so they can be computed again for any sequence.
Numbers are random, and outputs must meet the bound that no rounding breaks. In float32, an error by a single missing, stale
or extra key exceeds this bound by orders of magnitude.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import attn_reference
import torch
from attn_contract import AttentionType, Batch, Layer, Layout
from attn_fuzz.cases.call import Call
from attn_fuzz.cases.case import Rope
from attn_fuzz.cases.contents import cos_sin_cache
from attn_fuzz.cases.poison import DTYPES
from attn_fuzz.serving.models import ModelLayer, ServedModel
from attn_fuzz.verdict.judge import judge_call

VOCABULARY = 64
MAX_MODEL_LEN = 512


class WrongOutputError(AssertionError):
    """A backend's output for a request differs from the reference's output for the request's own tokens."""


class Attended(NamedTuple):
    """A request in a step, with the tokens of all keys that the request sees."""

    request: int
    tokens: Sequence[int]
    """the token of each key; the encoder's tokens for cross-attention"""
    query_len: int


class UncachedReference:
    """Computes keys and values of tokens, and checks the outputs of layers.

    Args:
        model: the served model.
        device: of all tensors.
    """

    def __init__(self, model: ServedModel, device: str) -> None:
        self.model = model
        self.device = device
        generator = torch.Generator().manual_seed(0)
        self._embeddings = {part.name: self._embedding(part.layer, generator) for part in model.layers}
        angles = cos_sin_cache(Rope(rotary_dim=model.layers[0].layer.head_size), MAX_MODEL_LEN)
        self.cos_sin_cache = angles.to(device=device, dtype=torch.float32)

    def keys_and_values(
        self, part: ModelLayer, tokens: Iterable[int], positions: Iterable[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values [rows, HK, D] of tokens at some positions, in one layer and before any rotation."""
        of_tokens, of_positions = self._embeddings[part.name]
        key, value = of_tokens[:, list(tokens)] + of_positions[:, list(positions)]
        return key, value

    def check(self, part: ModelLayer, sequences: Sequence[Attended], query: torch.Tensor, output: torch.Tensor) -> None:
        """Judge a layer's output by the reference, on a cache of one-slot blocks that holds the sequences in their order.

        Args:
            part: the layer.
            sequences: one for each request in the batch.
            query: [T, H, D], before any rotation.
            output: [T, H, D], as the backend left it.

        Raises:
            WrongOutputError: the output is beyond the judge's bound.
        """
        lens = [len(sequence.tokens) for sequence in sequences]
        positions = [position for length in lens for position in range(length)]
        tokens = itertools.chain.from_iterable(sequence.tokens for sequence in sequences)
        key, value = self.keys_and_values(part, tokens, positions)
        layer = dataclasses.replace(part.layer, layout=Layout.KV_FIRST_NHD)
        kv_cache = key.new_empty((2, len(key), 1, *key.shape[1:]), dtype=layer.kv_cache_dtype or key.dtype)
        if part.rope:
            is_new = [position >= len(s.tokens) - s.query_len for s in sequences for position in range(len(s.tokens))]
            query = self._rotate(query, is_new, key, value, positions, kv_cache, layer)
        else:
            attn_reference.write_kv_cache(key, value, kv_cache, layer, torch.arange(len(key), device=self.device))
        batch = self._batch(sequences, lens, causal=layer.attn_type is AttentionType.DECODER)
        call = Call(q=query, layer=layer, batch=batch, kv_cache=kv_cache)
        judgement = judge_call(call, output, None, self.model.rounding)
        if judgement.differences:
            worst = judgement.differences[0]
            request, _, query_len = sequences[worst.request]
            raise WrongOutputError(
                f"layer {part.name} on {part.backend}: request {request}, {query_len} queries of {lens[worst.request]} keys: "
                f"got {worst.got:.9g}, expected {worst.expected:.9g} +- {worst.bound:.2g} "
                f"at row {worst.row}, head {worst.head}, dim {worst.dim}"
            )

    def _batch(self, sequences: Sequence[Attended], lens: Sequence[int], *, causal: bool) -> Batch:
        query_lens = [sequence.query_len for sequence in sequences]
        starts = list(itertools.accumulate(lens, initial=0))[:-1]
        tables = [list(range(start, start + max(lens))) for start in starts]
        return Batch(
            query_start_loc=self._int32([0, *itertools.accumulate(query_lens)]),
            seq_lens=self._int32(lens),
            max_query_len=max(query_lens),
            max_seq_len=max(lens),
            num_actual_tokens=sum(query_lens),
            causal=causal,
            block_table=self._int32(tables),
        )

    def _rotate(
        self,
        query: torch.Tensor,
        is_new: Sequence[bool],
        key: torch.Tensor,
        value: torch.Tensor,
        positions: Sequence[int],
        kv_cache: torch.Tensor,
        layer: Layer,
    ) -> torch.Tensor:
        """Write the rotated keys of whole sequences into kv_cache, and return the rotated queries."""
        new = torch.tensor(is_new, device=self.device)
        queries = query.new_zeros(len(new), *query.shape[1:])
        queries[new] = query
        slots = torch.arange(len(new), device=self.device)
        attn_reference.rope_and_write_kv_cache(
            queries,
            key,
            value,
            torch.tensor(positions, device=self.device),
            self.cos_sin_cache,
            kv_cache,
            layer,
            slots,
            is_neox=True,
        )
        return queries[new]

    def _embedding(self, layer: Layer, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """[2, VOCABULARY, HK, D] and [2, MAX_MODEL_LEN, HK, D]: what tokens and positions add to a key and to a value."""
        row = (layer.num_kv_heads, layer.head_size)
        of_tokens, of_positions = (
            torch.randn(2, count, *row, generator=generator).to(device=self.device, dtype=DTYPES[self.model.dtype])
            for count in (VOCABULARY, MAX_MODEL_LEN)
        )
        return of_tokens, of_positions

    def _int32(self, numbers: Sequence[int] | Sequence[list[int]]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int32, device=self.device)
