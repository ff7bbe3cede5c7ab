"""Readings of a mask of transformers: requests and rules of the contract, and a proof that they show the mask.

The proof is `Reading.shows`: the reference's visible keys (`attn_reference.visible`) are those of the mask, element by element.
"""

import itertools
from dataclasses import dataclass, field
from typing import Any

import attn_reference
import torch
from attn_contract import AttentionType, Batch, Layer, Layout

LAYOUT = Layout.BLOCKS_FIRST_NHD
"""The layout of a call's cache. Each block has one slot, so that a request can have any keys in any order."""


@dataclass(frozen=True)
class Request:
    """Queries of one row of transformers' batch, and the keys that they see."""

    row: int
    """of transformers' batch"""
    queries: list[int]
    """query_len indices of the mask's queries"""
    keys: list[int]
    """seq_len indices of the mask's keys"""
    ranges: tuple[tuple[int, int], ...] = ()
    """bidirectional ranges of positions"""

    @property
    def seq_len(self) -> int:
        return len(self.keys)

    @property
    def positions(self) -> range:
        """The positions of the queries: the last ones of the sequence."""
        return range(self.seq_len - len(self.queries), self.seq_len)


@dataclass(frozen=True)
class Reading:
    """A mask as requests, all of them causal or none, with the rules of their layer.

    Args:
        rules: fields of Layer.
    """

    requests: list[Request]
    causal: bool = False
    rules: dict[str, Any] = field(default_factory=dict)

    @property
    def attn_type(self) -> AttentionType:
        """DECODER for a causal reading; else ENCODER_ONLY if the queries are the keys; else ENCODER_DECODER.

        ENCODER_DECODER has no rules: with rules, such a reading is of a DECODER that is not causal.
        """
        if self.causal:
            return AttentionType.DECODER
        if all(request.queries == request.keys for request in self.requests):
            return AttentionType.ENCODER_ONLY
        return AttentionType.DECODER if self.rules else AttentionType.ENCODER_DECODER

    def batch(self, num_keys: int, device: torch.device | str = "cpu") -> Batch:
        """The contract's Batch. Key k of row b is block `b * num_keys + k`."""
        q_lens = [len(request.queries) for request in self.requests]
        seq_lens = [request.seq_len for request in self.requests]
        table = torch.zeros(len(self.requests), max(seq_lens, default=0), dtype=torch.int32, device="cpu")
        for entries, request in zip(table, self.requests, strict=True):
            entries[: request.seq_len] = request.row * num_keys + torch.tensor(request.keys, device="cpu")
        return Batch(
            query_start_loc=torch.tensor([0, *itertools.accumulate(q_lens)], dtype=torch.int32, device=device),
            seq_lens=torch.tensor(seq_lens, dtype=torch.int32, device=device),
            max_query_len=max(q_lens, default=0),
            max_seq_len=max(seq_lens, default=0),
            num_actual_tokens=sum(q_lens),
            causal=self.causal,
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
        """True if the reference sees by this reading what the mask [B, Q, K] shows, and nothing else."""
        layer = Layer(
            num_heads=1,
            num_kv_heads=1,
            head_size=1,
            scale=1.0,
            attn_type=self.attn_type,
            layout=LAYOUT if self.attn_type.reads_cache else None,
            **self.rules,
        )
        batch, shown = self.batch(seen.shape[2]), torch.zeros_like(seen)
        for r, request in enumerate(self.requests):
            p, j = torch.tensor(request.positions, device="cpu"), torch.arange(request.seq_len, device="cpu")
            at = torch.tensor(request.queries, device="cpu")[:, None], torch.tensor(request.keys, device="cpu")[None, :]
            shown[request.row][at] = attn_reference.visible(p, j, layer, batch, r)
        return torch.equal(shown, seen)
