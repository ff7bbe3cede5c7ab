"""Every way in which a call can contradict itself is refused by name, value and expectation, before anything is written."""

import importlib
import itertools
from collections.abc import Callable
from dataclasses import fields, replace
from random import Random

import numpy as np
import pytest
import torch
from attn_contract import AttentionType, Batch, ContractError, Layer, Layout, validation
from torch.utils._python_dispatch import TorchDispatchMode

from tests.calls import with_idle_strides

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")

Arguments = dict[str, object]
Changes = Arguments | Callable[[Arguments], Arguments]

LAYER_FIELDS = [field.name for field in fields(Layer)]
BATCH_FIELDS = [field.name for field in fields(Batch)]
INT32_MAX = 2**31 - 1


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def int64(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def cache(
    num_blocks: int = 6, block_size: int = 4, num_kv_heads: int = 2, head_size: int = 8, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    return torch.zeros(num_blocks, 2, block_size, num_kv_heads, head_size, dtype=dtype)


def every_other(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, with stride 2 in the last dimension."""
    return torch.stack([tensor, tensor], dim=-1)[..., 0]


def paged() -> Arguments:
    """Three requests of 2, 1 and 3 queries; H 4, HK 2, D 8, blocks of 4 slots; two rows that no request owns."""
    return {
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_size": 8,
        "scale": 0.5,
        "layout": Layout.BLOCKS_FIRST_NHD,
        "sinks": torch.zeros(4),
        "query_start_loc": int32(0, 2, 3, 6),
        "seq_lens": int32(5, 4, 3),
        "max_query_len": 3,
        "max_seq_len": 5,
        "num_actual_tokens": 7,
        "causal": True,
        "block_table": torch.tensor([[3, 1, -1], [0, -7, INT32_MAX], [5, 6, 3]], dtype=torch.int32),
        "slot_mapping": int64(15, 4, 3, 20, 21, 22),
        "q": torch.zeros(8, 4, 8),
        "kv_cache": cache(),
        "out": torch.full((8, 4, 8), torch.nan),
        "lse": torch.full((4, 8), torch.nan),
    }


def cross() -> Arguments:
    return paged() | {"attn_type": AttentionType.ENCODER_DECODER, "causal": False, "slot_mapping": None}


def varlen() -> Arguments:
    dense = {"attn_type": AttentionType.ENCODER, "causal": False, "layout": None, "block_table": None, "slot_mapping": None}
    k, v = torch.zeros(2, 7, 2, 8)
    arguments = paged() | dense | {"seq_lens": int32(2, 1, 3), "k": k, "v": v}
    del arguments["kv_cache"]
    return arguments


def rules() -> Arguments:
    """All that a decoder's visibility and logits may take, over an x-packed cache."""
    per_request = {"bidirectional_ranges": torch.zeros(3, 2, 2, dtype=torch.int32), "qq_bias": torch.zeros(4, 4)}
    per_layer = {"alibi_slopes": torch.zeros(4), "logits_soft_cap": 50.0, "sink_tokens": 1, "chunked_local": 4}
    packed = {"layout": Layout.X_PACKED, "kv_cache": torch.zeros(2, 6, 64)}
    return paged() | packed | per_request | per_layer | {"window": (4, 4), "ranges_clamped": True}


def fp8() -> Arguments:
    """A quantized cache with scales that do not change, and quantized output."""
    scales = {"k_scale": torch.tensor(0.5), "v_scale": torch.ones(2), "output_scale": torch.ones(1)}
    out = torch.zeros(8, 4, 8).to(torch.float8_e4m3fn)
    quantized = {"kv_cache_dtype": torch.float8_e4m3fn, "kv_cache": cache(dtype=torch.float8_e4m3fn), "out": out}
    return paged() | quantized | scales


def per_token() -> Arguments:
    """A quantized cache with a scale per token and head in tensors of their own."""
    quantized = {"kv_cache_dtype": torch.int8, "kv_cache": cache(dtype=torch.int8)}
    return paged() | quantized | {"k_scale_cache": torch.ones(6, 4, 2), "v_scale_cache": torch.ones(6, 4, 2)}


def inline() -> Arguments:
    """A quantized cache with a scale per token and head in its rows."""
    quantized = {"kv_cache_dtype": torch.int8, "kv_cache": torch.zeros(6, 2, 4, 24, dtype=torch.int8)}
    return paged() | quantized | {"layout": Layout.CONTENT_PACKED_SCALED}


def write() -> Arguments:
    """Six slots for seven rows, one of them not to be written."""
    k, v = torch.ones(2, 7, 2, 8)
    return {
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_size": 8,
        "scale": 0.5,
        "layout": Layout.BLOCKS_FIRST_NHD,
        "k": k,
        "v": v,
        "kv_cache": cache(),
        "slot_mapping": int64(15, 4, -1, 20, 21, 22),
    }


def write_fp8() -> Arguments:
    quantized = {"kv_cache_dtype": torch.float8_e4m3fn, "kv_cache": cache(dtype=torch.float8_e4m3fn)}
    return write() | quantized | {"k_scale": torch.tensor(0.5), "v_scale": torch.ones(2)}


def write_per_token() -> Arguments:
    quantized = {"kv_cache_dtype": torch.int8, "kv_cache": cache(dtype=torch.int8)}
    return write() | quantized | {"k_scale_cache": torch.zeros(6, 4, 2), "v_scale_cache": torch.zeros(6, 4, 2)}


def write_inline() -> Arguments:
    quantized = {"kv_cache_dtype": torch.int8, "kv_cache": torch.zeros(6, 2, 4, 24, dtype=torch.int8)}
    return write() | quantized | {"layout": Layout.CONTENT_PACKED_SCALED}


def rope() -> Arguments:
    """Eight rows of q, seven of them with positions, six of those written; 6 of 8 dims are rotated; 10 positions are known."""
    rotation = {"positions": int64(4, 3, 3, 0, 1, 2, 9), "cos_sin_cache": torch.ones(10, 6), "is_neox": True}
    return write() | rotation | {"q": torch.ones(8, 4, 8)}


def merge() -> Arguments:
    out_a, out_b, out = torch.zeros(3, 5, 4, 8)
    lse_a, lse_b, lse = torch.zeros(3, 4, 5)
    return {"out_a": out_a, "lse_a": lse_a, "out_b": out_b, "lse_b": lse_b, "out": out, "lse": lse}


def merge_parts() -> Arguments:
    return {
        "outs": torch.zeros(3, 5, 4, 8),
        "lses": torch.zeros(3, 4, 5),
        "out": torch.zeros(5, 4, 8),
        "lse": torch.zeros(4, 5),
    }


OPERATION = {
    paged: "paged_attention",
    cross: "paged_attention",
    varlen: "varlen_attention",
    rules: "paged_attention",
    fp8: "paged_attention",
    per_token: "paged_attention",
    inline: "paged_attention",
    write: "write_kv_cache",
    write_fp8: "write_kv_cache",
    write_per_token: "write_kv_cache",
    write_inline: "write_kv_cache",
    rope: "rope_and_write_kv_cache",
    merge: "merge_attn_states",
    merge_parts: "merge_attn_parts",
}


def call(valid: Callable[[], Arguments], arguments: Arguments, module: str, *, values: bool = True) -> None:
    """Make the call that `arguments` describe: of a package, or only of the contract's checks."""
    # imported late: whether attn_optimized's kernels are interpreted is decided when it is imported, by its own tests
    name, package = OPERATION[valid], importlib.import_module(module)
    if "scale" in arguments:
        arguments = gathered("layer", Layer, LAYER_FIELDS, arguments)
    if "query_start_loc" in arguments:
        arguments = gathered("batch", Batch, BATCH_FIELDS, arguments)
    if package is validation:
        name = f"check_{name}"
    flag = {"attn_contract.validation": "values", "attn_optimized": "validate"}.get(module)
    flags = {flag: values} if flag and valid not in (merge, merge_parts) else {}
    getattr(package, name)(**arguments, **flags)


def gathered(argument: str, kind: type, names: list[str], arguments: Arguments) -> Arguments:
    """The arguments with some of them as fields of one."""
    others = {name: value for name, value in arguments.items() if name not in names}
    return {argument: kind(**{name: arguments[name] for name in names if name in arguments})} | others


def changed(valid: Callable[[], Arguments], changes: Changes) -> Arguments:
    arguments = valid()
    return arguments | (changes(arguments) if callable(changes) else changes)


def tensors_of(arguments: Arguments) -> dict[str, torch.Tensor]:
    return {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor) and not value.is_sparse}


def memory(tensor: torch.Tensor) -> torch.Tensor:
    """All bytes of the allocation under a tensor."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


def fused(arguments: Arguments) -> Arguments:
    """q, k and v as slices of one tensor."""
    q, k, v = torch.zeros(8, 64).split([32, 16, 16], dim=1)
    return {"q": q.unflatten(1, (4, 8)), "k": k.unflatten(1, (2, 8)), "v": v.unflatten(1, (2, 8))}


def fused_rows(arguments: Arguments) -> Arguments:
    """q, which is rotated in place, between k and v in each row of one tensor."""
    k, q, v = torch.ones(7, 64).split([16, 32, 16], dim=1)
    return {"q": q.unflatten(1, (4, 8)), "k": k.unflatten(1, (2, 8)), "v": v.unflatten(1, (2, 8))}


def one_row_in_place(arguments: Arguments) -> Arguments:
    """A merge of one row into its first state, of which the outputs are views with another row stride."""
    states = {
        "out_a": torch.zeros(1, 4, 8),
        "out_b": torch.zeros(1, 4, 8),
        "lse_a": torch.zeros(4, 1),
        "lse_b": torch.zeros(4, 1),
    }
    return states | {"out": with_idle_strides(states["out_a"]), "lse": with_idle_strides(states["lse_a"])}


def one_dim_early(fused: Arguments) -> Arguments:
    """q moved by one element, so that it begins in k's last one."""
    q = fused["q"]
    return fused | {"q": q.as_strided(q.shape, q.stride(), q.storage_offset() - 1)}


def scales_between_rows(arguments: Arguments) -> Arguments:
    """Rows of 8 bytes of a head, each followed by its scale: one allocation, two tensors for its bytes and its scales."""
    raw = torch.zeros(6 * 2 * 4 * 2 * 12, dtype=torch.int8)
    scales = raw.view(torch.float32).as_strided((6, 2, 4, 2), (48, 24, 6, 3), 2)
    kv_cache = raw.as_strided((6, 2, 4, 2, 8), (192, 96, 24, 12, 1))
    return {"kv_cache": kv_cache, "k_scale_cache": scales[:, 0], "v_scale_cache": scales[:, 1]}


FLOAT8_OUT = {"out": torch.zeros(5, 4, 8).to(torch.float8_e4m3fn)}

HOST = [
    # sizes of the batch
    (paged, {"max_query_len": -1}, "max_query_len: got -1, expected an int, at least 0"),
    (paged, {"max_query_len": 3.0}, "max_query_len: got 3.0, expected an int"),
    (paged, {"max_seq_len": -1}, "max_seq_len: got -1, expected an int, at least 0"),
    (paged, {"max_seq_len": torch.tensor(5)}, "max_seq_len: got tensor(5), expected an int"),
    (paged, {"max_seq_len": 2**31}, "max_seq_len: got 2147483648, expected an int, at least 0 and at most 2147483647"),
    (paged, {"num_actual_tokens": -1}, "num_actual_tokens: got -1, expected an int, at least 0"),
    (paged, {"num_actual_tokens": True}, "num_actual_tokens: got True, expected an int"),
    (paged, {"num_actual_tokens": 9}, "num_actual_tokens: got 9, expected at most the 8 rows of q"),
    # metadata tensors
    (paged, {"query_start_loc": [0, 2, 3, 6]}, "query_start_loc: got [0, 2, 3, 6], expected a tensor"),
    (paged, {"query_start_loc": None}, "query_start_loc: got None, expected a tensor"),
    (paged, {"query_start_loc": int32()}, "query_start_loc: got shape (0,), expected shape (R + 1,)"),
    (paged, {"query_start_loc": int32(0)[0]}, "query_start_loc: got shape (), expected one dimension"),
    (paged, {"query_start_loc": int32(0, 2, 3, 6)[None]}, "query_start_loc: got shape (1, 4), expected one dimension"),
    (paged, {"query_start_loc": int64(0, 2, 3, 6)}, "query_start_loc: got torch.int64, expected torch.int32"),
    (paged, {"query_start_loc": every_other(int32(0, 2, 3, 6))}, "query_start_loc: got stride 2 in the last dimension"),
    (paged, {"query_start_loc": int32(0, 2, 6)}, "seq_lens: got 3 entries, expected 2: query_start_loc has R + 1 = 3"),
    (paged, {"seq_lens": None}, "seq_lens: got None, expected a tensor"),
    (paged, {"seq_lens": int64(5, 4, 3)}, "seq_lens: got torch.int64, expected torch.int32"),
    (paged, {"seq_lens": torch.tensor([5.0, 4, 3])}, "seq_lens: got torch.float32, expected torch.int32"),
    (paged, {"seq_lens": int32(5, 4)}, "seq_lens: got 2 entries, expected 3"),
    (paged, {"seq_lens": int32(5)[0]}, "seq_lens: got shape (), expected one dimension"),
    (paged, {"seq_lens": int32(5).expand(3)}, "seq_lens: got stride 0 in the last dimension"),
    (paged, {"slot_mapping": [15, 4]}, "slot_mapping: got [15, 4], expected a tensor"),
    (paged, {"slot_mapping": int32(15, 4)}, "slot_mapping: got torch.int32, expected torch.int64"),
    (paged, {"slot_mapping": int64(15, 4)[None]}, "slot_mapping: got shape (1, 2), expected one dimension"),
    (paged, {"block_table": None}, "block_table: got None, expected a tensor: this layer reads the KV cache"),
    (paged, {"block_table": [[3, 1]]}, "block_table: got [[3, 1]], expected a tensor"),
    (paged, {"block_table": int32(3, 1, 0)}, "block_table: got shape (3,), expected 2 dimensions: R, max_blocks"),
    (paged, {"block_table": int32(3, 1)[None]}, "block_table: got 1 entries, expected 3"),
    (paged, {"block_table": torch.zeros(3, 2, dtype=torch.int64)}, "block_table: got torch.int64, expected torch.int32"),
    (paged, {"block_table": torch.zeros(2, 3).int().T}, "block_table: got stride 3 in the last dimension, expected 1"),
    (varlen, {"block_table": torch.zeros(3, 2).int()}, "block_table: got a tensor, expected None: encoder has no KV cache"),
    (varlen, {"slot_mapping": int64(0, 1)}, "slot_mapping: got a tensor, expected None: encoder has no KV cache"),
    # causal
    (paged, {"causal": 1}, "causal: got 1, expected a bool or a tensor [R] of bool"),
    (paged, {"causal": None}, "causal: got None, expected a bool or a tensor [R] of bool"),
    (paged, {"causal": "yes"}, "causal: got 'yes', expected a bool or a tensor [R] of bool"),
    (paged, {"causal": np.bool_(True)}, "causal: got np.True_, expected a bool or a tensor [R] of bool"),
    (paged, {"causal": [True] * 3}, "causal: got [True, True, True], expected a bool or a tensor [R] of bool"),
    (paged, {"causal": torch.tensor(True)}, "causal: got shape (), expected one dimension"),
    (paged, {"causal": torch.tensor([True, False])}, "causal: got 2 entries, expected 3"),
    (paged, {"causal": int32(1, 1, 0)}, "causal: got torch.int32, expected torch.bool"),
    (cross, {"causal": True}, "causal: got True, expected False for ENCODER_DECODER"),
    (cross, {"causal": torch.tensor([False] * 3)}, "causal: got a tensor of 3 flags, expected False for ENCODER_DECODER"),
    (varlen, {"causal": True}, "causal: got True, expected False for ENCODER"),
    # bidirectional ranges and tree drafts
    (rules, {"bidirectional_ranges": [[0, 1]]}, "bidirectional_ranges: got [[0, 1]], expected a tensor"),
    (
        rules,
        {"bidirectional_ranges": int32(0, 1)},
        "bidirectional_ranges: got shape (2,), expected 3 dimensions: R, max_ranges, 2",
    ),
    (
        rules,
        {"bidirectional_ranges": torch.zeros(3, 2, 3).int()},
        "bidirectional_ranges: got torch.int32 (3, 2, 3), expected tor",
    ),
    (
        rules,
        {"bidirectional_ranges": torch.zeros(3, 2, 2)},
        "bidirectional_ranges: got torch.float32 (3, 2, 2), expected torch.i",
    ),
    (rules, {"bidirectional_ranges": torch.zeros(2, 2, 2).int()}, "bidirectional_ranges: got 2 entries, expected 3"),
    (
        rules,
        {"bidirectional_ranges": torch.zeros(3, 2, 2).int().transpose(1, 2)},
        "bidirectional_ranges: got strides (4, 1, 2), expected a contiguous tensor",
    ),
    (
        rules,
        {"bidirectional_ranges": torch.zeros(1, 2, 2).int().expand(3, -1, -1)},
        "bidirectional_ranges: got strides (0, 2, 1), expected a contiguous tensor",
    ),
    (
        cross,
        {"bidirectional_ranges": torch.zeros(3, 1, 2).int()},
        "bidirectional_ranges: got a tensor, expected None for ENCODER",
    ),
    (
        varlen,
        {"bidirectional_ranges": torch.zeros(3, 1, 2).int()},
        "bidirectional_ranges: got a tensor, expected None for ENCOD",
    ),
    (rules, {"qq_bias": 0.0}, "qq_bias: got 0.0, expected a tensor"),
    (rules, {"qq_bias": torch.zeros(16)}, "qq_bias: got shape (16,), expected 2 dimensions: Q, Q"),
    (
        rules,
        {"qq_bias": torch.zeros(4, 5)},
        "qq_bias: got torch.float32 (4, 5), expected torch.float32 (Q, Q): queries, then keys",
    ),
    (rules, {"qq_bias": torch.zeros(4, 4).half()}, "qq_bias: got torch.float16 (4, 4), expected torch.float32 (Q, Q)"),
    (rules, {"qq_bias": every_other(torch.zeros(4, 4))}, "qq_bias: got stride 2 in the last dimension, expected 1"),
    (rules, {"qq_bias": torch.zeros(2, 2)}, "qq_bias: got shape (2, 2), expected Q at least max_query_len (3)"),
    (cross, {"qq_bias": torch.zeros(4, 4)}, "qq_bias: got a tensor, expected None for ENCODER_DECODER: only DECODER has it"),
    (varlen, {"qq_bias": torch.zeros(4, 4)}, "qq_bias: got a tensor, expected None for ENCODER: only DECODER has it"),
    # q
    (paged, {"q": None}, "q: got None, expected a tensor"),
    (paged, {"q": [[[0.0]]]}, "q: got [[[0.0]]], expected a tensor"),
    (paged, {"q": np.zeros((8, 4, 8))}, "q: got array("),
    (paged, {"q": torch.zeros(8, 4, 8).to_sparse()}, "q: got a tensor of torch.sparse_coo, expected torch.strided"),
    (paged, {"q": torch.tensor(0.0)}, "q: got shape (), expected shape (T, 4, 8)"),
    (paged, {"q": torch.zeros(8, 32)}, "q: got shape (8, 32), expected shape (T, 4, 8)"),
    (paged, {"q": torch.zeros(8, 2, 8)}, "q: got shape (8, 2, 8), expected shape (T, 4, 8)"),
    (paged, {"q": torch.zeros(8, 4, 4)}, "q: got shape (8, 4, 4), expected shape (T, 4, 8)"),
    (paged, {"q": torch.zeros(8, 4, 8).double()}, "q: got torch.float64, expected float32, float16 or bfloat16"),
    (paged, {"q": torch.zeros(8, 4, 8).int()}, "q: got torch.int32, expected float32, float16 or bfloat16"),
    (paged, {"q": every_other(torch.zeros(8, 4, 8))}, "q: got stride 2 in the last dimension, expected 1"),
    (paged, {"q": torch.zeros(8, 4, 8, requires_grad=True)}, "q: got requires_grad=True, expected no gradients"),
    (varlen, {"q": torch.zeros(8, 4, 4)}, "q: got shape (8, 4, 4), expected shape (T, 4, 8)"),
    # kv_cache
    (paged, {"kv_cache": None}, "kv_cache: got None, expected a tensor"),
    (paged, {"kv_cache": cache()[0]}, "kv_cache: got shape (2, 4, 2, 8), expected 5 dimensions: block, kv, slot, head, dim"),
    (paged, {"kv_cache": cache().transpose(0, 1)}, "kv_cache: got shape (2, 6, 4, 2, 8), expected 2 (kv) in dimension 1"),
    (
        paged,
        {"layout": Layout.BLOCKS_FIRST_HND},
        "kv_cache: got shape (6, 2, 4, 2, 8), expected 2 (head) in dimension 2 of BLOCKS",
    ),
    (paged, {"kv_cache": cache(num_kv_heads=1)}, "kv_cache: got shape (6, 2, 4, 1, 8), expected 2 (head) in dimension 3"),
    (paged, {"kv_cache": cache(head_size=16)}, "kv_cache: got shape (6, 2, 4, 2, 16), expected 8 (dim) in dimension 4"),
    (paged, {"kv_cache": cache(block_size=0)}, "kv_cache: got shape (6, 2, 0, 2, 8), expected at least one slot in a block"),
    (
        rules,
        {"kv_cache": torch.zeros(2, 6, 63)},
        "kv_cache: got shape (2, 6, 63), expected pages of 2 heads of size 8 in X_PACKED",
    ),
    (rules, {"kv_cache": torch.zeros(2, 6, 48)}, "block_size: got 3, expected a multiple of 4 (16 bytes) in layout X_PACKED"),
    (paged, {"kv_cache": cache().half()}, "kv_cache: got torch.float16, expected torch.float32: one dtype"),
    (paged, {"kv_cache": cache().to(torch.float8_e4m3fn)}, "kv_cache: got torch.float8_e4m3fn, expected torch.float32: one"),
    (fp8, {"kv_cache": cache()}, "kv_cache: got torch.float32, expected torch.float8_e4m3fn: the layer's kv_cache_dtype"),
    (
        fp8,
        {"kv_cache": cache(dtype=torch.float8_e4m3fnuz)},
        "kv_cache: got torch.float8_e4m3fnuz, expected torch.float8_e4m3fn: the layer's kv_cache_dtype",
    ),
    (fp8, {"kv_cache": cache(dtype=torch.uint8)}, "kv_cache: got torch.uint8, expected torch.float8_e4m3fn: the layer's"),
    (per_token, {"k_scale_cache": torch.ones(5, 4, 2)}, "k_scale_cache: got shape (5, 4, 2), expected shape (6, 4, 2)"),
    (per_token, {"v_scale_cache": torch.ones(6, 3, 2)}, "v_scale_cache: got shape (6, 3, 2), expected shape (6, 4, 2)"),
    (
        inline,
        {"kv_cache": torch.zeros(6, 2, 4, 16, dtype=torch.int8)},
        "kv_cache: got shape (6, 2, 4, 16), expected 24 (content)",
    ),
    (paged, {"kv_cache": every_other(cache())}, "kv_cache: got stride 2 in the last dimension, expected 1"),
    (paged, {"kv_cache": cache(num_blocks=1).expand(6, -1, -1, -1, -1)}, "kv_cache: got strides (0, 64, 16, 8, 1), expected"),
    (paged, {"kv_cache": cache()[:, :1].expand(-1, 2, -1, -1, -1)}, "kv_cache: got strides (128, 0, 16, 8, 1), expected"),
    # k and v
    (varlen, {"k": None}, "k: got None, expected a tensor"),
    (varlen, {"v": None}, "v: got None, expected a tensor"),
    (varlen, {"k": torch.zeros(7, 16)}, "k: got shape (7, 16), expected 3 dimensions: T_kv, num_kv_heads, head_size"),
    (varlen, {"k": torch.zeros(7, 2, 8).half()}, "k: got torch.float16, expected torch.float32: one dtype"),
    (varlen, {"v": torch.zeros(7, 2, 8).half()}, "v: got torch.float16, expected torch.float32: one dtype"),
    (varlen, {"v": torch.zeros(6, 2, 8)}, "v: got shape (6, 2, 8), expected shape (7, 2, 8), as k has"),
    (varlen, {"k": every_other(torch.zeros(7, 2, 8))}, "k: got stride 2 in the last dimension, expected 1"),
    (varlen, {"k": torch.zeros(7, 4, 8), "v": torch.zeros(7, 4, 8)}, "k: got shape (7, 4, 8), expected shape (T_kv, 2, 8)"),
    (varlen, {"k": torch.zeros(6, 2, 8), "v": torch.zeros(6, 2, 8)}, "k: got 6 rows, expected at least num_actual_tokens (7)"),
    # out and lse
    (fp8, {"out": None}, "out: got None, expected a tensor of float8_e4m3fn or float8_e4m3fnuz: there is an output_scale"),
    (
        fp8,
        {"out": torch.zeros(8, 4, 8)},
        "out: got torch.float32, expected float8_e4m3fn or float8_e4m3fnuz: there is an output",
    ),
    (
        fp8,
        {"out": torch.zeros(8, 4, 8).to(torch.float8_e5m2)},
        "out: got torch.float8_e5m2, expected float8_e4m3fn or float8_e4m",
    ),
    (
        paged,
        {"out": torch.zeros(8, 4, 8).to(torch.float8_e4m3fn)},
        "out: got torch.float8_e4m3fn, expected torch.float32, as q",
    ),
    (varlen, {"output_scale": torch.ones(1), "out": None}, "out: got None, expected a tensor of float8_e4m3fn"),
    (paged, {"out": [0.0]}, "out: got [0.0], expected a tensor"),
    (paged, {"out": torch.zeros(7, 4, 8)}, "out: got shape (7, 4, 8), expected shape (8, 4, 8) or (8, 32)"),
    (paged, {"out": torch.zeros(4, 8, 8)}, "out: got shape (4, 8, 8), expected shape (8, 4, 8) or (8, 32)"),
    (paged, {"out": torch.tensor(0.0)}, "out: got shape (), expected shape (8, 4, 8) or (8, 32)"),
    (paged, {"out": torch.zeros(8, 4, 8).half()}, "out: got torch.float16, expected torch.float32, as q has"),
    (paged, {"out": every_other(torch.zeros(8, 4, 8))}, "out: got stride 2 in the last dimension, expected 1"),
    (paged, {"out": torch.zeros(1, 4, 8).expand(8, 4, 8)}, "out: got strides (0, 8, 1), expected elements that do not share"),
    (paged, {"out": torch.zeros(8, 4, 8, requires_grad=True)}, "out: got requires_grad=True, expected no gradients"),
    (varlen, {"out": torch.zeros(1, 32).expand(8, 32)}, "out: got strides (0, 1), expected elements that do not share"),
    (paged, {"lse": 0.0}, "lse: got 0.0, expected a tensor"),
    (paged, {"lse": torch.zeros(8, 4)}, "lse: got torch.float32 (8, 4), expected torch.float32 (4, 8): heads, then tokens"),
    (paged, {"lse": torch.tensor(0.0)}, "lse: got torch.float32 (), expected torch.float32 (4, 8)"),
    (paged, {"lse": torch.zeros(4, 8).half()}, "lse: got torch.float16 (4, 8), expected torch.float32 (4, 8)"),
    (paged, {"lse": torch.zeros(8, 4).T}, "lse: got stride 4 in the last dimension, expected 1"),
    (paged, {"lse": torch.zeros(1, 8).expand(4, 8)}, "lse: got strides (0, 1), expected elements that do not share memory"),
    # memory that is written and belongs to something else
    (paged, lambda a: {"out": a["q"]}, "out: got memory that reaches into q's, expected memory of its own"),
    (paged, lambda a: {"out": a["kv_cache"].flatten()[:256].view(8, 4, 8)}, "out: got memory that reaches into kv_cache's"),
    (paged, lambda a: {"lse": a["kv_cache"].flatten()[-32:].view(4, 8)}, "lse: got memory that reaches into kv_cache's"),
    (paged, lambda a: {"lse": a["out"].flatten()[:32].view(4, 8)}, "out: got memory that reaches into lse's"),
    (paged, lambda a: {"sinks": a["lse"][0, :4]}, "lse: got memory that reaches into sinks's"),
    (paged, lambda a: {"seq_lens": a["lse"].view(torch.int32)[0, :3]}, "lse: got memory that reaches into seq_lens's"),
    (varlen, lambda a: {"v": a["out"].view(16, 2, 8)[:7]}, "out: got memory that reaches into v's"),
    (write, lambda a: {"k": a["kv_cache"].view(-1, 2, 8)[-7:]}, "kv_cache: got memory that reaches into k's"),
    (rules, lambda a: {"qq_bias": a["lse"][:, :4]}, "lse: got memory that reaches into qq_bias's"),
    (rules, lambda a: {"alibi_slopes": a["out"][0, 0, :4]}, "out: got memory that reaches into alibi_slopes's"),
    (fp8, lambda a: {"output_scale": a["lse"][3, 7:]}, "lse: got memory that reaches into output_scale's"),
    (
        per_token,
        lambda a: {"lse": a["v_scale_cache"].view(-1)[:32].view(4, 8)},
        "lse: got memory that reaches into v_scale_cache",
    ),
    (
        write_fp8,
        lambda a: {"v_scale": a["kv_cache"].flatten()[:4].view(torch.float32)},
        "kv_cache: got memory that reaches into v",
    ),
    (
        write_per_token,
        lambda a: {"k_scale_cache": a["v_scale_cache"]},
        "k_scale_cache: got memory that reaches into v_scale_cache",
    ),
    (
        write_per_token,
        lambda a: {"v_scale_cache": a["kv_cache"].view(torch.float32).flatten()[-48:].view(6, 4, 2)},
        "kv_cache: got memory that reaches into v_scale_cache's",
    ),
    (
        write_per_token,
        lambda a: scales_between_rows(a) | {"k_scale_cache": a["k_scale_cache"], "v_scale_cache": a["k_scale_cache"]},
        "k_scale_cache: got memory that reaches into v_scale_cache's",
    ),
    (
        write_per_token,
        {"k_scale_cache": torch.zeros(6, 4, 1).expand(6, 4, 2)},
        "k_scale_cache: got strides (4, 1, 0), expected elements that do not share memory",
    ),
    (rope, lambda a: {"q": a["kv_cache"].flatten()[:256].view(8, 4, 8)}, "q: got memory that reaches into kv_cache's"),
    (rope, lambda a: {"k": a["q"][:7, :2]}, "q: got memory that reaches into k's, expected memory of its own"),
    (rope, lambda a: {"v": a["q"][1:, 1:3]}, "q: got memory that reaches into v's, expected memory of its own"),
    (rope, lambda a: one_dim_early(fused_rows(a)), "q: got memory that reaches into k's, expected memory of its own"),
    (
        rope,
        {"q": torch.ones(1, 4, 8).expand(8, -1, -1)},
        "q: got strides (0, 8, 1), expected elements that do not share memory",
    ),
    (merge, {"out": torch.zeros(5, 8, 4).transpose(1, 2)}, "out: got stride 4 in the last dimension, expected 1"),
    (merge, lambda a: {"out": a["out_a"].as_strided((5, 4, 8), (8, 40, 1))}, "out: got memory that reaches into out_a's"),
    (merge, lambda a: {"lse": a["out_b"].view(-1)[:20].view(4, 5)}, "lse: got memory that reaches into out_b's"),
    (merge, lambda a: {"out": a["lse_a"].as_strided((5, 4, 8), (0, 0, 0))}, "out: got strides (0, 0, 0), expected elements"),
    # another device
    (paged, {"seq_lens": int32(5, 4, 3).to("meta")}, "seq_lens: got a tensor on meta, expected cpu, where q is"),
    (paged, {"sinks": torch.zeros(4, device="meta")}, "sinks: got a tensor on meta, expected cpu, where q is"),
    (paged, {"kv_cache": cache().to("meta")}, "kv_cache: got a tensor on meta, expected cpu, where q is"),
    (paged, {"out": torch.zeros(8, 4, 8, device="meta")}, "out: got a tensor on meta, expected cpu, where q is"),
    (paged, {"causal": torch.zeros(3, dtype=torch.bool, device="meta")}, "causal: got a tensor on meta, expected cpu"),
    (paged, lambda a: {name: value.to("meta") for name, value in tensors_of(a).items()}, "q: got a tensor on meta, expected a"),
    (write, lambda a: {name: value.to("meta") for name, value in tensors_of(a).items()}, "k: got a tensor on meta, expected a"),
    (rules, {"qq_bias": torch.zeros(4, 4, device="meta")}, "qq_bias: got a tensor on meta, expected cpu, where q is"),
    (fp8, {"k_scale": torch.ones(1, device="meta")}, "k_scale: got a tensor on meta, expected cpu, where q is"),
    (fp8, {"output_scale": torch.ones(1, device="meta")}, "output_scale: got a tensor on meta, expected cpu, where q is"),
    (write_fp8, {"v_scale": torch.ones(1, device="meta")}, "v_scale: got a tensor on meta, expected cpu, where k is"),
    (
        write_per_token,
        {"v_scale_cache": torch.zeros(6, 4, 2, device="meta")},
        "v_scale_cache: got a tensor on meta, expected cpu, where k is",
    ),
    (rope, {"q": torch.ones(8, 4, 8, device="meta")}, "q: got a tensor on meta, expected cpu, where k is"),
    (
        rope,
        {"cos_sin_cache": torch.ones(10, 6, device="meta")},
        "cos_sin_cache: got a tensor on meta, expected cpu, where k is",
    ),
    # the wrong operation, or no operation at all
    (
        paged,
        {"attn_type": AttentionType.ENCODER, "layout": None, "causal": False},
        "layer.attn_type: got encoder, expected a type that reads the KV cache",
    ),
    (
        varlen,
        {"attn_type": AttentionType.DECODER, "layout": Layout.KV_FIRST_NHD},
        "layer.attn_type: got decoder, expected ENCODER or ENCODER_ONLY; use paged_attention",
    ),
    (paged, {"layer": None}, "layer: got None, expected a Layer"),
    (paged, {"batch": {}}, "batch: got {}, expected a Batch"),
    (varlen, {"layer": {}}, "layer: got {}, expected a Layer"),
    # cache writes
    (write, {"k": None}, "k: got None, expected a tensor"),
    (write, {"v": None}, "v: got None, expected a tensor"),
    (write, {"kv_cache": None}, "kv_cache: got None, expected a tensor"),
    (write, {"layer": None}, "layer: got None, expected a Layer"),
    (write, {"layer": Layout.KV_FIRST_NHD}, "layer: got <Layout.KV_FI...KV_FIRST_NHD'>, expected a Layer"),
    (
        write,
        {"attn_type": AttentionType.ENCODER_ONLY, "layout": None},
        "layer.attn_type: got encoder_only, expected a type that has a KV cache",
    ),
    (write, {"layout": Layout.KV_FIRST_NHD}, "kv_cache: got shape (6, 2, 4, 2, 8), expected 2 (kv) in dimension 0"),
    (write, {"k": torch.ones(7, 16)}, "k: got shape (7, 16), expected 3 dimensions"),
    (write, {"v": torch.ones(6, 2, 8)}, "v: got shape (6, 2, 8), expected shape (7, 2, 8), as k has"),
    (write, {"k": torch.ones(7, 2, 8).half()}, "v: got torch.float32, expected torch.float16: one dtype"),
    (write_fp8, {"k": torch.ones(7, 2, 8).to(torch.float8_e4m3fn)}, "k: got torch.float8_e4m3fn, expected float32, float16 or"),
    (write_fp8, {"v": torch.ones(7, 2, 8).bfloat16()}, "v: got torch.bfloat16, expected torch.float32: one dtype"),
    (write_fp8, {"kv_cache": cache()}, "kv_cache: got torch.float32, expected torch.float8_e4m3fn: the layer's kv_cache_dtype"),
    (write_per_token, {"k_scale_cache": torch.ones(6, 3, 2)}, "k_scale_cache: got shape (6, 3, 2), expected shape (6, 4, 2)"),
    (write_inline, {"head_size": 6}, "kv_cache: got shape (6, 2, 4, 24), expected 20 (content) in dimension 3"),
    (write, {"v": torch.ones(7, 2, 8).bfloat16()}, "v: got torch.bfloat16, expected torch.float32"),
    (write, {"k": every_other(torch.ones(7, 2, 8))}, "k: got stride 2 in the last dimension, expected 1"),
    (write, {"k": torch.ones(7, 1, 8), "v": torch.ones(7, 1, 8)}, "k: got shape (7, 1, 8), expected shape (T_kv, 2, 8)"),
    (write, {"k": torch.ones(7, 2, 4), "v": torch.ones(7, 2, 4)}, "k: got shape (7, 2, 4), expected shape (T_kv, 2, 8)"),
    (write, {"k": torch.ones(7, 2, 8, requires_grad=True)}, "k: got requires_grad=True, expected no gradients"),
    (write, {"kv_cache": cache(num_blocks=1).expand(6, -1, -1, -1, -1)}, "kv_cache: got strides (0, 64, 16, 8, 1)"),
    (write, {"kv_cache": cache()[0]}, "kv_cache: got shape (2, 4, 2, 8), expected 5 dimensions"),
    (write, lambda a: {name: a[name].long() for name in ("k", "v", "kv_cache")}, "k: got torch.int64, expected float32"),
    (write, {"kv_cache": cache().half()}, "kv_cache: got torch.float16, expected torch.float32: one dtype"),
    (write, {"slot_mapping": None}, "slot_mapping: got None, expected a tensor"),
    (write, {"slot_mapping": int32(1, 2)}, "slot_mapping: got torch.int32, expected torch.int64"),
    (write, {"slot_mapping": int64(1)[0]}, "slot_mapping: got shape (), expected one dimension"),
    (write, {"slot_mapping": int64(1, 2)[None]}, "slot_mapping: got shape (1, 2), expected one dimension"),
    (write, {"slot_mapping": every_other(int64(1, 2))}, "slot_mapping: got stride 2 in the last dimension, expected 1"),
    (write, {"slot_mapping": int64(*range(8))}, "slot_mapping: got 8 slots, expected at most the 7 rows of k and v"),
    (write, {"slot_mapping": int64(1).to("meta")}, "slot_mapping: got a tensor on meta, expected cpu, where k is"),
    # rotation
    (rope, {"is_neox": 1}, "is_neox: got 1, expected a bool"),
    (rope, {"is_neox": None}, "is_neox: got None, expected a bool"),
    (rope, {"is_neox": np.bool_(True)}, "is_neox: got np.True_, expected a bool"),
    (rope, {"positions": [0, 1]}, "positions: got [0, 1], expected a tensor"),
    (rope, {"positions": int32(0, 1)}, "positions: got torch.int32, expected torch.int64"),
    (rope, {"positions": int64(0, 1)[None]}, "positions: got shape (1, 2), expected one dimension"),
    (rope, {"positions": every_other(int64(0, 1))}, "positions: got stride 2 in the last dimension, expected 1"),
    (rope, {"positions": int64(*range(9))}, "positions: got 9 positions, expected at most the 8 rows of q"),
    (rope, {"positions": int64(*range(5))}, "slot_mapping: got 6 slots, expected at most the 5 positions"),
    (rope, {"slot_mapping": int64(*range(8))}, "slot_mapping: got 8 slots, expected at most the 7 rows of k and v"),
    (rope, {"cos_sin_cache": None}, "cos_sin_cache: got None, expected a tensor"),
    (rope, {"cos_sin_cache": torch.ones(6)}, "cos_sin_cache: got shape (6,), expected 2 dimensions: max_position, rotary_dim"),
    (
        rope,
        {"cos_sin_cache": torch.ones(10, 6).half()},
        "cos_sin_cache: got torch.float16, expected torch.float32 or torch.float3",
    ),
    (rope, {"cos_sin_cache": torch.ones(10, 5)}, "cos_sin_cache: got shape (10, 5), expected an even rotary_dim, at most 8"),
    (rope, {"cos_sin_cache": torch.ones(10, 10)}, "cos_sin_cache: got shape (10, 10), expected an even rotary_dim, at most 8"),
    (rope, {"cos_sin_cache": torch.ones(10, 0)}, "cos_sin_cache: got shape (10, 0), expected an even rotary_dim, at most 8"),
    (rope, {"cos_sin_cache": every_other(torch.ones(10, 6))}, "cos_sin_cache: got stride 2 in the last dimension, expected 1"),
    (rope, {"q": None}, "q: got None, expected a tensor"),
    (rope, {"q": torch.ones(8, 32)}, "q: got shape (8, 32), expected shape (T, 4, 8)"),
    (rope, {"q": torch.ones(8, 2, 8)}, "q: got shape (8, 2, 8), expected shape (T, 4, 8)"),
    (rope, {"q": torch.ones(8, 4, 8).half()}, "q: got torch.float16, expected torch.float32, as k has"),
    (rope, {"q": every_other(torch.ones(8, 4, 8))}, "q: got stride 2 in the last dimension, expected 1"),
    (
        rope,
        {"q": torch.ones(8, 4, 8, requires_grad=True)},
        "q: got requires_grad=True, expected no gradients: there is no backw",
    ),
    (rope, {"k": torch.ones(7, 2, 4)}, "v: got shape (7, 2, 8), expected shape (7, 2, 4), as k has"),
    (rope, {"v": None}, "v: got None, expected a tensor"),
    (rope, {"kv_cache": None}, "kv_cache: got None, expected a tensor"),
    (rope, {"layer": None}, "layer: got None, expected a Layer"),
    # tensors whose memory does not hold their values
    (
        paged,
        {"q": torch._neg_view(torch.zeros(8, 4, 8))},
        "q: got a nested, negated or conjugate view, expected a tensor whose",
    ),
    (
        paged,
        {"out": torch.zeros(8, 4, 8, dtype=torch.complex64).conj()},
        "out: got a nested, negated or conjugate view, expected a",
    ),
    (
        paged,
        lambda a: {"lse": torch.nested.nested_tensor([torch.zeros(4)])},
        "lse: got a nested, negated or conjugate view, expected a tensor",
    ),
    # merges
    (merge, {"out_a": torch.zeros(5, 4, 0)}, "out_a: got torch.float32 (5, 4, 0), expected (T, H, D)"),
    (merge, {"out_a": None}, "out_a: got None, expected a tensor"),
    (merge, {"lse_b": [0.0]}, "lse_b: got [0.0], expected a tensor"),
    (merge, {"out_a": torch.zeros(5, 32)}, "out_a: got torch.float32 (5, 32), expected (T, H, D)"),
    (merge, {"out_a": torch.zeros(5, 4, 8).double()}, "out_a: got torch.float64 (5, 4, 8), expected (T, H, D) of float32"),
    (merge, {"out_b": torch.zeros(5, 4, 8).half()}, "out_b: got torch.float16 (5, 4, 8), expected torch.float32 (5, 4, 8)"),
    (merge, {"out_b": torch.zeros(4, 4, 8)}, "out_b: got torch.float32 (4, 4, 8), expected torch.float32 (5, 4, 8)"),
    (merge, {"out": torch.zeros(5, 32)}, "out: got torch.float32 (5, 32), expected torch.float32 (5, 4, 8), as out_a has"),
    (merge, {"out": torch.zeros(1, 4, 8).expand(5, -1, -1)}, "out: got strides (0, 8, 1), expected elements that do not share"),
    (merge, {"prefill_tokens_with_context": -1}, "prefill_tokens_with_context: got -1, expected an int, at least 0"),
    (merge, {"prefill_tokens_with_context": True}, "prefill_tokens_with_context: got True, expected an int, at least 0"),
    (merge, {"prefill_tokens_with_context": 6}, "prefill_tokens_with_context: got 6, expected at most the 5 rows"),
    (merge, {"output_scale": torch.ones(())}, "out: got torch.float32, expected float8_e4m3fn or float8_e4m3fnuz"),
    (merge, {"output_scale": torch.ones(()), "out": None}, "out: got None, expected a tensor of float8_e4m3fn"),
    (merge, {"output_scale": torch.ones(4), **FLOAT8_OUT}, "output_scale: got torch.float32 (4,), expected torch.float32"),
    (merge, FLOAT8_OUT, "out: got torch.float8_e4m3fn (5, 4, 8), expected torch.float32 (5, 4, 8), as out_a has"),
    # merges of any number of parts
    (merge_parts, {"outs": torch.zeros(5, 4, 8)}, "outs: got torch.float32 (5, 4, 8), expected (N, T, H, D)"),
    (merge_parts, {"outs": torch.zeros(0, 5, 4, 8), "lses": torch.zeros(0, 4, 5)}, "outs: got torch.float32 (0, 5, 4, 8)"),
    (merge_parts, {"outs": torch.zeros(3, 5, 8, 4).mT}, "outs: got stride 4 in the last dimension, expected 1"),
    (merge_parts, {"outs": None}, "outs: got None, expected a tensor"),
    (merge_parts, {"lses": torch.zeros(3, 5, 4)}, "lses: got torch.float32 (3, 5, 4), expected torch.float32 (3, 4, 5): parts"),
    (merge_parts, {"lses": torch.zeros(2, 4, 5)}, "lses: got torch.float32 (2, 4, 5), expected torch.float32 (3, 4, 5): parts"),
    (merge_parts, {"lses": torch.zeros(4, 5)}, "lses: got shape (4, 5), expected 3 dimensions: N, H, T"),
    (merge_parts, {"lses": torch.zeros(3, 4, 5).half()}, "lses: got torch.float16 (3, 4, 5), expected torch.float32 (3, 4, 5)"),
    (merge_parts, {"lse": torch.zeros(5, 4)}, "lse: got torch.float32 (5, 4), expected torch.float32 (4, 5): heads"),
    (merge_parts, {"lse_base": "10"}, "lse_base: got '10', expected 'e' or '2'"),
    (merge_parts, {"lse_base": 2}, "lse_base: got 2, expected 'e' or '2'"),
    (merge_parts, {"out": torch.zeros(5, 4, 8).half()}, "out: got torch.float16 (5, 4, 8), expected torch.float32 (5, 4, 8)"),
    (merge_parts, lambda a: {"out": a["outs"][0]}, "out: got memory that reaches into outs's, expected memory of its own"),
    (merge_parts, lambda a: {"lse": a["lses"][0]}, "lse: got memory that reaches into lses's, expected memory of its own"),
    (merge_parts, {"output_scale": torch.ones(())}, "out: got torch.float32, expected float8_e4m3fn or float8_e4m3fnuz"),
    (merge_parts, {"output_scale": 0.5}, "output_scale: got 0.5, expected a tensor"),
    (merge, {"lse_a": torch.zeros(5, 4)}, "lse_a: got torch.float32 (5, 4), expected torch.float32 (4, 5): heads, then tokens"),
    (merge, {"lse_b": torch.zeros(4, 5).double()}, "lse_b: got torch.float64 (4, 5), expected torch.float32 (4, 5)"),
    (merge, {"lse": torch.zeros(5, 4).T}, "lse: got stride 4 in the last dimension, expected 1"),
    (merge, {"lse": torch.zeros(1, 5).expand(4, 5)}, "lse: got strides (0, 1), expected elements that do not share memory"),
    (merge, {"lse": torch.zeros(4, 5, device="meta")}, "lse: got a tensor on meta, expected cpu, where out_a is"),
]

VALUES = [
    (paged, {"query_start_loc": int32(1, 2, 3, 6)}, "query_start_loc[0]: got 1, expected 0"),
    (paged, {"query_start_loc": int32(0, 3, 2, 6)}, "query_start_loc[2]: got 2, expected at least 3: a prefix sum"),
    (paged, {"query_start_loc": int32(0, 2, 3, 8)}, "query_start_loc[-1]: got 8, expected at most num_actual_tokens (7)"),
    (
        paged,
        {"query_start_loc": int32(0, INT32_MAX, -INT32_MAX - 1, 6), "max_query_len": INT32_MAX},
        "query_start_loc[2]: got -2147483648, expected at least 2147483647",
    ),
    (paged, {"max_query_len": 2}, "max_query_len: got 2, expected at least 3, request 2's query length"),
    (paged, {"max_seq_len": 4}, "max_seq_len: got 4, expected at least 5, request 0's length"),
    (paged, {"seq_lens": int32(5, -1, 3)}, "seq_lens[1]: got -1, expected at least 0"),
    (paged, {"seq_lens": int32(5, 4, 13), "max_seq_len": 99}, "seq_lens[2]: got 13, expected at most 12: block_table has 3"),
    (
        paged,
        {"seq_lens": int32(5, 4, INT32_MAX), "max_seq_len": INT32_MAX},
        "seq_lens[2]: got 2147483647, expected at most 12",
    ),
    (paged, {"block_table": torch.zeros(3, 0).int()}, "seq_lens[0]: got 5, expected at most 0: block_table has 0 columns"),
    (paged, {"seq_lens": int32(9, 4, 3), "max_seq_len": 9}, "block_table[0, 2]: got -1, expected a block of the cache, 0 to 5"),
    (paged, {"seq_lens": int32(5, 9, 3), "max_seq_len": 9}, "block_table[1, 1]: got -7, expected a block of the cache, 0 to 5"),
    (paged, {"seq_lens": int32(5, 4, 5)}, "block_table[2, 1]: got 6, expected a block of the cache, 0 to 5"),
    (paged, {"kv_cache": cache(num_blocks=0)}, "block_table[0, 0]: got 3, expected a block of the cache"),
    (paged, {"slot_mapping": int64(15, 24)}, "slot_mapping[1]: got 24, expected -1 (write nothing) or a slot of the cache"),
    (paged, {"slot_mapping": int64(15, 4, 15)}, "slot_mapping: got slot 15 twice, expected every slot at most once"),
    (
        paged,
        {"sinks": torch.tensor([0, 0, torch.nan, 0])},
        "sinks[2]: got nan, expected a logit of at most 8.5e+37 in magnitude, or -inf (no sink)",
    ),
    (paged, {"sinks": torch.tensor([0, 2.0**127, 0, 0])}, "sinks[1]: got 1.7014118346046923e+38, expected a logit of at most"),
    (paged, {"sinks": torch.full((4,), torch.finfo(torch.bfloat16).min).bfloat16()}, "sinks[0]: got -3.3895313892515355e+38"),
    (rules, {"qq_bias": torch.full((3, 3), torch.finfo(torch.float32).min)}, "qq_bias[0, 0]: got -3.4028234663852886e+38"),
    (paged, {"sinks": torch.tensor([0, torch.inf, 0, 0])}, "sinks[1]: got inf, expected a logit of at most"),
    (rules, {"alibi_slopes": torch.tensor([0, torch.inf, 0, 0])}, "alibi_slopes[1]: got inf, expected a finite number"),
    (rules, {"alibi_slopes": torch.tensor([0, 0, 0, torch.nan])}, "alibi_slopes[3]: got nan, expected a finite number"),
    (varlen, {"alibi_slopes": torch.tensor([-torch.inf, 0, 0, 0])}, "alibi_slopes[0]: got -inf, expected a finite number"),
    (
        rules,
        {"qq_bias": torch.zeros(3, 3).fill_diagonal_(torch.inf)},
        "qq_bias[0, 0]: got inf, expected a number of at most",
    ),
    (
        rules,
        lambda a: {"qq_bias": a["qq_bias"].index_put((torch.tensor([2]), torch.tensor([1])), torch.tensor(torch.nan))},
        "qq_bias[2, 1]: got nan, expected a number of at most 8.5e+37 in magnitude, or -inf (hidden)",
    ),
    (fp8, {"k_scale": torch.tensor(torch.nan)}, "k_scale[0]: got nan, expected a finite number of at least 2^-126"),
    (fp8, {"k_scale": torch.zeros(1)}, "k_scale[0]: got 0.0, expected a finite number of at least 2^-126"),
    (fp8, {"k_scale": torch.tensor(1e-39)}, "k_scale[0]: got 1.0000"),
    (fp8, {"v_scale": torch.tensor([1, -1.0])}, "v_scale[1]: got -1.0, expected a finite number of at least 2^-126"),
    (fp8, {"output_scale": torch.tensor([torch.inf])}, "output_scale[0]: got inf, expected a finite number of at least 2^-126"),
    (
        varlen,
        lambda a: {"output_scale": torch.zeros(1), "out": a["out"].to(torch.float8_e4m3fnuz)},
        "output_scale[0]: got 0.0, expected a finite number of at least 2^-126",
    ),
    (write_fp8, {"k_scale": torch.tensor(torch.inf)}, "k_scale[0]: got inf, expected a finite number of at least 2^-126"),
    (write_fp8, {"v_scale": torch.tensor([1, torch.nan])}, "v_scale[1]: got nan, expected a finite number of at least 2^-126"),
    (rules, {"seq_lens": int32(5, 4, 5)}, "block_table[2, 1]: got 6, expected a block of the cache, 0 to 5"),
    (cross, {"seq_lens": int32(5, 4, 5)}, "block_table[2, 1]: got 6, expected a block of the cache, 0 to 5"),
    (varlen, {"seq_lens": int32(2, 1, 4)}, "seq_lens[2]: got 4, expected 3, the request's query length"),
    (varlen, {"query_start_loc": int32(0, 2, 1, 6)}, "query_start_loc[2]: got 1, expected at least 2"),
    (varlen, {"sinks": torch.full((4,), torch.nan)}, "sinks[0]: got nan, expected a logit of at most"),
    (
        write,
        {"slot_mapping": int64(-2)},
        "slot_mapping[0]: got -2, expected -1 (write nothing) or a slot of the cache, 0 to 23",
    ),
    (write, {"slot_mapping": int64(0, 24)}, "slot_mapping[1]: got 24, expected -1 (write nothing) or a slot of the cache"),
    (write, {"slot_mapping": int64(2**62)}, "slot_mapping[0]: got 4611686018427387904, expected -1"),
    (write, {"slot_mapping": int64(3, -1, 7, -1, 3)}, "slot_mapping: got slot 3 twice, expected every slot at most once"),
    (
        write_per_token,
        {"slot_mapping": int64(24)},
        "slot_mapping[0]: got 24, expected -1 (write nothing) or a slot of the cache",
    ),
    (rope, {"slot_mapping": int64(24)}, "slot_mapping[0]: got 24, expected -1 (write nothing) or a slot of the cache"),
    (rope, {"positions": int64(0, 1, 2, 3, 4, 10)}, "positions[5]: got 10, expected a row of cos_sin_cache, 0 to 9"),
    (rope, {"positions": int64(0, -1, 2, 3, 4, 5)}, "positions[1]: got -1, expected a row of cos_sin_cache, 0 to 9"),
    (rope, {"cos_sin_cache": torch.ones(0, 6)}, "positions[0]: got 4, expected a row of cos_sin_cache, 0 to -1"),
    (
        rope,
        lambda a: fused_rows(a) | {"positions": int64(9, 10, 11, 0, 0, 0)},
        "positions[1]: got 10, expected a row of cos_sin_ca",
    ),
]

VALID = [
    (paged, {}),
    (cross, {}),
    (varlen, {}),
    (write, {}),
    (merge, {}),
    (merge_parts, {}),
    (paged, {"out": None, "lse": None, "sinks": None, "slot_mapping": None}),
    (paged, {"causal": torch.tensor([True, False, True])}),
    (rules, {}),
    (rules, {"bidirectional_ranges": torch.zeros(3, 0, 2).int(), "causal": False}),
    (rules, {"qq_bias": torch.full((3, 3), -torch.inf)}),
    (rules, {"qq_bias": torch.zeros(1, 9).expand(9, 9)}),
    (rules, {"layout": Layout.SHUFFLED}),
    (rules, {"kv_cache": torch.zeros(2, 6, 80)[..., :64], "logits_soft_cap": None}),
    (rules, {"kv_cache": torch.zeros(6, 2, 64).transpose(0, 1), "ranges_clamped": False}),
    (rules, {"kv_cache": torch.zeros(6, 2, 4, 16), "layout": Layout.CONTENT_PACKED}),
    (rules, {"kv_cache": torch.zeros(2, 4, 6, 16).permute(2, 0, 1, 3), "layout": Layout.CONTENT_PACKED}),
    (fp8, {}),
    (fp8, {"k_scale": torch.ones(2), "v_scale": torch.ones(1), "output_scale": torch.tensor(2.0), "lse": None}),
    (fp8, lambda a: {"out": torch.zeros(8, 32).to(torch.float8_e4m3fnuz)}),
    (fp8, lambda a: {"output_scale": None, "out": torch.zeros(8, 4, 8)}),
    (per_token, {}),
    (per_token, scales_between_rows),
    (inline, {}),
    (inline, {"kv_cache_dtype": torch.float8_e4m3fnuz, "kv_cache": torch.zeros(6, 2, 4, 24).to(torch.float8_e4m3fnuz)}),
    (paged, {"sinks": torch.tensor([-torch.inf, 0, 1e30, -1e30])}),
    (paged, {"sinks": torch.zeros(4, dtype=torch.bfloat16)}),
    # lengths: padding, nothing to see, more queries than keys, an empty batch, loose bounds
    (paged, {"query_start_loc": int32(0, 0, 0, 0)}),
    (paged, {"seq_lens": int32(0, 0, 0), "block_table": torch.full((3, 0), -1, dtype=torch.int32)}),
    (paged, {"seq_lens": int32(1, 0, 2)}),
    (paged, {"max_query_len": INT32_MAX, "max_seq_len": INT32_MAX}),
    (paged, {"num_actual_tokens": 6}),
    (
        paged,
        {
            "query_start_loc": int32(0),
            "seq_lens": int32(),
            "block_table": torch.empty(0, 3, dtype=torch.int32),
            "max_query_len": 0,
            "max_seq_len": 0,
            "num_actual_tokens": 0,
            "causal": torch.empty(0, dtype=torch.bool),
        },
    ),
    (varlen, {"query_start_loc": int32(0, 0, 0, 0), "seq_lens": int32(0, 0, 0)}),
    # tensors: flat output, slices of one fused qkv, strides of dimensions of size 1, rows of a larger table
    (paged, {"out": torch.full((8, 32), torch.nan)}),
    (paged, {"out": torch.full((8, 40), torch.nan)[:, :32]}),
    (paged, {"out": torch.full((10, 6, 16), torch.nan)[1:9, 1:5, 4:12]}),
    (paged, {"q": torch.zeros(8, 64)[:, :32].unflatten(1, (4, 8))}),
    (paged, {"q": torch.zeros(1, 4, 8).expand(8, 4, 8)}),
    (paged, {"q": torch.zeros(4, 8, 8).transpose(0, 1)}),
    (paged, {"block_table": torch.zeros(3, 9, dtype=torch.int32)[:, 1:4]}),
    (paged, {"block_table": int32(3, 1, 2).expand(3, 3)}),
    (paged, {"q": torch.zeros(8, 4, 1), "kv_cache": cache(head_size=2)[..., ::2], "head_size": 1, "out": None}),
    (
        paged,
        {
            "kv_cache": torch.zeros(2048).as_strided((1, 2, 4, 2, 8), (7, 64, 16, 8, 1), 5),
            "block_table": torch.zeros(3, 2, dtype=torch.int32),
            "seq_lens": int32(4, 1, 3),
            "slot_mapping": None,
        },
    ),
    (varlen, fused),
    (varlen, lambda a: {"output_scale": torch.ones(1), "out": a["out"].to(torch.float8_e4m3fnuz)}),
    (varlen, {"k": torch.zeros(9, 2, 8), "v": torch.zeros(9, 2, 8)}),
    # cache writes of fewer rows than there are, none, padding only
    (write, {"slot_mapping": int64(23)}),
    (write, {"slot_mapping": int64()}),
    (write, {"slot_mapping": int64(-1, -1, -1)}),
    (write, {"k": torch.ones(1, 2, 8).expand(7, -1, -1)}),
    (write, {"kv_cache": torch.zeros(2, 6, 64), "layout": Layout.X_PACKED}),
    (write, {"attn_type": AttentionType.ENCODER_DECODER}),
    (write_fp8, {}),
    (write_fp8, {"output_scale": torch.ones(1, device="meta")}),
    (write_fp8, lambda a: {name: a[name].bfloat16() for name in ("k", "v")}),
    (write_per_token, {}),
    (write_per_token, {"k_scale_cache": torch.zeros(6, 2, 4).transpose(1, 2)}),
    (write_per_token, lambda a: dict(zip(("k_scale_cache", "v_scale_cache"), torch.zeros(6, 4, 2, 2).unbind(3), strict=True))),
    (write_per_token, scales_between_rows),
    (write_inline, {}),
    # rotations: both pairings, all dims, none of the rows; q, k and v as slices of one fused tensor
    (rope, {}),
    (rope, {"is_neox": False, "cos_sin_cache": torch.ones(10, 8)}),
    (rope, {"positions": int64(), "slot_mapping": int64(), "cos_sin_cache": torch.ones(0, 2)}),
    (rope, {"slot_mapping": int64(-1, -1)}),
    (rope, lambda a: {name: a[name].half() for name in ("q", "k", "v", "kv_cache", "cos_sin_cache")}),
    (rope, lambda a: {name: a[name].half() for name in ("q", "k", "v", "kv_cache")}),
    (rope, fused_rows),
    (
        rope,
        lambda a: {name: rows[:1] for name, rows in fused_rows(a).items()} | {"positions": int64(3), "slot_mapping": int64(3)},
    ),
    # merges in place
    (merge, {"out": None, "lse": None}),
    (merge, {"prefill_tokens_with_context": 0}),
    (merge, {"prefill_tokens_with_context": 5}),
    (merge, {"output_scale": torch.ones(1), **FLOAT8_OUT}),
    (merge_parts, {"out": None, "lse": None}),
    (merge_parts, {"lses": torch.zeros(3, 5, 4).mT, "lse_base": "2"}),
    (merge_parts, {"outs": torch.zeros(5, 3, 4, 9)[..., :8].transpose(0, 1)}),
    (merge_parts, {"output_scale": torch.ones(()), **FLOAT8_OUT}),
    (merge, lambda a: {"out": a["out_a"], "lse": a["lse_a"]}),
    (merge, lambda a: {"out": a["out_b"], "lse": a["lse_b"]}),
    (merge, one_row_in_place),
]


@pytest.mark.parametrize("package", ["attn_contract.validation", "attn_reference", "attn_optimized"])
@pytest.mark.parametrize(("valid", "changes", "message"), HOST + VALUES, ids=[message for _, _, message in HOST + VALUES])
def test_refuses_and_writes_nothing(valid, changes, message, package):
    arguments = changed(valid, changes)
    before = {name: memory(tensor).clone() for name, tensor in tensors_of(arguments).items() if not tensor.is_meta}
    with pytest.raises(ContractError) as caught:
        call(valid, arguments, package)
    assert str(caught.value).startswith(message)
    assert caught.value.argument == message.split(":")[0]
    for name, tensor in before.items():
        assert torch.equal(memory(arguments[name]), tensor), f"{name} was written"


@pytest.mark.parametrize(("valid", "changes"), [(valid, changes) for valid, changes, _ in VALUES])
def test_values_are_read_only_when_asked(valid, changes):
    """A kernel that ships must not wait for its device: with values=False not one operation runs on a tensor."""
    arguments = changed(valid, changes)
    with NoOperations():
        call(valid, arguments, "attn_contract.validation", values=False)


@pytest.mark.parametrize("valid", [paged, varlen, write, rope])
@pytest.mark.parametrize("values", ["no", None, 1])
def test_whether_values_are_checked_is_true_or_false(valid, values):
    with pytest.raises(ContractError, match=r"validate: got .*, expected a bool"):
        call(valid, changed(valid, {}), "attn_contract.validation", values=values)


@pytest.mark.parametrize(("valid", "changes", "message"), HOST, ids=[message for _, _, message in HOST])
def test_everything_else_is_checked_always(valid, changes, message):
    with pytest.raises(ContractError) as caught:
        call(valid, changed(valid, changes), "attn_contract.validation", values=False)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("package", ["attn_contract.validation", "attn_reference"])
@pytest.mark.parametrize(("valid", "changes"), VALID)
def test_accepts(valid, changes, package):
    call(valid, changed(valid, changes), package)


def test_parameters_pass_where_no_gradient_is_wanted():
    with torch.no_grad():
        call(paged, paged() | {"sinks": torch.nn.Parameter(torch.zeros(4))}, "attn_reference")


def test_a_refused_gradient_may_be_of_the_sinks():
    """A Layer may hold a model's parameter; only a call that would have to differentiate is refused."""
    arguments = paged() | {"sinks": torch.nn.Parameter(torch.zeros(4))}
    with pytest.raises(ContractError, match=r"^sinks: got requires_grad=True, expected no gradients"):
        call(paged, arguments, "attn_reference")


def test_what_is_accepted_as_interleaved_shares_no_memory():
    """Two tensors of scales over one allocation, with any strides: an accepted pair is disjoint, element by element."""
    random = Random(0)
    layer = Layer(**{name: value for name, value in write_per_token().items() if name in LAYER_FIELDS})
    k, v, slot_mapping = torch.ones(1, 2, 8), torch.ones(1, 2, 8), int64(0)
    kv_cache, raw = cache(num_blocks=2, block_size=3, dtype=torch.int8), torch.zeros(256)
    interleaved = shared = 0
    for _ in range(3000):
        strides = [random.choices([1, 2, 3, 4, 6, 8, 12, 16, 24], k=3) for _ in range(2)]
        offsets = [random.randrange(24) for _ in range(2)]
        views = [raw.as_strided((2, 3, 2), *place) for place in zip(strides, offsets, strict=True)]
        elements = [
            {offset + sum(map(int.__mul__, index, stride)) for index in itertools.product(range(2), range(3), range(2))}
            for stride, offset in zip(strides, offsets, strict=True)
        ]
        scales = dict(zip(("k_scale_cache", "v_scale_cache"), views, strict=True))
        disjoint = not elements[0] & elements[1]
        shared += not disjoint
        try:
            validation.check_write_kv_cache(k, v, kv_cache, replace(layer, **scales), slot_mapping, values=False)
        except ContractError:
            continue
        assert disjoint, (strides, offsets)
        interleaved += max(map(min, elements)) < min(map(max, elements))
    assert interleaved > 30
    assert shared > 300


class NoOperations(TorchDispatchMode):
    """Fails on any operation on a tensor's elements."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} ran")


def test_strides_of_an_empty_tensor_mean_nothing():
    empty = {name: torch.zeros(1).expand(shape) for name, shape in (("q", (0, 4, 8)), ("out", (0, 4, 8)), ("lse", (4, 0)))}
    of_batch = {"query_start_loc": int32(0), "seq_lens": int32(), "max_query_len": 0, "max_seq_len": 0, "num_actual_tokens": 0}
    none = {"block_table": torch.zeros(1, dtype=torch.int32).expand(0, 3), "slot_mapping": int64()}
    call(paged, paged() | empty | of_batch | none, "attn_reference")
