"""Tokens of which a mask hides every key: real ones are named, padding is not."""

import functools
import warnings
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers", "5.24", reason="needs transformers: pip install 'attn-parity[transformers]'")
pytest.importorskip("msgspec", reason="needs the extra fuzz: recordings are cases")

import attn_transformers
import transformers
from attn_transformers.padding import hidden_tokens
from attn_transformers.registration import whole_mask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tests.plugins.engine import served, with_prefixes
from tests.plugins.tiny_models import prompts, tiny

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])
LEFT, RIGHT = prompts((9, 2)), prompts((9, 2), padded="right")
MORE = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


pytestmark = pytest.mark.usefixtures("registered")


def blind(mask, *, row):
    """The mask, with every key of the last query of a row hidden."""
    mask = mask.clone()
    mask[row, :, -1] = False
    return mask


@pytest.fixture
def of_masks(monkeypatch, tmp_path):
    """Runs a model on SDPA whose masks a function changes: what the recording found hidden, and how many, and its warnings."""

    def run(model, use, change=lambda mask: mask):
        monkeypatch.setitem(AttentionInterface._global_mapping, "mine", sdpa_attention_forward)
        made = lambda *args, **options: change(whole_mask(*args, **options))  # noqa: E731
        monkeypatch.setitem(AttentionMaskInterface._global_mapping, "mine", made)
        model.set_attn_implementation("mine")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with attn_transformers.recording(tmp_path, "mine") as recording:
                use(model)
        assert recording.judged
        return recording.first_hidden, recording.hidden, [str(one.message) for one in caught if "HIDES" in str(one.message)]

    return run


def generated(given, **options):
    return lambda model: model.generate(**given, **{**MORE, **options})


@pytest.mark.parametrize(
    ("name", "use", "row", "expected"),
    [
        ("mistral", lambda model: model(**LEFT), 1, ("row 1 of the batch, position 8", 2)),
        ("mistral", lambda model: model(IDS), 0, ("row 0 of the batch, position 5", 2)),
        ("gemma3", generated(LEFT), 1, ("row 1 of the batch, position 8", 4 * 6)),
        ("mistral", generated(LEFT, cache_implementation="static"), 1, ("row 1 of the batch, position 8", 2 * 6)),
        ("llama", generated({"input_ids": IDS}, cache_implementation="static"), 0, ("row 0 of the batch, position 5", 2 * 6)),
        ("llama", generated(LEFT, prefill_chunk_size=4), 0, ("row 0 of the batch, position 3", 2 * 8)),
        ("bart", generated(RIGHT, decoder_input_ids=torch.tensor([[3, 4]] * 2)), 0, ("row 0 of the batch, position 1", 2 * 6)),
        ("bert", lambda model: model(**RIGHT), 0, ("row 0 of the batch, position 8", 2)),
    ],
)
def test_a_real_token_of_which_a_mask_hides_every_key_is_named(of_masks, name, use, row, expected):
    def change(mask):
        encodes = name == "bart" and (mask.shape[3] == 9 or mask.shape[2] == 9)
        return mask if encodes else blind(mask, row=row)

    first, count, warned = of_masks(tiny(name), use, change)
    where = f"mine, layer 0, {expected[0]}"
    assert (first, count) == (where, expected[1])
    assert warned == [f"recording: A MASK HIDES EVERY KEY of {count} tokens that are no padding, first {where}"]


QUIET = {
    "padding on the left": ("gpt_oss", generated(LEFT)),
    "behind, longer than the window": ("mistral", lambda model: model(**RIGHT)),
    "behind, and then tokens": ("gemma3", generated(RIGHT)),
    "chunks of padding alone": ("gemma3", generated(LEFT, prefill_chunk_size=3)),
    "chunks of padding alone, behind": ("mistral", generated(RIGHT, prefill_chunk_size=1)),
    "a static cache": ("gemma3", generated(LEFT, cache_implementation="static")),
    "a static cache, padded behind": ("mistral", generated(RIGHT, cache_implementation="static")),
    "beams": ("llama4", generated(LEFT, num_beams=3)),
    "drafts": ("gemma3", generated({"input_ids": IDS.repeat(1, 3)}, prompt_lookup_num_tokens=3)),
    "an encoder": ("bert", lambda model: model(**LEFT)),
    "an encoder's row of padding": ("bart", lambda model: model(**RIGHT, decoder_input_ids=RIGHT["input_ids"])),
    "a decoder's padding": (
        "bart",
        lambda model: model(**RIGHT, decoder_input_ids=LEFT["input_ids"], decoder_attention_mask=LEFT["attention_mask"]),
    ),
}


@pytest.mark.parametrize("kind", QUIET)
def test_padding_is_not_named(of_masks, kind):
    name, use = QUIET[kind]
    assert of_masks(tiny(name), use) == (None, 0, [])


def test_a_mask_as_long_as_a_static_cache_says_what_is_padding(of_masks):
    def use(model):
        cache = transformers.StaticCache(config=model.config, max_cache_len=12)
        mask = torch.ones(2, 12, dtype=torch.int64)
        mask[:, :9] = LEFT["attention_mask"]
        model(LEFT["input_ids"], attention_mask=mask, **{CACHE: cache})
        for token in range(2):
            model(torch.full((2, 1), 5 + token), attention_mask=mask, **{CACHE: cache})

    assert of_masks(tiny("mistral"), use) == (None, 0, [])


CACHE = "cache"
"""transformers' name of the argument, since 5.24."""


def test_the_masks_of_minimax_are_said(tmp_path):
    """Its decodes have one entry for all keys, which is that of the padding in front."""
    config = transformers.MiniMaxConfig(
        num_hidden_layers=2,
        hidden_size=32,
        intermediate_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=2,
        vocab_size=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        block_size=8,
        layer_types=["linear_attention", "full_attention"],
    )
    model = transformers.MiniMaxForCausalLM(config).eval()
    model.set_attn_implementation("sdpa")
    with pytest.warns(UserWarning, match="HIDES EVERY KEY"), attn_transformers.recording(tmp_path, "sdpa") as recording:
        model.generate(**LEFT, **MORE)
    assert (recording.first_hidden, recording.hidden) == ("sdpa, layer 1, row 1 of the batch, position 9", 5)


def test_requests_of_an_engine_have_no_padding(tmp_path):
    model = tiny("mistral")
    model.set_attn_implementation("paged|eager")
    with attn_transformers.recording(tmp_path, "paged|eager") as recording:
        served(model, with_prefixes(8, 0))
    assert recording.judged > recording.hidden == 0
    query, key = torch.zeros(1, 2, 5, 8), torch.zeros(1, 2, 9, 8)
    mask = torch.zeros(1, 1, 5, 9).masked_fill(torch.arange(5)[:, None] % 2 == 1, -torch.inf)
    lengths = {"cu_seq_lens_q": torch.tensor([0, 3, 4]), "cu_seq_lens_k": torch.tensor([0, 6, 9])}
    found = hidden_tokens(SimpleNamespace(is_causal=True), query, key, mask, **lengths)
    assert found == ["request 0 of the step, position 4", "request 1 of the step, position 2"]


def test_tokens_of_attention_without_a_model_are_not_named():
    """Attention that no model calls, cross-attention, and queries of a layer that says nothing of causality."""
    query, mask = torch.zeros(1, 2, 3, 8), torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    held = functools.partial(hidden_tokens, query=query, key=query, attention_mask=mask)
    assert held(SimpleNamespace(is_causal=True)) == []
    assert held(SimpleNamespace()) == []
    assert held(SimpleNamespace(is_causal=True, is_cross_attention=True)) == []
