"""The selector as a target: each call runs on the backend that the selector chooses for it.

The call chooses the architecture, among all that the selector knows. AITER is the double `attn_fuzz.documented_aiter`. The
selected backend must serve what it was selected for, so a refusal of it is a failure.
"""

import dataclasses
import functools
import random

import torch
from attn_contract import AttentionConfig, Batch, KVCacheView, Layer
from attn_fuzz.targets.backends import BackendLayers, named
from attn_fuzz.targets.documented_aiter import documented, must_refuse
from attn_fuzz.targets.documented_backends import rounding, tokens_as_cached
from attn_fuzz.targets.engine import Engine
from attn_fuzz.targets.target import Support, Target
from attn_fuzz.targets.triton import TRITON


def _attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    config = _config_of(q, kv_cache, layer, batch, out, lse)
    backend = _selected(config, _architecture_of(q, layer, batch))
    if backend == "ROCM_AITER_FA" and kv_cache is not None:
        # a step that writes nothing brings none, and a quantized cache rounds them
        k, v = tokens_as_cached(q, kv_cache, layer, batch)
    _layers_of(backend).attention(q, k, v, kv_cache, layer, batch, out=out, lse=lse)


def _config_of(
    q: torch.Tensor,
    kv_cache: torch.Tensor | None,
    layer: Layer,
    batch: Batch,
    out: torch.Tensor,
    lse: torch.Tensor | None,
) -> AttentionConfig:
    """What the call asks for, in the layout of its cache."""
    block_size = None
    if kv_cache is not None and layer.layout is not None:
        heads = {"num_kv_heads": layer.num_kv_heads, "head_size": layer.head_size}
        block_size = KVCacheView.of(kv_cache, layer.layout, **heads).block_size
    output_dtype = out.dtype if layer.output_scale is not None else None
    return AttentionConfig.of(
        layer, q.dtype, block_size=block_size, batch=batch, output_dtype=output_dtype, lse=lse is not None, rope=False
    )


def _selected(config: AttentionConfig, architecture: str) -> str:
    """The backend for a config, whose layout is given.

    Raises:
        AssertionError: the selector contradicts itself. It passes over a backend without a reason, or serves by name what it
            passes over. It chooses another backend once the layout is fixed that it prefers, or for a model of this layer.
    """
    from attn_optimized.selector import priorities, select, select_model

    choose = functools.partial(select, architecture=architecture, aiter=documented("cpu"))
    selection = choose(config)
    assert selection.layout is config.layout, f"got {selection}, expected the layout of {config}"
    before = tuple(skipped.backend for skipped in selection.skipped if skipped.refusals)
    assert (*before, selection.backend) == priorities(architecture)[: len(before) + 1], f"on {architecture}: {selection}"
    for name in before:
        must_refuse(functools.partial(choose, config, backend=name), f"{name} by name")
    assert choose(config, backend=selection.backend).backend == selection.backend
    preferred = choose(dataclasses.replace(config, layout=None))
    fixed = choose(dataclasses.replace(config, layout=preferred.layout))
    assert fixed.backend == preferred.backend, f"got {preferred}, and with its layout {fixed}, on {architecture}"
    model = select_model({"layer": config}, architecture=architecture, aiter=documented("cpu"))["layer"]
    assert (model.backend, model.layout, model.allocation_layout) == (selection.backend, selection.layout, None), str(model)
    return selection.backend


def _architecture_of(q: torch.Tensor, layer: Layer, batch: Batch) -> str:
    """The architecture that a call chooses by its sizes.

    AITER's kernels quantize outputs to the device's own float8 type. This device is no gfx950, so that such a call does not
    choose it.
    """
    seed = (tuple(q.shape), layer.num_kv_heads, batch.query_start_loc.tolist(), batch.seq_lens.tolist())
    return random.Random(repr(seed)).choice(
        [name for name in _architectures() if not name.startswith("gfx950") or layer.output_scale is None]
    )


@functools.cache
def _architectures() -> tuple[str, ...]:
    """One architecture for each pattern of the selector. Those of AMD are named as HIP names them, with their features."""
    from attn_optimized.selector import PRIORITIES

    names = (pattern.replace("??", "00").replace("*", "90") for pattern in PRIORITIES)
    return tuple(f"{name}:sramecc+:xnack-" if name.startswith("gfx9") else name for name in names)


@functools.cache
def _layers_of(backend: str) -> BackendLayers:
    return BackendLayers(named(backend), documented, TRITON.support)


def _forget() -> None:
    _layers_of.cache_clear()
    TRITON.forget()


def _support(device: str) -> Support:
    """All that TRITON_ATTN serves, which every architecture has. ROCM_AITER_FA needs a key for each query."""
    return dataclasses.replace(TRITON.support(device), engine=Engine(more_queries_than_keys=False))


SELECTED = Target(
    name="selected",
    description="the selector: each call on the backend that is selected for it, on an architecture of its choice",
    attention=_attention,
    support=_support,
    rounding=rounding,
    unavailable=TRITON.unavailable,
    forget=_forget,
)
