"""Calls of latent attention that are measured, as data, and what no kernel can be faster than."""

import dataclasses
import random
from dataclasses import dataclass
from typing import Self

ITEMSIZE = 2  # of bfloat16, which everything is but a float8 cache
KI = 1024


@dataclass(frozen=True, kw_only=True)
class LatentCase:
    """Absorbed attention over a latent cache: DeepSeek-V3's sizes, if nothing else is given.

    Attributes:
        num_heads: query heads on one GPU.
        latent_size, rope_size: V is the first latent_size dims of K, which has rope_size more.
    """

    name: str
    query_lens: tuple[int, ...]
    seq_lens: tuple[int, ...]
    num_heads: int = 16
    latent_size: int = 512
    rope_size: int = 64
    block_size: int = 64
    float8_cache: bool = False
    traffic: None = None

    @property
    def head_size(self) -> int:
        return self.latent_size + self.rope_size

    @property
    def num_tokens(self) -> int:
        return sum(self.query_lens)

    def num_keys(self, request: int, query: int) -> int:
        """Keys that a query of a request sees."""
        return self.seq_lens[request] - self.query_lens[request] + query + 1

    @property
    def flops(self) -> float:
        """Two dots, of head_size and of latent_size, for each pair of a query and a key that it sees, in every head."""
        pairs = sum(self.num_keys(r, i) for r, query_len in enumerate(self.query_lens) for i in range(query_len))
        return 2.0 * (self.head_size + self.latent_size) * self.num_heads * pairs

    @property
    def bytes(self) -> float:
        """Each key of each request once, and q and the output."""
        row = self.head_size * (1 if self.float8_cache else ITEMSIZE)
        return float(
            sum(self.seq_lens) * row + self.num_tokens * self.num_heads * (self.head_size + self.latent_size) * ITEMSIZE
        )

    def tiny(self) -> Self:
        """The same features at a size that can be interpreted."""
        chosen = sorted({0, len(self.query_lens) // 2, len(self.query_lens) - 1})
        query_lens = tuple(min(self.query_lens[r], 5) for r in chosen)
        seq_lens = tuple(n + min(self.seq_lens[r] - self.query_lens[r], 90) for n, r in zip(query_lens, chosen, strict=True))
        heads = min(self.num_heads, 80)
        return dataclasses.replace(
            self, query_lens=query_lens, seq_lens=seq_lens, num_heads=heads, latent_size=48, rope_size=16
        )


@dataclass(frozen=True, kw_only=True)
class ExpandedCase:
    """Expanded attention of prompts of one length to their own keys: the sizes of DeepSeek-V3's heads.

    Attributes:
        num_heads: on one GPU, each with keys and values of its own.
        head_size, head_size_v: of K and of V.
    """

    name: str
    query_lens: tuple[int, ...]
    num_heads: int = 16
    head_size: int = 192
    head_size_v: int = 128
    traffic: None = None

    @property
    def num_tokens(self) -> int:
        return sum(self.query_lens)

    @property
    def flops(self) -> float:
        """Two dots, of head_size and of head_size_v, for each pair of a query and a key that it sees, in every head."""
        pairs = sum(n * (n + 1) // 2 for n in self.query_lens)
        return 2.0 * (self.head_size + self.head_size_v) * self.num_heads * pairs

    @property
    def bytes(self) -> float:
        """q, k, v and the output once."""
        return 2.0 * (self.head_size + self.head_size_v) * self.num_heads * self.num_tokens * ITEMSIZE

    def tiny(self) -> Self:
        """The same features at a size that can be interpreted."""
        return dataclasses.replace(self, query_lens=(9,) * 2, num_heads=2)


def _decode(name: str, requests: int, seq_len: int, *, query_len: int = 1, **options) -> LatentCase:
    return LatentCase(name=name, query_lens=(query_len,) * requests, seq_lens=(seq_len,) * requests, **options)


def _ragged() -> tuple[int, ...]:
    """64 lengths evenly from 256 to 16k, in no order."""
    lengths = [256 * (i + 1) for i in range(64)]
    random.Random(0).shuffle(lengths)
    return tuple(lengths)


CASES: tuple[LatentCase | ExpandedCase, ...] = (
    _decode("MLA decode N=16, 64 x 8k", 64, 8 * KI),
    _decode("MLA decode N=128, 64 x 4k", 64, 4 * KI, num_heads=128),
    _decode("MLA decode N=16, 64 x 8k, float8 cache", 64, 8 * KI, float8_cache=True),
    _decode("MLA decode N=128, 64 x 4k, float8 cache", 64, 4 * KI, num_heads=128, float8_cache=True),
    _decode("MLA decode N=16, 4 speculative rows, 64 x 8k", 64, 8 * KI, query_len=4),
    _decode("MLA decode N=128, 2 speculative rows, 64 x 4k", 64, 4 * KI, num_heads=128, query_len=2),
    _decode("MLA decode N=12, 64 x 8k", 64, 8 * KI, num_heads=12),
    _decode("MLA decode N=32, 64 x 8k", 64, 8 * KI, num_heads=32),
    _decode("MLA decode N=16, 1 x 128k", 1, 128 * KI),
    _decode("MLA decode N=128, 4 x 32k", 4, 32 * KI, num_heads=128),
    LatentCase(name="MLA decode N=16, ragged 64 x 256..16k", query_lens=(1,) * 64, seq_lens=_ragged()),
    _decode("MLA decode N=40, MiniCPM3 (256 + 32), 64 x 8k", 64, 8 * KI, num_heads=40, latent_size=256, rope_size=32),
    _decode("MLA extend N=16, 8 x 512 new on 8k", 8, 8 * KI + 512, query_len=512),
    ExpandedCase(name="MLA prefill 192/128, N=16, 4 x 4k", query_lens=(4 * KI,) * 4),
)
