"""Backends as targets: whole layers, made and called as an engine does, and judged like any kernel.

A layer is made once and serves all calls of a case. The metadata of a step is built once and serves all layers that are called
with the same Batch. `attn_fuzz.targets.backends.supports` states the cases of the three plain backends, and the modules of the
others state theirs. A backend on AITER serves what the installed AITER can do, so its own declaration states its cases. A
backend must refuse all other cases.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from attn_contract import AttentionType, Batch, Capabilities, Layer, Layout
from attn_fuzz.cases.case import Case
from attn_fuzz.cases.poison import DTYPES
from attn_fuzz.cases.tensors import Step
from attn_fuzz.errors import FailedCheckError
from attn_fuzz.findings.aiter.unified import BACKENDS
from attn_fuzz.targets.aiter_adapter import AITER_UNIFIED_ATTENTION, readable_aiter, usable_aiter
from attn_fuzz.targets.attention_config import config_of
from attn_fuzz.targets.backends import supports as backend_supports
from attn_fuzz.targets.engine import Engine
from attn_fuzz.targets.modes import invariant
from attn_fuzz.targets.rng import rng_of, rng_of_call
from attn_fuzz.targets.support import Support
from attn_fuzz.targets.target import Mode, Target
from attn_fuzz.targets.triton import TRITON, queries_per_tile


def support_of(capabilities: Capabilities, sizes: Support) -> Support:
    """The Support that a backend declares: the rules and the sizes it allows are drawn, and the rest must be refused."""
    can = capabilities

    def exclude(case: Case) -> str | None:
        refusals = can.refusals(config_of(case))
        return str(refusals[0]) if refusals else sizes.exclude(case)

    return dataclasses.replace(
        sizes,
        attn_types=tuple(attn_type for attn_type in AttentionType if can.attn_types[attn_type]),
        dtypes=tuple(name for name in sizes.dtypes if DTYPES[name] in can.dtypes),
        layouts=tuple(layout for layout in sizes.layouts if layout in can.layouts),
        head_sizes=tuple(size for size in sizes.head_sizes if size in can.head_sizes),
        group_sizes=tuple(size for size in sizes.group_sizes if size in can.group_sizes),
        block_sizes=tuple(size for size in sizes.block_sizes if size in can.block_sizes),
        rules=tuple(name for name in sizes.rules if can.answer(name)),
        cache_dtypes=tuple(name for name in sizes.cache_dtypes if DTYPES[name] in can.kv_cache_dtypes),
        scales=tuple(scales for scales in sizes.scales if scales in can.scales),
        output_dtypes=tuple(name for name in sizes.output_dtypes if DTYPES[name] in can.output_dtypes),
        exclude=exclude,
    )


def _no_options(batch: Batch) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, eq=False)
class BackendLayers:
    """A backend and the layers that were made of it.

    Args:
        load: returns the backend's class.
        aiter: returns AMD's AITER on a device type. Both functions import what they need when a case runs.
        builder_options: returns the options of the builder for a step, beside the attention type.
    """

    load: Callable[[], Any]
    aiter: Callable[[str], Any]
    builder_options: Callable[[Batch], dict[str, Any]] = _no_options
    _impls: dict[Hashable, Any] = field(init=False, repr=False, default_factory=dict)
    _steps: dict[AttentionType, tuple[Batch, Any]] = field(init=False, repr=False, default_factory=dict)

    def attention(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        kv_cache: torch.Tensor | None,
        layer: Layer,
        batch: Batch,
        *,
        out: torch.Tensor,
        lse: torch.Tensor | None,
        **mode: Any,
    ) -> None:
        rng = rng_of_call(q, batch)
        reads = k is None and self._may_read(q.device.type) and rng.random() < 0.5
        # with a float8 q only the output can show the layer's dtype
        rows = q if layer.q_scale is None else out if layer.output_scale is None else q.new_empty(0, dtype=torch.float16)
        impl, own_cache = self._impl(layer, rows, kv_cache, reads=reads, **mode)
        impl.forward(q, k, v, own_cache, self._metadata(batch, layer.attn_type), output=out, lse=lse)

    def write_kv_cache(
        self, k: torch.Tensor, v: torch.Tensor, kv_cache: torch.Tensor, layer: Layer, slot_mapping: torch.Tensor
    ) -> None:
        impl, own_cache = self._impl(layer, k, kv_cache)
        impl.do_kv_cache_update(k, v, own_cache, slot_mapping)
        if self._may_read(k.device.type):
            reader, own_cache = self._impl(layer, k, kv_cache, reads=True)
            reader.do_kv_cache_update(torch.zeros_like(k), torch.ones_like(v), own_cache, slot_mapping)  # writes nothing

    def rope_and_write_kv_cache(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        positions: torch.Tensor,
        cos_sin_cache: torch.Tensor,
        kv_cache: torch.Tensor,
        layer: Layer,
        slot_mapping: torch.Tensor,
        *,
        is_neox: bool,
    ) -> None:
        impl, kv_cache = self._impl(layer, q, kv_cache)
        impl.do_rope_and_kv_cache_update(q, k, v, positions, cos_sin_cache, kv_cache, slot_mapping, is_neox=is_neox)

    def unavailable(self, device: str) -> str | None:
        reason = TRITON.unavailable(device)
        if reason is None:
            available = self.capabilities(device).available
            reason = None if available else str(available)
        return reason

    def capabilities(self, device: str) -> Capabilities:
        return self.load().capabilities(self.aiter(device))

    def forget(self) -> None:
        """Drop all layers and metadata, and their launches."""
        TRITON.forget()
        self._impls.clear()
        self._steps.clear()

    def _may_read(self, device: str) -> bool:
        """True if the backend has layers that read the cache of another layer, which writes it."""
        return bool(self.capabilities(device).answer("kv_sharing"))

    def _metadata(self, batch: Batch, attn_type: AttentionType) -> Any:
        """The metadata of a step, built once for all layers that are called with this Batch."""
        known = self._steps.get(attn_type)
        if known is None or known[0] is not batch:
            builder = self.load().builder(attn_type, **self.builder_options(batch))
            metadata = builder.build(common_metadata(batch, attn_type))
            known = self._steps[attn_type] = (batch, metadata)
        return known[1]

    def _impl(self, layer: Layer, rows: torch.Tensor, kv_cache: torch.Tensor | None, **options: Any) -> tuple[Any, Any]:
        """The backend's layer, which is made once, and the cache as an engine would hand it to the layer. See `_arguments`."""
        arguments, kv_cache = self._arguments(layer, rows, kv_cache, **options)
        fields = (getattr(layer, one.name) for one in dataclasses.fields(layer))
        # the layer keeps its tensors alive, so that no other tensor has the id of one of them
        parts = (id(value) if isinstance(value, torch.Tensor) else value for value in fields)
        key = (*parts, *arguments.values(), rows.device)
        if key not in self._impls:
            self._impls[key] = self.load().impl(layer, **arguments, aiter=self.aiter(rows.device.type))
        return self._impls[key], kv_cache

    def _arguments(
        self,
        layer: Layer,
        rows: torch.Tensor,
        kv_cache: torch.Tensor | None,
        batch_invariant: bool = False,
        validate: bool | None = None,
        reads: bool = False,
    ) -> tuple[dict[str, Any], Any]:
        """Keyword arguments of the backend's layer, beside the Layer and an AITER; and the cache as an engine would pass it.

        Dense planes of K and V are blocks to an engine whose layer asked for blocks (vLLM #43945). Such a layer gets the view
        that is wrong unless the layer reinterprets it.

        Args:
            validate: True if the layer checks values in tensors; None: its scale and its sizes choose.
            reads: True if another layer writes the cache.
        """
        block_size = allocation_layout = None
        if kv_cache is not None and layer.layout is not None:
            block_size = layer.view_of(kv_cache).block_size
            planes = kv_cache.transpose(0, 1)
            if layer.layout is Layout.BLOCKS_FIRST_NHD and planes.is_contiguous() and not kv_cache.is_contiguous():
                # whatever lies inside the planes of the other layers, a block covers the same bytes
                others = [other for other in Layout if other.dims[0] == "kv"]
                kv_cache = planes.view(kv_cache.shape)
                allocation_layout = rng_of(kv_cache.shape).choice(others)
        arguments = {
            "dtype": rows.dtype,
            "block_size": block_size,
            "allocation_layout": allocation_layout,
            "kv_sharing_target_layer_name": "writer" if reads else None,
            "batch_invariant": batch_invariant,
            "validate": rng_of((layer.num_heads, layer.scale)).random() < 0.5 if validate is None else validate,
        }
        return arguments, kv_cache


def common_metadata(batch: Batch, attn_type: AttentionType) -> Any:
    """The metadata of a step as an engine makes it. Causal flags, ranges and biases are those of the model's decoders, for
    layers of any attention type.
    """
    from attn_optimized.backends import CommonAttentionMetadata

    crosses = attn_type is AttentionType.ENCODER_DECODER
    seq_lens = batch.query_start_loc.diff() if crosses else batch.seq_lens
    block_table, ranges, qq_bias = batch.block_table, batch.bidirectional_ranges, batch.qq_bias
    causal = batch.causal if attn_type is AttentionType.DECODER else True
    if attn_type is not AttentionType.DECODER and batch.num_requests % 2:
        # the metadata is that of the model's decoders, too: what only they have must not reach this layer
        device = batch.seq_lens.device
        ranges = torch.zeros((batch.num_requests, 1, 2), dtype=torch.int32, device=device)
        qq_bias = torch.full((batch.max_query_len, batch.max_query_len), -torch.inf, device=device)
        causal = torch.arange(batch.num_requests, device=device) % 2 == 0
        if not attn_type.reads_cache:
            block_table = torch.zeros((batch.num_requests, 1), dtype=torch.int32, device=device)
    common = CommonAttentionMetadata(
        query_start_loc=batch.query_start_loc,
        query_start_loc_cpu=batch.query_start_loc.cpu(),
        seq_lens=seq_lens,
        seq_lens_cpu=seq_lens.cpu(),
        num_actual_tokens=batch.num_actual_tokens,
        max_query_len=batch.max_query_len,
        max_seq_len=batch.max_query_len if crosses else batch.max_seq_len,
        block_table_tensor=block_table,
        slot_mapping=batch.slot_mapping,
        causal=causal,
        encoder_seq_lens=batch.seq_lens if crosses else None,
        max_encoder_seq_len=batch.max_seq_len if crosses else None,
        bidirectional_ranges=ranges,
        qq_bias=qq_bias,
    )
    if common.num_reqs != batch.num_requests:  # engines read it, and this package does not
        message = f"the metadata of {batch.num_requests} requests say num_reqs={common.num_reqs}"
        raise FailedCheckError("property", "CommonAttentionMetadata.num_reqs", message)
    return common


def backend_target(name: str, layers: BackendLayers, *, kernels: Target = TRITON, **fields: Any) -> Target:
    """A backend as a target.

    Args:
        name: the name of the target.
        layers: of the backend.
        kernels: the target of the kernels that the backend calls. They round, split and repeat as this target declares.
        fields: other fields of Target, and those that differ from what is declared here. `support` is one of them.
    """
    modes = ({"validate": True}, {"validate": False}, {"batch_invariant": True})
    declared = {
        "attention": layers.attention,
        "write_kv_cache": layers.write_kv_cache,
        "rope_and_write_kv_cache": layers.rope_and_write_kv_cache,
        "siblings": tuple(functools.partial(layers.attention, **mode) for mode in modes),
        "declares": layers.capabilities,
        "forget": layers.forget,
        "unavailable": layers.unavailable,
        **{field: getattr(kernels, field) for field in ("rounding", "events", "repeats", "sanitizes", "exact")},
    }
    # the arguments of layers are checked in tests/optimized/backends
    return Target(name=name, **{**declared, **fields})


def invariant_layers(layers: BackendLayers) -> dict[str, Mode]:
    """The modes of a backend that declares `batch_invariant` and calls this project's kernels."""
    return {"invariant": invariant.by(functools.partial(layers.attention, batch_invariant=True), queries_per_tile)}


def declared_by(layers: BackendLayers, sizes: Callable[[str], Support]) -> Callable[[str], Support]:
    """The Support on a device type: the part of the sizes drawn there that a backend declares."""
    return lambda device: support_of(layers.capabilities(device), sizes(device))


def named(backend: str) -> Callable[[], Any]:
    def load() -> Any:
        from attn_optimized.backends import BACKENDS

        return BACKENDS[backend]

    return load


def installed(device: str) -> Any:
    """The AITER that is installed here, if any."""
    from attn_optimized.aiter_adapter import find_aiter

    return find_aiter()


@functools.cache
def interpreted_on_a_cpu(device: str) -> Any:
    """The installed AITER; on a CPU that of `readable_aiter`, with its unified_attention under Triton's interpreter.

    There it has no qq_bias: the kernel joins two masks with `and`, which the interpreter takes for the last one alone.
    """
    aiter = readable_aiter() if device == "cpu" else installed(device)
    if device != "cpu" or "unified_attention" not in aiter.signatures:
        return aiter
    signature = aiter.signatures["unified_attention"]
    arguments = tuple(name for name in signature.arguments if name != "qq_bias")
    return dataclasses.replace(
        aiter,
        signatures={**aiter.signatures, "unified_attention": dataclasses.replace(signature, arguments=arguments)},
        functions={"unified_attention": lambda **options: usable_aiter(device).functions["unified_attention"](**options)},
    )


def unified_sizes(device: str) -> Support:
    """The support of ROCM_AITER_UNIFIED_ATTN. AITER's kernel, and with it the device's own float8 types, serves only decoders;
    this project's kernels serve the other types.
    """
    kernel = AITER_UNIFIED_ATTENTION.support(device)

    def exclude(case: Case) -> str | None:
        if case.attn_type is not AttentionType.DECODER:
            return None
        if case.output_dtype not in (None, *kernel.output_dtypes):
            return f"an output of {case.output_dtype}"
        cache_dtype = case.cache and case.cache.dtype
        return f"a cache of {cache_dtype}" if cache_dtype not in (None, *kernel.cache_dtypes) else None

    return dataclasses.replace(TRITON.support(device), unused_slots=kernel.unused_slots, exclude=exclude)


def _unified_events(step: Step) -> Iterable[str]:
    """The paths of AITER's kernel, which serves only decoders, or of this project's kernels."""
    return (AITER_UNIFIED_ATTENTION if step.layer.attn_type is AttentionType.DECODER else TRITON).events(step)


def fa_sizes(device: str) -> Support:
    """The support of ROCM_AITER_FA: its prefill and extend attend to the step's own tensors, and not to the cache's."""

    engine = Engine(more_queries_than_keys=False, writes=(True,), unwritten=False)
    return dataclasses.replace(TRITON.support(device), cache_dtypes=(), unused_slots="mostly finite", engine=engine)


def _needs_an_amd_gpu(device: str) -> str | None:
    if device == "cpu" or torch.version.hip is None:
        return "AITER's flash attention is compiled for AMD's GPUs"
    return _FA.unavailable(device)


_TRITON = BackendLayers(named("TRITON_ATTN"), installed)
_TRITON_DIFFKV = BackendLayers(named("TRITON_ATTN_DIFFKV"), installed)
_ROCM_ATTN = BackendLayers(named("ROCM_ATTN"), installed)
_FA = BackendLayers(named("ROCM_AITER_FA"), installed)
_UNIFIED = BackendLayers(named("ROCM_AITER_UNIFIED_ATTN"), interpreted_on_a_cpu)

BACKEND_TRITON = backend_target(
    "backend-triton",
    _TRITON,
    description="the backend TRITON_ATTN: whole layers, within what it serves",
    support=backend_supports.triton_attn,
    modes=invariant_layers(_TRITON),
)
BACKEND_TRITON_DIFFKV = backend_target(
    "backend-triton-diffkv",
    _TRITON_DIFFKV,
    description="the backend TRITON_ATTN_DIFFKV: whole layers with K and V of two widths, within what it serves",
    support=backend_supports.triton_attn_diffkv,
    modes=invariant_layers(_TRITON_DIFFKV),
)
BACKEND_ROCM_ATTN = backend_target(
    "backend-rocm-attn",
    _ROCM_ATTN,
    description="the backend ROCM_ATTN: whole layers, within what it serves",
    support=backend_supports.rocm_attn,
)
BACKEND_AITER_UNIFIED = backend_target(
    "backend-aiter-unified",
    _UNIFIED,
    kernels=AITER_UNIFIED_ATTENTION,
    description="the backend ROCM_AITER_UNIFIED_ATTN on the installed AITER",
    support=declared_by(_UNIFIED, unified_sizes),
    events=_unified_events,
    findings=BACKENDS["ROCM_AITER_UNIFIED_ATTN"],
)
BACKEND_AITER_FA = backend_target(
    "backend-aiter-fa",
    _FA,
    kernels=AITER_UNIFIED_ATTENTION,
    description="the backend ROCM_AITER_FA on the installed AITER",
    support=declared_by(_FA, fa_sizes),
    unavailable=_needs_an_amd_gpu,
    refuses=False,
    events=lambda step: (),  # most steps are served by other kernels of AITER
    findings=BACKENDS["ROCM_AITER_FA"],
)
