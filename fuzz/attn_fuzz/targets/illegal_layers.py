"""Layers of a backend, and calls of their methods and of the builder of metadata, that contradict the contract."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from attn_contract import AttentionType, ContractError, Layout
from attn_fuzz.targets.illegal import dims_of, new_lse
from attn_fuzz.targets.wrong_arguments import Calls, wrong_calls

_OF_DECODERS = ("causal", "bidirectional_ranges", "qq_bias")
_NOT_READ = {
    AttentionType.DECODER: (),
    AttentionType.ENCODER: (*_OF_DECODERS, "block_table_tensor"),
    AttentionType.ENCODER_ONLY: (*_OF_DECODERS, "block_table_tensor"),
    AttentionType.ENCODER_DECODER: (*_OF_DECODERS, "seq_lens", "max_seq_len"),
}
"""What an engine tells of a step, and what layers of the attention type do not look at."""
_OF_SOME_BACKENDS = ("query_start_loc_cpu", "seq_lens_cpu")
_OPTIONAL = ("slot_mapping", "bidirectional_ranges", "qq_bias")


def wrong_layers(make: Callable[..., object], arguments: dict[str, Any]) -> Calls:
    """Layers with one argument wrong.

    Args:
        make: the class of the backend's layers.
        arguments: by name, of a layer that is right.
    """
    name = "kv_sharing_target_layer_name"
    others = {key: value for key, value in arguments.items() if key != name}
    optional = ("block_size", "allocation_layout", "aiter")
    yield from wrong_calls(functools.partial(make, **{name: arguments[name]}), others, optional=optional)
    for wrong in ("", 0):
        yield f"{name}={wrong!r}", functools.partial(make, **{**arguments, name: wrong})
    layout = arguments["layer"].layout
    for other in Layout:
        footprint = None if layout is None else (layout.has_inline_scales, layout.has_latent_value)
        if (other.has_inline_scales, other.has_latent_value) != footprint:
            yield f"an allocation of {other}", functools.partial(make, **{**arguments, "allocation_layout": other})


def calls_of_layer(
    impl: Any,
    builder: Any,
    common: Any,
    q: torch.Tensor,
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    kv_cache: torch.Tensor | None,
    out: torch.Tensor,
    lse: torch.Tensor | None,
) -> Calls:
    """Calls of a layer's methods, and of the builder where the layer reads what the builder lets pass.

    Args:
        impl, builder: a layer of a backend, and the builder for the layer's attention type.
        common: a step, as an engine tells it.
        q, k, v, kv_cache, out, lse: as `forward` takes them.
    """
    forward = functools.partial(impl.forward, key=k, value=v, kv_cache=kv_cache)
    # a layer with a cache needs no key and no value
    keys = {"kv_cache": kv_cache} if impl.layer.attn_type.reads_cache else {"key": k, "value": v}
    arguments = {"query": q, **keys, "attn_metadata": builder.build(common), "output": out, "lse": lse}
    yield from wrong_calls(forward, arguments, optional=("lse",), free={"kv_cache": dims_of(impl.config.layout, "block")})
    if lse is None:
        yield from wrong_calls(functools.partial(forward, **arguments), {"lse": new_lse(q)}, optional=("lse",))
    yield from _metadata(functools.partial(forward, **arguments), builder, common)
    if k is not None and common.slot_mapping is not None:
        written = {"key": k, "value": v, "kv_cache": kv_cache, "slot_mapping": common.slot_mapping}
        yield from _writes(impl, written, q)


def writes_of_reader(impl: Any, written: dict[str, Any], q: torch.Tensor) -> Calls:
    """Calls of a layer that reads the cache of another layer. It writes nothing, so it rotates nothing.

    Args:
        written: the arguments of a cache write.
    """
    yield from wrong_calls(impl.do_kv_cache_update, written, free=_free_of_write(impl))
    if impl.layer.attn_type is AttentionType.DECODER:
        rotated = {**written, **_rotation(written, q)}
        yield "a rotation by a layer that writes nothing", functools.partial(impl.do_rope_and_kv_cache_update, **rotated)


def built(builder: Any, common: Any) -> Any:
    """The metadata of a step.

    Raises:
        AssertionError: the builder's ContractError names no field of what the engine told of the step.
    """
    try:
        return builder.build(common)
    except ContractError as error:
        name = error.argument.split("[")[0]
        told = [field.name for field in dataclasses.fields(common)]
        if name in told:
            raise
        raise AssertionError(f"an error of a step names {name!r}, expected one of {', '.join(told)}: {error}") from error


def _metadata(forward: functools.partial[object], builder: Any, common: Any) -> Calls:
    def attend(**fields: Any) -> object:
        return forward(attn_metadata=built(builder, dataclasses.replace(common, **fields)))

    told = {field.name: getattr(common, field.name) for field in dataclasses.fields(common)}
    not_read = (*_NOT_READ[builder.attn_type], *_OF_SOME_BACKENDS)
    read = {name: value for name, value in told.items() if value is not None and name not in not_read}
    free = {"slot_mapping": (0,), "block_table_tensor": (1,), "bidirectional_ranges": (1,)}
    yield from wrong_calls(attend, read, optional=_OPTIONAL, free=free)
    yield from wrong_calls(builder.build, {"common_attn_metadata": common})


def _writes(impl: Any, written: dict[str, Any], q: torch.Tensor) -> Calls:
    """Calls of a cache write, and of a decoder's write that rotates."""
    free = _free_of_write(impl)
    yield from wrong_calls(impl.do_kv_cache_update, written, free=free)
    if impl.layer.attn_type is AttentionType.DECODER:
        yield from wrong_calls(impl.do_rope_and_kv_cache_update, {**written, **_rotation(written, q)}, free=free)


def _rotation(written: dict[str, Any], q: torch.Tensor) -> dict[str, Any]:
    """What a write that rotates one pair of dimensions takes beside the arguments of a write."""
    positions = torch.zeros_like(written["slot_mapping"])
    return {"query": q, "positions": positions, "cos_sin_cache": q.new_zeros(1, 2), "is_neox": True}


def _free_of_write(impl: Any) -> dict[str, tuple[int, ...]]:
    return {
        "kv_cache": dims_of(impl.config.layout, "block"),
        **dict.fromkeys(("slot_mapping", "positions", "query", "cos_sin_cache"), (0,)),
    }
