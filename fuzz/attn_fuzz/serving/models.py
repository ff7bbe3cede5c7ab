"""Models for the serving engine: the same layers, on the backends, layouts and views that the selector gives an architecture.

full     self-attention, of heads twice as wide as the others
cross    cross-attention, in blocks of more slots; some models have its cache in float8
window   self-attention with a sliding window and sinks, of more heads and KV heads

All are in one allocation, in which a block of each has as many bytes.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

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
HEADS = {"full": (2, 1), "cross": (3, 1), "window": (6, 2)}
"""Query and KV heads."""
SINKS = (0.5, 2.0, 1.0, -1.0, 0.0, 3.0)
K_SCALE, V_SCALE = 0.03125, 0.0625
"""Of float8 caches."""
CROSS = AttentionType.ENCODER_DECODER
WITHOUT_AITER = Aiter(missing="this model is served without AITER")


@dataclass(frozen=True, kw_only=True)
class ModelLayer:
    """One attention layer of a model.

    Args:
        name: of the layer, for messages.
        backend: a name in attn_optimized.backends.BACKENDS.
        layer: of type DECODER or ENCODER_DECODER. Its `layout` is the layout of the view that the backend gets. Layers of one
            attention type, block size and window form a group, which has block tables of its own.
        block_size: slots of a block.
        allocation_layout: as for AttentionImpl.
        rope: whether its cache update rotates.
    """

    name: str
    backend: str
    layer: Layer
    block_size: int
    allocation_layout: Layout | None = None
    rope: bool = False

    @property
    def group(self) -> "LayerGroup":
        return LayerGroup(self.layer.attn_type, self.block_size, self.layer.window[0])


class LayerGroup(NamedTuple):
    """Layers with the same block tables."""

    attn_type: AttentionType
    block_size: int
    window_left: int

    def num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def unseen_blocks(self, position: int) -> int:
        """Leading blocks that no query from a position on sees a key of."""
        return max(0, position - self.window_left) // self.block_size if self.window_left >= 0 else 0


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """Layers that are served together, in one allocation.

    Args:
        layers: in the order in which a step runs them.
        dtype: of queries, keys, values and caches that are not quantized, by name.
        rounding: where the layers' kernels round.
        free_slots: the number in slots that are not written since their block was free.
        aiter: AMD's AITER for the backends that use it; the installed one if None.
    """

    layers: tuple[ModelLayer, ...]
    dtype: Dtype
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
    cross_cache: torch.dtype | None = None,
    cross_layout: Layout | None = None,
    backends: Mapping[str, str] | None = None,
    rope: bool = True,
    free_slots: float = math.nan,
) -> ServedModel:
    """The model as an architecture would serve it, run on any device.

    Args:
        device: "cpu" or "cuda".
        architecture, aiter, backends: as for attn_optimized.selector.select_model.
        head_size: of `cross` and `window`; `full` has twice as many dims.
        cross_cache: the float8 type of the cache of `cross`, in as many more slots as its elements are smaller.
        cross_layout: layout of the cross-attention's cache, if the engine decides it.
        rope: whether the cache update of `full` rotates.
        rounding, dtype, free_slots: as in ServedModel.
    """
    shapes: dict[str, dict[str, Any]] = {
        name: {"num_heads": heads, "num_kv_heads": kv_heads, "head_size": 2 * head_size if name == "full" else head_size}
        for name, (heads, kv_heads) in HEADS.items()
    }
    smaller = 1 if cross_cache is None else DTYPES[dtype].itemsize // cross_cache.itemsize
    block_sizes = {"full": BLOCK_SIZE, "cross": 2 * BLOCK_SIZE * smaller, "window": BLOCK_SIZE}
    quantized = {"kv_cache_dtype": cross_cache, "scales": "tensor"} if cross_cache is not None else {}
    scales: dict[str, Any] = {"k_scale": torch.tensor(K_SCALE, device=device), "v_scale": torch.tensor(V_SCALE, device=device)}
    attn_types = {"full": AttentionType.DECODER, "cross": CROSS, "window": AttentionType.DECODER}
    rules: dict[str, dict[str, Any]] = {"full": {"rope": rope}, "cross": {}, "window": {"window": (9, 9), "sinks": True}}
    configs = {
        name: AttentionConfig(
            **shapes[name],
            **(quantized if name == "cross" else {}),
            attn_type=attn_types[name],
            dtype=DTYPES[dtype],
            block_size=block_sizes[name],
            layout=cross_layout if name == "cross" else None,
            rules=rules[name],
        )
        for name in rules
    }
    assignments = select_model(configs, allocations=[[*rules]], architecture=architecture, aiter=aiter, backends=backends)
    layers = tuple(
        ModelLayer(
            name=name,
            backend=assignments[name].backend,
            layer=Layer(
                **shapes[name],
                attn_type=attn_types[name],
                window=configs[name].value_of("window"),
                scale=shapes[name]["head_size"] ** -0.5,
                kv_cache_dtype=configs[name].kv_cache_dtype,
                **(scales if configs[name].kv_cache_dtype is not None else {}),
                sinks=torch.tensor(SINKS, device=device) if configs[name].asks("sinks") else None,
                layout=assignments[name].layout,
            ),
            block_size=block_sizes[name],
            allocation_layout=assignments[name].allocation_layout,
            rope=configs[name].asks("rope"),
        )
        for name in rules
    )
    return ServedModel(layers=layers, dtype=dtype, rounding=rounding, free_slots=free_slots, aiter=aiter)


def triton(device: str) -> ServedModel:
    """All layers on TRITON_ATTN, this project's own kernels."""
    return served(device, "interpreter", rounding=TRITON.rounding(device), cross_cache=torch.float8_e4m3fn)


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
