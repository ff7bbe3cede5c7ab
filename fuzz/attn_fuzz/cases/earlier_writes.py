"""Earlier writes: what a process has written to a cache before a write of a case's own.

Launches and checks are cached for writes that look alike, as for attention: see `attn_fuzz.cases.earlier`. So in a case
with earlier calls each write comes after the same write with one change. The case's seed chooses the changes.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import msgspec
import torch
from attn_contract import ContractError
from attn_fuzz.cases.case import Case, Values
from attn_fuzz.cases.earlier import OF_CACHE, OTHER_DTYPE, converted_cache, realigned, restored, restrided
from attn_fuzz.cases.tensors import Rotation, Step, Write

_Changed = tuple[Write, Step]


def chosen(case: Case, number: int) -> tuple[str, ...]:
    """The changes of the writes before a write of a case: names of CHANGES, as many as the case has earlier calls.

    Args:
        number: the number of the write.
    """
    names = tuple(CHANGES)
    return tuple(names[(case.values.seed + number + i) % len(names)] for i in range(len(case.earlier)))


def choosing_alike(values: Values, other: Values) -> Values:
    """Values with a seed near their own that chooses the same changes as the seed of other values."""
    count, seed = len(CHANGES), other.seed % len(CHANGES)
    return msgspec.structs.replace(values, seed=max(seed, values.seed - (values.seed - seed) % count))


@contextlib.contextmanager
def changed(write: Write, step: Step, name: str) -> Iterator[_Changed | str | None]:
    """A write with a change, and the step that has its memory; None if the change changes nothing, or the reason why the
    contract has no such write.

    At the end of the block every tensor holds what it held before.
    """
    try:
        other = CHANGES[name](write, step)
    except ContractError as error:  # another layout has no pages of this block size
        other = str(error)
    if other is None or isinstance(other, str):
        yield other
        return
    with restored([*step.memory.values(), step.q]):
        yield other


def _same(write: Write, step: Step) -> _Changed:
    return write, step


def _fewer_slots(write: Write, step: Step) -> _Changed | None:
    slots = write.slot_mapping[:-1]
    return (dataclasses.replace(write, slot_mapping=slots), step) if len(slots) else None


def _of_rows(name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[[Write, Step], _Changed | None]:
    def changed(write: Write, step: Step) -> _Changed | None:
        tensor = change(getattr(write, name))
        return None if tensor is None else (dataclasses.replace(write, **{name: tensor}), step)

    return changed


def _of_cache(name: str) -> Callable[[Write, Step], _Changed | None]:
    """The change of this name that `earlier` makes of a step."""

    def changed(write: Write, step: Step) -> _Changed | None:
        other = OF_CACHE[name](dataclasses.replace(step, layer=write.layer, view=write.view))
        if other is None or other.view is None:
            return None
        return dataclasses.replace(write, layer=other.layer, view=other.view), dataclasses.replace(step, raw=other.raw)

    return changed


def _query_strides(write: Write, step: Step) -> _Changed | None:
    return None if write.rotation is None else (write, dataclasses.replace(step, q=restrided(step.q)))


def _angle_strides(write: Write, step: Step) -> _Changed | None:
    if write.rotation is None:
        return None
    angles = restrided(write.rotation.cos_sin_cache)
    return dataclasses.replace(write, rotation=dataclasses.replace(write.rotation, cos_sin_cache=angles)), step


def _dtype(write: Write, step: Step) -> _Changed | None:
    """Rows in another dtype, and an unquantized cache."""
    raw = step.raw
    assert raw is not None
    dtype = OTHER_DTYPE[write.k.dtype]
    write = dataclasses.replace(write, k=write.k.to(dtype), v=write.v.to(dtype))
    rotation = write.rotation
    if rotation is not None:
        step = dataclasses.replace(step, q=step.q.to(dtype))
        angles = rotation.cos_sin_cache
        rotation = dataclasses.replace(rotation, cos_sin_cache=angles if angles.dtype == torch.float32 else angles.to(dtype))
        write = dataclasses.replace(write, rotation=rotation)
    if write.layer.kv_cache_dtype is not None:
        return write, step
    converted = converted_cache(write.view, raw, dtype)
    if converted is None:
        return None
    view, raw = converted
    return dataclasses.replace(write, view=view), dataclasses.replace(step, raw=raw)


def _rotation(write: Write, step: Step) -> _Changed | None:
    """A rotation of other pairs. A write without a rotation gets one by no angle and of no query."""
    if write.layer.layout is not None and write.layer.layout.has_latent_value:
        return None
    if write.rotation is not None:
        return dataclasses.replace(
            write, rotation=dataclasses.replace(write.rotation, is_neox=not write.rotation.is_neox)
        ), step
    rotary_dim = write.layer.head_size // 2 * 2
    if not rotary_dim or len(step.q) < len(write.slot_mapping):
        return None
    positions = torch.zeros_like(write.slot_mapping)
    cos_sin_cache = torch.zeros(1, rotary_dim, device=write.k.device)
    cos_sin_cache[:, : rotary_dim // 2] = 1
    return dataclasses.replace(write, rotation=Rotation(positions, cos_sin_cache, is_neox=True)), step


def _no_rotation(write: Write, step: Step) -> _Changed | None:
    return None if write.rotation is None else (dataclasses.replace(write, rotation=None), step)


CHANGES: dict[str, Callable[[Write, Step], _Changed | None]] = {
    "same": _same,
    "slots": _fewer_slots,
    "k strides": _of_rows("k", restrided),
    "v strides": _of_rows("v", restrided),
    "cache strides": _of_cache("cache strides"),
    "k alignment": _of_rows("k", realigned),
    "v alignment": _of_rows("v", realigned),
    "cache alignment": _of_cache("cache alignment"),
    "q strides": _query_strides,
    "angle strides": _angle_strides,
    "dtype": _dtype,
    "cache dtype": _of_cache("cache dtype"),
    "scales": _of_cache("scales"),
    "layout": _of_cache("layout"),
    "rotation": _rotation,
    "no rotation": _no_rotation,
}
