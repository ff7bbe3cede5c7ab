"""What a backend declares, held to what its target states, for layers like the drawn one.

A backend that refuses a drawn layer is found by the draw alone. Two faults are not: a backend that declares a layer that its
target excludes passes if it computes the layer rightly, and a layer that is hardly ever drawn is hardly ever refused.
"""

import contextlib
import dataclasses
import itertools
import random
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from attn_contract import RULES, AttentionConfig, Batch, Capabilities, ContractError, KVCacheView, Layer
from attn_contract.attention_config import Scales
from attn_fuzz.cases.case import Case
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
_FEW = 4
"""Changes of a layer that are chosen, where not all are made."""


def config_of(case: Case) -> AttentionConfig:
    """The AttentionConfig of a case: what the case asks of its layer and of a step."""
    return AttentionConfig(
        num_heads=case.num_heads,
        num_kv_heads=case.num_kv_heads,
        head_size=case.head_size,
        dtype=DTYPES[case.dtype],
        attn_type=case.attn_type,
        block_size=case.cache.block_size if case.cache else None,
        layout=case.cache.layout if case.cache else None,
        kv_cache_dtype=DTYPES[case.cache.dtype] if case.cache and case.cache.dtype else None,
        scales=_scales_of(case),
        output_dtype=DTYPES[case.output_dtype] if case.output_dtype else None,
        rules={name: value if isinstance(value, int | float | tuple) else True for name, value in case.rules.items()},
    )


def _scales_of(case: Case) -> Scales | None:
    if case.cache is None or case.cache.dtype is None:
        return None
    if case.cache.layout.has_inline_scales:
        return "inline"
    # with a single KV head, a scale per head is a scale for all heads
    return "tensor" if case.cache.scales == "head" and case.num_kv_heads == 1 else case.cache.scales


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
    choose: random.Random | None = None,
) -> None:
    """Check a layer, and each layer that differs from it in one rule, dtype or format.

    Args:
        exclude: as Support.exclude, of a config on an architecture.
        more_rules: rules beside those of `support`, which no case has.
        choose: of the layers that differ, choose a few; None: check all of them.

    Raises:
        AssertionError: the backend declares that it serves a layer that it must refuse, or the other way round.
    """
    changes = _changes(config, support)
    if choose is not None:
        changes = choose.sample(changes, _FEW)
    for other, architecture in itertools.product(_like(config, changes), ARCHITECTURES):
        refusals = declared.refusals(other, architecture)
        beyond = _beyond(support, other, more_rules) or exclude(other, architecture)
        assert bool(refusals) == bool(beyond), f"{declared.backend} on {architecture}, {other}: got {refusals}, not {beyond}"


def _beyond(support: Support, config: AttentionConfig, more_rules: Collection[str]) -> str | None:
    """As Support.beyond, of a config."""
    if lacking := config.rules.keys() - {*support.rules, *more_rules}:
        return ", ".join(lacking)
    if needed := [name for name in support.required_rules if not config.asks(name)]:
        return f"no {needed[0]}"
    allowed = {
        "attn_type": support.attn_types,
        "kv_cache_dtype": [DTYPES[name] for name in support.cache_dtypes],
        "scales": (*support.scales, *(("inline",) if any(layout.has_inline_scales for layout in support.layouts) else ())),
        "output_dtype": [DTYPES[name] for name in support.output_dtypes],
    }
    wrong = [name for name, values in allowed.items() if getattr(config, name) not in (None, *values)]
    return wrong[0] if wrong else None


def _changes(config: AttentionConfig, support: Support) -> list[dict[str, Any]]:
    """Changes of a config in one place, as fields of AttentionConfig. Some contradict the config."""
    changes: list[dict[str, Any]] = []
    for name, rule in RULES.items():
        for value in (False if rule.is_tensor else rule.off, *_NUMBERS.get(name, (True,))):
            changes.append({"rules": {**config.rules, name: value}})
    changes += [{"dtype": DTYPES[name]} for name in support.dtypes]
    changes += [{"output_dtype": dtype} for dtype in (None, *(DTYPES[name] for name in EVERYTHING.output_dtypes))]
    if config.scales != "inline":
        scaled = itertools.product(EVERYTHING.cache_dtypes, EVERYTHING.scales)
        changes += [{"kv_cache_dtype": DTYPES[name], "scales": scales} for name, scales in scaled]
    return changes


def _like(config: AttentionConfig, changes: list[dict[str, Any]]) -> Iterator[AttentionConfig]:
    """The config, and those that differ from it by one change. What contradicts itself, or its layout, is left out."""
    yield config
    for change in changes:
        with contextlib.suppress(ContractError):
            other = dataclasses.replace(config, **change)
            if other.layout is not None and other.block_size is not None:
                other.layout.check_sizes(other.head_size, other.block_size, other.itemsize)
            yield other
