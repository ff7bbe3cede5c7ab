"""Models of transformers whose keys and values go through pages of the contract's layouts."""

import pytest
import torch
from attn_contract import ContractError, Layout

pytest.importorskip("transformers", "5.20", reason="needs transformers: pip install 'attn-parity[transformers]'")

from attn_transformers.paged_cache import PagedCache

from tests.plugins.tiny_models import prompts, tiny

FLOAT_LAYOUTS = [layout for layout in Layout if not (layout.has_inline_scales or layout.has_latent_value)]
BEAMS = {**prompts((7, 4, 9)), "num_beams": 3, "max_new_tokens": 8, "do_sample": False}


pytestmark = pytest.mark.usefixtures("registered")


@pytest.fixture(scope="module")
def gemma3():
    """The model, and the tokens that it generates by beams from transformers' own cache."""
    model = tiny("gemma3")
    with torch.no_grad():
        return model, model.generate(**BEAMS)


@pytest.mark.parametrize(
    ("implementation", "block_size"), [("attn_parity", 4), pytest.param("eager", 16, marks=pytest.mark.nightly)]
)
@pytest.mark.parametrize("layout", FLOAT_LAYOUTS)
def test_a_model_generates_the_same_from_any_layout(gemma3, layout, implementation, block_size):
    """With beams, which share pages: most of 17 tokens lie in pages of 4, and the pages of 16 are copied in each step."""
    model, theirs = gemma3
    model.set_attn_implementation(implementation)
    assert torch.equal(model.generate(**BEAMS, past_key_values=PagedCache(layout, block_size=block_size)), theirs)


def test_a_reordered_page_is_copied(gemma3, monkeypatch):
    model, theirs = gemma3
    monkeypatch.setattr(torch.Tensor, "index_copy_", lambda self, *args: self)
    assert not torch.equal(model.generate(**BEAMS, past_key_values=PagedCache(block_size=16)), theirs)


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [(Layout.CONTENT_PACKED_SCALED, torch.int8), (Layout.X_PACKED, torch.int8), (Layout.KV_FIRST_HND, torch.float8_e4m3fn)],
)
def test_a_quantized_cache_changes_logits_a_little(layout, dtype):
    model, inputs = tiny("mistral"), prompts((7, 4, 9))
    exact = model(**inputs).logits
    cache = PagedCache(layout, block_size=16, kv_cache_dtype=dtype)
    quantized = model(**inputs, past_key_values=cache, use_cache=True).logits
    assert 1e-4 < (quantized - exact)[inputs["attention_mask"].bool()].abs().max() < 0.2
    assert model.generate(**BEAMS, past_key_values=PagedCache(layout, block_size=16, kv_cache_dtype=dtype)).shape[1] == 17


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layout": "NHD"}, "layout: got 'NHD', expected a Layout: BLOCKS_FIRST_NHD"),
        ({"layout": Layout.LATENT}, "layout: got LATENT, expected one that stores K and V apart"),
        ({"block_size": 0}, "block_size: got 0, expected an int, at least 1"),
        ({"layout": Layout.X_PACKED, "block_size": 3}, "block_size: got 3, expected a multiple of 4"),
        ({"layout": Layout.CONTENT_PACKED_SCALED}, "kv_cache: got elements of 4 bytes, expected 1 byte in layout"),
        (
            {"kv_cache_dtype": torch.float8_e5m2},
            "kv_cache_dtype: .* two bits of mantissa are too few",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_paged_cache_that_no_layout_holds_is_refused(arguments, words):
    with pytest.raises(ContractError, match=words):
        tiny("mistral")(**prompts((3,)), past_key_values=PagedCache(**arguments), use_cache=True)
