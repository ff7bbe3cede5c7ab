"""The reference against the eager attention of `transformers`: tiny random models show what real layers pass.

While a model runs, every call of its eager attention is recorded and computed once more in float64. Each call is then replayed
through a paged cache (dense, for an encoder), without the mask of the model.
"""

from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from attn_contract import AttentionType
from attn_reference import attend, paged_requests, varlen_requests

transformers = pytest.importorskip("transformers")
modeling_gemma2 = pytest.importorskip("transformers.models.gemma2.modeling_gemma2")
modeling_gemma3 = pytest.importorskip("transformers.models.gemma3.modeling_gemma3")
modeling_llama4 = pytest.importorskip("transformers.models.llama4.modeling_llama4")
modeling_gpt_oss = pytest.importorskip("transformers.models.gpt_oss.modeling_gpt_oss")
modeling_mpt = pytest.importorskip("transformers.models.mpt.modeling_mpt")
modeling_whisper = pytest.importorskip("transformers.models.whisper.modeling_whisper")
tiny_models = pytest.importorskip("tests.plugins.tiny_models")


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
            exact, _ = eager(module, query.double(), key.double(), value.double(), attention_mask, scaling=scaling, **kwargs)
            requests = [tuple(x.transpose(0, 1) for x in request) for request in zip(query, key, value, strict=True)]
            recorded.append(Recorded(module, requests, scaling, exact))
            return eager(module, query, key, value, attention_mask, scaling=scaling, **kwargs)

        monkeypatch.setattr(modeling, "eager_attention_forward", recording)
        return recorded

    return wrap


def assert_agrees(requests, layer, expected, *, is_softmax_single=False):
    """Compare the outputs.

    Some models take the softmax in float32 whatever their dtype is. The relative error of a softmax of n logits s is then at
    most 2^-24 * (2 * abs(s) + n + 4), and the error of the output as large a part of the largest value.
    """
    for request, theirs in zip(requests, expected, strict=True):
        ours = attend(request, layer)
        rtol, atol = 1e-12, 1e-14
        if is_softmax_single:
            logits = ours.logits[ours.logits > -torch.inf]
            roundings = 2 * logits.abs().max().item() + ours.logits.shape[-1] + 4
            atol = 2**-24 * roundings * request.value.abs().max().item()
        torch.testing.assert_close(ours.out, theirs, rtol=rtol, atol=atol)


STEPS = (7, 3, 1)
"""A prompt, an extend and a decode of two requests."""


@torch.no_grad()
def recorded_calls(record, modeling: ModuleType, name: str) -> list[Recorded]:
    """The calls of attention of a tiny model in these steps: two layers in each."""
    model = tiny_models.tiny(name).model
    recorded, cache = record(modeling), transformers.DynamicCache()
    for tokens in STEPS:
        model(torch.randint(4, 32, (2, tokens)), past_key_values=cache, use_cache=True)
    lengths = [(len(query), len(key)) for query, key, _ in (call.requests[0] for call in recorded)]
    assert lengths == [(7, 7), (7, 7), (3, 10), (3, 10), (1, 11), (1, 11)]
    return recorded


def window_of(call: Recorded) -> tuple[int, int]:
    W = call.module.sliding_window
    return (-1, -1) if W is None else (W - 1, W - 1)


def test_gpt_oss(record, paged_call):
    """Sinks in every layer, and a window of 4 tokens, the query's own included, in every other."""
    recorded = recorded_calls(record, modeling_gpt_oss, "gpt_oss")
    assert {call.module.sliding_window for call in recorded} == {4, None}
    for call in recorded:
        rules = {"window": window_of(call), "sinks": call.module.sinks.detach()}
        paged = paged_call(call.requests, scale=call.scaling, **rules)
        assert_agrees(paged_requests(*paged, torch.float64), paged.layer, call.expected)


def test_gemma2(record, paged_call):
    """Every layer has a soft cap of 2, which saturates. Every other layer has a window of 4 tokens."""
    recorded = recorded_calls(record, modeling_gemma2, "gemma2")
    assert {call.module.sliding_window for call in recorded} == {4, None}
    for call in recorded:
        paged = paged_call(call.requests, scale=call.scaling, window=window_of(call), logits_soft_cap=2.0)
        requests = list(paged_requests(*paged, torch.float64))
        assert max(attend(request, paged.layer).scores.abs().max() for request in requests) > 4
        assert_agrees(requests, paged.layer, call.expected, is_softmax_single=True)


def test_llama4(record, paged_call):
    """The layer with RoPE attends within chunks of 4 tokens, the other one to everything. Steps cross the end of a chunk."""
    recorded = recorded_calls(record, modeling_llama4, "llama4")
    assert [bool(call.module.use_rope) for call in recorded] == [True, False] * 3
    for call in recorded:
        paged = paged_call(call.requests, scale=call.scaling, chunked_local=4 if call.module.use_rope else None)
        assert_agrees(paged_requests(*paged, torch.float64), paged.layer, call.expected)


@pytest.mark.skipif(
    not hasattr(modeling_gemma3, "create_masks_for_vision_model"),
    reason="transformers before its #46850 ignored the window inside an image",
)
def test_gemma3_keeps_the_window_inside_an_image(paged_call, randn):
    """The masks of both layer types, for a prompt with an image of 6 tokens, wider than the window of W = 4, and one of 3."""
    W, token_types = 4, torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 0]])
    ranges = torch.tensor([[[2, 7], [9, 11]]], dtype=torch.int32)
    tokens = token_types.shape[1]
    config = transformers.Gemma3TextConfig(hidden_size=8, num_hidden_layers=1, sliding_window=W, attn_implementation="eager")
    blocks = modeling_gemma3.get_block_sequence_ids_for_mask(token_types)
    # by position: no attention_mask, no cache, whose name is another one since transformers 5.24, and no position_ids
    masks = modeling_gemma3.create_masks_for_vision_model(config, torch.zeros(1, tokens, 8), None, None, None, blocks)
    rules = {"sliding_attention": {"window": (W - 1, W - 1), "ranges_clamped": True}, "full_attention": {}}
    for layer_type, fields in rules.items():
        request = (randn(tokens, 1, 4), randn(tokens, 1, 4), randn(tokens, 1, 4))
        call = paged_call([request], bidirectional_ranges=ranges, **fields)
        (request,) = paged_requests(*call, torch.float64)
        assert torch.equal(request.visible, masks[layer_type][0, 0] == 0), layer_type


@torch.no_grad()
def test_mpt(paged_call):
    """ALiBi in the other usual form, `slope * (j - last)`. It shifts all logits of a row, which a causal softmax without a sink
    does not notice. MPT has no attention function to record, so its module runs here with its projections made visible."""
    torch.manual_seed(0)
    num_heads, head_size, tokens = 3, 4, 6
    config = transformers.MptConfig(d_model=num_heads * head_size, n_heads=num_heads, n_layers=1, max_seq_len=8, vocab_size=16)
    module = modeling_mpt.MptAttention(config, layer_idx=0).double().eval()
    module.Wqkv.weight.mul_(20)
    module.out_proj = torch.nn.Identity()
    bias = modeling_mpt.build_mpt_alibi_tensor(num_heads, config.max_seq_len)
    hidden = torch.randn(1, tokens, num_heads * head_size, dtype=torch.float64).float().double()
    future = torch.ones(1, 1, tokens, tokens).triu(1).bool()
    query, key, value = (x[0].unflatten(-1, (num_heads, head_size)).float() for x in module.Wqkv(hidden).chunk(3, dim=-1))
    module.Wqkv = torch.nn.Identity()
    qkv = torch.cat([x.flatten(1) for x in (query, key, value)], dim=-1)[None].double()
    expected, _ = module(qkv, position_bias=bias.double(), attention_mask=future)

    slopes = bias[:, 0, 1] - bias[:, 0, 0]
    assert slopes.tolist() == [2.0**-4, 2.0**-8, 2.0**-2]
    paged = paged_call([(query, key, value)], scale=module.softmax_scale, alibi_slopes=slopes)
    theirs = expected.unflatten(-1, (num_heads, head_size))
    assert_agrees(paged_requests(*paged, torch.float64), paged.layer, theirs, is_softmax_single=True)


@torch.no_grad()
def test_whisper(record, paged_call, varlen_call):
    """The three attention types of an encoder-decoder model; cross-attention with several queries and with one."""
    model = tiny_models.tiny("whisper").model
    recorded, cache = record(modeling_whisper), None
    encoded = model.encoder(torch.randn(2, 8, 16))
    for tokens in (3, 1):
        inputs = torch.randint(4, 32, (2, tokens))
        cache = model(encoder_outputs=encoded, decoder_input_ids=inputs, past_key_values=cache, use_cache=True).past_key_values

    replayed = []
    for call in recorded:
        if call.module in [layer.self_attn for layer in model.encoder.layers]:
            attn_type = AttentionType.ENCODER
            dense = varlen_call(call.requests, scale=call.scaling, attn_type=attn_type)
            requests, layer = varlen_requests(*dense, torch.float64), dense.layer
        else:
            is_cross = call.module in [layer.encoder_attn for layer in model.decoder.layers]
            attn_type = AttentionType.ENCODER_DECODER if is_cross else AttentionType.DECODER
            paged = paged_call(call.requests, scale=call.scaling, attn_type=attn_type, causal=not is_cross)
            requests, layer = paged_requests(*paged, torch.float64), paged.layer
        assert_agrees(requests, layer, call.expected)
        query, key, _ = call.requests[0]
        replayed.append((attn_type, len(query), len(key)))
    in_step = [[(AttentionType.DECODER, *own), (AttentionType.ENCODER_DECODER, own[0], 8)] * 2 for own in ((3, 3), (1, 4))]
    assert replayed == [(AttentionType.ENCODER, 8, 8)] * 2 + in_step[0] + in_step[1]
