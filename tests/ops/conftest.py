"""One small call of each op without options, and others that together give every option, on each device that there is."""

from collections.abc import Callable
from typing import Any, NamedTuple

import attn_optimized  # noqa: F401  registers the ops of GPUs
import attn_reference  # noqa: F401  registers the ops of CPUs
import pytest
import torch

ROWS, NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE = 6, 4, 2, 16
NUM_BLOCKS, BLOCK_SIZE = 4, 4
FP8 = torch.float8_e4m3fn

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


class Call(NamedTuple):
    op: torch._ops.OpOverload
    arguments: dict[str, Any]

    @property
    def written(self) -> list[str]:
        """The tensors among the arguments that the schema says are written."""
        is_write = {a.name: a.alias_info is not None and a.alias_info.is_write for a in self.op._schema.arguments}
        return [name for name, value in self.arguments.items() if is_write[name] and value is not None]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=needs_gpu)])
def device(request) -> torch.device:
    return torch.device(request.param)


def int32(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def lengths() -> dict[str, Any]:
    """Requests of 3 and 1 query tokens; the last two rows are nobody's."""
    return {
        "query_start_loc": int32([0, 3, 4]),
        "seq_lens": int32([9, 4]),
        "max_query_len": 5,
        "max_seq_len": 12,
        "num_actual_tokens": 5,
    }


def outputs(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return {"out": torch.zeros(ROWS, NUM_HEADS, HEAD_SIZE).to(dtype), "lse": None}


def lse() -> torch.Tensor:
    return torch.zeros(NUM_HEADS, ROWS)


def cache(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    shape = (NUM_BLOCKS, 2, BLOCK_SIZE, NUM_KV_HEADS, HEAD_SIZE)
    return {"kv_cache": torch.randn(shape).mul(9).to(dtype), "layout": "BLOCKS_FIRST_NHD"}


def cache_with_inline_scales() -> dict[str, Any]:
    shape = (NUM_BLOCKS, NUM_KV_HEADS, BLOCK_SIZE, 2 * (HEAD_SIZE + 4))
    written = {"kv_cache": torch.zeros(shape, dtype=torch.int8), "layout": "CONTENT_PACKED_SCALED"}
    num_slots = NUM_BLOCKS * BLOCK_SIZE
    k, v = torch.randn(2, num_slots, NUM_KV_HEADS, HEAD_SIZE)
    torch.ops.attn_parity.write_kv_cache(k, v, **written, slot_mapping=torch.arange(num_slots))
    return written


def fixed_scales() -> dict[str, torch.Tensor]:
    return {"k_scale": torch.tensor(0.5), "v_scale": torch.tensor([0.5, 2.0])}


def scale_caches() -> dict[str, torch.Tensor]:
    return {name: torch.rand(NUM_BLOCKS, BLOCK_SIZE, NUM_KV_HEADS) for name in ("k_scale_cache", "v_scale_cache")}


def rules() -> dict[str, Any]:
    return {
        "window": [2, 2],
        "sink_tokens": 1,
        "chunked_local": 6,
        "logits_soft_cap": 5.0,
        "alibi_slopes": torch.rand(NUM_HEADS),
        "sinks": torch.randn(NUM_HEADS),
        "lse": lse(),
        "batch_invariant": False,
    }


def fused_qkv() -> dict[str, torch.Tensor]:
    qkv = torch.randn(ROWS, NUM_HEADS + 2 * NUM_KV_HEADS, HEAD_SIZE)
    return dict(zip("qkv", qkv.split([NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS], dim=1), strict=True))


def paged_attention(kv_cache: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {
        "q": torch.randn(ROWS, NUM_HEADS, HEAD_SIZE),
        **kv_cache,
        "num_kv_heads": NUM_KV_HEADS,
        "scale": 0.5,
        "attn_type": "decoder",
        **lengths(),
        "block_table": int32([[2, 0, 3], [1, -1, -1]]),
        "causal": True,
        "causal_per_request": None,
        **outputs(),
        **options,
    }


def per_request() -> dict[str, Any]:
    return {
        "causal": None,
        "causal_per_request": torch.tensor([True, False]),
        "bidirectional_ranges": int32([[[1, 7]], [[0, -1]]]),
        "ranges_clamped": True,
        "qq_bias": torch.randn(ROWS, ROWS),
    }


def varlen_attention(**options: Any) -> dict[str, Any]:
    encoder = {"scale": 0.5, "attn_type": "encoder_only", **lengths(), "seq_lens": int32([3, 1])}
    return {**fused_qkv(), **encoder, **outputs(), **options}


def write_kv_cache(kv_cache: dict[str, Any], **scales: torch.Tensor) -> dict[str, Any]:
    k, v = torch.randn(2, ROWS, NUM_KV_HEADS, HEAD_SIZE)
    return {"k": k, "v": v, **kv_cache, "slot_mapping": torch.tensor([1, -1, 9, 4]), **scales}


def rope_and_write_kv_cache(kv_cache: dict[str, Any], *, is_neox: bool, **scales: torch.Tensor) -> dict[str, Any]:
    rotation = {"positions": torch.tensor([5, 3, 1, 2, 0]), "cos_sin_cache": torch.randn(6, 8), "is_neox": is_neox}
    return {**write_kv_cache(kv_cache, **scales), **fused_qkv(), **rotation}


def merge_attn_states(**options: Any) -> dict[str, Any]:
    states = {"out_a": torch.randn(ROWS, NUM_HEADS, HEAD_SIZE), "out_b": torch.randn(ROWS, NUM_HEADS, HEAD_SIZE)}
    return {**states, "lse_a": lse(), "lse_b": lse() + 1, **outputs(), **options}


CALLS: dict[str, Callable[[], dict[str, Any]]] = {
    "paged_attention": lambda: paged_attention(cache()),
    "paged_attention with every rule": lambda: paged_attention(cache(), **rules(), **per_request()),
    "paged_attention batch-invariant": lambda: paged_attention(cache(), batch_invariant=True),
    "paged_attention of int8": lambda: paged_attention(cache(torch.int8), **scale_caches()),
    "paged_attention of int8 with inline scales": lambda: paged_attention(cache_with_inline_scales()),
    "paged_attention of float8 to float8": lambda: paged_attention(
        cache(FP8), **fixed_scales(), **outputs(FP8), output_scale=torch.tensor(0.25)
    ),
    "varlen_attention": lambda: varlen_attention(),
    "varlen_attention with every rule": lambda: varlen_attention(**rules()),
    "varlen_attention to float8": lambda: varlen_attention(**outputs(FP8), output_scale=torch.tensor([0.25])),
    "write_kv_cache": lambda: write_kv_cache(cache()),
    "write_kv_cache of int8": lambda: write_kv_cache(cache(torch.int8), **scale_caches()),
    "write_kv_cache of int8 with inline scales": lambda: write_kv_cache(cache_with_inline_scales()),
    "write_kv_cache of float8": lambda: write_kv_cache(cache(FP8), **fixed_scales()),
    "rope_and_write_kv_cache": lambda: rope_and_write_kv_cache(cache(), is_neox=True),
    "rope_and_write_kv_cache of int8": lambda: rope_and_write_kv_cache(cache(torch.int8), is_neox=False, **scale_caches()),
    "rope_and_write_kv_cache of float8": lambda: rope_and_write_kv_cache(cache(FP8), is_neox=True, **fixed_scales()),
    "merge_attn_states": lambda: merge_attn_states(),
    "merge_attn_states with an lse": lambda: merge_attn_states(lse=lse()),
}


@pytest.fixture(params=CALLS)
def call(request, device) -> Call:
    if device.type == "cpu" and "batch-invariant" in request.param:
        pytest.skip("the reference refuses batch_invariant=True")
    torch.manual_seed(0)
    with device:
        arguments = CALLS[request.param]()
    return Call(getattr(torch.ops.attn_parity, request.param.split()[0]).default, arguments)
