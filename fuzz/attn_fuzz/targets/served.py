"""What each backend serves, stated once more.

A backend that declares too much serves what it must refuse, and a backend that declares too little refuses what it must serve.
Draws show both of rules, attention types and formats, of which the targets state the Support. Of sizes, dtypes and layouts a
Support says no more than what is drawn, and of architectures nothing. All those that a backend serves are stated here, and each
case holds one kind of them to what the backend declares.
"""

import dataclasses
import functools
import itertools
import random
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from attn_contract import AttentionConfig, AttentionType, Capabilities, Layout
from attn_fuzz.targets.declared import config_of
from attn_fuzz.targets.target import BESIDE_TWO_WIDTHS, Support
from attn_fuzz.targets.triton import TRITON

_ANY_DTYPE = (torch.float32, torch.float16, torch.bfloat16)
_LAYOUTS = tuple(layout for layout in Layout if not layout.has_latent_value)
# in the order in which AITER's backends prefer them: it is their declaration
_ROWS = (
    Layout.BLOCKS_FIRST_NHD,
    Layout.CONTENT_PACKED,
    Layout.BLOCKS_FIRST_HND,
    Layout.KV_FIRST_NHD,
    Layout.KV_FIRST_HND,
)
_MOST = 1 << 20
_COMPARED_WITH_AITER = range(1, 65)
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz)
_OF_AMD = ("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201")
_ARCHITECTURES = (*_OF_AMD, "sm90", "interpreter")
_BEFORE_SM89 = tuple(f"sm{number}" for number in range(70, 89))
_OF_CACHES = (*_OF_AMD, "interpreter", *_BEFORE_SM89, *(f"sm{number}" for number in range(89, 130)))
_OUTPUTS = tuple(itertools.product(_ARCHITECTURES, _FLOAT8))
_PLAIN = AttentionConfig(num_heads=1, num_kv_heads=1, head_size=64, dtype=torch.float16, block_size=16)
"""A decoder that every backend serves, but those of latent attention and of two widths."""
_LATENT = dataclasses.replace(_PLAIN, rules={"head_size_v": 32})
"""A decoder that every backend of latent attention serves."""
_TWO_WIDTHS = dataclasses.replace(_PLAIN, layout=Layout.CONTENT_PACKED, rules={"head_size_v": 16})
"""A decoder that the backend of two widths serves."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """The layers that a backend serves, as far as sizes, the dtype of q, layouts and architectures are concerned.

    Args:
        group_sizes: query heads of each KV head.
        layouts: in order of preference. A layer whose layout is left to the backend has the first one that it can have.
        outputs: architectures, each with a dtype of outputs that are quantized.
        widths: of V, and by how many dims K is wider. They are stated of backends whose V has a width of its own.
        float8_caches: architectures on which a cache may be float8. They are stated of the same backends.
        plain: a layer that is served, which has the other fields.
    """

    head_sizes: Collection[int]
    block_sizes: Collection[int]
    group_sizes: Collection[int] = range(1, _MOST)
    dtypes: Collection[torch.dtype] = _ANY_DTYPE
    layouts: tuple[Layout, ...] = _LAYOUTS
    architectures: Collection[str] = _ARCHITECTURES
    outputs: Collection[tuple[str, torch.dtype]] = _OUTPUTS
    widths: Collection[tuple[int, int]] = ()
    float8_caches: Collection[str] = ()
    plain: AttentionConfig = _PLAIN


SERVED = {
    "TRITON_ATTN": Served(head_sizes=range(1, 257), block_sizes=range(1, _MOST)),
    # vLLM 0.33: K of 32 dims and more, V of any other width. A tile of ours holds 256 dims
    "TRITON_ATTN_DIFFKV": Served(
        head_sizes=range(32, 257),
        block_sizes=range(16, _MOST, 16),
        layouts=(Layout.CONTENT_PACKED,),
        outputs=(),
        widths=tuple((v, k - v) for v, k in itertools.product(range(1, 257), range(32, 257)) if v != k),
        float8_caches=tuple(name for name in _OF_CACHES if name not in _BEFORE_SM89),
        plain=_TWO_WIDTHS,
    ),
    # vLLM 0.33: the head sizes of its paged decode; a cache of planes, packed for HIP's kernels
    "ROCM_ATTN": Served(
        head_sizes=(32, 64, 80, 96, 128, 160, 192, 224, 256), block_sizes=range(16, _MOST, 16), layouts=(Layout.X_PACKED,)
    ),
    # AITER's unified_attention: powers of two
    "ROCM_AITER_UNIFIED_ATTN": Served(
        head_sizes=(16, 32, 64, 128, 256),
        block_sizes=(16, 32, 64, 128, 256),
        group_sizes=_COMPARED_WITH_AITER,
        dtypes=(torch.float16, torch.bfloat16),
        layouts=_ROWS,
        architectures=_OF_AMD,
        # its kernel clamps to the one type or to the other
        outputs=tuple((name, _FLOAT8[name != "gfx950"]) for name in _OF_AMD),
    ),
    # AITER's paged_attention_v1
    "ROCM_AITER_FA": Served(
        head_sizes=range(64, 257, 64),
        block_sizes=(16, 32),
        group_sizes=_COMPARED_WITH_AITER,
        dtypes=(torch.float16, torch.bfloat16),
        layouts=_ROWS,
        architectures=("gfx942", "gfx950"),
        outputs=(),
    ),
    # vLLM 0.33: any head count; its kernel takes blocks of whole tiles of 16 slots. Ours holds 128 dims behind V
    "TRITON_MLA": Served(
        head_sizes=range(32, 161),
        block_sizes=range(16, _MOST, 16),
        dtypes=(torch.float16, torch.bfloat16),
        layouts=(Layout.LATENT,),
        outputs=(),
        widths=tuple(itertools.product(range(1, 513), range(129))),
        float8_caches=tuple(name for name in _OF_CACHES if name not in _BEFORE_SM89),
        plain=_LATENT,
    ),
}
"""By the name of a backend."""


def check_declared(declared: Capabilities, aiter: Any, choose: random.Random) -> None:
    """Hold all values of one field of a layer to what a backend serves.

    Args:
        aiter: the AITER on which it is declared.

    Raises:
        AssertionError: the backend declares that it serves a layer that it does not serve, or the other way round.
    """
    field = choose.choice([field.name for field in dataclasses.fields(Served) if field.name != "plain"])
    of_backend = _served_on(aiter, declared.backend)
    served = getattr(of_backend, field)
    preferred = declared.layouts.values
    assert preferred == of_backend.layouts, f"{declared.backend} prefers {preferred}, expected {of_backend.layouts}"
    for value, architecture, config in _layers(field, of_backend.plain):
        refusals = declared.refusals(config, architecture)
        assert bool(refusals) != (value in served), f"{declared.backend}, {field} {value}: got {refusals}, expected {served}"


def _served_on(aiter: Any, backend: str) -> Served:
    """What a backend serves on an AITER that may lack an argument."""
    served = SERVED[backend]
    if backend == "ROCM_AITER_UNIFIED_ATTN" and not aiter.has("unified_attention", "output_scale"):
        return dataclasses.replace(served, outputs=())
    return served


_LATENT_WIDTHS = tuple(itertools.product((1, 32, 511, 512, 513), (0, 1, 127, 128, 129)))
_PACKED_WIDTHS = tuple(itertools.product((1, 31, 32, 255, 256, 257), (1, 31, 32, 64, 255, 256, 257)))


@functools.cache
def _layers(field: str, plain: AttentionConfig) -> list[tuple[object, str | None, AttentionConfig]]:
    """Values of a field, and plain layers that have them, on an architecture or on no certain one."""
    change = functools.partial(dataclasses.replace, plain)
    if field == "architectures":
        return [(name, name, plain) for name in _ARCHITECTURES]
    if field == "outputs":
        return [((name, dtype), name, change(output_dtype=dtype)) for name, dtype in _OUTPUTS]
    if field == "widths" and plain.asks("head_size_v"):
        widths = [*_LATENT_WIDTHS] if plain.has_latent_cache else [(v, k - v) for v, k in _PACKED_WIDTHS]
        return [((v, more), None, change(head_size=v + more, rules={"head_size_v": v})) for v, more in widths]
    if field == "float8_caches" and plain.asks("head_size_v"):
        quantized = change(kv_cache_dtype=torch.float8_e4m3fn, scales="tensor")
        return [(name, name, quantized) for name in _OF_CACHES]
    if field in ("widths", "float8_caches"):
        return []
    if field == "layouts" and plain.asks("head_size_v"):
        layout = Layout.LATENT if plain.has_latent_cache else Layout.CONTENT_PACKED
        return [(layout, None, change(layout=layout))]
    if field == "layouts":
        scaled = {"kv_cache_dtype": torch.float8_e4m3fn, "scales": "inline"}
        return [(layout, None, change(layout=layout, **(scaled if layout.has_inline_scales else {}))) for layout in _LAYOUTS]
    if field == "dtypes":
        return [(dtype, None, change(dtype=dtype)) for dtype in _ANY_DTYPE]
    if field == "group_sizes":
        return [(size, None, change(num_heads=size)) for size in range(1, 97)]
    smallest = plain.value_size if plain.has_latent_cache and field == "head_sizes" else 1
    return [(size, None, change(**{field.removesuffix("s"): size})) for size in range(smallest, 321)]


def triton_attn(device: str) -> Support:
    """Everything. The `exclude` excludes nothing: with it the cases are those of a target that refuses something."""
    return dataclasses.replace(TRITON.support(device), exclude=lambda case: None)


def triton_attn_diffkv(device: str) -> Support:
    """What vLLM 0.33's backend of this name serves, too."""
    drawn, served = TRITON.support(device), SERVED["TRITON_ATTN_DIFFKV"]
    return dataclasses.replace(
        drawn,
        attn_types=(AttentionType.DECODER,),
        layouts=(Layout.CONTENT_PACKED,),
        head_sizes=tuple(size for size in (*drawn.head_sizes, *BESIDE_TWO_WIDTHS) if size in served.head_sizes),
        block_sizes=tuple(size for size in drawn.block_sizes if size in served.block_sizes),
        rules=("head_size_v", "window", "logits_soft_cap", "alibi_slopes", "sinks"),
        required_rules=("head_size_v",),
        cache_dtypes=("fp8_e4m3fn", "fp8_e4m3fnuz"),
        scales=("tensor",),
        output_dtypes=(),
        exclude=lambda case: None,
    )


def rocm_attn(device: str) -> Support:
    """What vLLM 0.33's backend of this name serves, too."""
    drawn, served = TRITON.support(device), SERVED["ROCM_ATTN"]
    return dataclasses.replace(
        drawn,
        attn_types=(AttentionType.DECODER, AttentionType.ENCODER, AttentionType.ENCODER_ONLY),
        layouts=(Layout.X_PACKED,),
        head_sizes=tuple(size for size in drawn.head_sizes if size in served.head_sizes),
        block_sizes=tuple(size for size in drawn.block_sizes if size in served.block_sizes),
        rules=("window", "alibi_slopes", "non_causal", "rope"),
        cache_dtypes=("fp8_e4m3fn", "fp8_e4m3fnuz"),
        scales=("tensor", "head"),
        exclude=lambda case: beyond_rocm_attn(config_of(case)),
    )


def beyond_rocm_attn(config: AttentionConfig, architecture: str | None = None) -> str | None:
    """Two rules that ROCM_ATTN does not serve together, on any architecture."""
    if not config.asks("alibi_slopes"):
        return None
    if config.asks("window"):
        return "ALiBi with a window"
    is_causal = config.attn_type is AttentionType.DECODER and not config.asks("non_causal")
    return None if is_causal else "ALiBi without causality"
