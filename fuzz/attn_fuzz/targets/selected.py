"""The selector as a target: each call runs on the backend that the selector chooses for it.

The sizes of a call choose an architecture, among all that the selector knows, and an AITER: none, or the newest recorded one,
whole or without one of its functions or arguments. The selector is given that AITER, or nothing where it is the installed one.
The selected backend must serve what it was selected for, so a refusal of it is a failure. A record has signatures alone: where
a backend on AITER is selected, the call runs on the one that is selected without AITER.

`attn_fuzz.targets.selections` checks what the selector says. `attn_fuzz.targets.selected_model` does so for a model with this
layer, and `attn_fuzz.targets.cache_readers` for models whose layers read each other's caches.
"""

import dataclasses
import functools
import random
from typing import Any, NamedTuple

import torch
from attn_contract import Batch, Layer
from attn_fuzz.targets import cache_readers, selected_model, selections
from attn_fuzz.targets.backends import BackendLayers, named
from attn_fuzz.targets.choices import choices_by
from attn_fuzz.targets.declared import config_of_call
from attn_fuzz.targets.selections import OPTIONAL, USED, Asked
from attn_fuzz.targets.target import Support, Target
from attn_fuzz.targets.triton import TRITON


class Lacking(NamedTuple):
    """What an AITER lacks: a function, or an argument of the function. Without a function: there is no AITER."""

    function: str | None
    argument: str | None


def _attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    config = config_of_call(q, kv_cache, layer, batch, out, lse)
    choose = choose_by(q, layer, batch)
    pattern = choose.choice(_patterns(layer))
    lacking = choose.choice(_lackings()) if choose.random() < 0.5 else None
    whole = Asked(_architecture(pattern, choose), _priorities()[pattern], _aiter(), choose.random() < 0.5)
    asked = whole if lacking is None else whole._replace(aiter=_aiter(*lacking))
    if lacking is not None:
        selections.check_lacking(config, whole, asked, *lacking)
    with selections.installed(asked.aiter):
        backend = selections.check(config, asked, choose)
        if backend in USED:
            backend = selections.check(config, asked._replace(aiter=_aiter(None), is_installed=False), choose)
        selections.check_constructors(layer, q.dtype, config.block_size, asked)
        selected_model.check(config, asked, choose)
        cache_readers.check(config, asked, choose)
    _layers_of(backend, lacking).attention(q, k, v, kv_cache, layer, batch, out=out, lse=lse)


def choose_by(q: torch.Tensor, layer: Layer, batch: Batch) -> random.Random:
    """Random choices that the sizes of a call make."""
    return choices_by((q.shape, layer.num_kv_heads, batch.query_start_loc, batch.seq_lens))


def _patterns(layer: Layer) -> list[str]:
    """The selector's patterns of architectures.

    AITER's kernels quantize outputs to the device's own float8 type. This device is no gfx950, so that such a call does not
    choose it.
    """
    return [pattern for pattern in _priorities() if not pattern.startswith("gfx950") or layer.output_scale is None]


def _priorities() -> dict[str, tuple[str, ...]]:
    from attn_optimized.selector import PRIORITIES

    return dict(PRIORITIES)


def _architecture(pattern: str, choose: random.Random) -> str:
    """Any architecture of a pattern. Those of AMD's data centers are named as HIP names them, with their features."""
    name = pattern.replace("??", f"{choose.randrange(256):02x}").replace("*", str(choose.randint(70, 129)))
    return f"{name}:sramecc+:xnack-" if name.startswith("gfx9") else name


def _lackings() -> list[Lacking]:
    parts = [Lacking(function, argument) for function, arguments in OPTIONAL.items() for argument in (None, *arguments)]
    return [*parts, Lacking(None, None)]


@functools.cache
def _aiter(function: str | None = "", argument: str | None = None) -> Any:
    """The newest recorded AITER, whole, or without a function, or without an argument of it; for None there is no AITER."""
    from attn_optimized.aiter_adapter import RECORDED, Aiter, recorded

    if function is None:
        return Aiter(missing="it is not here")
    aiter = recorded(RECORDED[-1])
    return without(aiter, function, argument) if function else aiter


def without(aiter: Any, function: str, argument: str | None = None) -> Any:
    """The same AITER without a function, or without an argument of the function."""
    signatures = dict(aiter.signatures)
    signature = signatures.pop(function)
    if argument is not None:
        arguments = tuple(name for name in signature.arguments if name != argument)
        signatures[function] = dataclasses.replace(signature, arguments=arguments)
    return dataclasses.replace(aiter, signatures=signatures)


@functools.cache
def _layers_of(backend: str, lacking: Lacking | None) -> BackendLayers:
    return BackendLayers(named(backend), lambda device: _aiter(*(lacking or ())), is_checked=lacking is None)


def _forget() -> None:
    _layers_of.cache_clear()
    TRITON.forget()


def _support(device: str) -> Support:
    """All that TRITON_ATTN serves, which every architecture has."""
    return dataclasses.replace(TRITON.support(device), max_tokens=32, max_seq_len=128)


SELECTED = Target(
    name="selected",
    description="the selector: each call on the backend that is selected for it, on an architecture of its choice",
    attention=_attention,
    support=_support,
    rounding=TRITON.rounding,
    unavailable=TRITON.unavailable,
    forget=_forget,
)
