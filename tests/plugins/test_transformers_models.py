"""Eleven models of transformers on the reference: the same tokens and logits as on transformers' eager attention.

Each model also runs on a reference that has lost a rule of it, and must then differ: else the comparison would show nothing.
"""

import dataclasses
import functools
from types import SimpleNamespace

import attn_reference
import pytest
import torch

pytest.importorskip("transformers", "5.20", reason="needs transformers: pip install 'attn-parity[transformers]'")

from attn_transformers.attention import attention
from attn_transformers.registration import whole_mask
from transformers import AttentionInterface, AttentionMaskInterface

from tests.plugins.tiny_models import BUILDERS, features, prompts, tiny

BOUND = 1e-5
"""For logits of about 1, or hidden states of BERT: both sides compute in float32, in another order."""

KINDS: dict[str, dict] = {
    "one prompt": {},
    "greedy": {},
    "beams": {"num_beams": 3},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
}


pytestmark = pytest.mark.usefixtures("registered")


def ran(name, model, implementation, lengths=(7, 4, 9), **options) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens and the logits that a model generates from prompts of these lengths, or BERT's hidden states twice."""
    model.set_attn_implementation(implementation)
    assert model.config._attn_implementation == implementation
    inputs = features(len(lengths)) if name == "whisper" else prompts(lengths)
    inputs = {argument: tensor.to(model.device) for argument, tensor in inputs.items()}
    if name == "bert":
        hidden = model(**inputs).last_hidden_state
        return hidden, hidden
    generated = model.generate(
        **inputs, **{"max_new_tokens": 6, "do_sample": False, **options}, output_logits=True, return_dict_in_generate=True
    )
    return generated["sequences"], torch.stack(generated["logits"])


def difference(mine: tuple[torch.Tensor, torch.Tensor], theirs: tuple[torch.Tensor, torch.Tensor]) -> float:
    """The largest difference of a logit; infinite if tokens differ."""
    if mine[0].shape != theirs[0].shape or (not mine[0].is_floating_point() and not torch.equal(mine[0], theirs[0])):
        return float("inf")
    return (mine[1] - theirs[1]).abs().max().item()


every_way = pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=[pytest.mark.nightly] * (kind in ("one prompt", "static cache") and name != "gemma3"))
        for name in BUILDERS
        for kind in KINDS
        if name != "bert" or not KINDS[kind]
    ],
)


@every_way
def test_a_model_generates_what_it_does_on_eager(name, kind):
    lengths = (8,) if kind == "one prompt" else (7, 4, 9)
    model = tiny(name)
    theirs = ran(name, model, "eager", lengths, **KINDS[kind])
    assert difference(ran(name, model, "attn_parity", lengths, **KINDS[kind]), theirs) <= BOUND


def of_layer(**changes):
    """A reference that attends with another layer. A change is a value, or a function of the layer's."""

    def changed(layer):
        new = {name: value(getattr(layer, name)) if callable(value) else value for name, value in changes.items()}
        return dataclasses.replace(layer, **new)

    return SimpleNamespace(
        write_kv_cache=attn_reference.write_kv_cache,
        varlen_attention=lambda q, k, v, layer, batch: attn_reference.varlen_attention(q, k, v, changed(layer), batch),
        paged_attention=lambda q, cache, layer, batch: attn_reference.paged_attention(q, cache, changed(layer), batch),
    )


def not_causal(q, cache, layer, batch):
    return attn_reference.paged_attention(q, cache, layer, dataclasses.replace(batch, causal=False))


def one_narrower(window):
    return (window[0] - 1, window[1] - 1) if window[0] > 0 else window


def one_shorter(chunk):
    return None if chunk is None else chunk - 1


BROKEN = {
    "gpt_oss": of_layer(sinks=None),
    "gemma2": of_layer(logits_soft_cap=None),
    "gemma3": of_layer(window=one_narrower),
    "llama4": of_layer(chunked_local=one_shorter),
    "mistral": of_layer(window=one_narrower),
    "whisper": SimpleNamespace(**{**vars(of_layer()), "paged_attention": not_causal}),
    "bart": "padding",
    "bert": "padding",
    "bloom": of_layer(alibi_slopes=None),
    "mpt": of_layer(alibi_slopes=lambda slopes: slopes / 2),
    "deepseek_v3": of_layer(scale=lambda scale: 1.1 * scale),
}


def seeing_padding(*args, attention_mask=None, **kwargs):
    return whole_mask(*args, **kwargs)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_model_on_a_broken_reference_differs(name, monkeypatch):
    model = tiny(name)
    theirs = ran(name, model, "eager")
    if BROKEN[name] == "padding":
        monkeypatch.setitem(AttentionMaskInterface._global_mapping, "attn_parity", seeing_padding)
    else:
        broken = functools.partial(attention, BROKEN[name])
        monkeypatch.setitem(AttentionInterface._global_mapping, "attn_parity", broken)
    assert difference(ran(name, model, "attn_parity"), theirs) > 100 * BOUND


@pytest.mark.parametrize("name", ["gpt_oss", "bert", "deepseek_v3"])
def test_the_kernels_generate_the_same(name):
    """Interpreted where there is no GPU. Agreement of the kernels is the fuzzer's to test: here it is the way to them."""
    model = tiny(name).to("cuda" if torch.cuda.is_available() else "cpu")
    theirs = ran(name, model, "eager", (4, 5), max_new_tokens=2)
    assert difference(ran(name, model, "attn_parity_triton", (4, 5), max_new_tokens=2), theirs) <= BOUND


@pytest.mark.skipif(not torch.cuda.is_available(), reason="interpreted, these take many minutes: two models run above")
@every_way
def test_the_kernels_generate_the_same_on_a_gpu(name, kind):
    lengths = (8,) if kind == "one prompt" else (7, 4, 9)
    model = tiny(name).to("cuda")
    theirs = ran(name, model, "eager", lengths, **KINDS[kind])
    assert difference(ran(name, model, "attn_parity_triton", lengths, **KINDS[kind]), theirs) <= BOUND
