"""The reference against the eager attention of `transformers`, in tiny random models: what real layers really pass.

While a model runs, every call of its eager attention is recorded and computed once more in float64; each is then replayed
through a paged cache (or dense, for an encoder), without the model's mask.
"""

from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from attn_contract import AttentionType
from attn_reference import attend, paged_requests, varlen_requests

transformers = pytest.importorskip("transformers")
modeling_gpt_oss = pytest.importorskip("transformers.models.gpt_oss.modeling_gpt_oss")
modeling_whisper = pytest.importorskip("transformers.models.whisper.modeling_whisper")


class Recorded(NamedTuple):
    module: torch.nn.Module
    requests: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    scaling: float
    expected: torch.Tensor
    """[requests, q_len, H, D] float64"""


@pytest.fixture
def record(monkeypatch):
    def wrap(modeling: ModuleType) -> list[Recorded]:
        eager, recorded = modeling.eager_attention_forward, []

        def recording(module, query, key, value, attention_mask, scaling, **kwargs):
            exact, _ = eager(module, query.double(), key.double(), value.double(), attention_mask, scaling, **kwargs)
            requests = [tuple(x.transpose(0, 1) for x in request) for request in zip(query, key, value, strict=True)]
            recorded.append(Recorded(module, requests, scaling, exact))
            return eager(module, query, key, value, attention_mask, scaling, **kwargs)

        monkeypatch.setattr(modeling, "eager_attention_forward", recording)
        return recorded

    return wrap


def assert_agrees(requests, layer, expected):
    for request, theirs in zip(requests, expected, strict=True):
        ours = attend(request.query, request.key, request.value, request.visible, layer.scale, layer.sinks)
        torch.testing.assert_close(ours.out, theirs, rtol=1e-12, atol=1e-14)


@torch.no_grad()
def test_gpt_oss(record, paged_call):
    """Sinks in every layer and a window of W = 4 tokens, itself counted, in every other: prefill, extend and decode."""
    torch.manual_seed(0)
    config = transformers.GptOssConfig(
        num_hidden_layers=2,
        hidden_size=32,
        intermediate_size=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=2,
        num_experts_per_tok=1,
        vocab_size=32,
        sliding_window=4,
        pad_token_id=0,
        eos_token_id=1,
        attn_implementation="eager",
    )
    model = transformers.GptOssModel(config).eval()
    for layer in model.layers:
        layer.self_attn.sinks.normal_()
        layer.self_attn.q_proj.weight.mul_(20)
        layer.self_attn.k_proj.weight.mul_(20)
    recorded = record(modeling_gpt_oss)
    cache = transformers.DynamicCache()
    for tokens in (7, 3, 1):
        model(torch.randint(2, 32, (2, tokens)), past_key_values=cache, use_cache=True)

    lengths = [(len(query), len(key)) for query, key, _ in (call.requests[0] for call in recorded)]
    assert lengths == [(7, 7), (7, 7), (3, 10), (3, 10), (1, 11), (1, 11)]
    assert {call.module.sliding_window for call in recorded} == {4, None}
    for call in recorded:
        W = call.module.sliding_window
        window = (-1, -1) if W is None else (W - 1, W - 1)
        paged = paged_call(call.requests, scale=call.scaling, window=window, sinks=call.module.sinks.detach())
        assert_agrees(paged_requests(*paged, torch.float64), paged.layer, call.expected)


@torch.no_grad()
def test_whisper(record, paged_call, varlen_call):
    """All three types of an encoder-decoder model, cross-attention with several queries and with one."""
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        vocab_size=32,
        num_mel_bins=8,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_source_positions=6,
        max_target_positions=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
        decoder_start_token_id=2,
        attn_implementation="eager",
    )
    model = transformers.WhisperModel(config).eval()
    for name, weight in model.named_parameters():
        if "q_proj.weight" in name or "k_proj.weight" in name:
            weight.mul_(20)
    recorded = record(modeling_whisper)
    encoded = model.encoder(torch.randn(2, 8, 12))
    cache = None
    for tokens in (3, 1):
        inputs = torch.randint(2, 32, (2, tokens))
        result = model(encoder_outputs=encoded, decoder_input_ids=inputs, past_key_values=cache, use_cache=True)
        cache = result.past_key_values

    replayed = []
    for call in recorded:
        if call.module is model.encoder.layers[0].self_attn:
            attn_type = AttentionType.ENCODER
            dense = varlen_call(call.requests, scale=call.scaling, attn_type=attn_type)
            requests, layer = varlen_requests(*dense, torch.float64), dense.layer
        else:
            is_cross = call.module is model.decoder.layers[0].encoder_attn
            attn_type = AttentionType.ENCODER_DECODER if is_cross else AttentionType.DECODER
            paged = paged_call(call.requests, scale=call.scaling, attn_type=attn_type, causal=not is_cross)
            requests, layer = paged_requests(*paged, torch.float64), paged.layer
        assert_agrees(requests, layer, call.expected)
        query, key, _ = call.requests[0]
        replayed.append((attn_type, len(query), len(key)))
    assert replayed == [
        (AttentionType.ENCODER, 6, 6),
        (AttentionType.DECODER, 3, 3),
        (AttentionType.ENCODER_DECODER, 3, 6),
        (AttentionType.DECODER, 1, 4),
        (AttentionType.ENCODER_DECODER, 1, 6),
    ]
