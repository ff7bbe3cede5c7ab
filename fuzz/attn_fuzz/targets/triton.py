"""This project's Triton kernels as targets: whole, dense, cascade, batch-invariant, without an oracle, and writes alone."""

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import pkgutil
import random
from collections.abc import Callable, Hashable, Iterable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from attn_contract import AttentionType, Batch, KVCacheView, Layer, Layout, UnsupportedError
from attn_contract.layouts import LATENT_FORMATS
from attn_fuzz import extras, properties
from attn_fuzz.cases.tensors import Step
from attn_fuzz.targets.reference import REFERENCE_FP32
from attn_fuzz.targets.target import EVERYTHING, WITH_LATENT, AttentionFunction, LatentSizes, Support, Target
from attn_fuzz.verdict.rounding import Rounding

if TYPE_CHECKING:
    from attn_optimized.launch.plan import AttentionPlan
    from attn_optimized.launch.table import Parameters
    from attn_optimized.launch.workload import Workload

COMPUTE_UNITS = 8
"""Of a GPU that is emulated: few enough that splitting keys over them does not make more programs than are quickly emulated."""
KEYS_PER_SPLIT = 64
"""The fewest keys worth a program on a GPU that is emulated. The tables have 512, so that hardly any drawn request is split."""
PARTS_PER_ROUND = 2
"""How many parts half of the reductions take at once on a GPU that is emulated. Shipped ones take at least 4, and few drawn
requests have more, so that hardly any reduction had a second round."""


def _call_of(q, k, v, kv_cache, layer, batch, *, out, lse) -> tuple[Callable[..., object], dict[str, Any]]:
    """The function for a layer, and its arguments by name."""
    import attn_optimized

    rest = {"layer": layer, "batch": batch, "out": out, "lse": lse}
    if layer.attn_type.reads_cache:
        return attn_optimized.paged_attention, {"q": q, "kv_cache": kv_cache, **rest}
    return attn_optimized.varlen_attention, {"q": q, "k": k, "v": v, **rest}


def _triton_attention(q, k, v, kv_cache, layer, batch, *, out, lse, batch_invariant=False, validate=True) -> None:
    function, arguments = _call_of(q, k, v, kv_cache, layer, batch, out=out, lse=lse)
    function(**arguments, batch_invariant=batch_invariant, validate=validate)


_unchecked_attention = functools.partial(_triton_attention, validate=False)
_invariant_attention = functools.partial(_unchecked_attention, batch_invariant=True)
_MODES = (_triton_attention, _unchecked_attention, _invariant_attention)


def _triton_write(k, v, kv_cache, layer, slot_mapping) -> None:
    import attn_optimized

    attn_optimized.write_kv_cache(k, v, kv_cache, layer, slot_mapping, validate=True)


def _triton_write_latent(kv_c, k_pe, kv_cache, layer, slot_mapping) -> None:
    import attn_optimized

    attn_optimized.write_latent_cache(kv_c, k_pe, kv_cache, layer, slot_mapping, validate=True)


def _triton_rope(q, k, v, positions, cos_sin_cache, kv_cache, layer, slot_mapping, *, is_neox) -> None:
    import attn_optimized

    attn_optimized.rope_and_write_kv_cache(
        q, k, v, positions, cos_sin_cache, kv_cache, layer, slot_mapping, is_neox=is_neox, validate=True
    )


_LARGE_GROUP = 71
"""Query heads of a KV head: Falcon-7B's. The kernels cut them into two groups, of which the second has fewer heads."""


def _triton_support(device: str) -> Support:
    support = dataclasses.replace(EVERYTHING, group_sizes=(*EVERYTHING.group_sizes, _LARGE_GROUP))
    if device == "cpu":
        return dataclasses.replace(support, max_tokens=128, max_seq_len=512, long_seq_len=1100)
    return dataclasses.replace(
        support,
        max_tokens=1024,
        max_seq_len=4096,
        many_requests=300,
        # every size is compiled, in all combinations with the rest: those of models only
        head_sizes=(64, 80, 128),
        tile_sizes=(*EVERYTHING.tile_sizes, 128),
        steps_per_layer=32,
    )


def missing_triton(device: str) -> str | None:
    """Why Triton's kernels cannot run on a device type here, or None if they can."""
    if importlib.util.find_spec("triton") is None:
        return extras.missing("triton")
    return None


def _triton_events(step: Step) -> Iterable[str]:
    import attn_optimized

    return ["split"] if attn_optimized.plan_of(step.q, step.layer, step.batch).splits > 1 else []


def _triton_rounding(device: str) -> Rounding:
    interpreted = device == "cpu"
    return Rounding(
        keys_per_tile=64,
        dot_is_chained=not interpreted,
        splits=8 if interpreted else 64,
        float16_dots=True,
        exact_division=True,
    )


def _forget_launches() -> None:
    from attn_optimized.attention import forget_launches

    forget_launches()


def modules() -> Iterable[ModuleType]:
    """The modules of the kernels."""
    from attn_optimized import kernels

    return [importlib.import_module(f"{kernels.__name__}.{each.name}") for each in pkgutil.iter_modules(kernels.__path__)]


@contextlib.contextmanager
def planned(architecture: str) -> Iterator[None]:
    """While this lasts, launches on the CPU are planned as on a GPU of an architecture.

    The GPU has few compute units. A few keys are worth a program on it, so that the keys of drawn requests are split. Half of
    the reductions take few parts at once, so that they have several rounds.
    """
    from attn_optimized import attention, device
    from attn_optimized.launch import parts
    from attn_optimized.launch.plan import attention_plan
    from attn_optimized.launch.tiles import ReduceTiles, reduce_tiles

    def plan(workload: "Workload", *, parameters: "Parameters | None" = None, **gpu: Any) -> "AttentionPlan":
        parameters = parameters or attention_plan(workload, **gpu).tiles.parameters
        return attention_plan(workload, **gpu, parameters=dataclasses.replace(parameters, keys_per_split=KEYS_PER_SPLIT))

    def tiles(architecture: str, *, head_size: int, num_parts: int) -> ReduceTiles:
        shipped = reduce_tiles(architecture, head_size=head_size, num_parts=num_parts)
        has_rounds = random.Random(f"{head_size} {num_parts}").random() < 0.5
        return dataclasses.replace(shipped, block_parts=PARTS_PER_ROUND) if has_rounds else shipped

    with (
        mock.patch.object(device, "INTERPRETER", architecture),
        mock.patch.object(attention, "compute_units_of", return_value=COMPUTE_UNITS),
        mock.patch.object(attention, "attention_plan", plan),
        mock.patch.object(parts, "reduce_tiles", tiles),
    ):
        yield


def interprets(tensor: torch.Tensor) -> bool:
    """Whether launches on a tensor are planned for Triton's interpreter: neither for its GPU, nor for one that is emulated."""
    from attn_optimized.device import architecture_of

    return architecture_of(tensor.device, torch.float32) == "interpreter"


TRITON = Target(
    name="triton",
    description="the shipping Triton kernels: paged and varlen attention, cache write",
    attention=_triton_attention,
    write_kv_cache=_triton_write,
    rope_and_write_kv_cache=_triton_rope,
    support=_triton_support,
    rounding=_triton_rounding,
    unavailable=missing_triton,
    events=_triton_events,
    siblings=_MODES,
    checks_arguments=True,
    forget=_forget_launches,
    modules=modules,
    planned=planned,
    sanitizes=True,
    exact=True,
)


# what models have, among sizes that are cut and padded in every way
_LATENT_WIDTHS = ((32, 16), (16, 8), (8, 0), (24, 8), (8, 32), (40, 17), (256, 32), (512, 64))


def _latent_support(device: str) -> Support:
    return dataclasses.replace(
        WITH_LATENT,
        layouts=(Layout.LATENT, Layout.CONTENT_PACKED, Layout.BLOCKS_FIRST_NHD),
        latent=LatentSizes(widths=_LATENT_WIDTHS if device == "cpu" else _LATENT_WIDTHS[-2:]),
        max_tokens=64 if device == "cpu" else 1024,
        max_seq_len=384 if device == "cpu" else 4096,
        long_seq_len=1100 if device == "cpu" else None,
        steps_per_layer=1 if device == "cpu" else 32,
    )


TRITON_LATENT = dataclasses.replace(
    TRITON,
    name="triton-latent",
    description="the shipping Triton kernels: latent caches (MLA) and V of another width than K, cache write",
    write_latent_cache=_triton_write_latent,
    support=_latent_support,
)


def _scaled_latent(layout: Layout) -> Target:
    """The kernels over a latent layout with scales."""
    form = LATENT_FORMATS[layout]
    behind_v = form.kept_dims is None
    kept = form.kept_dims or 0

    def support(device: str) -> Support:
        # one scale, two and three, which are no power of two, and what models have
        few = [(scales * form.scale_dims + kept, rest if behind_v else 0) for scales, rest in ((1, 16), (2, 0), (3, 2))]
        of_models = [(512, 64 if behind_v else 0), (256, 32 if behind_v else 0)]
        return dataclasses.replace(
            _latent_support(device),
            attn_types=(AttentionType.DECODER,),
            dtypes=("bfloat16",),
            layouts=(layout,),
            cache_dtypes=("fp8_e4m3fn", "fp8_e4m3fnuz"),
            latent=LatentSizes(widths=(*few, of_models[0]) if device == "cpu" else tuple(of_models)),
        )

    return dataclasses.replace(
        TRITON_LATENT,
        name=f"triton-{layout.lower().replace('_', '-')}",
        description=f"the shipping Triton kernels: latent caches of layout {layout}, cache write",
        support=support,
        refuses=False,  # that of triton-latent: the functions are the same
        # each element is multiplied by its scale before the dots, and rounded to bfloat16
        rounding=lambda device: dataclasses.replace(_triton_rounding(device), rounds_dequantized=True),
    )


SCALED_LATENT = {layout: _scaled_latent(layout) for layout in LATENT_FORMATS}
TRITON_LATENT_SCALED = SCALED_LATENT[Layout.LATENT_SCALED]
TRITON_LATENT_E8M0 = SCALED_LATENT[Layout.LATENT_E8M0]
TRITON_LATENT_E8M0_PLANES = SCALED_LATENT[Layout.LATENT_E8M0_PLANES]


def _cascade_call(q, k, v, kv_cache, layer, batch, *, out, lse) -> tuple[Callable[..., object], dict[str, Any]]:
    import attn_optimized

    prefix = {"common_prefix_len": common_prefix(batch, layer, kv_cache)}
    rest = {"layer": layer, "batch": batch, "out": out, "lse": lse}
    return attn_optimized.cascade_attention, {"q": q, "kv_cache": kv_cache, **prefix, **rest}


def _cascade_attention(q, k, v, kv_cache, layer, batch, *, out, lse, validate=True) -> None:
    function, arguments = _cascade_call(q, k, v, kv_cache, layer, batch, out=out, lse=lse)
    function(**arguments, validate=validate)


def common_prefix(batch: Batch, layer: Layer, kv_cache: torch.Tensor | None) -> int:
    """How many leading keys all requests with a query share with the first request, in whole blocks of their contexts."""
    if layer.layout is None or kv_cache is None or batch.block_table is None:
        return 0
    block_size = _block_size(layer, kv_cache)
    query_lens = batch.query_start_loc.diff()
    contexts = (batch.seq_lens - query_lens)[query_lens > 0].tolist()
    if not contexts or int(batch.seq_lens[0]) < block_size:
        return 0
    blocks = max(0, min(*contexts, int(batch.seq_lens[0]))) // block_size
    table = batch.block_table[query_lens > 0, :blocks]
    same = (table == batch.block_table[:1, :blocks]).all(0).long().cumprod(0)
    return int(same.sum()) * block_size


def _block_size(layer: Layer, kv_cache: torch.Tensor) -> int:
    assert layer.layout is not None
    return KVCacheView.of(
        kv_cache, layer.layout, num_kv_heads=layer.num_kv_heads, head_size=layer.head_size, head_size_v=layer.head_size_v
    ).block_size


def _cascade_events(step: Step) -> Iterable[str]:
    return ["cascade"] if common_prefix(step.batch, step.layer, step.kv_cache) else []


_CASCADE_RULES = (
    *("sink_tokens", "ranges_clamped", "logits_soft_cap", "sinks", "qq_bias", "head_size_v"),
    *("non_causal", "per_request_causal", "lse", "rope"),
)

TRITON_CASCADE = Target(
    name="triton-cascade",
    description="cascade attention of the Triton kernels, where requests share their first blocks",
    attention=_cascade_attention,
    support=lambda device: dataclasses.replace(
        _triton_support(device),
        attn_types=(AttentionType.DECODER,),
        rules=_CASCADE_RULES,
    ),
    rounding=_triton_rounding,
    unavailable=missing_triton,
    events=_cascade_events,
    siblings=_MODES,
    checks_arguments=True,
    forget=_forget_launches,
    modules=modules,
    planned=planned,
    sanitizes=True,
    exact=True,
)


def _returned(call_of: Callable[..., tuple[Callable[..., Any], dict[str, Any]]]) -> AttentionFunction:
    """An attention that calls without `out`, and copies the rows of requests from the tensor that the call returns."""

    def attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        function, arguments = call_of(q, k, v, kv_cache, layer, batch, out=None, lse=lse)
        returned = function(**arguments)
        num_rows = int(batch.query_start_loc[-1])
        out[:num_rows] = returned[:num_rows].reshape(out[:num_rows].shape)

    return attention


TRITON_RETURNED, TRITON_LATENT_RETURNED, TRITON_CASCADE_RETURNED = (
    dataclasses.replace(
        target,
        name=f"{target.name}-returned",
        description=f"{target.name}, called without `out`: the tensor that it returns",
        attention=_returned(call_of),
        support=lambda device, support=target.support: dataclasses.replace(support(device), output_dtypes=()),
        siblings=(),
        checks_arguments=False,
    )
    for target, call_of in ((TRITON, _call_of), (TRITON_LATENT, _call_of), (TRITON_CASCADE, _cascade_call))
)


def _queries_per_tile(step: Step) -> int:
    import attn_optimized

    return attn_optimized.plan_of(step.q, step.layer, step.batch, batch_invariant=True).tiles.queries


TRITON_INVARIANT = Target(
    name="triton-invariant",
    description="the Triton kernels in batch-invariant mode: each request also alone, and in steps of whole tiles, bit by bit",
    attention=_invariant_attention,
    support=_triton_support,
    rounding=_triton_rounding,
    unavailable=missing_triton,
    siblings=_MODES,
    checks_arguments=True,
    forget=_forget_launches,
    properties=(
        properties.batch_composition(),
        properties.chunked_prefill(_queries_per_tile),
        properties.neighbours_rules(),
        properties.far_keys(),
    ),
    modules=modules,
    planned=planned,
    sanitizes=True,
    exact=True,
)


TRITON_LATENT_INVARIANT = dataclasses.replace(
    TRITON_INVARIANT,
    name="triton-latent-invariant",
    description="latent caches and V of another width in batch-invariant mode: each request also alone, and in whole tiles",
    write_latent_cache=_triton_write_latent,
    support=_latent_support,
)


def _invariant(target: Target) -> Target:
    return dataclasses.replace(
        TRITON_LATENT_INVARIANT,
        name=f"{target.name}-invariant",
        description=f"{target.name} in batch-invariant mode: each request also alone, and in whole tiles",
        support=target.support,
        refuses=False,
        rounding=target.rounding,
    )


TRITON_LATENT_SCALED_INVARIANT = _invariant(TRITON_LATENT_SCALED)
TRITON_LATENT_E8M0_INVARIANT = _invariant(TRITON_LATENT_E8M0)
TRITON_LATENT_E8M0_PLANES_INVARIANT = _invariant(TRITON_LATENT_E8M0_PLANES)


def _properties_support(device: str) -> Support:
    if device == "cpu":
        return _triton_support(device)
    return dataclasses.replace(
        _triton_support(device),
        max_tokens=8192,
        max_seq_len=65536,
        tile_sizes=(64, 16, 256, 2048),
        block_sizes=(16, 32, 48, 544),
    )


def _queries_per_chunk(step: Step) -> int:
    """More than half a tile, so that chunks end inside."""
    import attn_optimized

    return attn_optimized.plan_of(step.q, step.layer, step.batch).tiles.queries // 2 + 1


def launch_of(step: Step, architecture: str | None = None, compute_units: int | None = None) -> Hashable:
    """What the order of sums depends on: tiles, splits, and what the kernel is compiled for.

    Args:
        architecture, compute_units: of a GPU; None: those of the step's device.
    """
    import attn_optimized
    from attn_optimized.launch.attention import attention_launch
    from attn_optimized.launch.call import AttentionCall, DenseKeys, PagedKeys

    plan = attn_optimized.plan_of(step.q, step.layer, step.batch, architecture=architecture, compute_units=compute_units)
    if step.kv_cache is not None:
        keys = PagedKeys(step.kv_cache)
    else:
        assert step.k is not None
        assert step.v is not None
        keys = DenseKeys(step.k, step.v)
    launch = attention_launch(plan, AttentionCall(step.q, keys, step.layer, step.batch, step.out, step.lse))
    # these cut keys into parts, and do nothing where there is one part
    parts = (
        (
            *(plan.splits, plan.balanced_splits, plan.filling_splits, plan.work_shares),
            *(plan.min_tiles_per_split, plan.max_tiles),
        )
        if plan.splits > 1
        else ()
    )
    return plan.tiles, plan.one_tile_per_request, parts, launch.constants["KIND"]


_ERROR = properties.error_bound(_triton_rounding)

TRITON_PROPERTIES = dataclasses.replace(
    TRITON,
    name="triton-properties",
    description="the shipping Triton kernels without an oracle, at sizes at which the reference is too slow: their properties",
    support=_properties_support,
    oracle=False,
    # how keys are split depends on the batch's sizes alone, so bits may differ only where these do; or where the interpreter's
    # matrix products do, which sum the last columns in another order
    properties=(
        properties.repetition(),
        properties.request_order(),
        properties.batch_composition(_ERROR),
        properties.neighbours_rules(_ERROR),
        properties.chunked_prefill(_queries_per_chunk, _ERROR),
        properties.padded_batch(_ERROR),
        properties.block_permutation(),
        properties.garbage(),
        properties.head_permutation(),
        properties.channel_permutation(_ERROR),
        properties.doubled_values(),
        properties.additivity(_ERROR),
        properties.weights(_ERROR),
        properties.shifted_keys(_ERROR),
        properties.scale_in_query(),
        properties.wide_window(_ERROR, launch_of),
        # a float8 cache with scales of tokens gave another last bit on an H200: other rows of the tile see other keys then
        properties.last_row(_ERROR),
        properties.forgotten_keys(_ERROR),
        properties.split_keys(_ERROR),
    ),
)


def _varlen_attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    import attn_optimized

    attn_optimized.varlen_attention(q, k, v, layer, batch, out=out, lse=lse, validate=True)


TRITON_VARLEN = Target(
    name="triton-varlen",
    description="the dense Triton kernel alone, which must refuse what needs a cache",
    attention=_varlen_attention,
    support=lambda device: dataclasses.replace(
        _triton_support(device), attn_types=(AttentionType.ENCODER, AttentionType.ENCODER_ONLY)
    ),
    rounding=_triton_rounding,
    unavailable=missing_triton,
    siblings=_MODES,
    checks_arguments=True,
    forget=_forget_launches,
    modules=modules,
    planned=planned,
    sanitizes=True,
    exact=True,
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
    unavailable=missing_triton,
    forget=_forget_launches,
    modules=modules,
    planned=planned,
    sanitizes=True,
    exact=True,
)
