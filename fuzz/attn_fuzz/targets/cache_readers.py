"""Which layers may read another layer's cache: stated once more, for models in which any layer reads any layer's.

A model is wrong if a layer reads its own cache, that of a layer which reads another one, that of a layer without one, or one of
other sizes; if a layer reads a cache and writes one of its own; or if nobody says whose cache a layer reads.
"""

import dataclasses
import random
from typing import Any, NamedTuple

from attn_contract import AttentionConfig, AttentionType, UnsupportedError
from attn_fuzz.targets.selections import Asked
from attn_fuzz.targets.wrong_arguments import must_raise

NAMES = "abcde"


class Kind(NamedTuple):
    """A layer of a model.

    Attributes:
        config: what the layer asks for.
        holds: names what its cache holds, or would hold; None: it has none.
        reads: whether it reads the cache of another layer.
    """

    config: AttentionConfig
    holds: str | None
    reads: bool


def check(config: AttentionConfig, asked: Asked, choose: random.Random) -> None:
    """Check that a model is refused if and only if its layers read what they cannot read.

    Args:
        config: of a layer like which the model's layers are.

    Raises:
        AssertionError: a wrong model is not refused with a ContractError.
        ContractError: a right model is refused.
    """
    from attn_optimized.selector import select_model

    if not config.attn_type.reads_cache:
        return
    model, kv_sharing = _drawn(config, choose)
    layers = {name: kind.config for name, kind in model.items()}

    def select() -> Any:
        return select_model(layers, kv_sharing=kv_sharing, **asked.options)

    if is_right(model, kv_sharing):
        try:
            assert list(select()) == list(layers)
        except UnsupportedError:  # no backend has a layout for all who share a cache
            return
    else:
        must_raise(select, f"{kv_sharing} where {[name for name in model if model[name].reads]} read")


def is_right(model: dict[str, Kind], kv_sharing: dict[str, str]) -> bool:
    """Whether each layer that reads a cache is told whose, nobody else is, and all of them read what is written for them."""
    written = {name: kind.holds for name, kind in model.items() if kind.holds and not kind.reads}
    told = {name: written.get(kv_sharing.get(name, "")) for name, kind in model.items() if kind.reads}
    return kv_sharing.keys() == told.keys() and all(model[name].holds == holds for name, holds in told.items())


def _drawn(config: AttentionConfig, choose: random.Random) -> tuple[dict[str, Kind], dict[str, str]]:
    kinds = _kinds(config)
    model = {name: choose.choice(kinds) for name in NAMES[: choose.randint(2, len(NAMES))]}
    kv_sharing = {}
    for name, kind in model.items():
        if choose.random() < (0.95 if kind.reads else 0.05):
            fitting = [other for other, one in model.items() if one.holds == kind.holds and not one.reads]
            kv_sharing[name] = choose.choice(fitting if fitting and choose.random() < 0.7 else list(model))
    return model, kv_sharing


def _kinds(config: AttentionConfig) -> list[Kind]:
    plain = dataclasses.replace(config, rules={}, layout=None)
    wide = dataclasses.replace(plain, num_heads=2 * plain.num_heads, num_kv_heads=2 * plain.num_kv_heads)
    kinds = [
        Kind(one.with_rules(kv_sharing=True) if reads else one, holds, reads)
        for one, holds in ((plain, "heads"), (plain, "heads"), (wide, "more heads"))
        for reads in (False, True)
    ]
    uncached = {"attn_type": AttentionType.ENCODER_ONLY, "block_size": None, "kv_cache_dtype": None, "scales": None}
    return [*kinds, Kind(dataclasses.replace(plain, **uncached), None, False)]
