"""Every way in which a call can contradict itself is refused by name, value and expectation, before anything is written."""

import dataclasses
import importlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from attn_contract import AttentionType, Batch, ContractError, Layer, Layout, validation
from torch.utils._python_dispatch import TorchDispatchMode

Arguments = dict[str, object]
Changes = Arguments | Callable[[Arguments], Arguments]

LAYER_FIELDS = [field.name for field in dataclasses.fields(Layer)]
BATCH_FIELDS = [field.name for field in dataclasses.fields(Batch)]
INT32_MAX = 2**31 - 1


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def int64(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def cache(num_blocks: int = 6, block_size: int = 4, num_kv_heads: int = 2, head_size: int = 8) -> torch.Tensor:
    return torch.zeros(num_blocks, 2, block_size, num_kv_heads, head_size)


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


def write() -> Arguments:
    """Six slots for seven rows, one of them not to be written."""
    k, v = torch.ones(2, 7, 2, 8)
    return {
        "k": k,
        "v": v,
        "kv_cache": cache(),
        "layout": Layout.BLOCKS_FIRST_NHD,
        "slot_mapping": int64(15, 4, -1, 20, 21, 22),
    }


def merge() -> Arguments:
    out_a, out_b, out = torch.zeros(3, 5, 4, 8)
    lse_a, lse_b, lse = torch.zeros(3, 4, 5)
    return {"out_a": out_a, "lse_a": lse_a, "out_b": out_b, "lse_b": lse_b, "out": out, "lse": lse}


OPERATION = {
    paged: "paged_attention",
    cross: "paged_attention",
    varlen: "varlen_attention",
    write: "write_kv_cache",
    merge: "merge_attn_states",
}


def call(valid: Callable[[], Arguments], arguments: Arguments, module: str, *, values: bool = True) -> None:
    """Make the call that `arguments` describe: of a package, or only of the contract's checks."""
    # imported late: whether attn_optimized's kernels are interpreted is decided when it is imported, by its own tests
    name, package = OPERATION[valid], importlib.import_module(module)
    if "q" in arguments:
        layer = Layer(**{name: value for name, value in arguments.items() if name in LAYER_FIELDS})
        batch = Batch(**{name: value for name, value in arguments.items() if name in BATCH_FIELDS})
        others = {name: value for name, value in arguments.items() if name not in LAYER_FIELDS + BATCH_FIELDS}
        arguments = {"layer": layer, "batch": batch} | others
    if package is validation:
        name = f"check_{name}"
    flag = {"attn_contract.validation": "values", "attn_optimized": "validate"}.get(module)
    flags = {flag: values} if flag and valid is not merge else {}
    getattr(package, name)(**arguments, **flags)


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


HOST = [
    # heads, sizes and scale
    (paged, {"num_heads": 0}, "num_heads: got 0, expected an int, at least 1"),
    (paged, {"num_heads": -4}, "num_heads: got -4, expected an int, at least 1"),
    (paged, {"num_heads": 4.0}, "num_heads: got 4.0, expected an int"),
    (paged, {"num_heads": True}, "num_heads: got True, expected an int"),
    (paged, {"num_heads": np.int64(4)}, "num_heads: got np.int64(4), expected an int"),
    (paged, {"num_heads": torch.tensor(4)}, "num_heads: got tensor(4), expected an int"),
    (paged, {"num_heads": 3}, "num_heads: got 3, expected a multiple of num_kv_heads (2)"),
    (paged, {"num_kv_heads": 0}, "num_kv_heads: got 0, expected an int, at least 1"),
    (paged, {"num_kv_heads": None}, "num_kv_heads: got None, expected an int"),
    (paged, {"num_kv_heads": 8}, "num_heads: got 4, expected a multiple of num_kv_heads (8)"),
    (paged, {"head_size": 0}, "head_size: got 0, expected an int, at least 1"),
    (paged, {"head_size": "8"}, "head_size: got '8', expected an int"),
    (paged, {"scale": float("nan")}, "scale: got nan, expected a finite number"),
    (paged, {"scale": float("inf")}, "scale: got inf, expected a finite number"),
    (paged, {"scale": 1e39}, "scale: got 1e+39, expected a finite number of float32"),
    (paged, {"scale": 10**400}, "scale: got 1000"),
    (paged, {"scale": None}, "scale: got None, expected a finite number"),
    (paged, {"scale": "1" * 1000}, "scale: got '1111"),
    (paged, {"scale": True}, "scale: got True, expected a finite number"),
    (paged, {"scale": torch.tensor(0.5)}, "scale: got tensor(0.5000), expected a finite number"),
    # attention type, layout
    (paged, {"attn_type": "decoder"}, "attn_type: got 'decoder', expected an AttentionType: decoder, encoder"),
    (paged, {"attn_type": None}, "attn_type: got None, expected an AttentionType"),
    (paged, {"layout": "BLOCKS_FIRST_NHD"}, "layout: got 'BLOCKS_FIRST_NHD', expected None or a Layout: BLOCKS_FIRST_NHD"),
    (paged, {"layout": None}, "layout: got None with attn_type=decoder, expected a Layout"),
    (cross, {"layout": None}, "layout: got None with attn_type=encoder_decoder, expected a Layout"),
    (varlen, {"layout": Layout.KV_FIRST_HND}, "layout: got KV_FIRST_HND with attn_type=encoder, expected None"),
    # window
    (paged, {"window": None}, "window: got None, expected a tuple (left, right)"),
    (paged, {"window": 4}, "window: got 4, expected a tuple (left, right)"),
    (paged, {"window": [4, 4]}, "window: got [4, 4], expected a tuple (left, right)"),
    (paged, {"window": (4,)}, "window: got (4,), expected a tuple (left, right)"),
    (paged, {"window": (-2, 0)}, "window[0]: got -2, expected an int, at least -1"),
    (paged, {"window": (0, -2)}, "window[1]: got -2, expected an int, at least -1"),
    (paged, {"window": (4.0, 4)}, "window[0]: got 4.0, expected an int"),
    (paged, {"window": (4, None)}, "window[1]: got None, expected an int"),
    (paged, {"window": (False, 4)}, "window[0]: got False, expected an int"),
    (paged, {"window": (2**31, 0)}, "window[0]: got 2147483648, expected an int, at least -1 and at most 2147483647"),
    (cross, {"window": (4, -1)}, "window: got (4, -1), expected (-1, -1) for ENCODER_DECODER"),
    # sinks
    (paged, {"sinks": [0.0] * 4}, "sinks: got [0.0, 0.0, 0.0, 0.0], expected a tensor"),
    (paged, {"sinks": torch.zeros(2)}, "sinks: got shape (2,), expected shape (4,): one per query head"),
    (paged, {"sinks": torch.tensor(0.0)}, "sinks: got shape (), expected shape (4,)"),
    (paged, {"sinks": torch.zeros(4, 1)}, "sinks: got shape (4, 1), expected shape (4,)"),
    (paged, {"sinks": torch.zeros(4).double()}, "sinks: got torch.float64, expected float32, float16 or bfloat16"),
    (paged, {"sinks": every_other(torch.zeros(4))}, "sinks: got stride 2 in the last dimension, expected 1"),
    (paged, {"sinks": torch.zeros(1).expand(4)}, "sinks: got stride 0 in the last dimension, expected 1"),
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
    (varlen, {"causal": True}, "causal: got True, expected False for encoder"),
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
    (paged, {"kv_cache": cache().transpose(0, 1)}, "kv_cache: got shape (2, 6, 4, 2, 8), expected 2 (K and V) in dimension 1"),
    (paged, {"layout": Layout.BLOCKS_FIRST_HND}, "kv_cache: got 4 heads of size 8 (shape (6, 2, 4, 2, 8) as BLOCKS_FIRST_HND)"),
    (paged, {"kv_cache": cache(num_kv_heads=1)}, "kv_cache: got 1 heads of size 8 (shape (6, 2, 4, 1, 8)"),
    (paged, {"kv_cache": cache(head_size=16)}, "kv_cache: got 2 heads of size 16"),
    (paged, {"kv_cache": cache(block_size=0)}, "kv_cache: got shape (6, 2, 0, 2, 8), expected at least one slot, head and dim"),
    (paged, {"kv_cache": cache().half()}, "kv_cache: got torch.float16, expected torch.float32: one dtype"),
    (paged, {"kv_cache": cache().to(torch.float8_e4m3fn)}, "kv_cache: got torch.float8_e4m3fn, expected float32, float16"),
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
    (write, {"layout": "KV_FIRST_NHD"}, "layout: got 'KV_FIRST_NHD', expected a Layout"),
    (write, {"layout": None}, "layout: got None, expected a Layout"),
    (write, {"layout": Layout.KV_FIRST_NHD}, "kv_cache: got shape (6, 2, 4, 2, 8), expected 2 (K and V) in dimension 0"),
    (write, {"k": torch.ones(7, 16)}, "k: got shape (7, 16), expected 3 dimensions"),
    (write, {"v": torch.ones(6, 2, 8)}, "v: got shape (6, 2, 8), expected shape (7, 2, 8), as k has"),
    (write, {"k": torch.ones(7, 2, 8).half()}, "k: got torch.float16, expected torch.float32"),
    (write, {"v": torch.ones(7, 2, 8).bfloat16()}, "v: got torch.bfloat16, expected torch.float32"),
    (write, {"k": every_other(torch.ones(7, 2, 8))}, "k: got stride 2 in the last dimension, expected 1"),
    (write, {"k": torch.ones(7, 1, 8), "v": torch.ones(7, 1, 8)}, "k: got shape (7, 1, 8), expected shape (T_kv, 2, 8)"),
    (write, {"k": torch.ones(7, 2, 4), "v": torch.ones(7, 2, 4)}, "k: got shape (7, 2, 4), expected shape (T_kv, 2, 8)"),
    (write, {"k": torch.ones(7, 2, 8, requires_grad=True)}, "k: got requires_grad=True, expected no gradients"),
    (write, {"kv_cache": cache(num_blocks=1).expand(6, -1, -1, -1, -1)}, "kv_cache: got strides (0, 64, 16, 8, 1)"),
    (write, {"kv_cache": cache()[0]}, "kv_cache: got shape (2, 4, 2, 8), expected 5 dimensions"),
    (write, lambda a: {name: a[name].long() for name in ("k", "v", "kv_cache")}, "kv_cache: got torch.int64, expected float32"),
    (write, {"slot_mapping": None}, "slot_mapping: got None, expected a tensor"),
    (write, {"slot_mapping": int32(1, 2)}, "slot_mapping: got torch.int32, expected torch.int64"),
    (write, {"slot_mapping": int64(1)[0]}, "slot_mapping: got shape (), expected one dimension"),
    (write, {"slot_mapping": int64(1, 2)[None]}, "slot_mapping: got shape (1, 2), expected one dimension"),
    (write, {"slot_mapping": every_other(int64(1, 2))}, "slot_mapping: got stride 2 in the last dimension, expected 1"),
    (write, {"slot_mapping": int64(*range(8))}, "slot_mapping: got 8 slots, expected at most the 7 rows of k and v"),
    (write, {"slot_mapping": int64(1).to("meta")}, "slot_mapping: got a tensor on meta, expected cpu, where k is"),
    # tensors whose memory does not hold their values
    (
        paged,
        {"q": torch._neg_view(torch.zeros(8, 4, 8))},
        "q: got a nested, negated or conjugate view, expected a tensor whose",
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
    (paged, {"sinks": torch.tensor([0, 0, torch.nan, 0])}, "sinks[2]: got nan, expected a finite logit or -inf"),
    (paged, {"sinks": torch.tensor([0, torch.inf, 0, 0])}, "sinks[1]: got inf, expected a finite logit or -inf"),
    (cross, {"seq_lens": int32(5, 4, 5)}, "block_table[2, 1]: got 6, expected a block of the cache, 0 to 5"),
    (varlen, {"seq_lens": int32(2, 1, 4)}, "seq_lens[2]: got 4, expected 3, the request's query length"),
    (varlen, {"query_start_loc": int32(0, 2, 1, 6)}, "query_start_loc[2]: got 1, expected at least 2"),
    (varlen, {"sinks": torch.full((4,), torch.nan)}, "sinks[0]: got nan, expected a finite logit or -inf"),
    (
        write,
        {"slot_mapping": int64(-2)},
        "slot_mapping[0]: got -2, expected -1 (write nothing) or a slot of the cache, 0 to 23",
    ),
    (write, {"slot_mapping": int64(0, 24)}, "slot_mapping[1]: got 24, expected -1 (write nothing) or a slot of the cache"),
    (write, {"slot_mapping": int64(2**62)}, "slot_mapping[0]: got 4611686018427387904, expected -1"),
    (write, {"slot_mapping": int64(3, -1, 7, -1, 3)}, "slot_mapping: got slot 3 twice, expected every slot at most once"),
]

VALID = [
    (paged, {}),
    (cross, {}),
    (varlen, {}),
    (write, {}),
    (merge, {}),
    (paged, {"out": None, "lse": None, "sinks": None, "slot_mapping": None}),
    (paged, {"scale": 1}),
    (paged, {"scale": 0.0}),
    (paged, {"scale": np.float64(0.5)}),
    (paged, {"window": (0, 0)}),
    (paged, {"window": (INT32_MAX, -1), "causal": torch.tensor([True, False, True])}),
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
    (varlen, {"k": torch.zeros(9, 2, 8), "v": torch.zeros(9, 2, 8)}),
    # cache writes of fewer rows than there are, none, padding only
    (write, {"slot_mapping": int64(23)}),
    (write, {"slot_mapping": int64()}),
    (write, {"slot_mapping": int64(-1, -1, -1)}),
    (write, {"k": torch.ones(1, 2, 8).expand(7, -1, -1)}),
    # merges in place
    (merge, {"out": None, "lse": None}),
    (merge, lambda a: {"out": a["out_a"], "lse": a["lse_a"]}),
    (merge, lambda a: {"out": a["out_b"], "lse": a["lse_b"]}),
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


class NoOperations(TorchDispatchMode):
    """Fails on any operation on a tensor's elements."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} ran")
