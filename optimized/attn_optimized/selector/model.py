"""Selects backends for the layers of a model, so that layers which share memory agree about it."""

import functools
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from attn_contract import AttentionConfig, ContractError, KVCacheView, Layout, Refusal, UnsupportedError, same_elements
from attn_contract.arguments import check_names, check_type, elements_of, named, shown

from attn_optimized.aiter_adapter import Aiter
from attn_optimized.selector.layer import (
    BackendAnswer,
    BackendSelection,
    Skipped,
    aiter_or_installed,
    answers_of,
    as_lines,
    listed,
    log_skipped,
    skipped_before,
    wanted_of,
    why_selected,
)
from attn_optimized.selector.priorities import parse_architecture


@dataclass(frozen=True, kw_only=True)
class Assignment(BackendSelection):
    """The backend and the layout of a layer of a model.

    Attributes:
        allocation_layout: the layout of the layers that it shares an allocation with, if its own cache must be reinterpreted as
            planes of K and V to have their footprint: an argument of `AttentionImpl` (vLLM #43945). None if it need not be.
    """

    allocation_layout: Layout | None = None


def select_model(
    layers: Mapping[str, AttentionConfig],
    *,
    allocations: Iterable[Collection[str]] = (),
    kv_sharing: Mapping[str, str] = MappingProxyType({}),
    architecture: str,
    aiter: Aiter | None = None,
    backends: Mapping[str, str] | None = None,
) -> dict[str, Assignment]:
    """The backend of each layer of a model, so that layers that share memory agree about it.

    Where the first choices of layers that share an allocation have not one footprint, this changes, in this order and as little
    as possible: the layout, to another one that the backend offers; the view, by reinterpreting K and V of a block as planes;
    the backend, to the next that serves the layer.

    Args:
        layers: the requirements of each layer, by its name.
        allocations: the names of layers that share one raw allocation, for each that is shared. All have one number of blocks.
        kv_sharing: by the name of a layer that writes nothing, the one whose cache it reads.
        architecture, aiter: as for `select`.
        backends: by a layer's name, the only backend that is wanted for it.

    Returns:
        by a layer's name, in the order of `layers`.

    Raises:
        UnsupportedError: no backend serves a layer, or none do whose layouts share an allocation; it names the layers.
        ContractError: an unknown architecture, backend or layer; a layer without a cache, or in two allocations; a `kv_sharing`
            that contradicts the layers.
    """
    check_type("layers", layers, Mapping, "configs by the layer's name")
    check_type("kv_sharing", kv_sharing, Mapping, "names of layers by the reader's name")
    check_type("backends", backends, Mapping | None, "None, or names of backends by the layer's name")
    check_names("layers", layers)
    for name, config in layers.items():
        check_type(f"layers[{shown(name)}]", config, AttentionConfig, "an AttentionConfig")
    architecture = parse_architecture(architecture)
    aiter = aiter_or_installed(aiter)
    backends = {} if backends is None else backends
    _check_known("backends", backends, layers)
    _check_kv_sharing(layers, kv_sharing)

    answers = {}
    for name, config in layers.items():
        key = config, str(backends.get(name))
        if key not in answers:
            answers[key] = answers_of(config, architecture, aiter, backends.get(name))
    wanted = {}
    for name, config in layers.items():
        backend = backends.get(name)
        try:
            wanted[name] = wanted_of(answers[config, str(backend)], config, architecture, backend)
        except UnsupportedError as error:
            raise UnsupportedError(f"{name}: {error.implementation}", *error.args[1:]) from None
    places = {name: list(_places(wanted[name], config)) for name, config in layers.items()}

    assignments = {}
    for group in _groups(layers, allocations, kv_sharing):
        chosen = _share(group, layers, places, kv_sharing)
        for name in group:
            assignments[name] = _assignment(name, chosen, wanted[name], architecture, backends.get(name))
    for name, config in layers.items():
        log_skipped(config, architecture, assignments[name])
    return {name: assignments[name] for name in layers}


@dataclass(frozen=True)
class _Place:
    """One way to serve a layer. `cost` is 0 for the way of the layer without others, and compares as a tuple does."""

    backend: str
    layout: Layout | None
    addressed_as: Layout | None
    """by its kernels: another one where the cache is reinterpreted"""
    footprint: tuple[bool, int] | None
    """whether K and V are planes, and bytes from block to block: dense caches with the same cover the same in every block"""
    cost: tuple[int, int, int]
    """backends passed over, whether the cache is reinterpreted, layouts passed over"""

    @property
    def is_reinterpreted(self) -> bool:
        return self.addressed_as is not self.layout


def _places(answers: list[BackendAnswer], config: AttentionConfig) -> Iterator[_Place]:
    """All ways to serve a layer, the cheapest first."""
    for passed_over, answer in enumerate(answers):
        if answer.refusals:
            continue
        for order, layout in enumerate(answer.layouts):
            yield _Place(answer.backend, layout, layout, _footprint(layout, config), (passed_over, 0, order))
        if Layout.BLOCKS_FIRST_NHD in answer.layouts:
            planes = Layout.KV_FIRST_NHD
            yield _Place(answer.backend, Layout.BLOCKS_FIRST_NHD, planes, _footprint(planes, config), (passed_over, 1, 0))


def _footprint(layout: Layout | None, config: AttentionConfig) -> tuple[bool, int] | None:
    if layout is None or config.block_size is None:
        return None
    view = _view(layout, config, config.block_size, config.num_kv_heads, config.head_size, config.value_of("head_size_v"))
    return layout.dims[0] == "kv", view.block_stride * view.itemsize


def _view(
    layout: Layout, config: AttentionConfig, block_size: int, num_kv_heads: int, head_size: int, head_size_v: int | None
) -> KVCacheView:
    # two blocks distinguish K and V of a block from planes; all views of an allocation have the same number
    return KVCacheView.dense(
        layout,
        num_blocks=2,
        block_size=block_size,
        num_kv_heads=num_kv_heads,
        head_size=head_size,
        head_size_v=head_size_v,
        itemsize=config.itemsize,
    )


# layers of a model ask the same few questions
@functools.lru_cache(maxsize=4096)
def _same_elements(a: Layout | None, b: Layout | None, config: AttentionConfig) -> bool:
    """True if two layouts put the elements of a dense cache in the same places.

    Compares caches of small sizes, because `same_elements` lists all elements of a block. Layouts that differ do so in a cache
    of two units of x elements, two heads and two slots, too.
    """
    if a is None or b is None or config.block_size is None:
        return a is b
    few = 2 * 16 // config.itemsize
    v_head_size = config.value_of("head_size_v")
    widths = min(config.head_size, few), None if v_head_size is None else min(v_head_size, few)
    sizes = min(config.block_size, few), min(config.num_kv_heads, 2), *widths
    return same_elements(_view(a, config, *sizes), _view(b, config, *sizes))


def _share(
    group: list[str], layers: Mapping[str, AttentionConfig], places: Mapping[str, list[_Place]], kv_sharing: Mapping[str, str]
) -> dict[str, _Place]:
    """The cheapest places with one footprint, where readers find every element as it was written; the first of several."""
    readers: dict[str, list[str]] = {name: [] for name in group if name not in kv_sharing}
    for name in group:
        if name in kv_sharing:
            readers[kv_sharing[name]].append(name)
    best: dict[str, _Place] = {}
    for footprint in dict.fromkeys(place.footprint for place in places[group[0]]):
        found: dict[str, _Place] = {}
        for writer, its_readers in readers.items():
            found |= _of_one_cache(writer, its_readers, footprint, layers[writer], places)
        if len(found) == len(group) and (not best or _cost(found) < _cost(best)):
            best = {name: found[name] for name in group}
    if not best:
        offers = as_lines(f"{name}: {_offered(places[name])}" for name in group)
        elements = ", with every element where its writer puts it" if any(readers.values()) else ""
        raise UnsupportedError(
            "attn_optimized.selector",
            f"one allocation for {listed(group)}",
            f"{offers}\nIn no choice of these does a block id cover the same bytes for all of them{elements}",
            "an allocation for each, or block sizes whose blocks have as many bytes",
        )
    return best


def _of_one_cache(
    writer: str,
    readers: list[str],
    footprint: tuple[bool, int] | None,
    config: AttentionConfig,
    places: Mapping[str, list[_Place]],
) -> dict[str, _Place]:
    """The cheapest places with a footprint, for a layer and those that read its cache; empty if there are none."""
    best: dict[str, _Place] = {}
    for written in places[writer]:
        if written.footprint != footprint:
            continue
        found = {writer: written}
        for reader in readers:
            alike = (place for place in places[reader] if _same_elements(place.addressed_as, written.addressed_as, config))
            if place := next(alike, None):
                found[reader] = place
        if len(found) == 1 + len(readers) and (not best or _cost(found) < _cost(best)):
            best = found
    return best


def _cost(places: Mapping[str, _Place]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*(place.cost for place in places.values()), strict=True)))


def _offered(places: list[_Place]) -> str:
    by_backend = {place.backend: [] for place in places}
    for place in places:
        if not place.is_reinterpreted:
            by_backend[place.backend].append(str(place.layout))
    return " or ".join(f"{backend} with {', '.join(layouts)}" for backend, layouts in by_backend.items())


def _assignment(
    name: str, chosen: Mapping[str, _Place], wanted: list[BackendAnswer], architecture: str, backend: str | None
) -> Assignment:
    """One layer of a group, and what the others changed about it."""
    place, partners = chosen[name], [other for other in chosen if other != name]
    answer = next(answer for answer in wanted if answer.backend == place.backend)
    unshared = (
        Refusal(f"one allocation with {listed(partners)}", "none of its layouts agrees with theirs") if partners else None
    )
    skipped = tuple(
        one if one.refusals or unshared is None else Skipped(one.backend, (unshared,)) for one in skipped_before(wanted, answer)
    )
    why = why_selected(architecture, backend, skipped)
    allocation_layout = None
    if place.is_reinterpreted:
        # some layer has planes: if none needed them, all would be cheaper without
        neighbour = next(other for other in partners if not chosen[other].is_reinterpreted)
        allocation_layout = chosen[neighbour].layout
        why += f"; its cache is reinterpreted as planes of K and V, which {neighbour} has in the same allocation"
    elif partners and place.layout is not answer.layouts[0]:
        why += f"; {place.layout} instead of {answer.layouts[0]}, for the footprint of {listed(partners)}"
    return Assignment(backend=place.backend, layout=place.layout, why=why, skipped=skipped, allocation_layout=allocation_layout)


def _groups(
    layers: Mapping[str, AttentionConfig], allocations: Iterable[Collection[str]], kv_sharing: Mapping[str, str]
) -> list[list[str]]:
    """The layers by the memory that they share. A layer that reads another's cache comes after it, which decides its layout.

    Raises:
        ContractError: allocations that are no collections of names, an unknown layer, one without a cache, or one in two.
    """
    groups: list[list[str]] = []
    allocation_of: dict[str, list[str]] = {}
    for allocation in elements_of("allocations", allocations, "the names of layers that share one, for each"):
        names = _names_in(allocation)
        _check_known("allocations", names, layers)
        groups.append([])
        for name in names:
            if not layers[name].attn_type.reads_cache:
                raise ContractError("allocations", f"layer {name}", f"one with a cache: {layers[name].attn_type} has none")
            if name in allocation_of:
                raise ContractError("allocations", f"layer {name} twice", "one allocation for each layer")
            allocation_of[name] = groups[-1]
            groups[-1].append(name)
    for name in layers:
        if name not in allocation_of and name not in kv_sharing:
            groups.append([name])
            allocation_of[name] = groups[-1]
    for reader, target in kv_sharing.items():
        group = allocation_of[target]
        if reader in group:
            group.remove(reader)
        elif reader in allocation_of:
            raise ContractError("allocations", f"layer {reader}", f"the allocation of {target}, whose cache it reads")
        group.append(reader)
    return groups


def _names_in(allocation: object) -> list[str]:
    """The names of layers in one of the allocations."""
    expected = "a collection of names of layers for each"
    if not isinstance(allocation, Collection) or isinstance(allocation, str):
        raise ContractError("allocations", shown(allocation), expected)
    names = elements_of("allocations", allocation, expected)
    if not names:
        raise ContractError("allocations", "one without a layer", "names of layers in each")
    return names


def _check_kv_sharing(layers: Mapping[str, AttentionConfig], kv_sharing: Mapping[str, str]) -> None:
    _check_known("kv_sharing", [*kv_sharing, *kv_sharing.values()], layers)
    for name, config in layers.items():
        if config.asks("kv_sharing") != (name in kv_sharing):
            expected = "whose cache it reads" if config.asks("kv_sharing") else "nothing: it has a cache of its own"
            raise ContractError("kv_sharing", f"{kv_sharing.get(name)} for layer {name}", expected)
    for reader, target in kv_sharing.items():
        if target in kv_sharing or not layers[target].attn_type.reads_cache:
            raise ContractError("kv_sharing", f"{target} for layer {reader}", "a layer that writes a cache")
        for field, here in _contents(layers[reader]).items():
            if (there := _contents(layers[target])[field]) != here:
                expected = f"{named(there)}, that of {target}, whose cache it reads"
                raise ContractError("kv_sharing", f"layer {reader} with {field} {named(here)}", expected)


def _contents(config: AttentionConfig) -> dict[str, object]:
    """The fields that two layers must have in common to read one cache: the layout is chosen."""
    return {
        "attn_type": config.attn_type,
        "num_kv_heads": config.num_kv_heads,
        "head_size": config.head_size,
        "head_size_v": config.value_of("head_size_v"),
        "block_size": config.block_size,
        "kv_cache_dtype": config.kv_cache_dtype or config.dtype,
        "scales": config.scales,
    }


def _check_known(argument: str, names: Iterable[str], layers: Mapping[str, AttentionConfig]) -> None:
    for name in names:
        if not isinstance(name, str) or name not in layers:
            raise ContractError(argument, shown(name), f"one of the layers: {', '.join(layers)}")
