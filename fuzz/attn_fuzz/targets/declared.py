"""What a backend declares, held to what its target states, for layers like the drawn one.

A backend that refuses a drawn layer is found by the draw alone. Two faults are not: a backend that declares a layer that its
target excludes passes if it computes the layer rightly, and a layer that is hardly ever drawn is hardly ever refused.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from attn_contract import RULES, AttentionConfig, Batch, Capabilities, ContractError, KVCacheView, Layer
from attn_fuzz.cases.poison import DTYPES
from attn_fuzz.targets.target import EVERYTHING, Support

ARCHITECTURES = ("gfx942", "gfx950")
"""Those of AITER's attention. They have unlike float8 types."""
_NUMBERS: dict[str, tuple[Any, ...]] = {
    "window": ((-1, 3), (3, -1), (3, 3)),
    "sink_tokens": (2,),
    "chunked_local": (16,),
    "logits_soft_cap": (5.0,),
}
"""By the name of a rule that a config holds as a number: values that are unlike each other. Other rules are on or off."""


def config_of_call(
    q: torch.Tensor,
    kv_cache: torch.Tensor | None,
    layer: Layer,
    batch: Batch,
    out: torch.Tensor,
    lse: torch.Tensor | None,
) -> AttentionConfig:
    """What a call asks for, in the layout of its cache."""
    block_size = None
    if kv_cache is not None and layer.layout is not None:
        heads = {"num_kv_heads": layer.num_kv_heads, "head_size": layer.head_size, "head_size_v": layer.head_size_v}
        block_size = KVCacheView.of(kv_cache, layer.layout, **heads).block_size
    output_dtype = out.dtype if layer.output_scale is not None else None
    return AttentionConfig.of(
        layer, q.dtype, block_size=block_size, batch=batch, output_dtype=output_dtype, lse=lse is not None, rope=False
    )


def check(
    declared: Capabilities,
    support: Support,
    exclude: Callable[[AttentionConfig, str], str | None],
    config: AttentionConfig,
    *,
    more_rules: Collection[str] = (),
) -> None:
    """Check a layer, and each layer that differs from it in one rule, dtype or format.

    Args:
        exclude: as Support.exclude, of a config on an architecture.
        more_rules: rules beside those of `support`, which no case has.

    Raises:
        AssertionError: the backend declares that it serves a layer that it must refuse, or the other way round.
    """
    for other, architecture in itertools.product(_like(config, support), ARCHITECTURES):
        refusals = declared.refusals(other, architecture)
        beyond = _beyond(support, other, more_rules) or exclude(other, architecture)
        assert bool(refusals) == bool(beyond), f"{declared.backend} on {architecture}, {other}: got {refusals}, not {beyond}"


def _beyond(support: Support, config: AttentionConfig, more_rules: Collection[str]) -> str | None:
    """As Support.beyond, of a config."""
    if lacking := config.rules.keys() - {*support.rules, *more_rules}:
        return ", ".join(lacking)
    allowed = {
        "attn_type": support.attn_types,
        "kv_cache_dtype": [DTYPES[name] for name in support.cache_dtypes],
        "scales": support.scales,
        "output_dtype": [DTYPES[name] for name in support.output_dtypes],
    }
    wrong = [name for name, values in allowed.items() if getattr(config, name) not in (None, *values)]
    return wrong[0] if wrong else None


def _like(config: AttentionConfig, support: Support) -> Iterator[AttentionConfig]:
    """The config, and those that differ from it in one place. What contradicts itself is left out."""
    yield config
    for name, rule in RULES.items():
        for value in (False if rule.is_tensor else rule.off, *_NUMBERS.get(name, (True,))):
            with contextlib.suppress(ContractError):
                yield config.with_rules(**{name: value})
    formats = [{"dtype": DTYPES[name]} for name in support.dtypes]
    formats += [{"output_dtype": dtype} for dtype in (None, *(DTYPES[name] for name in EVERYTHING.output_dtypes))]
    if config.scales != "inline":
        scaled = itertools.product(EVERYTHING.cache_dtypes, EVERYTHING.scales)
        formats += [{"kv_cache_dtype": DTYPES[name], "scales": scales} for name, scales in scaled]
    for change in formats:
        with contextlib.suppress(ContractError):
            yield dataclasses.replace(config, **change)
