"""A model that attends through the ops generates the same tokens wherever it is, without a change of its code."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

ops = torch.ops.attn_parity
LAYOUT = "BLOCKS_FIRST_NHD"
NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE = 4, 2, 16
NUM_BLOCKS, BLOCK_SIZE = 24, 4
VOCABULARY, HIDDEN_SIZE, NUM_LAYERS, SLIDING_WINDOW = 64, 32, 2, 8
NUM_NEW_TOKENS = 20
PROMPTS = [[5, 17, 3, 40, 8, 21, 60], [11, 2, 33], [50, 9, 9, 28, 14]]


@dataclass(frozen=True, kw_only=True)
class ModelStep:
    """The new tokens of all requests, packed; request r owns the blocks r, r + R, r + 2 * R and so on of R requests."""

    tokens: torch.Tensor
    positions: torch.Tensor
    slot_mapping: torch.Tensor
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    block_table: torch.Tensor
    max_query_len: int
    max_seq_len: int

    @classmethod
    def of(cls, sequences: list[list[int]], context_lens: list[int], device: torch.device) -> "ModelStep":
        num_requests, seq_lens = len(sequences), [len(tokens) for tokens in sequences]
        positions = [range(context, end) for context, end in zip(context_lens, seq_lens, strict=True)]
        blocks = torch.arange(NUM_BLOCKS // num_requests * num_requests).view(-1, num_requests).T
        slots = [blocks[r, p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for r, at in enumerate(positions) for p in at]
        query_lens = [len(at) for at in positions]
        return cls(
            tokens=torch.tensor([sequences[r][p] for r, at in enumerate(positions) for p in at], device=device),
            positions=torch.tensor([p for at in positions for p in at], device=device),
            slot_mapping=torch.tensor(slots, device=device),
            query_start_loc=torch.tensor([0, *query_lens]).cumsum(0).int().to(device),
            seq_lens=torch.tensor(seq_lens, dtype=torch.int32, device=device),
            block_table=blocks.int().contiguous().to(device),
            max_query_len=max(query_lens),
            max_seq_len=max(seq_lens),
        )


@torch.no_grad()
def generate(logits_of: Callable[[ModelStep], torch.Tensor], device: torch.device) -> list[list[int]]:
    """Greedily, all prompts in one batch: prompts first, then one token of each in every step."""
    sequences, context_lens = [list(prompt) for prompt in PROMPTS], [0] * len(PROMPTS)
    for _ in range(NUM_NEW_TOKENS):
        step = ModelStep.of(sequences, context_lens, device)
        last = step.query_start_loc[1:].long() - 1
        context_lens = [len(tokens) for tokens in sequences]
        for tokens, token in zip(sequences, logits_of(step)[last].argmax(-1).tolist(), strict=True):
            tokens.append(token)
    return sequences


def empty_kv_cache() -> torch.Tensor:
    return torch.full((NUM_BLOCKS, 2, BLOCK_SIZE, NUM_KV_HEADS, HEAD_SIZE), torch.nan)


def attend(
    q: torch.Tensor, kv_cache: torch.Tensor, step: ModelStep, *, sliding_window: int | None, sinks: torch.Tensor
) -> torch.Tensor:
    """[T, H, D], over a cache that holds this step's keys and values."""
    left = -1 if sliding_window is None else sliding_window - 1
    out = torch.empty_like(q)
    ops.paged_attention(
        q,
        kv_cache,
        LAYOUT,
        num_kv_heads=NUM_KV_HEADS,
        scale=HEAD_SIZE**-0.5,
        attn_type="decoder",
        query_start_loc=step.query_start_loc,
        seq_lens=step.seq_lens,
        max_query_len=step.max_query_len,
        max_seq_len=step.max_seq_len,
        num_actual_tokens=len(q),
        block_table=step.block_table,
        causal=True,
        causal_per_request=None,
        out=out,
        lse=None,
        window=[left, left],
        sinks=sinks,
    )
    return out


def paged_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    sliding_window: int | None,
    s_aux: torch.Tensor,
    kv_caches: list[torch.Tensor],
    step: ModelStep,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls: [1, heads, T, D] of this step's tokens, since it keeps no cache of its own."""
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    kv_cache = kv_caches[module.layer_idx]
    ops.write_kv_cache(k, v, kv_cache, LAYOUT, step.slot_mapping)
    return attend(q, kv_cache, step, sliding_window=sliding_window, sinks=s_aux)[None], None


@torch.no_grad()
def test_gpt_oss_generates_the_tokens_of_its_own_eager_attention(device):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GptOssConfig(
        num_hidden_layers=NUM_LAYERS,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=16,
        num_attention_heads=NUM_HEADS,
        num_key_value_heads=NUM_KV_HEADS,
        head_dim=HEAD_SIZE,
        num_local_experts=2,
        num_experts_per_tok=1,
        vocab_size=VOCABULARY,
        sliding_window=SLIDING_WINDOW,
        attn_implementation="eager",
        experts_implementation="eager",
    )
    model = transformers.GptOssForCausalLM(config).eval()
    for layer in model.model.layers:
        layer.self_attn.sinks.normal_()
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            projection.weight.mul_(20)
    expected = [list(prompt) for prompt in PROMPTS]
    for tokens in expected:
        for _ in range(NUM_NEW_TOKENS):
            tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))

    transformers.AttentionInterface.register("paged_by_operators", paged_attention)
    model.set_attn_implementation("paged_by_operators")
    model.to(device)
    kv_caches = [empty_kv_cache().to(device) for _ in range(NUM_LAYERS)]

    def logits_of(step: ModelStep) -> torch.Tensor:
        ids, positions = step.tokens[None], step.positions[None]
        return model(ids, position_ids=positions, use_cache=False, kv_caches=kv_caches, step=step).logits[0]

    assert generate(logits_of, device) == expected
