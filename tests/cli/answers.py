"""The right answers of `attn-parity select` for configs in `configs/`, on gfx942 with AITER 2026-08, written by hand."""

import math
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """A group of layers: their numbers and sizes, the backend that serves them, and the rules that they ask for."""

    numbers: str
    heads: int
    kv_heads: int
    head_size: int
    backend: str
    scale: float
    rules: dict[str, Any]


def group(numbers: str, heads: int, kv_heads: int, head_size: int, backend: str = "ROCM_ATTN", **rules: Any) -> Answer:
    scale = rules.pop("scale", head_size**-0.5)
    return Answer(numbers, heads, kv_heads, head_size, backend, scale, rules)


def full(*sizes: Any, **rules: Any) -> dict[str, Answer]:
    """A decoder whose layers are all alike, without a window."""
    return {"full_attention": group(*sizes, **rules)}


def latent(numbers: str, heads: int, size: int, rotated: int, *, nope: int, scale: float | None = None) -> dict[str, Answer]:
    """A decoder with latent attention: the scale is that of the expanded form."""
    scale = (nope + rotated) ** -0.5 if scale is None else scale
    return {"full_attention": group(numbers, heads, 1, size + rotated, MLA, scale=scale, head_size_v=size)}


def indexed(numbers: str, heads: int, *, nope: int) -> dict[str, Answer]:
    """A decoder with latent attention to the tokens that an indexer selects."""
    scale = (nope + 64) ** -0.5
    return {"indexed_attention": group(numbers, heads, 1, 576, MLA_SPARSE, scale=scale, selection_unit=1, head_size_v=512)}


def sliding(*sizes: Any, **rules: Any) -> dict[str, Answer]:
    return {"sliding_attention": group(*sizes, **rules)}


def encoder_decoder(layers: int, heads: int, cross: str) -> dict[str, Answer]:
    numbers = f"0-{layers - 1}"
    return {
        "encoder.self_attn": group(numbers, heads, heads, 64),
        "decoder.self_attn": group(numbers, heads, heads, 64),
        "decoder.encoder_attn": group(numbers, heads, heads, 64, cross),
    }


def window(width: int) -> list[int]:
    """The rules of a `sliding_window`, which counts the token itself."""
    return [width - 1, width - 1]


TRITON = "TRITON_ATTN"
MLA = "TRITON_MLA"
MLA_SPARSE = "ROCM_AITER_MLA_SPARSE"
DIFFKV = "TRITON_ATTN_DIFFKV"
FLASH = "ROCM_AITER_FA"

ANSWERS: dict[str, dict[str, Answer]] = {
    "llama-3.1-8b": full("0-31", 32, 8, 128),
    "llama-3.3-70b-fp8-kv": full("0-79", 64, 8, 128),
    "llama-4-scout": {
        "chunked_attention": group("0-2, 4-6, .., 44-46", 40, 8, 128, TRITON, chunked_local=8192),
        "full_attention": group("3, 7, .., 47", 40, 8, 128),
    },
    "mistral-7b-v0.1": sliding("0-31", 32, 8, 128, window=window(4096)),
    "mistral-small-3.1": full("0-39", 32, 8, 128),
    "mixtral-8x7b": full("0-31", 32, 8, 128),
    "ministral-8b": {
        "full_attention": group("0, 4, .., 32", 32, 8, 128),
        "sliding_attention": group("1-3, 5-7, .., 33-35", 32, 8, 128, window=window(32768)),
    },
    "gemma-2-9b": {
        "sliding_attention": group("0, 2, .., 40", 16, 8, 256, TRITON, window=window(4096), logits_soft_cap=50.0),
        "full_attention": group("1, 3, .., 41", 16, 8, 256, TRITON, logits_soft_cap=50.0),
    },
    "gemma-3-1b": {
        "sliding_attention": group("0-4, 6-10, .., 24-25", 4, 1, 256, window=window(512)),
        "full_attention": group("5, 11, .., 23", 4, 1, 256),
    },
    # its file leaves out the heads and the head size; an image has 256 tokens, so that a window of 1024 hides none of them
    "gemma-3-4b": {
        "sliding_attention": group("0-4, 6-10, .., 30-33", 8, 4, 256, TRITON, window=window(1024), bidirectional_ranges=True),
        "full_attention": group("5, 11, .., 29", 8, 4, 256, TRITON, bidirectional_ranges=True),
    },
    "gpt-oss-120b": {
        "sliding_attention": group("0, 2, .., 34", 64, 8, 64, FLASH, window=window(128), sinks=True),
        "full_attention": group("1, 3, .., 35", 64, 8, 64, FLASH, sinks=True),
    },
    # a sliding_window beside use_sliding_window: false
    "qwen2.5-7b": full("0-27", 28, 4, 128),
    "qwen3-8b": full("0-35", 32, 8, 128),
    "qwen3-30b-a3b": full("0-47", 32, 4, 128),
    "phi-3-mini-4k": sliding("0-31", 32, 32, 96, window=window(2047)),
    "phi-4": full("0-39", 40, 10, 128),
    "command-r-plus": full("0-63", 96, 8, 128),
    "command-a": {
        "sliding_attention": group("0-2, 4-6, .., 60-62", 96, 8, 128, window=window(4096)),
        "full_attention": group("3, 7, .., 63", 96, 8, 128),
    },
    "falcon-40b": full("0-59", 128, 8, 64),
    "falcon-7b": full("0-31", 71, 1, 64),
    "falcon-rw-1b": full("0-23", 32, 32, 64, alibi_slopes=True),
    "bloom-7b1": full("0-29", 32, 32, 128, alibi_slopes=True),
    "mpt-7b": full("0-31", 32, 32, 128, alibi_slopes=True),
    "bert-base": {"encoder": group("0-11", 12, 12, 64)},
    "bart-large-cnn": encoder_decoder(12, 16, cross=TRITON),
    "whisper-large-v3": encoder_decoder(32, 20, cross="ROCM_AITER_UNIFIED_ATTN"),
    "minimax-m2": full("0-61", 48, 8, 128),
    "olmo-2-7b": full("0-31", 32, 32, 128),
    "granite-3.1-8b": full("0-39", 32, 8, 128, scale=1 / 128),
    "starcoder2-7b": sliding("0-31", 36, 4, 128, window=window(4096)),
    "internvl3-8b": full("0-27", 28, 4, 128),
    "glm-4-9b-0414": full("0-39", 32, 2, 128),
    "glm-4.5": full("0-91", 96, 8, 128),
    # 128 keys before a token, and the token
    "mimo-v2-flash": {
        "full_attention": group("0, 5, .., 47", 64, 4, 192, DIFFKV, head_size_v=128),
        "sliding_attention": group(
            *("1-4, 6-10, .., 42-46", 64, 8, 192, DIFFKV), head_size_v=128, window=window(129), sinks=True
        ),
    },
    "gpt2": full("0-11", 12, 12, 64),
    # latent: one KV head of Lkv + R, and the scale of P + R
    "deepseek-v2": latent("0-59", 128, 512, 64, nope=128),
    "deepseek-v2-lite": latent("0-26", 16, 512, 64, nope=128, scale=192**-0.5 * (0.0707 * math.log(40) + 1) ** 2),
    "deepseek-v3": latent("0-60", 128, 512, 64, nope=128),
    "kimi-k2": latent("0-60", 64, 512, 64, nope=128),
    "minicpm3-4b": latent("0-61", 40, 256, 32, nope=64),
    "glm-4.7-flash": latent("0-46", 20, 512, 64, nope=192),
    "deepseek-v3.2": indexed("0-60", 128, nope=128),
    "glm-5": indexed("0-77", 64, nope=192),
    # blocks of 128 tokens are those of the cache, in all layers
    "minimax-m3": {
        "full_attention": group("0-2", 64, 4, 128, "ROCM_AITER_UNIFIED_ATTN"),
        "indexed_attention": group("3-59", 64, 4, 128, "MINIMAX_M3_SPARSE", selection_unit=128),
    },
}

VLLM: dict[str, str | None] = {
    **dict.fromkeys(ANSWERS, "ROCM_ATTN"),
    **dict.fromkeys(("gemma-2-9b", "gemma-3-4b", "bart-large-cnn"), TRITON),
    "gpt-oss-120b": FLASH,
    "whisper-large-v3": "ROCM_AITER_UNIFIED_ATTN",
    **dict.fromkeys(
        ("deepseek-v2", "deepseek-v2-lite", "deepseek-v3", "kimi-k2", "minicpm3-4b", "glm-4.7-flash"), "ROCM_AITER_MLA"
    ),
    **dict.fromkeys(("deepseek-v3.2", "glm-5"), MLA_SPARSE),
    "mimo-v2-flash": None,
}
"""The one backend of the command line for vLLM; None: vLLM's model chooses it."""

REFUSED: dict[str, str] = {
    "t5-base": "attn_contract: relative position bias (relative_attention_num_buckets) not supported: ",
    "bert-relative": "attn_contract: relative position embeddings (relative_key_query) not supported: ",
    "deepseek-v4": "attn_contract: compressed keys (compress_rates) not supported: no backend here is one of vLLM's for them",
    "deepseek-v4.1": "attn_contract: compressed keys (compress_ratios) not supported: no backend here is one of vLLM's",
    "glm-5.3-flash": "attn_contract: an indexer of pools (index_kpool) not supported: the tokens of the open pool",
    "qwen4-exp": "attn_contract: an indexer of groups of tokens (QSA) (indexer_budget) not supported: no backend here",
    "step5": "attn_contract: an indexer of regions (region_block_size) not supported: vLLM has its backend on NVIDIA's GPUs",
    "mamba-2.8b": "no call of transformers' attention: MambaForCausalLM of MambaMixer",
}

IN_PART: dict[str, tuple[list[int], str]] = {
    "jamba-v0.1": ([4, 12, 20, 28], "JambaMambaMixer"),
    "qwen3-next-80b-a3b": (list(range(3, 48, 4)), "Qwen3NextGatedDeltaNet"),
    "minimax-text-01": (list(range(7, 80, 8)), "MiniMaxLightningAttention"),
}
"""The numbers of the layers with softmax attention, and the class of the mixer of the others, where transformers is."""
