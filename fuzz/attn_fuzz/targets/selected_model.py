"""What the selector must say about a model: stated once more, by trying every way to serve its layers.

A model has the layer of a call, and may have a neighbour in the same allocation and a reader of the layer's cache.
"""

import dataclasses
import functools
import itertools
import random
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from attn_contract import AttentionConfig, AttentionType, KVCacheView, Layout, same_elements, same_footprint
from attn_fuzz.targets.selections import Asked, check_why
from attn_fuzz.targets.wrong_arguments import must_raise, must_refuse

MOST_SLOTS = 32
"""Slots of a block, so that the elements of a block are few."""


class Model(NamedTuple):
    """Arguments of select_model: see there."""

    layers: dict[str, AttentionConfig]
    allocations: list[list[str]]
    kv_sharing: dict[str, str]
    backends: dict[str, str]

    @property
    def groups(self) -> list[list[str]]:
        """The layers by the memory that they share."""
        groups = [list(allocation) for allocation in self.allocations]
        shared = {name for group in groups for name in group}
        groups += [[name] for name in self.layers if name not in shared and name not in self.kv_sharing]
        for reader, writer in self.kv_sharing.items():
            group = next(group for group in groups if writer in group)
            if reader not in group:
                group.append(reader)
        return groups


class Place(NamedTuple):
    """One way to serve a layer.

    Attributes:
        backend: its name.
        layout: as the layer is told.
        addressed_as: another layout where the cache is reinterpreted as planes of K and V.
        cost: backends passed over, whether the cache is reinterpreted, layouts passed over.
    """

    backend: str
    layout: Layout | None
    addressed_as: Layout | None
    cost: tuple[int, int, int]


def check(config: AttentionConfig, asked: Asked, choose: random.Random) -> None:
    """Select for a model with a layer, and for the same model with a mistake.

    Raises:
        AssertionError: a cheaper way to serve the layers fits, the chosen one does not fit or is not explained, a model that
            nothing serves is not refused, or a mistake is not.
    """
    from attn_optimized.selector import select_model

    model = _drawn(config, asked, choose)
    mistake, wrong = choose.choice(list(_mistakes(model)))
    must_raise(functools.partial(select_model, **{**model._asdict(), "backends": {}, **wrong}, **asked.options), mistake)
    select = functools.partial(select_model, **model._asdict(), **asked.options)
    places = {name: _places(layer, asked, model.backends.get(name)) for name, layer in model.layers.items()}
    cheapest = [_cheapest(group, model, places) for group in model.groups]
    if None in cheapest:
        told = must_refuse(select, f"{model}")
        assert any(name in told for name in model.layers), told
        return
    assigned = select()
    assert list(assigned) == list(model.layers)
    for group, cost in zip(model.groups, cheapest, strict=True):
        chosen = {name: _place_of(assigned[name], places[name]) for name in group}
        assert _fits(chosen, model), f"{assigned} share no allocation"
        assert _cost(chosen) == cost, f"got {assigned} at {_cost(chosen)}, expected a choice at {cost}"
        for name in group:
            _check_told(name, assigned, group, model, asked)


def _drawn(config: AttentionConfig, asked: Asked, choose: random.Random) -> Model:
    if not config.attn_type.reads_cache:
        return Model({"first": config}, [], {}, {})
    first = dataclasses.replace(config, block_size=min(config.block_size or MOST_SLOTS, MOST_SLOTS))
    rows = (None, first.layout) if first.scales == "inline" else (None, first.layout, Layout.BLOCKS_FIRST_NHD)
    first = dataclasses.replace(first, layout=choose.choice(rows))
    layers = {"first": first, "neighbour": choose.choice(list(_neighbours(first)))}
    kv_sharing = {}
    if choose.random() < 0.5:
        layout = choose.choice((None, None, first.layout, config.layout))
        layers["reader"] = dataclasses.replace(first, layout=layout).with_rules(
            kv_sharing=True, rope=False, sinks=choose.random() < 0.5
        )
        kv_sharing = {"reader": "first"}
    shared = ["first", "neighbour", *(["reader"] if kv_sharing and choose.random() < 0.5 else [])]
    allocations = choose.choice(([], [shared], [shared], [["neighbour"], ["first"]]))
    backends = {choose.choice(list(layers)): choose.choice(asked.order)} if choose.random() < 0.3 else {}
    names = list(layers)
    choose.shuffle(names)
    return Model({name: layers[name] for name in names}, allocations, kv_sharing, backends)


def _neighbours(first: AttentionConfig) -> Iterator[AttentionConfig]:
    """The same layer, with rules of its own, with another layout, with other elements, or with other sizes of a block."""
    yield first
    plain = dataclasses.replace(first, rules={}, layout=None)
    yield plain
    yield dataclasses.replace(plain, attn_type=AttentionType.ENCODER_DECODER)
    if first.scales != "inline":
        yield dataclasses.replace(plain, layout=Layout.BLOCKS_FIRST_NHD)
        yield dataclasses.replace(plain, layout=Layout.KV_FIRST_HND)
        yield dataclasses.replace(plain, attn_type=AttentionType.ENCODER_DECODER, layout=Layout.BLOCKS_FIRST_NHD)
        doubled = {"num_heads": 2 * first.num_heads, "num_kv_heads": 2 * first.num_kv_heads}
        yield dataclasses.replace(plain, **doubled)
        # as many elements of another size, and as many bytes where the sizes are 1 and 2
        if first.kv_cache_dtype is None:
            float8 = dataclasses.replace(plain, kv_cache_dtype=torch.float8_e4m3fn, scales="tensor")
            yield from (float8, dataclasses.replace(float8, **doubled))
        else:
            yield dataclasses.replace(plain, kv_cache_dtype=None, scales=None)
        if first.block_size and first.block_size % 2 == 0:
            yield dataclasses.replace(plain, block_size=first.block_size // 2, **doubled)


def _mistakes(model: Model) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is wrong, and the arguments that make it so."""
    layers = model.layers
    yield "an unknown layer in an allocation", {"allocations": [["nobody"]]}
    yield "a list in place of a layer's name", {"allocations": [[["first"]]]}
    yield "an allocation of nobody", {"allocations": [[]]}
    yield "a name for an allocation", {"allocations": ["first"]}
    yield "a number for an allocation", {"allocations": [5]}
    yield "no allocations", {"allocations": None}
    yield "a tensor without dimensions for allocations", {"allocations": torch.tensor(0.0)}
    yield "a number for a layer's name", {"layers": {**layers, 5: layers["first"]}}
    yield "no names of layers that share", {"kv_sharing": None}
    yield "a reader that is unknown", {"kv_sharing": {**model.kv_sharing, "nobody": "first"}}
    yield "a writer that is unknown", {"kv_sharing": {**model.kv_sharing, "first": "nobody"}}
    yield "a layer that reads its own cache", {"kv_sharing": {**model.kv_sharing, "first": "first"}}
    yield "an unknown backend", {"backends": {"first": "ATTENTION"}}
    yield "a backend that is no name", {"backends": {"first": []}}
    yield "a backend for an unknown layer", {"backends": {"nobody": "TRITON_ATTN"}}
    yield "a list of backends", {"backends": ["first"]}
    yield "a layer that is none", {"layers": {**layers, "first": None}}
    if not layers["first"].attn_type.reads_cache:
        yield "an allocation of a layer without a cache", {"allocations": [["first"]]}
        return
    yield "a layer that is twice in an allocation", {"allocations": [["first", "first"]]}
    yield "a layer in two allocations", {"allocations": [["first"], ["neighbour", "first"]]}
    yield "a layer with a cache of its own that reads another", {"kv_sharing": {**model.kv_sharing, "neighbour": "first"}}
    if model.kv_sharing:
        yield "a reader of nobody", {"kv_sharing": {}}
        yield "a reader of another allocation", {"allocations": [["first"], ["reader"]]}
        other = dataclasses.replace(
            layers["reader"], num_heads=2 * layers["reader"].num_heads, num_kv_heads=2 * layers["reader"].num_kv_heads
        )
        yield "a reader of other heads", {"layers": {**layers, "reader": other}}
        slots = 2 * (layers["reader"].block_size or 1)
        yield (
            "a reader of other blocks",
            {"layers": {**layers, "reader": dataclasses.replace(layers["reader"], block_size=slots)}},
        )


def _places(config: AttentionConfig, asked: Asked, wanted: str | None) -> list[Place]:
    found = []
    for passed_over, backend in enumerate((wanted,) if wanted else asked.order):
        layouts = asked.layouts(backend, config)
        found += [Place(backend, layout, layout, (passed_over, 0, order)) for order, layout in enumerate(layouts)]
        if Layout.BLOCKS_FIRST_NHD in layouts:
            found.append(Place(backend, Layout.BLOCKS_FIRST_NHD, Layout.KV_FIRST_NHD, (passed_over, 1, 0)))
    return found


def _cheapest(group: list[str], model: Model, places: Mapping[str, list[Place]]) -> tuple[int, ...] | None:
    """The cost of the cheapest places that fit; None if none fit."""
    choices = (dict(zip(group, chosen, strict=True)) for chosen in itertools.product(*(places[name] for name in group)))
    return min((_cost(chosen) for chosen in choices if _fits(chosen, model)), default=None)


def _cost(chosen: Mapping[str, Place]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*(place.cost for place in chosen.values()), strict=True)))


def _fits(chosen: Mapping[str, Place], model: Model) -> bool:
    """Whether layers that share memory agree about each block, and readers find each element where it was written."""
    if len(chosen) == 1:
        return True
    views = {name: _view(place.addressed_as, _sizes(model.layers[name])) for name, place in chosen.items()}
    first, *others = views.values()
    return all(_same_footprint(first, other) for other in others) and all(
        _same_elements(views[reader], views[writer]) for reader, writer in model.kv_sharing.items() if reader in views
    )


_same_footprint, _same_elements = functools.lru_cache(4096)(same_footprint), functools.lru_cache(4096)(same_elements)


def _sizes(config: AttentionConfig) -> tuple[int | None, ...]:
    return config.block_size, config.num_kv_heads, config.head_size, config.itemsize


@functools.lru_cache(4096)
def _view(layout: Layout, sizes: tuple[int, ...]) -> KVCacheView:
    names = ("block_size", "num_kv_heads", "head_size", "itemsize")
    return KVCacheView.dense(layout, num_blocks=3, **dict(zip(names, sizes, strict=True)))


def _place_of(assigned: Any, places: list[Place]) -> Place:
    key = assigned.backend, assigned.layout, assigned.allocation_layout is not None
    found = [place for place in places if (place.backend, place.layout, place.addressed_as is not place.layout) == key]
    assert found, f"got {assigned}, expected one of {places}"
    return found[0]


def _check_told(name: str, assigned: Mapping[str, Any], group: list[str], model: Model, asked: Asked) -> None:
    """Check the reasons of one layer's choice, and that it is told of the layout of the others."""
    one, config, partners = assigned[name], model.layers[name], [other for other in group if other != name]
    if name in model.backends:
        assert one.why.split(";")[0] == "asked for by name", one.why
    else:
        check_why(one, asked)
        assert tuple(skipped.backend for skipped in one.skipped) == asked.order[: asked.order.index(one.backend)], str(one)
    for skipped in one.skipped:
        told = str(skipped)
        assert skipped.refusals, f"{name}: {skipped.backend} is passed over without a reason"
        if asked.layouts(skipped.backend, config):
            assert all(partner in told for partner in partners), f"{told}: expected {partners}"
    more = "".join(one.why.split(";")[1:])
    preferred = asked.layouts(one.backend, config)[0]
    if one.allocation_layout is not None:
        planes = [other for other in partners if assigned[other].layout is one.allocation_layout]
        assert one.allocation_layout.dims[0] == "kv", f"got {one}, expected planes"
        assert any(other in more for other in planes), f"{one.why}: expected one of {planes}"
    elif partners and one.layout is not preferred:
        assert str(one.layout) in more, one.why
        assert all(part in more for part in (str(preferred), *partners)), f"{one.why}: expected {preferred} and {partners}"
    else:
        assert not more, one.why
