"""This project's Triton kernels as targets: whole, of latent caches, cascade, dense, and writes alone."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import torch
from attn_contract import AttentionType, Batch, Layer, Layout, UnsupportedError
from attn_contract.layouts import LATENT_FORMATS
from attn_fuzz.cases.tensors import Step
from attn_fuzz.extras import triton_unavailable
from attn_fuzz.targets.engine import Engine
from attn_fuzz.targets.modes import far, invariant, properties, returned
from attn_fuzz.targets.of_architecture import ARCHITECTURES
from attn_fuzz.targets.plans import (
    forget_launches,
    launch_of,
    launches_of,
    modules,
    planned,
    queries_per_tile,
    warp_specialized,
)
from attn_fuzz.targets.reference import REFERENCE_FP32
from attn_fuzz.targets.support import EVERYTHING, WITH_LATENT, LatentSizes, Support
from attn_fuzz.targets.target import Mode, Target, within
from attn_fuzz.verdict.rounding import Rounding


def _triton_attention(q, k, v, kv_cache, layer, batch, *, out, lse, batch_invariant=False, validate=True) -> torch.Tensor:
    import attn_optimized

    options = {"out": out, "lse": lse, "batch_invariant": batch_invariant, "validate": validate}
    if layer.attn_type.reads_cache:
        return attn_optimized.paged_attention(q, kv_cache, layer, batch, **options)
    return attn_optimized.varlen_attention(q, k, v, layer, batch, **options)


_unchecked_attention = functools.partial(_triton_attention, validate=False)
_invariant_attention = functools.partial(_unchecked_attention, batch_invariant=True)
_SIBLINGS = (_triton_attention, _unchecked_attention, _invariant_attention)


def _triton_write(k, v, kv_cache, layer, slot_mapping, *, validate=True) -> None:
    import attn_optimized

    attn_optimized.write_kv_cache(k, v, kv_cache, layer, slot_mapping, validate=validate)


def _triton_write_latent(kv_c, k_pe, kv_cache, layer, slot_mapping, *, validate=True) -> None:
    import attn_optimized

    attn_optimized.write_latent_cache(kv_c, k_pe, kv_cache, layer, slot_mapping, validate=validate)


def _triton_rope(q, k, v, positions, cos_sin_cache, kv_cache, layer, slot_mapping, *, is_neox, validate=True) -> None:
    import attn_optimized

    attn_optimized.rope_and_write_kv_cache(
        q, k, v, positions, cos_sin_cache, kv_cache, layer, slot_mapping, is_neox=is_neox, validate=validate
    )


GPU_STEPS_PER_LAYER = 4
"""The number of cases that share a layer on a GPU, where each layer is compiled for seconds. With 32 of them, a third of the
pairs of features is in no case of a run of 600; with fewer, nearly all of a run's time is compilation."""
_ODD_SIZES = (17, 33)
_LARGE_GROUP = 71
"""Query heads of a KV head: Falcon-7B's. The kernels cut them into two groups, of which the second has fewer heads."""


def _triton_support(device: str) -> Support:
    support = dataclasses.replace(EVERYTHING, group_sizes=(*EVERYTHING.group_sizes, _LARGE_GROUP))
    if device == "cpu":
        support = dataclasses.replace(support, head_sizes=(*support.head_sizes, *_ODD_SIZES))
        return dataclasses.replace(support, max_tokens=128, max_seq_len=512, long_seq_len=1100)
    return dataclasses.replace(
        support,
        max_tokens=1024,
        max_seq_len=4096,
        many_requests=300,
        # sizes of models only, because every size is compiled in all combinations with the rest
        head_sizes=(64, 80, 128),
        tile_sizes=(*EVERYTHING.tile_sizes, 128),
        steps_per_layer=GPU_STEPS_PER_LAYER,
        own_numbers=True,
    )


def _triton_events(step: Step) -> Iterable[str]:
    import attn_optimized

    launches = launches_of(step, attn_optimized.plan_of(step.q, step.layer, step.batch))
    return ["split"] if launches.reduction is not None else []


def _triton_rounding(device: str) -> Rounding:
    interpreted = device == "cpu"
    return Rounding(
        keys_per_tile=64,
        dot_is_chained=not interpreted,
        splits=8 if interpreted else 64,
        float16_dots=True,
        exact_division=True,
        small_tanh=True,
    )


def _prompts(target: Target) -> Target:
    """The calls of the warp specialized kernel, and calls that differ a little from them."""

    def support(device: str) -> Support:
        return dataclasses.replace(
            target.support(device),
            attn_types=(AttentionType.DECODER,),
            layouts=(Layout.BLOCKS_FIRST_NHD, Layout.BLOCKS_FIRST_HND, Layout.KV_FIRST_NHD, Layout.KV_FIRST_HND),
            rules=("sinks", "lse"),
            dtypes=("float16", "bfloat16"),
            cache_dtypes=(),
            scales=(),
            output_dtypes=(),
            head_sizes=(128, 256),
            block_sizes=(64, 128),
            long_seq_len=None,
            many_requests=None,
            max_tokens=128 if device == "cpu" else 2048,  # fewer do not fill a GPU
            engine=Engine(scale_signs=(1,)),
        )

    def place(arguments: tuple[Any, ...]) -> contextlib.AbstractContextManager[None]:
        q = arguments[0].q if isinstance(arguments[0], Step) else arguments[0]
        return contextlib.nullcontext() if q.device.type == "cuda" else warp_specialized()

    specialize = within(place)
    return dataclasses.replace(target, attention=_unchecked_attention).wrapped(
        specialize,
        description="the warp specialized kernel: prompts of plain layers",
        support=support,
        rounding=lambda device: target.rounding("cuda"),
        events=specialize("events", target.events),
        checks_arguments=False,
        refuses=False,
        modes={
            "invariant": "batch-invariant calls are the attention kernel's",
            "returned": returned.mode(specialize("attention", _unchecked_attention)),
            "properties": properties.mode(specialize("launch", launch_of)),
            "far": far.with_any_strides,
            "planned": "its launches are planned for an H200",
            **dict.fromkeys(ARCHITECTURES, "its launches are planned for an H200"),
        },
    )


_MODES_OF_ATTENTION: dict[str, Mode | str] = {
    "invariant": invariant.mode(_invariant_attention, queries_per_tile),
    "returned": returned.mode(_unchecked_attention),
    "properties": properties.mode(launch_of),
    "far": far.with_any_strides,
}

TRITON = Target(
    name="triton",
    description="the shipping Triton kernels: paged and varlen attention, cache write",
    attention=_triton_attention,
    write_kv_cache=_triton_write,
    rope_and_write_kv_cache=_triton_rope,
    support=_triton_support,
    rounding=_triton_rounding,
    unavailable=triton_unavailable,
    events=_triton_events,
    siblings=_SIBLINGS,
    checks_arguments=True,
    forget=forget_launches,
    repeats=True,
    modules=modules,
    modes={**_MODES_OF_ATTENTION, "prompts": _prompts},
    planned=planned,
    sanitizes=True,
    exact=True,
)


# sizes of models, and sizes that are cut and padded in every way
_LATENT_WIDTHS = ((32, 16), (16, 8), (8, 0), (24, 8), (20, 12), (36, 12), (8, 32), (40, 17), (256, 32), (512, 64))


def _latent_support(device: str) -> Support:
    return dataclasses.replace(
        WITH_LATENT,
        layouts=(Layout.LATENT, Layout.CONTENT_PACKED, Layout.BLOCKS_FIRST_NHD),
        latent=LatentSizes(widths=_LATENT_WIDTHS if device == "cpu" else _LATENT_WIDTHS[-2:]),
        max_tokens=64 if device == "cpu" else 1024,
        max_seq_len=384 if device == "cpu" else 4096,
        long_seq_len=1100 if device == "cpu" else None,
        steps_per_layer=1 if device == "cpu" else GPU_STEPS_PER_LAYER,
        own_numbers=device != "cpu",
    )


def _with_scales(layout: Layout) -> Mode:
    """A mode of TRITON_LATENT: a latent layout with scales. What it refuses is TRITON_LATENT's: the functions are the same."""
    form = LATENT_FORMATS[layout]
    past_v = form.kept_dims is None
    kept = form.kept_dims or 0

    def support(device: str) -> Support:
        # one, two and three scales (no power of two), and the sizes of models
        few = [(scales * form.scale_dims + kept, rest if past_v else 0) for scales, rest in ((1, 16), (2, 0), (3, 2))]
        of_models = [(512, 64 if past_v else 0), (256, 32 if past_v else 0)]
        return dataclasses.replace(
            _latent_support(device),
            attn_types=(AttentionType.DECODER,),
            dtypes=("bfloat16",),
            layouts=(layout,),
            cache_dtypes=("fp8_e4m3fn", "fp8_e4m3fnuz"),
            latent=LatentSizes(widths=(*few, of_models[0]) if device == "cpu" else tuple(of_models)),
        )

    def rounding(device: str) -> Rounding:
        # each element is multiplied by its scale before the dots, and rounded to bfloat16
        return dataclasses.replace(_triton_rounding(device), rounds_dequantized=True)

    description = f"the shipping Triton kernels: latent caches of layout {layout}, cache write"
    return lambda target: dataclasses.replace(
        target, description=description, support=support, rounding=rounding, refuses=False
    )


MODE_OF_FORMAT = {layout: layout.lower().removeprefix("latent_").replace("_", "-") for layout in LATENT_FORMATS}
"""The mode of TRITON_LATENT for each latent layout with scales."""
TRITON_LATENT = dataclasses.replace(
    TRITON,
    name="triton-latent",
    description="the shipping Triton kernels: latent caches (MLA) and V of another width than K, cache write",
    write_latent_cache=_triton_write_latent,
    support=_latent_support,
    modes={
        **_MODES_OF_ATTENTION,
        **{mode: _with_scales(layout) for layout, mode in MODE_OF_FORMAT.items()},
    },
    formats=tuple(MODE_OF_FORMAT.values()),
)


def _cascade_attention(q, k, v, kv_cache, layer, batch, *, out, lse, validate=True) -> torch.Tensor:
    import attn_optimized

    prefix = common_prefix(batch, layer, kv_cache)
    return attn_optimized.cascade_attention(q, kv_cache, layer, batch, prefix, out=out, lse=lse, validate=validate)


def common_prefix(batch: Batch, layer: Layer, kv_cache: torch.Tensor | None) -> int:
    """The number of leading keys that all requests with a query share, in whole blocks of their contexts."""
    if layer.layout is None or kv_cache is None or batch.block_table is None or batch.device is None:
        return 0
    block_size = layer.view_of(kv_cache).block_size
    query_lens = batch.query_start_loc.diff()
    contexts = (batch.seq_lens - query_lens)[query_lens > 0].tolist()
    if not contexts or int(batch.seq_lens[0]) < block_size:
        return 0
    blocks = max(0, min(*contexts, int(batch.seq_lens[0]))) // block_size
    table = batch.block_table[query_lens > 0, :blocks]
    same = (table == batch.block_table[:1, :blocks]).all(0).long().cumprod(0)
    return int(same.sum()) * block_size


def _cascade_events(step: Step) -> Iterable[str]:
    return ["cascade"] if common_prefix(step.batch, step.layer, step.kv_cache) else []


_CASCADE_RULES = (
    *("sink_tokens", "ranges_clamped", "logits_soft_cap", "q_scale", "sinks", "qq_bias", "head_size_v"),
    *("non_causal", "per_request_causal", "lse", "rope"),
)

_ATTENTION_ALONE = dataclasses.replace(TRITON, write_kv_cache=None, rope_and_write_kv_cache=None)

TRITON_CASCADE = dataclasses.replace(
    _ATTENTION_ALONE,
    name="triton-cascade",
    description="cascade attention of the Triton kernels, where requests share their first blocks",
    attention=_cascade_attention,
    support=lambda device: dataclasses.replace(
        _triton_support(device),
        attn_types=(AttentionType.DECODER,),
        rules=_CASCADE_RULES,
    ),
    events=_cascade_events,
    modes={
        "returned": returned.mode(functools.partial(_cascade_attention, validate=False)),
        "far": far.with_any_strides,
    },
)


def _varlen_attention(q, k, v, kv_cache, layer, batch, *, out, lse, validate=True) -> None:
    import attn_optimized

    attn_optimized.varlen_attention(q, k, v, layer, batch, out=out, lse=lse, validate=validate)


TRITON_VARLEN = dataclasses.replace(
    _ATTENTION_ALONE,
    name="triton-varlen",
    description="the dense Triton kernel alone, which must refuse what needs a cache",
    attention=_varlen_attention,
    support=lambda device: dataclasses.replace(
        _triton_support(device), attn_types=(AttentionType.ENCODER, AttentionType.ENCODER_ONLY)
    ),
    modes={"far": far.with_any_strides},
)


def _attention_to_a_cache(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    if kv_cache is None:
        raise UnsupportedError("triton-write", f"{layer.attn_type} attention", "nothing is written for it")
    REFERENCE_FP32.attention(q, k, v, kv_cache, layer, batch, out=out, lse=lse)


TRITON_WRITE = dataclasses.replace(
    REFERENCE_FP32,
    name="triton-write",
    description="the Triton kernel that writes and rotates, alone: the reference attends to what it has written",
    attention=_attention_to_a_cache,
    write_kv_cache=_triton_write,
    rope_and_write_kv_cache=_triton_rope,
    support=lambda device: dataclasses.replace(
        _triton_support(device), attn_types=(AttentionType.DECODER, AttentionType.ENCODER_DECODER)
    ),
    unavailable=triton_unavailable,
    forget=forget_launches,
    modules=modules,
    modes={"far": far.with_any_strides},
    planned=planned,
    sanitizes=True,
    exact=True,
)
