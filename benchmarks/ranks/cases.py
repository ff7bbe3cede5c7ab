"""The cases of `ranks`: steps of attention alone, and whole steps of latent attention, whose names begin with "step:"."""

from dataclasses import dataclass
from typing import Any

import torch
from attn_contract import Layout

from benchmarks.steps.cases import Attention
from benchmarks.steps.latent_steps import LatentCase
from benchmarks.steps.ranks import BLOCK_SIZE, cache_bytes


@dataclass(frozen=True)
class AttentionCase:
    """A step of attention alone.

    Args:
        interleave: the number of tokens that a rank is dealt at a time.
    """

    attention: Attention
    dtype: torch.dtype = torch.bfloat16
    interleave: int = BLOCK_SIZE

    @property
    def name(self) -> str:
        return self.attention.name

    @property
    def num_heads(self) -> int:
        return self.attention.num_heads

    @property
    def cache_bytes(self) -> int:
        return cache_bytes(self.attention, self.dtype)


_GQA: dict[str, Any] = {"num_heads": 64, "num_kv_heads": 8}
_MLA: dict[str, Any] = {"num_heads": 128, "num_kv_heads": 1, "head_size": 576, "head_size_v": 512, "layout": Layout.LATENT}
_SMALL: dict[str, Any] = {"num_heads": 8, "num_kv_heads": 2}


def _attention(
    name: str,
    requests: int,
    seq_len: int,
    query_len: int = 1,
    *,
    dtype: torch.dtype = torch.bfloat16,
    interleave: int = BLOCK_SIZE,
    uneven: bool = False,
    **sizes: Any,
) -> AttentionCase:
    """A case of requests of one length; with `uneven` each is 37 keys shorter than the one before, so that shards differ."""
    seq_lens = tuple(max(1, seq_len - (37 * r if uneven else 0)) for r in range(requests))
    attention = Attention(name=name, query_lens=(query_len,) * requests, seq_lens=seq_lens, block_size=BLOCK_SIZE, **sizes)
    return AttentionCase(attention, dtype, interleave)


def _small(name: str, query_lens: tuple[int, ...], seq_lens: tuple[int, ...], **options: Any) -> LatentCase:
    sizes = {"num_heads": 16, "latent_size": 64, "rope_size": 16, "nope_size": 48, "v_head_dim": 32}
    return LatentCase(name, query_lens, seq_lens, **sizes, dtype=torch.float16, **options)


def _with_prefill(decodes: int, decode_len: int, query_len: int, seq_len: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (*(1,) * decodes, query_len), (*(decode_len,) * decodes, seq_len)


CHECKS = (
    _attention("float32, one token at a time", 5, 300, dtype=torch.float32, interleave=1, uneven=True, **_SMALL),
    _attention("float32, drafts", 7, 200, 3, dtype=torch.float32, interleave=3, uneven=True, **_SMALL),
    _attention("float32, a prefill", 1, 130, 130, dtype=torch.float32, interleave=16, **_SMALL),
    _attention("float32, empty shards", 9, 5, dtype=torch.float32, interleave=64, **_SMALL),
    _small("step: decodes and prefills, one token at a time", (1, 1, 7, 130), (300, 5, 207, 130), interleave=1),
    _small("step: contexts in chunks", (1, 5, 40, 3), (90, 305, 207, 100), context_chunk_keys=64),
    _small("step: drafts and a prefill", (3, 1, 3, 40), (200, 31, 3, 90), num_speculative_tokens=2, interleave=3),
    _small("step: empty shards", (1, 1, 1, 4), (5, 3, 64, 9), interleave=64),
)
"""Small steps of float32 and float16, whose error is told from a wrong key or a wrong weight."""
TIMED = (
    _attention("1 request of 1M keys", 1, 1 << 20, **_GQA),
    _attention("8 requests of 128K keys", 8, 1 << 17, **_GQA),
    _attention("8 requests of 128K keys, 4 drafts", 8, 1 << 17, 4, **_GQA),
    _attention("64 requests of 8K keys", 64, 1 << 13, **_GQA),
    _attention("64 requests of 1K keys", 64, 1 << 10, **_GQA),
    _attention("8 requests of 128K keys, one token at a time", 8, 1 << 17, interleave=1, **_GQA),
    _attention("MLA, 1 request of 512K keys", 1, 1 << 19, **_MLA),
    _attention("MLA, 8 requests of 128K keys", 8, 1 << 17, **_MLA),
    _attention("MLA, 64 requests of 8K keys", 64, 1 << 13, **_MLA),
    LatentCase("step: 64 decodes of 8K keys", (1,) * 64, (1 << 13,) * 64),
    LatentCase("step: 64 decodes of 8K keys, 512 new on 8K", *_with_prefill(64, 1 << 13, 512, (1 << 13) + 512)),
    LatentCase("step: 8 decodes of 128K keys, 2048 new on 32K", *_with_prefill(8, 1 << 17, 2048, (1 << 15) + 2048)),
    LatentCase("step: 8 decodes of 128K keys, 2048 new on none", *_with_prefill(8, 1 << 17, 2048, 2048)),
)
TINY = (
    _attention("4 requests of 60 keys", 4, 60, head_size=16, dtype=torch.float32, interleave=4, **_SMALL),
    LatentCase(
        "step: 2 decodes, 5 new on 35",
        (1, 1, 5),
        (60, 3, 40),
        num_heads=4,
        latent_size=32,
        rope_size=16,
        nope_size=16,
        v_head_dim=16,
        dtype=torch.float16,
        interleave=4,
        context_chunk_keys=16,
    ),
)
