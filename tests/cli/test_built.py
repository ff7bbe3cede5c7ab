"""Layers read off the model that transformers builds of a config on meta."""

import json
from pathlib import Path
from typing import Any

import pytest
from attn_contract import ContractError, UnsupportedError
from attn_parity.model_config import model_config

from tests.cli.answers import IN_PART
from tests.support.mostly_nightly import mostly_nightly

transformers = pytest.importorskip("transformers")
CONFIGS = Path(__file__).parent / "configs"
TINY = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 6,
    "vocab_size": 99,
    "pad_token_id": 0,
}


def answer(model_type: str, **fields: Any) -> dict[str, Any]:
    """The description of each group of a small config: the numbers of its layers, its sizes and its rules."""
    config = model_config({"model_type": model_type, **TINY, **fields})
    return {
        name: (list(group.layers), group.num_heads, group.num_kv_heads, group.head_size, dict(group.rules))
        for name, group in config.groups.items()
    }


@pytest.mark.parametrize("name", mostly_nightly(IN_PART, ("jamba-v0.1",)))
def test_a_hybrid_model_is_answered_for_its_attention(name):
    numbers, mixer = IN_PART[name]
    config = model_config(json.loads((CONFIGS / f"{name}.json").read_text()))
    assert {layer for group in config.groups.values() for layer in group.layers} == set(numbers)
    others = {layer: why for why, layers in config.not_answered.items() for layer in layers}
    assert sorted((*numbers, *others)) == list(range(len(numbers) + len(others)))
    assert all(mixer in why for why in others.values())


def test_windows_and_sharing_are_those_of_the_built_model():
    kinds = ["sliding_attention", "full_attention"] * 3
    fields = {"layer_types": kinds, "sliding_window": 7, "head_dim": 16, "global_head_dim": 32, "num_kv_shared_layers": 2}
    config = model_config({"model_type": "gemma4_text", **TINY, **fields, "hidden_size_per_layer_input": 8})
    assert config.kv_sharing == {"sliding_attention_shared": "sliding_attention", "full_attention_shared": "full_attention"}
    groups = {name: (list(group.layers), group.head_size, group.rules.get("window")) for name, group in config.groups.items()}
    assert groups == {
        "sliding_attention": ([0, 2], 16, (6, 6)),
        "full_attention": ([1, 3], 32, None),
        "sliding_attention_shared": ([4], 16, (6, 6)),
        "full_attention_shared": ([5], 32, None),
    }


def test_layers_are_cut_where_a_mask_is():
    full = ([0, 1, 2, 3, 4, 5], 4, 2, 16, {})
    assert answer("smollm3", use_sliding_window=False) == {"full_attention": full}
    windowed = {"use_sliding_window": True, "sliding_window": 9, "layer_types": ["sliding_attention"] * 6}
    assert answer("smollm3", **windowed) == {"sliding_attention": (*full[:4], {"window": (8, 8)})}


SPARSE = {"sparse_attention_freq": [0, 0, 1, 1, 1, 1], "use_sparse_attention": True, "sparse_num_index_heads": 2}


def test_what_an_indexer_picks_are_units_of_its_layers():
    sparse = {**SPARSE, "sparse_block_size": 32}
    full = ([0, 1], 4, 2, 16, {})
    fields = {"head_dim": 16, "sparse_attention_config": {**sparse, "sparse_topk_blocks": 5}}
    got = answer("minimax_m3_vl_text", **fields)
    groups = model_config({"model_type": "minimax_m3_vl_text", **TINY, **fields}).groups
    assert [group.top_k for group in groups.values()] == [None, 5]
    assert got == {"full_attention": full, "indexed_attention": ([2, 3, 4, 5], *full[1:4], {"selection_unit": 32})}


def test_an_argument_that_is_not_known_refuses_its_layers_by_name():
    """Picks of fewer heads than the KV heads are no selection of the contract."""
    sparse = {**SPARSE, "sparse_num_index_heads": 1}
    config = model_config({"model_type": "minimax_m3_vl_text", **TINY, "sparse_attention_config": sparse})
    assert [group.layers for group in config.groups.values()] == [(0, 1)]
    ((why, layers),) = config.not_answered.items()
    assert layers == (2, 3, 4, 5)
    assert "block_indices" in why


@pytest.mark.parametrize(
    ("model_type", "fields", "error", "says"),
    [
        ("cpmant", {}, UnsupportedError, "no call of transformers' attention"),
        ("olmoe", {"attention_sinks": False}, ContractError, "attention_sinks"),
        ("olmoe", {"num_hidden_layers": 10**6}, ContractError, "num_hidden_layers"),
        ("olmoe", {"architectures": ["LlamaForCausalLM"]}, ContractError, "architectures"),
        ("molmo2", {}, UnsupportedError, "a mask for images"),
    ],
)
def test_refusals(model_type, fields, error, says):
    content = {"model_type": model_type, **({} if model_type in ("molmo2", "cpmant") else TINY), **fields}
    with pytest.raises(error, match=says):
        model_config(content)
