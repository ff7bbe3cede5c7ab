"""Cascade attention: the same answer as without it, from a shared prefix that is attended to once."""

import re
from dataclasses import replace

import attn_optimized
import pytest
import torch
from attn_contract import AttentionType, ContractError, Layout, UnsupportedError
from attn_contract.rules import label_of
from attn_contract.validation.values import MAX_LOGIT
from attn_optimized.cascade import MIN_SAVED, cascade_pays


@pytest.fixture
def shared_prefix(paged_call):
    """A call whose requests all begin with request 0's first `num_blocks` blocks of 16."""

    def build(num_blocks, query_lens, seq_lens, **options):
        call = paged_call(query_lens, seq_lens, **options)
        table = call.batch.block_table.clone()
        table[:, :num_blocks] = table[0, :num_blocks]
        return call._replace(batch=replace(call.batch, block_table=table))

    return build


LARGEST = [MAX_LOGIT, -MAX_LOGIT] * 2
FLOAT8 = {"kv_cache_dtype": torch.float8_e4m3fn, "output_scale": torch.tensor([0.125])}
CONTENT = {"layout": Layout.CONTENT_PACKED, "head_size": 48}
CASES = {
    "the prefix's keys are split": (20, [1, 1], [321, 322], {}),
    "more queries than the prefix has keys": (1, [30, 40], [50, 60], {}),
    "no prefix": (0, [3, 1], [20, 9], {}),
    "sinks of the largest logit and of the least": (2, [3, 1], [60, 33], {"sinks": LARGEST, "logits_soft_cap": 2.0}),
    "a tree of drafts": (2, [3, 4], [60, 40], {"qq_bias": torch.eye(16).log()}),
    "causal per request": (2, [5, 4], [60, 40], {"causal": [True, False]}),
    "float8 in and out": (2, [5, 4], [60, 40], FLOAT8),
    "no context": (0, [3, 1], [0, 1], {}),
    "V narrower than K": (2, [1, 3], [40, 60], CONTENT | {"head_size_v": 16}),
    "V wider than K": (2, [1, 3], [40, 60], CONTENT | {"head_size_v": 80}),
}
"""Blocks of the prefix, query lengths, lengths, and rules."""


@pytest.mark.parametrize(("num_blocks", "query_lens", "seq_lens", "rules"), CASES.values(), ids=CASES)
def test_agrees_with_the_reference(num_blocks, query_lens, seq_lens, rules, dtype, shared_prefix, assert_agrees):
    call = shared_prefix(num_blocks, query_lens, seq_lens, **rules, dtype=dtype)

    def cascade(q, kv_cache, layer, batch, **options):
        return attn_optimized.cascade_attention(q, kv_cache, layer, batch, 16 * num_blocks, **options)

    assert_agrees(call, cascade)


def test_no_request_writes_nothing(paged_call):
    call = paged_call([], [])
    out = torch.full_like(call.q, 7)
    attn_optimized.cascade_attention(*call, 0, out=out)
    assert (out == 7).all()


@pytest.mark.parametrize("common_prefix_len", [8, 112, -16, True])
def test_a_prefix_is_a_number_of_blocks(common_prefix_len, shared_prefix):
    call = shared_prefix(2, [1, 1], [40, 60])
    with pytest.raises(ContractError, match="common_prefix_len"):
        attn_optimized.cascade_attention(*call, common_prefix_len)


def test_a_prefix_is_context_and_shared(shared_prefix):
    call = shared_prefix(2, [1, 9], [40, 40])
    with pytest.raises(ContractError, match=r"common_prefix_len: got 32, expected at most request 1's context \(31\)"):
        attn_optimized.cascade_attention(*call, 32, validate=True)
    call = shared_prefix(1, [1, 1], [40, 60])
    with pytest.raises(ContractError, match=r"block_table\[1\].*request 0's first 2"):
        attn_optimized.cascade_attention(*call, 32, validate=True)


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("window", {"window": (4, -1)}),
        ("chunked_local", {"chunked_local": 64}),
        ("alibi_slopes", {"alibi_slopes": torch.ones(4)}),
        ("bidirectional_ranges", {"bidirectional_ranges": [[(1, 2)], [(1, 2)]]}),
        ("encoder_decoder attention", {"attn_type": AttentionType.ENCODER_DECODER, "causal": False}),
    ],
)
def test_rules_of_positions_are_refused(rule, options, shared_prefix):
    call = shared_prefix(2, [1, 1], [40, 60], **options)
    out = torch.full_like(call.q, 7)
    words = re.escape(label_of(rule))
    with pytest.raises(UnsupportedError, match=f"^cascade_attention: {words} not supported: .*; use paged_attention$"):
        attn_optimized.cascade_attention(*call, 32, out=out)
    assert (out == 7).all()


@pytest.mark.parametrize("rule", [{}, {"window": (8, 0)}], ids=["alone", "with a window"])
def test_a_latent_cache_is_refused_for_a_reason_of_its_own(rule, shared_prefix):
    latent = {"layout": Layout.LATENT, "num_kv_heads": 1, "head_size": 48, "head_size_v": 32}
    call = shared_prefix(2, [1, 1], [40, 60], **latent, **rule)
    message = "not supported: a latent cache is not split into a prefix and a rest; use paged_attention$"
    with pytest.raises(UnsupportedError, match=f"^cascade_attention: .*head_size_v.*{message}"):
        attn_optimized.cascade_attention(*call, 32)


def test_a_cascade_pays_where_it_saves_much_reading(paged_call):
    call = paged_call([1, 1], [40, 40])
    half = MIN_SAVED // (2 * call.layer.num_kv_heads * (call.layer.head_size + call.layer.v_head_size) * call.q.element_size())
    three = replace(
        call.batch,
        query_start_loc=torch.arange(4, dtype=torch.int32),
        seq_lens=torch.full((3,), 40).int(),
        block_table=call.batch.block_table[:1].repeat(3, 1),
    )
    assert [cascade_pays(call.kv_cache, call.layer, batch, half) for batch in (call.batch, three)] == [False, True]
