"""A mask of transformers as requests and rules of the contract, and the proof that they show the mask.

The proof is `Reading.shows`: what the reference sees (`attn_reference.visible`), element by element, is the mask.
"""

import itertools
from dataclasses import dataclass, field
from typing import Any

import attn_reference
import torch
from attn_contract import AttentionType, Batch, Layer, Layout

LAYOUT = Layout.BLOCKS_FIRST_NHD
"""Of the caches that calls are made with. Each block has one slot, so that any keys in any order are a request's."""


@dataclass(frozen=True)
class Request:
    """Queries of one row of transformers' batch, and the keys that they see."""

    row: int
    """of transformers' batch"""
    queries: list[int]
    """q_len indices of the mask's queries"""
    keys: list[int]
    """indices of the mask's keys; with `lead` in front, the keys of the request in their order"""
    causal: bool = False
    lead: int = 0
    """how many keys that nobody sees stand in front, to put the others at their places in their chunks"""
    ranges: tuple[tuple[int, int], ...] = ()
    """bidirectional ranges of positions"""

    @property
    def seq_len(self) -> int:
        return self.lead + len(self.keys)

    @property
    def positions(self) -> range:
        """Of the queries: the last ones of the sequence."""
        return range(self.seq_len - len(self.queries), self.seq_len)


@dataclass(frozen=True)
class Reading:
    """A mask as requests with the rules of their layer.

    Args:
        rules: fields of Layer.
    """

    requests: list[Request]
    rules: dict[str, Any] = field(default_factory=dict)

    @property
    def attn_type(self) -> AttentionType:
        """DECODER if a request is causal, ENCODER_ONLY if queries are the keys, else ENCODER_DECODER, which has no rules."""
        if any(request.causal for request in self.requests):
            return AttentionType.DECODER
        if all(request.queries == request.keys for request in self.requests):
            return AttentionType.ENCODER_ONLY
        return AttentionType.DECODER if self.rules else AttentionType.ENCODER_DECODER

    def batch(self, num_keys: int, num_rows: int, device: torch.device | str = "cpu") -> Batch:
        """The contract's Batch. Key k of row b is block `b * num_keys + k`, and block `num_rows * num_keys` is nobody's."""
        q_lens = [len(request.queries) for request in self.requests]
        seq_lens = [request.seq_len for request in self.requests]
        flags = {request.causal for request in self.requests}
        table = torch.zeros(len(self.requests), max(seq_lens, default=0), dtype=torch.int32)
        for entries, request in zip(table, self.requests, strict=True):
            first = request.row * num_keys
            blocks = [num_rows * num_keys] * request.lead + [first + key for key in request.keys]
            entries[: len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
        return Batch(
            query_start_loc=torch.tensor([0, *itertools.accumulate(q_lens)], dtype=torch.int32, device=device),
            seq_lens=torch.tensor(seq_lens, dtype=torch.int32, device=device),
            max_query_len=max(q_lens, default=0),
            max_seq_len=max(seq_lens, default=0),
            num_actual_tokens=sum(q_lens),
            causal=flags == {True}
            if len(flags) < 2
            else torch.tensor([request.causal for request in self.requests], device=device),
            block_table=table.to(device) if self.attn_type.reads_cache else None,
            bidirectional_ranges=self._ranges(device),
        )

    def _ranges(self, device: torch.device | str) -> torch.Tensor | None:
        most = max((len(request.ranges) for request in self.requests), default=0)
        if most == 0:
            return None
        filled = [[*request.ranges, *[(0, -1)] * (most - len(request.ranges))] for request in self.requests]
        return torch.tensor(filled, dtype=torch.int32, device=device)

    def shows(self, seen: torch.Tensor) -> bool:
        """Whether the reference sees by this reading what the mask [B, Q, K] says, and nothing else."""
        layer = Layer(
            num_heads=1,
            num_kv_heads=1,
            head_size=1,
            scale=1.0,
            attn_type=self.attn_type,
            layout=LAYOUT if self.attn_type.reads_cache else None,
            **self.rules,
        )
        num_rows, _, num_keys = seen.shape
        batch, shown = self.batch(num_keys, num_rows), torch.zeros_like(seen)
        for r, request in enumerate(self.requests):
            p, j = torch.tensor(request.positions), torch.arange(request.seq_len)
            visible = attn_reference.visible(p, j, layer, batch, r)
            if visible[:, : request.lead].any():
                return False
            at = torch.tensor(request.queries)[:, None], torch.tensor(request.keys)[None, :]
            shown[request.row][at] = visible[:, request.lead :]
        return torch.equal(shown, seen)
