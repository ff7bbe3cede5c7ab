"""Drawn launches: those of steps that the fuzzer's strategies draw, with all rules, dtypes, layouts and sizes, in
both modes.

Tensors are moved to the device meta. A KV cache counts as one of CACHE_BYTES, as on GPUs that serve.
"""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from attn_binaries.architectures import ARCHITECTURES
from attn_binaries.shipped_calls import CACHE_BYTES
from attn_contract import AttentionConfig, Batch, Layer
from attn_contract.arguments import named
from attn_fuzz.cases import tensors
from attn_fuzz.cases.case import Case
from attn_fuzz.cases.poison import DTYPES
from attn_fuzz.cases.tensors import Step
from attn_fuzz.run import runner, shard
from attn_fuzz.run.shard import FuzzPlan
from attn_fuzz.targets.indexer import EVERY_TERM, TRITON_INDEXER, IndexStep, index_step, unwritten_logits, unwritten_selection
from attn_fuzz.targets.triton import MODE_OF_FORMAT
from attn_optimized.attention import paged_attention_calls, plan_of, varlen_attention_calls
from attn_optimized.indexer import index_logits_call, select_call, write_index_cache_call
from attn_optimized.kernel_call import KernelCall
from attn_optimized.kernels.reduce_parts import reduce_parts_kernel
from attn_optimized.kv_cache import rope_and_write_kv_cache_call, write_kv_cache_call
from attn_optimized.latent_cache import write_latent_cache_call

TARGETS = ("triton", "triton-latent", *(f"triton-latent@{mode}" for mode in MODE_OF_FORMAT.values()), TRITON_INDEXER.name)
"""Targets whose supports are drawn from, in turns: together they serve all that the kernels serve."""


@functools.lru_cache(maxsize=1)
def all_of(architecture: str, seed: int, steps: int) -> dict[str, KernelCall]:
    """The launches of drawn steps on a GPU, by name. The result is kept, because a process compiles many of them."""
    calls: dict[str, KernelCall] = {}
    for index, case in enumerate(_cases(seed, steps)):
        step = tensors.build(case)
        if case.target == TRITON_INDEXER.name:
            assert step.kv_cache is not None
            of_layer = index_step(step.q, step.kv_cache, step.layer, step.batch, EVERY_TERM)
            launches, words = _launches_of_index_layer(of_layer, architecture), _index_layer_in_words(of_layer)
        else:
            launches, words = _launches(step, architecture), _in_words(step, DTYPES[case.dtype])
        calls |= {f"{seed}.{index} {part}: {words}": call for part, call in launches}
    return calls


@functools.lru_cache(maxsize=1)
def _cases(seed: int, steps: int) -> tuple[Case, ...]:
    """Drawn steps that have a query. Another number of steps draws others."""
    each = -(-steps // len(TARGETS))
    drawn = [_of_target(target, seed, each) for target in TARGETS]
    return tuple(case for turn in zip(*drawn, strict=True) for case in turn)[:steps]


def _of_target(target: str, seed: int, count: int) -> list[Case]:
    # a few more, because some have no query
    plan = FuzzPlan(target=target, device="cpu", examples=2 * count + 10, seed=seed, folder=Path("unused"))
    with_work = [case for part in runner.shards(plan) for case in shard.drawn(part) if case.has_work]
    return with_work[:count]


def _launches(step: Step, architecture: str) -> Iterator[tuple[str, KernelCall]]:
    """A step's launches, each with what it is."""
    gpu: dict[str, Any] = {"architecture": architecture, "compute_units": ARCHITECTURES[architecture].compute_units}
    layer, batch, q, out = _on_meta_layer(step.layer), _on_meta_batch(step.batch), _on_meta(step.q), _on_meta(step.out)
    lse = None if step.lse is None else _on_meta(step.lse)
    for mode in ("", ", batch-invariant"):
        plan = plan_of(q, layer, batch, **gpu, batch_invariant=bool(mode))
        if step.kv_cache is not None:
            calls = paged_attention_calls(q, _on_meta(step.kv_cache, CACHE_BYTES), layer, batch, plan, out=out, lse=lse)
        else:
            assert step.k is not None
            assert step.v is not None
            calls = varlen_attention_calls(q, _on_meta(step.k), _on_meta(step.v), layer, batch, plan, out=out, lse=lse)
        for call in calls:
            yield ("reduction" if call.launch.kernel is reduce_parts_kernel else "attention") + mode, call
    if step.writes and step.kv_cache is not None:
        yield "write", _write(step, architecture)


def _launches_of_index_layer(step: IndexStep, architecture: str) -> Iterator[tuple[str, KernelCall]]:
    """The launches of an index layer's step, each with what it is."""
    step, gpu = step.on(torch.device("meta")), {"architecture": architecture}
    cache, indexer, batch = _on_meta(step.index_cache, CACHE_BYTES), step.indexer, step.batch
    logits = unwritten_logits(step.q, indexer, batch)
    selected = unwritten_selection(logits, indexer)
    yield "index write", write_index_cache_call(step.k, cache, indexer, step.slot_mapping, **gpu)
    yield "index logits", index_logits_call(step.q, step.weights, cache, indexer, batch, logits=logits, **gpu)
    yield "index selection", select_call(logits, indexer, batch, selected=selected, **gpu)


def _write(step: Step, architecture: str) -> KernelCall:
    write = step.writes[0]
    assert step.raw is not None
    cache, layer = _on_meta(write.view.tensor(step.raw), CACHE_BYTES), _on_meta_layer(write.layer)
    slots = _on_meta(write.slot_mapping)
    if layer.layout is not None and layer.layout.has_latent_value:
        kv_c, k_pe = map(_on_meta, write.latent_parts)
        return write_latent_cache_call(kv_c, k_pe, cache, layer, slots, architecture=architecture)
    k, v = _on_meta(write.k), _on_meta(write.v)
    if write.rotation is None:
        return write_kv_cache_call(k, v, cache, layer, slots, architecture=architecture)
    positions, table = _on_meta(write.rotation.positions), _on_meta(write.rotation.cos_sin_cache)
    rotated = (_on_meta(step.q), k, v, positions, table, cache, layer, slots)
    return rope_and_write_kv_cache_call(*rotated, is_neox=write.rotation.is_neox, architecture=architecture)


def _on_meta(tensor: torch.Tensor, storage_bytes: int = 0) -> torch.Tensor:
    """A tensor of the same sizes and strides, in a storage at least as large."""
    elements = max(storage_bytes, tensor.untyped_storage().nbytes()) // tensor.element_size()
    whole = torch.empty((elements,), dtype=tensor.dtype, device="meta")
    return whole.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _on_meta_layer(layer: Layer) -> Layer:
    return dataclasses.replace(layer, **{name: _on_meta(tensor) for name, tensor in layer.tensors.items()})


def _on_meta_batch(batch: Batch) -> Batch:
    return dataclasses.replace(batch, **{name: _on_meta(tensor) for name, tensor in batch.tensors.items()})


def _index_layer_in_words(step: IndexStep) -> str:
    indexer = step.indexer
    words = [f"{indexer.num_heads} heads of {indexer.head_size}", indexer.layout.name, str(indexer.score)]
    words += [named(indexer.cache_dtype)] if indexer.cache_dtype else []
    return ", ".join((*words, f"units of {indexer.selection_unit}", f"top_k {indexer.top_k}"))


def _in_words(step: Step, dtype: torch.dtype) -> str:
    """A step in words. `dtype` is that of the layer: a quantized q has another one."""
    layer = step.layer
    sizes = f"{layer.num_heads}/{layer.num_kv_heads} heads of {layer.head_size}"
    if layer.head_size_v is not None:
        sizes += f" and {layer.head_size_v}"
    output_dtype = None if layer.output_scale is None else step.out.dtype
    block_size = None if step.view is None else step.view.block_size
    asked = {"block_size": block_size, "batch": step.batch, "output_dtype": output_dtype, "lse": step.lse is not None}
    config = AttentionConfig.of(layer, dtype, **asked)
    words = [str(layer.attn_type), named(dtype), sizes, f"{step.batch.max_query_len} queries"]
    words += [] if layer.layout is None else [layer.layout.name]
    words += [f"{named(layer.kv_cache_dtype)} by {config.scales}"] if layer.kv_cache_dtype else []
    return ", ".join((*words, *config.rules))
