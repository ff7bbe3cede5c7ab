"""The second statement of who may read whose cache, and that the check notices a selector which asks less."""

import random

import attn_optimized.selector
import pytest
import torch
from attn_contract import AttentionConfig
from attn_fuzz.targets import cache_readers
from attn_fuzz.targets.cache_readers import Kind, is_right
from attn_fuzz.targets.selections import Asked
from attn_optimized.aiter_adapter import recorded

CONFIG = AttentionConfig(num_heads=4, num_kv_heads=2, head_size=64, dtype=torch.float16, block_size=16)
WRITER, READER = Kind(CONFIG, "heads", False), Kind(CONFIG, "heads", True)
WIDE, UNCACHED = Kind(CONFIG, "more heads", False), Kind(CONFIG, None, False)


@pytest.mark.parametrize(
    ("model", "kv_sharing", "expected"),
    [
        ({"a": WRITER}, {}, True),
        ({"a": WRITER, "b": READER}, {"b": "a"}, True),
        ({"a": WRITER, "b": READER, "c": READER}, {"b": "a", "c": "a"}, True),
        ({"a": WRITER, "b": READER, "c": READER}, {"b": "a", "c": "b"}, False),
        ({"a": READER, "b": READER}, {"a": "b", "b": "a"}, False),
        ({"a": READER}, {"a": "a"}, False),
        ({"a": WRITER, "b": READER}, {}, False),
        ({"a": WRITER, "b": WRITER}, {"b": "a"}, False),
        ({"a": WIDE, "b": READER}, {"b": "a"}, False),
        ({"a": UNCACHED, "b": READER}, {"b": "a"}, False),
    ],
)
def test_who_may_read_whose_cache(model, kv_sharing, expected):
    assert is_right(model, kv_sharing) is expected


def test_both_right_and_wrong_models_are_drawn_and_told_apart(monkeypatch):
    asked = Asked("gfx942", (), recorded("2026-08"))
    drawn = [cache_readers._drawn(CONFIG, random.Random(seed)) for seed in range(60)]
    wrong = [seed for seed, model in enumerate(drawn) if not is_right(*model)]
    assert 10 < len(wrong) < 50
    for seed in range(60):
        cache_readers.check(CONFIG, asked, random.Random(seed))
    monkeypatch.setattr(attn_optimized.selector, "select_model", lambda layers, **options: dict(layers))
    for seed in wrong:
        with pytest.raises(AssertionError, match="expected a ContractError"):
            cache_readers.check(CONFIG, asked, random.Random(seed))
