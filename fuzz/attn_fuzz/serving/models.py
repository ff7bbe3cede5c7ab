"""Models for the serving engine: the same layers, on the backends, layouts and views that the selector gives an architecture.

full     self-attention
cross    cross-attention, in the same allocation
window   self-attention with a sliding window and sinks
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from attn_contract import AttentionConfig, AttentionType, Layer, Layout
from attn_fuzz.cases.case import Dtype
from attn_fuzz.cases.poison import DTYPES
from attn_fuzz.targets.aiter import AITER_UNIFIED_ATTENTION
from attn_fuzz.targets.backends import interpreted_on_a_cpu
from attn_fuzz.targets.triton import TRITON
from attn_fuzz.verdict.rounding import Rounding
from attn_optimized.aiter_adapter import Aiter
from attn_optimized.selector import select_model

BLOCK_SIZE = 16
NUM_HEADS, NUM_KV_HEADS = 2, 1
SINKS = (0.5, 2.0)
ALLOCATIONS = (("full", "cross"), ("window",))
CROSS = AttentionType.ENCODER_DECODER
WITHOUT_AITER = Aiter(missing="this model is served without AITER")


@dataclass(frozen=True, kw_only=True)
class ModelLayer:
    """One attention layer of a model.

    Args:
        name: of the layer, for messages.
        backend: a name in attn_optimized.backends.BACKENDS.
        layer: of type DECODER or ENCODER_DECODER. Its `layout` is the layout of the view that the backend gets.
        allocation: index of the model's raw allocation that holds the cache.
        allocation_layout: as for AttentionImpl.
        rope: whether its cache update rotates.
    """

    name: str
    backend: str
    layer: Layer
    allocation: int
    allocation_layout: Layout | None = None
    rope: bool = False


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """Layers that are served together. Their caches have the same number of heads and the same head size.

    Args:
        layers: in the order in which a step runs them, allocation by allocation.
        dtype: of queries, keys, values and caches, by name.
        block_size: slots of a block.
        rounding: where the layers' kernels round.
        free_slots: the number in slots that are not written since their block was free.
        aiter: AMD's AITER for the backends that use it; the installed one if None.
    """

    layers: tuple[ModelLayer, ...]
    dtype: Dtype
    block_size: int
    rounding: Rounding
    free_slots: float = math.nan
    aiter: Aiter | None = None


def served(
    device: str,
    architecture: str,
    *,
    rounding: Rounding,
    aiter: Aiter = WITHOUT_AITER,
    dtype: Dtype = "float32",
    head_size: int = 32,
    cross_layout: Layout | None = None,
    backends: Mapping[str, str] | None = None,
    rope: bool = True,
    free_slots: float = math.nan,
) -> ServedModel:
    """The model as an architecture would serve it, run on any device.

    Args:
        device: "cpu" or "cuda".
        architecture, aiter, backends: as for attn_optimized.selector.select_model.
        cross_layout: layout of the cross-attention's cache, if the engine decides it.
        rope: whether the cache update of `full` rotates.
        rounding, dtype, free_slots: as in ServedModel.
    """
    shape: dict[str, Any] = {"num_heads": NUM_HEADS, "num_kv_heads": NUM_KV_HEADS, "head_size": head_size}
    attn_types = {"full": AttentionType.DECODER, "cross": CROSS, "window": AttentionType.DECODER}
    rules: dict[str, dict[str, Any]] = {"full": {"rope": rope}, "cross": {}, "window": {"window": (19, 19), "sinks": True}}
    configs = {
        name: AttentionConfig(
            **shape,
            attn_type=attn_types[name],
            dtype=DTYPES[dtype],
            block_size=BLOCK_SIZE,
            layout=cross_layout if name == "cross" else None,
            rules=rules[name],
        )
        for name in rules
    }
    assignments = select_model(configs, allocations=ALLOCATIONS[:1], architecture=architecture, aiter=aiter, backends=backends)
    layers = tuple(
        ModelLayer(
            name=name,
            backend=assignments[name].backend,
            layer=Layer(
                **shape,
                attn_type=attn_types[name],
                window=configs[name].value_of("window"),
                scale=head_size**-0.5,
                sinks=torch.tensor(SINKS, device=device) if configs[name].asks("sinks") else None,
                layout=assignments[name].layout,
            ),
            allocation=allocation,
            allocation_layout=assignments[name].allocation_layout,
            rope=configs[name].asks("rope"),
        )
        for allocation, names in enumerate(ALLOCATIONS)
        for name in names
    )
    return ServedModel(layers=layers, dtype=dtype, block_size=BLOCK_SIZE, rounding=rounding, free_slots=free_slots, aiter=aiter)


def triton(device: str) -> ServedModel:
    """All layers on TRITON_ATTN, this project's own kernels."""
    return served(device, "interpreter", rounding=TRITON.rounding(device))


def rocm(device: str) -> ServedModel:
    """ROCM_ATTN for self-attention. TRITON_ATTN runs the cross-attention, and reads its blocks as planes (vLLM #43945)."""
    return served(device, "gfx942", rounding=TRITON.rounding(device), cross_layout=Layout.BLOCKS_FIRST_NHD)


def aiter_unified(device: str) -> ServedModel:
    """All layers on ROCM_AITER_UNIFIED_ATTN, with the installed AITER. Its kernel reads slots that no query sees."""
    return served(
        device,
        "gfx1100",
        rounding=AITER_UNIFIED_ATTENTION.rounding(device),
        aiter=interpreted_on_a_cpu(device),
        dtype="float16",
        free_slots=1.0,
    )


MODELS: dict[str, Callable[[str], ServedModel]] = {"triton": triton, "rocm": rocm, "aiter-unified": aiter_unified}


def unavailable(name: str, device: str) -> str | None:
    """Why a model cannot be served here, in words."""
    return AITER_UNIFIED_ATTENTION.unavailable(device) if name == "aiter-unified" else TRITON.unavailable(device)
