"""Cases of latent attention (MLA)."""

import dataclasses
from typing import Any

from attn_contract import AttentionType, Layout

from benchmarks.steps.cases import KI, Attention, ragged


def latent_case(
    name: str, query_lens: tuple[int, ...], seq_lens: tuple[int, ...], *, num_heads: int = 16, latent: int = 512, rope: int = 64
) -> Attention:
    """Absorbed attention over a latent cache: DeepSeek-V3's sizes, if nothing else is given."""
    sizes: dict[str, Any] = {"num_heads": num_heads, "num_kv_heads": 1, "head_size": latent + rope, "head_size_v": latent}
    return Attention(name=name, query_lens=query_lens, seq_lens=seq_lens, **sizes, block_size=64, layout=Layout.LATENT)


def _decode(name: str, requests: int, seq_len: int, query_len: int = 1, *, float8_cache: bool = False, **sizes) -> Attention:
    case = latent_case(f"MLA {name}", (query_len,) * requests, (seq_len,) * requests, **sizes)
    return dataclasses.replace(case, float8_cache=float8_cache)


CASES = (
    _decode("decode N=16, 64 x 8k", 64, 8 * KI),
    _decode("decode N=128, 64 x 4k", 64, 4 * KI, num_heads=128),
    _decode("decode N=16, 64 x 8k, float8 cache", 64, 8 * KI, float8_cache=True),
    _decode("decode N=128, 64 x 4k, float8 cache", 64, 4 * KI, num_heads=128, float8_cache=True),
    _decode("decode N=16, 4 speculative rows, 64 x 8k", 64, 8 * KI, 4),
    _decode("decode N=128, 2 speculative rows, 64 x 4k", 64, 4 * KI, 2, num_heads=128),
    _decode("decode N=12, 64 x 8k", 64, 8 * KI, num_heads=12),
    _decode("decode N=32, 64 x 8k", 64, 8 * KI, num_heads=32),
    _decode("decode N=16, 1 x 128k", 1, 128 * KI),
    _decode("decode N=128, 4 x 32k", 4, 32 * KI, num_heads=128),
    latent_case("MLA decode N=16, ragged 64 x 256..16k", (1,) * 64, ragged()),
    _decode("decode N=40, MiniCPM3 (256 + 32), 64 x 8k", 64, 8 * KI, num_heads=40, latent=256, rope=32),
    _decode("extend N=16, 8 x 512 new on 8k", 8, 8 * KI + 512, 512),
    Attention(
        name="MLA prefill 192/128, N=16, 4 x 4k",
        query_lens=(4 * KI,) * 4,
        seq_lens=(4 * KI,) * 4,
        num_heads=16,
        num_kv_heads=16,
        head_size=192,
        head_size_v=128,
        attn_type=AttentionType.ENCODER_ONLY,
        is_expanded=True,
    ),
)
