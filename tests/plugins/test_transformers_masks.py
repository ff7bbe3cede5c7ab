"""Which requests and rules masks are read as: transformers' own masks, made by its own functions for tiny configs."""

import itertools
import re

import pytest
import torch
from attn_contract import AttentionType, ContractError

pytest.importorskip("transformers", "5.20", reason="needs transformers: pip install 'attn-parity[transformers]'")

import attn_transformers
import transformers
from attn_transformers.masks import read
from attn_transformers.reading import Reading, Request
from transformers import masking_utils
from transformers.models.gemma3 import modeling_gemma3

W = 4


@pytest.fixture(autouse=True, scope="module")
def registered():
    attn_transformers.register()


def config(**options):
    return transformers.MistralConfig(
        hidden_size=8,
        num_attention_heads=1,
        num_hidden_layers=1,
        sliding_window=W,
        attn_implementation="attn_parity",
        **options,
    )


def mask_of(make, tokens, *, padding=None, cached=0, **options) -> torch.Tensor:
    """[B, Q, K] that transformers makes for `tokens` new tokens, behind `cached` ones in a cache that drops none."""
    rows = 1 if padding is None else len(padding)
    cache = None
    if cached:
        cache = transformers.DynamicCache()
        cache.update(torch.zeros(rows, 1, cached, 8), torch.zeros(rows, 1, cached, 8), 0)
    mask = make(
        config=options.pop("config", config()),
        inputs_embeds=torch.zeros(rows, tokens, 8),
        attention_mask=None if padding is None else torch.tensor(padding),
        past_key_values=cache,
        **options,
    )
    return mask[:, 0]


def summary(reading: Reading) -> tuple:
    """The reading without indices."""
    return reading.attn_type, reading.rules, [(len(one.queries), one.seq_len) for one in reading.requests]


def test_causal_masks_of_a_prompt_and_of_a_decode():
    prompt = read(mask_of(masking_utils.create_causal_mask, 6), is_causal=True)
    assert summary(prompt) == (AttentionType.DECODER, {}, [(6, 6)])
    decode = read(mask_of(masking_utils.create_causal_mask, 1, cached=6), is_causal=True)
    assert summary(decode) == (AttentionType.DECODER, {}, [(1, 7)])


@pytest.mark.parametrize(("cached", "tokens"), [(0, 9), (9, 1), (5, 3), (0, 2)])
def test_a_window_is_the_layers_own(cached, tokens):
    """In a cache that drops no key, the window is what hides keys, and the request keeps them."""
    seen = mask_of(masking_utils.create_sliding_window_causal_mask, tokens, cached=cached)
    reading = read(seen, is_causal=True, sliding_window=W)
    assert summary(reading) == (AttentionType.DECODER, {"window": (W - 1, W - 1)}, [(tokens, cached + tokens)])


def test_a_window_that_nobody_declares_is_read_from_the_edges():
    seen = mask_of(masking_utils.create_sliding_window_causal_mask, 9)
    assert read(seen, is_causal=True).rules == {"window": (W - 1, W - 1)}
    assert read(seen, is_causal=True, sliding_window=W + 1).rules == {"window": (W - 1, W - 1)}


def test_left_padding_belongs_to_no_request():
    seen = mask_of(masking_utils.create_sliding_window_causal_mask, 8, padding=[[1] * 8, [0] * 5 + [1] * 3])
    reading = read(seen, is_causal=True, sliding_window=W)
    assert summary(reading)[1:] == ({"window": (W - 1, W - 1)}, [(8, 8), (3, 3)])
    assert reading.requests[1].queries == reading.requests[1].keys == [5, 6, 7]


def test_padding_behind_a_sequence_becomes_requests_of_its_own():
    seen = mask_of(masking_utils.create_causal_mask, 6, padding=[[1] * 6, [1] * 4 + [0] * 2])
    reading = read(seen, is_causal=True)
    assert [(one.row, one.queries, one.seq_len) for one in reading.requests] == [
        (0, [0, 1, 2, 3, 4, 5], 6),
        (1, [0, 1, 2, 3], 4),
        (1, [4], 4),
        (1, [5], 4),
    ]


@pytest.mark.parametrize("padding", [None, [[1] * 11, [0] * 3 + [1] * 8]])
def test_chunks_are_read_from_a_mask(padding):
    chunked = transformers.Llama4TextConfig(hidden_size=8, attention_chunk_size=W, attn_implementation="attn_parity")
    seen = mask_of(masking_utils.create_chunked_causal_mask, 11, padding=padding, config=chunked)
    assert read(seen, is_causal=True).rules == {"chunked_local": W}


def test_a_step_across_the_end_of_a_chunk():
    """Queries at positions 6 to 12 in chunks of 4, with a cache that has keys from 3 on."""
    p, j = torch.arange(6, 13)[:, None], torch.arange(3, 13)[None, :]
    reading = read(((j <= p) & (p // 4 == j // 4))[None], is_causal=True)
    assert summary(reading) == (AttentionType.DECODER, {"chunked_local": 4}, [(7, 9)])


def test_a_bidirectional_window_and_an_encoder():
    both_ways = mask_of(masking_utils.create_bidirectional_sliding_window_mask, 12)
    assert summary(read(both_ways, is_causal=False)) == (AttentionType.ENCODER_ONLY, {"window": (W, W)}, [(12, 12)])
    padded = mask_of(masking_utils.create_bidirectional_mask, 5, padding=[[1] * 5, [1] * 3 + [0] * 2])
    assert summary(read(padded, is_causal=False)) == (AttentionType.ENCODER_DECODER, {}, [(5, 5), (5, 3)])


def test_packed_sequences_are_read_from_a_mask():
    seen = mask_of(masking_utils.create_sliding_window_causal_mask, 15, position_ids=torch.tensor([[*range(6), *range(9)]]))
    reading = read(seen, is_causal=True, sliding_window=W)
    assert summary(reading)[1:] == ({"window": (W - 1, W - 1)}, [(6, 6), (9, 9)])


def test_requests_of_an_engine_are_taken_from_it_and_held_to_the_mask():
    seen = torch.zeros(1, 4, 9, dtype=torch.bool)
    seen[0, :3, :6] = torch.ones(3, 6).tril(3).bool()
    seen[0, 3, 6:] = True
    reading = read(seen, is_causal=False, packed=([0, 3, 4], [0, 6, 9]))
    assert summary(reading)[1:] == ({}, [(3, 6), (1, 3)])
    for query_starts in ([0, 2, 4], [0, 3, 9], [0, 4], []):
        words = f"cu_seq_lens_q: got {query_starts}, expected the requests that the attention mask shows"
        with pytest.raises(ContractError, match=re.escape(words)):
            read(seen, is_causal=False, packed=(query_starts, [0, 6, 9][: len(query_starts)]))


def test_images_are_ranges_that_the_window_clamps():
    tokens = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 0]])
    text = transformers.Gemma3TextConfig(
        hidden_size=8, num_hidden_layers=1, sliding_window=W, attn_implementation="attn_parity"
    )
    blocks = modeling_gemma3.get_block_sequence_ids_for_mask(tokens)
    # by position: no attention_mask, no cache, whose name is another one since transformers 5.24, and no position_ids
    masks = modeling_gemma3.create_masks_for_vision_model(text, torch.zeros(1, 13, 8), None, None, None, blocks)
    full = read(masks["full_attention"][:, 0], is_causal=True)
    assert (full.rules, full.requests[0].ranges) == ({}, ((2, 7), (9, 11)))
    sliding = read(masks["sliding_attention"][:, 0], is_causal=True, sliding_window=W)
    assert sliding.rules == {"window": (W - 1, W - 1), "ranges_clamped": True}
    assert sliding.requests[0].ranges == ((2, 7), (9, 11))


def test_any_other_mask_is_a_request_for_each_query():
    seen = torch.rand(2, 7, 9, generator=torch.Generator().manual_seed(0)) < 0.4
    seen[1, 3] = False
    reading = read(seen, is_causal=True)
    assert reading.shows(seen)
    assert len(reading.requests) == 13


def test_a_mask_that_shows_nothing_has_no_request():
    assert read(torch.zeros(2, 3, 4, dtype=torch.bool), is_causal=True).requests == []


@pytest.mark.parametrize(
    "wrong",
    [
        Reading([Request(0, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4])], True),
        Reading([Request(0, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4])], True, {"window": (1, 1)}),
        Reading([Request(0, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4])], False, {"window": (2, 2)}),
        Reading([Request(0, [1, 2, 3, 4], [1, 2, 3, 4])], True, {"window": (2, 2)}),
        Reading([Request(0, [0, 1, 2, 3, 4], [0, 1, 2, 3])], True, {"window": (2, 2)}),
    ],
    ids=["no window", "narrower", "not causal", "a query missing", "a key missing"],
)
def test_a_wrong_reading_does_not_show_the_mask(wrong):
    p, j = torch.arange(5)[:, None], torch.arange(5)[None, :]
    seen = ((j <= p) & (p - j <= 2))[None]
    assert Reading([Request(0, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4])], True, {"window": (2, 2)}).shows(seen)
    assert not wrong.shows(seen)


def test_every_small_mask_has_a_reading():
    """All masks of 2 queries and 3 keys, for causal layers and others, with and without a window that they do not have."""
    for bits in itertools.product([False, True], repeat=6):
        seen = torch.tensor(bits).view(1, 2, 3)
        for is_causal, window in itertools.product([False, True], [None, 2]):
            assert read(seen, is_causal=is_causal, sliding_window=window).shows(seen)
