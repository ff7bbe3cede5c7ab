"""What the selector must say about one layer: stated once more, of what each backend declares."""

import contextlib
import dataclasses
import functools
import inspect
import itertools
import random
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
from attn_contract import AttentionConfig, ContractError, Layer, Layout
from attn_contract.arguments import named
from attn_contract.rules import words_of
from attn_fuzz.targets.wrong_arguments import must_contradict, must_raise, must_refuse
from attn_fuzz.targets.wrong_gpus import NO_NAMES, edited, is_name

USED = {
    "ROCM_AITER_FA": ("flash_attn_varlen_func", "unified_attention", "paged_attention_v1"),
    "ROCM_AITER_UNIFIED_ATTN": ("unified_attention",),
}
"""The functions of AITER that a backend calls."""
UNAVAILABLE = "any layer"
OPTIONAL = {
    "flash_attn_varlen_func": {
        "window_size": "window",
        "logits_soft_cap": "logits_soft_cap",
        "alibi_slopes": "alibi_slopes",
        "sink_ptr": "sinks",
        "return_lse": UNAVAILABLE,
    },
    "unified_attention": {
        "alibi_slopes": "alibi_slopes",
        "sinks": "sinks",
        "qq_bias": "qq_bias",
        "output_scale": "output_scale",
    },
    "paged_attention_v1": {},
}
"""Arguments that an AITER may lack, and the rules that need them. Without return_lse there is no extend."""
ALWAYS = {"unified_attention": ("window", "logits_soft_cap")}
"""Rules of arguments that a function never lacks: only without the function they are refused."""


_LATENT = ("ROCM_AITER_MLA", "TRITON_MLA", "ROCM_AITER_TRITON_MLA")
"""Backends of latent attention, in the order of the GPUs for which AITER has assembly kernels."""

_TWO_WIDTHS = ("TRITON_ATTN_DIFFKV",)
"""The backend of layers with K and V of two widths in a cache."""


class Asked(NamedTuple):
    """What is asked of the selector beside a layer.

    Attributes:
        architecture: as the GPU names itself.
        order: the names of all backends, the most preferred one first.
        aiter: AMD's AITER.
        is_installed: whether it is the installed one, which need not be given.
    """

    architecture: str
    order: tuple[str, ...]
    aiter: Any
    is_installed: bool = False

    @property
    def on_architecture(self) -> str:
        """What a backend refuses, and nothing else, that does not run on the architecture."""
        return f"architecture {self.architecture.split(':')[0]}"

    @property
    def options(self) -> dict[str, Any]:
        return {"architecture": self.architecture, **self.given_aiter}

    @property
    def given_aiter(self) -> dict[str, Any]:
        """The argument that names the AITER, unless it is the installed one."""
        return {} if self.is_installed else {"aiter": self.aiter}

    def refusals(self, backend: str, config: AttentionConfig) -> list[Any]:
        return capabilities(backend, self.aiter).refusals(config, self.architecture.split(":")[0])

    def layouts(self, backend: str, config: AttentionConfig) -> tuple[Layout | None, ...]:
        """The layouts with which a backend serves a config, in the backend's order; none if the backend does not serve it."""
        given = config.layout is not None or not config.attn_type.reads_cache
        choices = (config.layout,) if given else capabilities(backend, self.aiter).layouts.values
        with_scales = [
            layout for layout in choices if layout is None or layout.has_inline_scales == (config.scales == "inline")
        ]
        return tuple(layout for layout in with_scales if not self.refusals(backend, dataclasses.replace(config, layout=layout)))


def capabilities(backend: str, aiter: Any) -> Any:
    from attn_optimized.backends import BACKENDS

    return BACKENDS[backend].capabilities(aiter)


def check(config: AttentionConfig, asked: Asked, draw: random.Random) -> str:
    """The backend for a config. The selector is asked with the config's layout and without, and for each backend by name.

    Raises:
        AssertionError: the selector chooses another backend or layout than the first that serves, or does not tell why.
    """
    from attn_optimized.backends import BACKENDS
    from attn_optimized.selector import priorities, select

    assert priorities(asked.architecture) == asked.order
    check_latent(asked, draw)
    check_two_widths(asked, draw)
    choose = functools.partial(select, **asked.options)
    must_raise(functools.partial(choose, config, backend="ATTENTION"), "an unknown backend")
    unknown = _unknown(asked.architecture.split(":")[0], draw)
    must_raise(functools.partial(select, config, architecture=unknown, aiter=asked.aiter), f"architecture {unknown!r}")
    kind = draw.choice(("one width", "two widths", "latent"))
    must_raise(functools.partial(priorities, unknown, kind), f"priorities of {unknown!r}")
    no_kind: Any = "three widths"
    must_raise(functools.partial(priorities, asked.architecture, no_kind), "priorities of no kind of a cache")
    must_contradict(functools.partial(select, aiter=asked.aiter), {"config": config, "architecture": asked.architecture})
    for backend in BACKENDS.keys() - {*asked.order}:
        must_refuse(functools.partial(choose, config, backend=backend), f"{backend}, which has another kind of cache")
    _check(dataclasses.replace(config, layout=None), asked, choose)
    return _check(config, asked, choose)


def check_latent(asked: Asked, draw: random.Random) -> None:
    """Check what is selected for a layer with a latent cache: the first backend of such layers that serves it.

    Raises:
        AssertionError: another order, backend or layout, or no reason for what is passed over.
    """
    from attn_optimized.selector import priorities, select

    architecture = asked.architecture.split(":")[0]
    order = _LATENT if architecture in ("gfx942", "gfx950") else (_LATENT[1], _LATENT[0], _LATENT[2])
    got = priorities(asked.architecture, "latent")
    assert got == order, f"latent layers on {architecture}: got {got}, expected {order}"
    latent_size, heads = draw.randint(1, 512), draw.randint(1, 128)
    config = AttentionConfig(
        num_heads=heads,
        num_kv_heads=1,
        head_size=latent_size + draw.randint(0, 128),
        dtype=draw.choice((torch.float16, torch.bfloat16)),
        block_size=16 * draw.randint(1, 8),
        layout=Layout.LATENT,
        rules={"head_size_v": latent_size},
    )
    _check(config, asked._replace(order=order), functools.partial(select, **asked.options))


def check_two_widths(asked: Asked, draw: random.Random) -> None:
    """Check what is selected for a layer with K and V of two widths in its cache: the only backend of such layers.

    The layout is left to the selector, unless the layer could have a latent cache too.

    Raises:
        AssertionError: another backend or layout.
    """
    from attn_optimized.selector import priorities, select

    got = priorities(asked.architecture, "two widths")
    assert got == _TWO_WIDTHS, f"layers of two widths: got {got}, expected {_TWO_WIDTHS}"
    heads, head_size = draw.randint(1, 8), draw.randint(32, 256)
    value_size = draw.choice([size for size in range(1, 257) if size != head_size])
    may_be_latent = heads == 1 and value_size < head_size
    config = AttentionConfig(
        num_heads=heads * draw.randint(1, 16),
        num_kv_heads=heads,
        head_size=head_size,
        dtype=draw.choice((torch.float32, torch.float16, torch.bfloat16)),
        block_size=16 * draw.randint(1, 8),
        layout=Layout.CONTENT_PACKED if may_be_latent or draw.random() < 0.5 else None,
        rules={"head_size_v": value_size},
    )
    _check(config, asked._replace(order=_TWO_WIDTHS), functools.partial(select, **asked.options))


def _unknown(architecture: str, draw: random.Random) -> Any:
    """What names no architecture that the selector knows."""
    names = (*NO_NAMES, *(edited(architecture, draw) for _ in range(4)))
    unknown = [name for name in names if not _is_known(name)]
    return draw.choice(unknown)


def _is_known(name: Any) -> bool:
    if not isinstance(name, str) or not is_name(name):
        return name == "interpreter"
    return name in ("gfx90a", "gfx942", "gfx950") or name.startswith(("sm", "gfx11", "gfx12"))


def _check(config: AttentionConfig, asked: Asked, choose: Callable[..., Any]) -> str:
    layouts = {backend: asked.layouts(backend, config) for backend in asked.order}
    first, *_ = serving = [backend for backend in asked.order if layouts[backend]]
    selection = choose(config)
    assert (selection.backend, selection.layout) == (first, layouts[first][0]), f"got {selection}, expected {first}"
    assert tuple(one.backend for one in selection.skipped) == asked.order[: asked.order.index(first)], str(selection)
    for skipped in selection.skipped:
        reasons = asked.refusals(skipped.backend, config)
        assert skipped.refusals, f"{skipped.backend} is passed over without a reason"
        assert not reasons or list(skipped.refusals) == reasons, f"got {skipped}, expected {reasons}"
        told = str(skipped)
        assert all(part in told for part in (skipped.backend, *map(str, skipped.refusals))), told
    check_why(selection, asked)
    for backend in asked.order:
        by_name = functools.partial(choose, config, backend=backend)
        if backend in serving:
            selection = by_name()
            assert (selection.backend, selection.layout, selection.skipped) == (backend, layouts[backend][0], ()), str(
                selection
            )
            assert selection.why == "asked for by name"
        else:
            told = must_refuse(by_name, f"{backend} by name")
            assert told.endswith(f"use {' or '.join(serving)}"), f"{told}: expected all of {serving}"
    return first


@contextlib.contextmanager
def installed(aiter: Any) -> Iterator[None]:
    """Inside, this AITER is the installed one: whoever is given none asks for it."""
    from attn_optimized.backends import base
    from attn_optimized.selector import layer

    found = {"find_aiter": mock.Mock(return_value=aiter)}
    with mock.patch.multiple(base, **found), mock.patch.multiple(layer, **found):
        yield


def check_constructors(layer: Layer, dtype: torch.dtype, block_size: int | None, asked: Asked) -> None:
    """Check that each backend that does not serve a layer refuses to make it, with all of its reasons, and tells who serves it.

    Raises:
        AssertionError: a backend makes a layer that it declares not to serve, does not tell why, or names others than those
            that serve the layer.
    """
    from attn_optimized.backends import BACKENDS

    config = AttentionConfig.of(layer, dtype, block_size=block_size)
    refusals = {name: capabilities(name, asked.aiter).refusals(config) for name in BACKENDS}
    serving = " or ".join(name for name, reasons in refusals.items() if not reasons)
    for name, backend in BACKENDS.items():
        if reasons := refusals[name]:
            # what a backend needs beside the layer is looked at once the layer is served
            signature = inspect.signature(backend.impl.__init__).parameters.values()
            needed = {one.name: None for one in signature if one.kind is one.KEYWORD_ONLY and one.default is one.empty}
            arguments = {**needed, "dtype": dtype, "block_size": block_size, **asked.given_aiter}
            told = must_refuse(functools.partial(backend.impl, layer, **arguments), f"a layer of {name}")
            assert all(part in told for part in (name, *(reason.property for reason in reasons))), told
            is_told = told.endswith(f"; use {serving}") if serving else "; use " not in told
            assert is_told, f"{told}: expected those who serve it, {serving or 'nobody'}"


def check_why(selection: Any, asked: Asked) -> None:
    """Check that a choice without a name tells the architecture and the backends that were passed over, in their order."""
    architecture, before = asked.architecture.split(":")[0], [one.backend for one in selection.skipped]
    listed = f"{', '.join(before[:-1])} and {before[-1]}" if before[1:] else "".join(before)
    told = f"the first on {architecture} that serves it, after {listed}" if before else f"the first choice on {architecture}"
    assert selection.why.split(";")[0] == told, f"got {selection.why!r}, expected {told!r}"


def check_lacking(config: AttentionConfig, whole: Asked, lacking: Asked, function: str | None, argument: str | None) -> None:
    """Check what the backends declare on an AITER that lacks a function, or an argument of the function, or on none.

    Without an AITER the backends of AITER refuse what they refuse with the whole one, and the installation alone. On an
    architecture that they do not run on, an AITER makes no difference. Few configs ask for what an AITER lacks, and few
    architectures have all backends. So the config is asked for with each of these rules, too, and on an architecture that has.

    Raises:
        AssertionError: a backend refuses anything else than before and what needs the argument.
    """
    if function is None:
        needing = (UNAVAILABLE,)
    elif argument is None:
        needing = (UNAVAILABLE, *OPTIONAL[function].values(), *ALWAYS.get(function, ()))
    else:
        needing = (OPTIONAL[function][argument],)
    for architecture, asking in itertools.product((whole.architecture, _OF_ALL_BACKENDS), (config, *_asking(config, needing))):
        there, without = (one._replace(architecture=architecture) for one in (whole, lacking))
        refused = {words for rule in needing if (words := _in_words(rule, asking))}
        for backend, used in USED.items():
            expected = {refusal.property for refusal in there.refusals(backend, asking)}
            if expected != {there.on_architecture} and (function is None or function in used):
                expected |= refused
            got = {refusal.property for refusal in without.refusals(backend, asking)}
            assert got == expected, (
                f"{backend} without {argument or function or 'AITER'}: got {sorted(got)}, expected {sorted(expected)}"
            )


_OF_ALL_BACKENDS = "gfx942"
_ASKED: dict[str, Any] = {"window": (16, -1), "logits_soft_cap": 30.0}
"""Values of rules that are neither on nor off."""


def _asking(config: AttentionConfig, rules: Collection[str]) -> Iterator[AttentionConfig]:
    """The config with each of these rules that it can have."""
    for rule in rules:
        with contextlib.suppress(ContractError):
            if rule == "output_scale":
                yield dataclasses.replace(config, output_dtype=torch.float8_e4m3fnuz)
            elif rule != UNAVAILABLE:
                yield config.with_rules(**{rule: _ASKED.get(rule, True)})


def _in_words(rule: str, config: AttentionConfig) -> str | None:
    """What a backend refuses of a config if it lacks a rule; None if the config does not ask for the rule."""
    if rule == UNAVAILABLE:
        return rule
    if rule == "output_scale":
        return f"output dtype {named(config.output_dtype)}" if config.output_dtype else None
    return words_of(rule) if config.asks(rule) else None
