"""vLLM's triton_reshape_and_cache_flash and its sibling for scales of tokens and heads; the reference attends.

do_kv_cache_update of TritonAttentionImpl calls them. Lines of v1/attention/backends/triton_attn.py: 834-843 and 815-824 are the
calls.

The sibling multiplies by 1 / scale where the contract divides, rounds int8 half away from zero, and has scales of 1e-6 or more
(ops/triton_reshape_and_cache_flash.py:221-234). So a scale may differ from the contract's by two roundings, and a number whose
quotient is near to a tie may be stored as either neighbour. A row that keeps to this is replaced by the contract's; all other
bytes are judged as the kernel left them.

The first one divides by `/`, which Triton compiles for NVIDIA to div.full.f32. Its quotient is off by up to two units in the
last place. So a number of float8 whose quotient is so near to a tie may be stored as either neighbour, which are as near to it.
On a GPU such a number is replaced by the contract's. Triton's interpreter divides as the contract does, and there all bytes are
judged.
"""

from collections.abc import Callable
from types import ModuleType

import attn_reference
import torch
from attn_contract import AttentionType, Layer, Layout
from attn_fuzz import foreign
from attn_fuzz.targets.packages.vllm import package as vllm_package
from attn_fuzz.targets.packages.vllm.package import KVQuantMode
from attn_fuzz.targets.target import Target
from attn_fuzz.verdict.rounding import Rounding

SOURCES, ON_ROCM = (vllm_package.ops("triton_reshape_and_cache_flash", is_rocm=is_rocm) for is_rocm in (False, True))
MIN_SCALE = 1e-6
PRODUCT_ERROR = 6
"""Units in the last place of float32 by which a product with 1 / scale may be off, with the roundings of the scale."""


def _write_kv_cache(k: torch.Tensor, v: torch.Tensor, kv_cache: torch.Tensor, layer: Layer, slot_mapping: torch.Tensor) -> None:
    write = _write_scaled_rows if layer.layout is Layout.CONTENT_PACKED_SCALED else _write_rows
    write(k, v, kv_cache, layer, slot_mapping)


def module_for(device: torch.device) -> ModuleType:
    """On CUDA it asks the device for its capability."""
    return (ON_ROCM if device.type == "cpu" else SOURCES).load()[0]


def _write_rows(k: torch.Tensor, v: torch.Tensor, kv_cache: torch.Tensor, layer: Layer, slot_mapping: torch.Tensor) -> None:
    module = module_for(k.device)
    caches = foreign.keys_and_values(kv_cache, layer)

    def write(dtype: str, *scales: torch.Tensor) -> None:
        module.triton_reshape_and_cache_flash(k, v, *caches, slot_mapping, dtype, *scales)

    written(write, k, v, kv_cache, layer, slot_mapping)


def written(
    write: Callable[..., None],
    k: torch.Tensor,
    v: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: Layer,
    slot_mapping: torch.Tensor,
) -> None:
    """Write by a kernel, and then replace numbers that differ from the contract's as quotients near ties may.

    Args:
        write: calls the kernel with vLLM's name of the cache's dtype, and the scales of K and V.
    """
    caches = foreign.keys_and_values(kv_cache, layer)
    one = k.new_ones(1, dtype=torch.float32)
    dtype = "auto" if layer.kv_cache_dtype is None else "fp8"
    scales = [one if scale is None else scale for scale in (layer.k_scale, layer.v_scale)]
    write(dtype, *scales)
    if dtype == "auto" or not (units := division_error(k.device)):
        return
    written = slot_mapping >= 0
    at = slot_mapping[written] // caches[0].shape[1], slot_mapping[written] % caches[0].shape[1]
    for rows, cache, scale in zip((k, v), caches, scales, strict=True):
        rows, stored = rows[: len(slot_mapping)][written], cache.view(torch.uint8)
        right = attn_reference.quantize(rows, scale, cache.dtype).view(torch.uint8)
        stored[at] = torch.where(_is_quotient(rows, stored[at].view(cache.dtype), scale, units), right, stored[at])


def division_error(device: torch.device) -> int:
    """Units in the last place of float32 by which `/` may be off: two where it is div.full.f32 (PTX ISA)."""
    return 0 if device.type == "cpu" else 2


def _is_quotient(rows: torch.Tensor, stored: torch.Tensor, scale: torch.Tensor, units: int) -> torch.Tensor:
    """For each number of rows [S, HK, D]: whether it is stored as a quotient that is off by up to so many units."""
    quotient, one = rows.double() / scale.double(), torch.ones_like(scale)
    ends = [attn_reference.quantize(quotient * (1 + sign * units * 2.0**-23), one, stored.dtype) for sign in (-1, 1)]
    codes, (first, last) = _ordered(stored), map(_ordered, ends)
    return (torch.minimum(first, last) <= codes) & (codes <= torch.maximum(first, last))


def _ordered(stored: torch.Tensor) -> torch.Tensor:
    """Numbers as ints in their order. In that of float8, -0 comes before 0, and NaN with its sign at an end."""
    if stored.dtype == torch.int8:
        return stored.int()
    byte = stored.contiguous().view(torch.uint8).int()
    return torch.where(byte >= 0x80, 0x7F - byte, byte)


def _write_scaled_rows(
    k: torch.Tensor, v: torch.Tensor, kv_cache: torch.Tensor, layer: Layer, slot_mapping: torch.Tensor
) -> None:
    """Write by the sibling, and then replace rows that differ from the contract's as they may."""
    module = module_for(k.device)
    k_cache, v_cache, k_scales, v_scales = vllm_package.keys_values_and_scales(kv_cache, layer)
    mode = KVQuantMode.INT8_PER_TOKEN_HEAD if kv_cache.dtype == torch.int8 else KVQuantMode.FP8_PER_TOKEN_HEAD
    k, v = k[: len(slot_mapping)], v[: len(slot_mapping)]  # as the engine sends them: v1/worker/gpu_model_runner.py:4038
    contract = kv_cache.clone()
    attn_reference.write_kv_cache(k, v, contract, layer, slot_mapping)
    write, hints = module.triton_reshape_and_cache_flash_per_token_head_quant, {"kv_quant_mode": mode}
    foreign.call(write, k, v, k_cache, v_cache, k_scales, v_scales, slot_mapping, hints=hints)
    of_contract = vllm_package.keys_values_and_scales(contract, layer)
    for rows, stored, scales, (right, right_scales) in (
        (k, k_cache, k_scales, of_contract[::2]),
        (v, v_cache, v_scales, of_contract[1::2]),
    ):
        for row, slot in zip(rows, slot_mapping.tolist(), strict=False):
            at = slot // stored.shape[1], slot % stored.shape[1]
            if slot >= 0 and _is_near(row, stored[at][:, : layer.head_size], scales[at]):
                stored[at].copy_(right[at])
                scales[at].copy_(right_scales[at])


def _is_near(row: torch.Tensor, stored: torch.Tensor, scales: torch.Tensor) -> bool:
    """True if a row [HK, D] is stored as its quotients to PRODUCT_ERROR, and its scales [HK] to two roundings."""
    expected = attn_reference.row_scales(row, stored.dtype).clamp(min=MIN_SCALE)
    is_equal = _codes(attn_reference.quantize(row, expected, stored.dtype)) == _codes(stored)
    is_near = is_equal | _is_quotient(row, stored, expected, PRODUCT_ERROR)
    return bool(is_near.all()) and torch.allclose(scales, expected[:, 0], rtol=2.0**-22, atol=0, equal_nan=True)


def _codes(stored: torch.Tensor) -> torch.Tensor:
    """Numbers of 8 bits as ints that count their steps; all NaN of a float8 are one code, and both zeros."""
    if stored.dtype == torch.int8:
        return stored.int()
    byte = stored.contiguous().view(torch.uint8).int()
    magnitude = byte & 0x7F
    return torch.where(byte >= 0x80, -magnitude, magnitude).masked_fill(magnitude == 0x7F, 1000)


def _attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    attn_reference.paged_attention(q, kv_cache, layer, batch, out=out)


_SUPPORT = vllm_package.support(
    attn_types=(AttentionType.DECODER, AttentionType.ENCODER_DECODER),
    dtypes=("float32", "float16", "bfloat16"),
    layouts=(Layout.CONTENT_PACKED, Layout.CONTENT_PACKED_SCALED),
    rules=("non_causal",),
    cache_dtypes=("fp8_e4m3fn", "int8"),
    max_tokens=64,
    max_seq_len=128,
)
VLLM_RESHAPE_AND_CACHE = Target(
    name="vllm-reshape-and-cache",
    description="the triton_reshape_and_cache_flash of vLLM and its sibling for scales of tokens; the reference attends",
    attention=_attention,
    write_kv_cache=_write_kv_cache,
    support=lambda device: _SUPPORT,
    rounding=lambda device: Rounding(keys_per_tile=64),
    refuses=False,
    **ON_ROCM.fields(),
)
