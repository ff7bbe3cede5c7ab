"""The ops of an index layer give what the reference's functions do, of the terms that their arguments say."""

import attn_reference
import pytest
import torch
from attn_contract import Batch, ContractError, Indexer, IndexLayout, IndexScore, ScaleFormat

from tests.ops import small_calls
from tests.ops.small_calls import FP8, HEAD_SIZE, NUM_HEADS

CPU = torch.device("cpu")
ops = torch.ops.attn_parity


def batch_of(arguments: dict[str, object]) -> Batch:
    names = ("query_start_loc", "seq_lens", "max_query_len", "max_seq_len", "num_actual_tokens", "block_table")
    return Batch(**{name: arguments[name] for name in names if name in arguments}, causal=True)


def test_a_write_has_the_scales_and_the_largest_number_of_its_arguments():
    arguments = small_calls.write_index_cache(CPU, is_float8=True, scale_format="ue8m0", largest=224.0)
    indexer = Indexer(
        num_heads=1,
        head_size=HEAD_SIZE,
        top_k=1,
        layout=IndexLayout.FLAT,
        cache_dtype=FP8,
        scale_format=ScaleFormat.UE8M0,
        largest=224.0,
    )
    expected = arguments["index_cache"].clone()
    attn_reference.write_index_cache(arguments["k"], expected, indexer, arguments["slot_mapping"])
    ops.write_index_cache(**arguments)
    assert torch.equal(arguments["index_cache"], expected)


def test_logits_of_units_of_two_selections():
    arguments = small_calls.index_logits(CPU, num_selections=2, selection_unit=4, score="max")
    indexer = Indexer(
        num_heads=NUM_HEADS,
        head_size=HEAD_SIZE,
        top_k=1,
        num_selections=2,
        selection_unit=4,
        score=IndexScore.MAX,
    )
    expected = attn_reference.index_logits(arguments["q"], None, arguments["index_cache"], indexer, batch_of(arguments))
    ops.index_logits(**arguments)
    assert torch.equal(arguments["out"], expected)


def test_a_selection_with_forced_units_and_an_open_one():
    terms = {"selection_unit": 4, "key_unit": 4, "first_units": 1, "last_units": 1}
    arguments = small_calls.select(CPU, **terms)
    indexer = Indexer(num_heads=2, head_size=1, top_k=3, num_selections=2, **terms)
    expected = attn_reference.select(arguments["logits"], indexer, batch_of(arguments))
    ops.select(**arguments)
    assert torch.equal(arguments["out"], expected)


@pytest.mark.parametrize(("name", "value"), [("layout", "ROWS"), ("score", "sum"), ("scale_format", "e8m0")])
def test_a_term_that_is_none_is_refused(name, value):
    op = "write_index_cache" if name == "scale_format" else "index_logits"
    arguments = getattr(small_calls, op)(CPU)
    with pytest.raises(ContractError, match=f"{name}: got '{value}', expected one of"):
        getattr(ops, op)(**arguments | {name: value})
