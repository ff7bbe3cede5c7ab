"""Eleven models of transformers with random weights, 2 to 4 layers and no download."""

from collections.abc import Callable
from typing import Any

import torch
import transformers

VOCABULARY = 64
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**SMALL, "num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 64}
SIDE = {"layers": 2, "attention_heads": 4, "ffn_dim": 64}
WITH_ENCODER = {
    "vocab_size": VOCABULARY,
    "d_model": 64,
    **{f"encoder_{name}": size for name, size in SIDE.items()},
    **{f"decoder_{name}": size for name, size in SIDE.items()},
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
    "attn_implementation": "eager",
}
WINDOW = 4


def gpt_oss() -> Any:
    """Sinks, and a window in every other layer."""
    config = transformers.GptOssConfig(
        **GROUPED, num_local_experts=2, num_experts_per_tok=1, sliding_window=WINDOW, attn_implementation="eager"
    )
    model = transformers.GptOssForCausalLM(config)
    for layer in model.model.layers:
        layer.self_attn.sinks.data.normal_()
    return model


def gemma2() -> Any:
    """A soft cap that saturates, and a window in every other layer."""
    return transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(
            **GROUPED, query_pre_attn_scalar=16, sliding_window=WINDOW, attn_logit_softcapping=2.0, attn_implementation="eager"
        )
    )


def gemma3() -> Any:
    return transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(
            **{**GROUPED, "num_hidden_layers": 4},
            query_pre_attn_scalar=16,
            sliding_window=WINDOW,
            layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
            attn_implementation="eager",
        )
    )


def llama4() -> Any:
    """Chunks in the layers with RoPE."""
    return transformers.Llama4ForCausalLM(
        transformers.Llama4TextConfig(
            **GROUPED,
            intermediate_size_mlp=64,
            attention_chunk_size=WINDOW,
            no_rope_layers=[1, 0],
            num_local_experts=2,
            attn_implementation="eager",
        )
    )


def mistral() -> Any:
    return transformers.MistralForCausalLM(
        transformers.MistralConfig(**GROUPED, sliding_window=WINDOW, attn_implementation="eager")
    )


def whisper() -> Any:
    config = transformers.WhisperConfig(
        **WITH_ENCODER,
        num_mel_bins=8,
        max_source_positions=8,
        max_target_positions=32,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    return transformers.WhisperForConditionalGeneration(config)


def bart() -> Any:
    config = transformers.BartConfig(**WITH_ENCODER, max_position_embeddings=64, forced_eos_token_id=None)
    return transformers.BartForConditionalGeneration(config)


def bert() -> Any:
    config = transformers.BertConfig(
        **SMALL, num_hidden_layers=2, intermediate_size=64, max_position_embeddings=64, attn_implementation="eager"
    )
    return transformers.BertModel(config)


def bloom() -> Any:
    """ALiBi; 6 heads, so that slopes are not all powers of 2."""
    config = transformers.BloomConfig(
        vocab_size=VOCABULARY, hidden_size=96, n_layer=2, n_head=6, pad_token_id=0, eos_token_id=2, attn_implementation="eager"
    )
    return transformers.BloomForCausalLM(config)


def mpt() -> Any:
    """ALiBi; 6 heads, so that slopes are not all powers of 2."""
    config = transformers.MptConfig(
        d_model=96, n_heads=6, n_layers=2, max_seq_len=64, vocab_size=VOCABULARY, attn_implementation="eager"
    )
    config.pad_token_id, config.eos_token_id = 0, 2
    return transformers.MptForCausalLM(config)


def deepseek_v3() -> Any:
    """MLA, expanded: V is narrower than K."""
    config = transformers.DeepseekV3Config(
        **SMALL,
        num_hidden_layers=2,
        num_key_value_heads=4,
        intermediate_size=64,
        moe_intermediate_size=32,
        n_routed_experts=2,
        num_experts_per_tok=1,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=12,
        attn_implementation="eager",
    )
    return transformers.DeepseekV3ForCausalLM(config)


def llama() -> Any:
    """Full attention alone."""
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED, attn_implementation="eager"))


def qwen3_moe() -> Any:
    """Norms of queries and keys, and experts."""
    config = transformers.Qwen3MoeConfig(**GROUPED, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
    return transformers.Qwen3MoeForCausalLM(config)


def glm4() -> Any:
    """A half of each head rotates."""
    return transformers.Glm4ForCausalLM(transformers.Glm4Config(**GROUPED))


def cohere2() -> Any:
    """Three of four layers have a window, and the last one does not rotate."""
    return transformers.Cohere2ForCausalLM(
        transformers.Cohere2Config(**{**GROUPED, "num_hidden_layers": 4}, sliding_window=WINDOW)
    )


def gemma3n() -> Any:
    """The last two of four layers have the keys of the first two."""
    config = transformers.Gemma3nTextConfig(
        **{**GROUPED, "num_hidden_layers": 4},
        num_kv_shared_layers=2,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"] * 2,
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size_per_layer_input=8,
        laurel_rank=8,
        altup_num_inputs=2,
        activation_sparsity_pattern=None,
    )
    return transformers.Gemma3nForCausalLM(config)


def smollm3() -> Any:
    """One of two layers does not rotate."""
    return transformers.SmolLM3ForCausalLM(transformers.SmolLM3Config(**GROUPED, no_rope_layers=[1, 0]))


BUILDERS: dict[str, Callable[[], Any]] = {
    build.__name__: build for build in (gpt_oss, gemma2, gemma3, llama4, mistral, whisper, bart, bert, bloom, mpt, deepseek_v3)
}
ENGINE: dict[str, Callable[[], Any]] = {
    build.__name__: build for build in (llama, mistral, gemma2, gemma3, gpt_oss, qwen3_moe, glm4, cohere2, gemma3n, smollm3)
}
"""Models for continuous batching, which serves neither chunks, nor ALiBi, nor V of another width than K."""


def tiny(name: str) -> Any:
    """The model of that name, by the same weights each time.

    A random model's logits of attention are all about 0: its attention is a mean, and no rule would show. So weights that make
    queries and keys are enlarged.
    """
    torch.manual_seed(0)
    model = (BUILDERS | ENGINE)[name]().eval().requires_grad_(False)
    for parameter, weight in model.named_parameters():
        if any(
            part in parameter for part in ("q_proj.weight", "k_proj.weight", "query.weight", "key.weight", "q_b_proj.weight")
        ):
            weight.mul_(12)
        if any(part in parameter for part in ("query_key_value.weight", "Wqkv.weight")):
            weight.mul_(8)
    return model


def prompts(lengths: tuple[int, ...], *, padded: str = "left") -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` of random tokens, filled up to the longest prompt on one side."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    for row, length in zip(ids, lengths, strict=True):
        at = slice(len(row) - length, None) if padded == "left" else slice(length)
        row[at] = torch.randint(4, VOCABULARY, (length,), generator=generator)
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def features(rows: int) -> dict[str, torch.Tensor]:
    """Whisper's input: 16 frames, which its encoder halves, and 4 tokens for its decoder."""
    generator = torch.Generator().manual_seed(1)
    frames = torch.randn(rows, 8, 16, generator=generator)
    return {"input_features": frames, "decoder_input_ids": torch.randint(4, VOCABULARY, (rows, 4), generator=generator)}
