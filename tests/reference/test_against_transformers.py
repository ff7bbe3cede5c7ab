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


def sharpen(model):
    """Make logits large. A random model's are all about 0: its attention is a mean, and no rule would show."""
    for name, weight in model.named_parameters():
        if "q_proj.weight" in name or "k_proj.weight" in name:
            weight.mul_(20)


@torch.no_grad()
def test_gpt_oss(record, paged_call):
    """Prefill, extend and decode, with sinks in every layer and a window of W = 4 tokens, itself included, in every other."""
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
    sharpen(model)
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
def test_gemma2(record, paged_call):
    """Every layer has a soft cap of 2, which saturates. Every other layer has a window of W = 4 tokens."""
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        num_hidden_layers=2,
        hidden_size=32,
        intermediate_size=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        query_pre_attn_scalar=8,
        vocab_size=32,
        sliding_window=4,
        attn_logit_softcapping=2.0,
        pad_token_id=0,
        attn_implementation="eager",
    )
    model = transformers.Gemma2Model(config).eval()
    sharpen(model)
    recorded = record(modeling_gemma2)
    cache = transformers.DynamicCache()
    for tokens in (7, 3, 1):
        model(torch.randint(2, 32, (2, tokens)), past_key_values=cache, use_cache=True)

    assert {call.module.sliding_window for call in recorded} == {4, None}
    assert len(recorded) == 6
    for call in recorded:
        W = call.module.sliding_window
        window = (-1, -1) if W is None else (W - 1, W - 1)
        paged = paged_call(call.requests, scale=call.scaling, window=window, logits_soft_cap=2.0)
        requests = list(paged_requests(*paged, torch.float64))
        assert max(attend(request, paged.layer).scores.abs().max() for request in requests) > 4
        assert_agrees(requests, paged.layer, call.expected, is_softmax_single=True)


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
def test_llama4(record, paged_call):
    """The layer with RoPE attends within chunks of 4 tokens, the other one to everything. Steps cross the end of a chunk."""
    torch.manual_seed(0)
    config = transformers.Llama4TextConfig(
        num_hidden_layers=2,
        hidden_size=32,
        intermediate_size=16,
        intermediate_size_mlp=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=32,
        attention_chunk_size=4,
        no_rope_layers=[1, 0],
        num_local_experts=2,
        pad_token_id=0,
        attn_implementation="eager",
    )
    model = transformers.Llama4TextModel(config).eval()
    sharpen(model)
    recorded = record(modeling_llama4)
    cache = transformers.DynamicCache()
    for tokens in (7, 3, 1):
        model(torch.randint(2, 32, (2, tokens)), past_key_values=cache, use_cache=True)

    lengths = [(len(query), len(key)) for query, key, _ in (call.requests[0] for call in recorded)]
    assert lengths == [(7, 7), (7, 7), (3, 10), (3, 10), (1, 11), (1, 11)]
    assert [bool(call.module.use_rope) for call in recorded] == [True, False] * 3
    for call in recorded:
        chunked_local = 4 if call.module.use_rope else None
        paged = paged_call(call.requests, scale=call.scaling, chunked_local=chunked_local)
        assert_agrees(paged_requests(*paged, torch.float64), paged.layer, call.expected)


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
    sharpen(model)
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
