"""The ops `attn_parity::*`: what they say that they write, and what they refuse before a Layer or a Batch exists."""

import attn_reference  # noqa: F401  registers the CPU kernels
import pytest
import torch
from attn_contract import ContractError
from torch._subclasses.fake_tensor import FakeTensorMode

ops = torch.ops.attn_parity


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("paged_attention", ["out", "lse"]),
        ("varlen_attention", ["out", "lse"]),
        ("write_kv_cache", ["kv_cache"]),
        ("merge_attn_states", ["out", "lse"]),
    ],
)
def test_schemas_name_what_is_written(name, written):
    """torch.compile reorders and drops an op by this: a write that the schema hides is lost."""
    schema = getattr(ops, name).default._schema
    assert [argument.name for argument in schema.arguments if argument.alias_info and argument.alias_info.is_write] == written
    assert not schema.returns


def attention_arguments() -> dict:
    return {
        "scale": 0.5,
        "attn_type": "decoder",
        "window": [-1, -1],
        "sinks": None,
        "query_start_loc": torch.tensor([0, 1], dtype=torch.int32),
        "seq_lens": torch.tensor([1], dtype=torch.int32),
        "max_query_len": 1,
        "max_seq_len": 1,
        "num_actual_tokens": 1,
        "q": torch.zeros(1, 2, 4),
        "out": torch.zeros(1, 2, 4),
        "lse": None,
    }


def paged_arguments() -> dict:
    return attention_arguments() | {
        "kv_cache": torch.zeros(1, 2, 3, 2, 4),
        "layout": "BLOCKS_FIRST_NHD",
        "block_table": torch.zeros(1, 1, dtype=torch.int32),
        "causal": True,
        "causal_per_request": None,
    }


def test_calls_by_name_run_and_fake_calls_only_check_the_schema():
    ops.paged_attention(**paged_arguments())
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert ops.paged_attention(**paged_arguments()) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "NHD"}, "layout: got 'NHD', expected one of BLOCKS_FIRST_NHD, BLOCKS_FIRST_HND"),
        ({"attn_type": "DECODER"}, "attn_type: got 'DECODER', expected one of decoder, encoder"),
        ({"attn_type": "encoder"}, "layout: got BLOCKS_FIRST_NHD with attn_type=encoder, expected None"),
        ({"q": torch.zeros(1, 8)}, "q: got shape (1, 8), expected 3 dimensions: T, num_heads, head_size"),
        ({"kv_cache": torch.zeros(2, 3, 2, 4)}, "kv_cache: got shape (2, 3, 2, 4), expected 5 dimensions: block, kv"),
        ({"causal": None}, "causal: got None, and no causal_per_request, expected either a bool or causal_per_request"),
        ({"causal_per_request": torch.tensor([True])}, "causal: got True, and a causal_per_request, expected either"),
        ({"causal": None, "causal_per_request": torch.tensor([True] * 2)}, "causal: got 2 entries, expected 1"),
        ({"window": [-2, -1]}, "window[0]: got -2, expected an int, at least -1"),
        ({"window": [4]}, "window: got (4,), expected a tuple (left, right)"),
        ({"max_seq_len": -1}, "max_seq_len: got -1, expected an int, at least 0"),
        ({"out": None}, "out: got None, expected a tensor"),
    ],
)
def test_paged_attention_refuses(changes, message):
    with pytest.raises(ContractError) as caught:
        ops.paged_attention(**paged_arguments() | changes)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attn_type": "cross"}, "attn_type: got 'cross', expected one of decoder, encoder"),
        ({"attn_type": "decoder"}, "layout: got None with attn_type=decoder, expected a Layout"),
        ({"q": torch.zeros(8)}, "q: got shape (8,), expected 3 dimensions: T, num_heads, head_size"),
        ({"k": torch.zeros(1, 8)}, "k: got shape (1, 8), expected 3 dimensions: T_kv, num_kv_heads, head_size"),
    ],
)
def test_varlen_attention_refuses(changes, message):
    dense = {"attn_type": "encoder", "k": torch.zeros(1, 2, 4), "v": torch.zeros(1, 2, 4)}
    with pytest.raises(ContractError) as caught:
        ops.varlen_attention(**attention_arguments() | dense | changes)
    assert str(caught.value).startswith(message)


def test_write_kv_cache_refuses_an_unknown_layout():
    rows = torch.zeros(1, 2, 4)
    with pytest.raises(ContractError, match=r"^layout: got 'kv_first_nhd', expected one of BLOCKS_FIRST_NHD"):
        ops.write_kv_cache(rows, rows.clone(), torch.zeros(2, 1, 3, 2, 4), "kv_first_nhd", torch.tensor([0]))
