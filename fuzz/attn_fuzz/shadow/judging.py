"""Finds the faults in the keys that attention gets, by the tables of a shadow."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from attn_fuzz.shadow.altered import change_of
from attn_fuzz.shadow.contents import REAL, ZEROS, Contents
from attn_fuzz.shadow.faults import CacheFault, FaultKind
from attn_fuzz.shadow.state import ShadowState
from attn_fuzz.shadow.tables import NO_SLOT, Track

_ALL: Final = np.uint64(0xFFFFFFFFFFFFFFFF)


@dataclass(frozen=True, eq=False)
class Read:
    """The keys that attention gets for a request in a layer: see `Shadow.read`."""

    layer: Hashable
    request: Hashable
    positions: np.ndarray
    slots: np.ndarray | None
    handed: Contents | None
    masked: int | None
    close: float

    def slot(self, at: int) -> int | None:
        return None if self.slots is None else int(self.slots[at])


def faults(state: ShadowState, read: Read, *, whole: bool) -> list[CacheFault]:
    """The faults of a read: one about the number of keys, and one about the first wrong key."""
    track = state.tracks.get(read.layer, {}).get(state.numbers.get(read.request, -1))
    if track is None:
        return [_unknown(state, read)] if len(read.positions) else []
    found = (_wrong_length(state, read, track) if whole else None, _wrong_key(state, read, track))
    return [fault for fault in found if fault is not None]


def _unknown(state: ShadowState, read: Read) -> CacheFault:
    writer = None if read.slots is None else state.writer(state.slots(read.layer).get(read.slots[:1])[0])
    detail = "the request has written nothing here, or was freed"
    return _fault(state, read, FaultKind.LOST_KEY, int(read.positions[0]), slot=read.slot(0), writer=writer, detail=detail)


def _wrong_length(state: ShadowState, read: Read, track: Track) -> CacheFault | None:
    """The fault of a read without some positions that the queries of this step see, or with positions beyond them."""
    is_of_step = track.step == state.step
    end = track.last + 1 if is_of_step else track.end
    last = int(read.positions.max()) if len(read.positions) else -1
    if read.masked not in (None, len(read.positions)):
        at, detail = min(last + 1, end), f"{len(read.positions)} keys, and a mask for {read.masked}"
        return _fault(state, read, FaultKind.WRONG_LENGTH, at, detail=detail)
    if last + 1 != end:
        return _fault(state, read, FaultKind.WRONG_LENGTH, min(last + 1, end), detail=f"{last + 1} keys in place of {end}")
    begin = state.first_seen(read.layer, track.first if is_of_step else max(0, end - 1))
    missing = np.setdiff1d(np.arange(begin, end), read.positions)
    if not len(missing):
        return None
    return _fault(state, read, FaultKind.LOST_KEY, int(missing[0]), count=len(missing), detail="it is not handed")


def _wrong_key(state: ShadowState, read: Read, track: Track) -> CacheFault | None:
    expected = track.get(read.positions)
    stored = None if read.slots is None else state.slots(read.layer).get(read.slots)
    marks = expected["mark"]
    got, mask = marks if stored is None else stored["mark"], np.full(len(marks), _ALL)
    if read.handed is not None:
        is_known = (marks & REAL) != 0
        got, mask = np.where(is_known, read.handed.marks, got), np.where(is_known, read.handed.mask, mask)
    query = track.first if track.step == state.step else track.end - 1
    is_seen = (read.positions >= max(track.begin, state.first_seen(read.layer, query))) & (read.positions < track.end)
    wrong = (((marks ^ got) & mask != 0) | (marks == 0)) & is_seen
    if read.close and read.handed is not None:
        for at in np.flatnonzero(wrong & (marks != 0)):
            wrong[at] = not _is_close(state, int(marks[at]), read.handed[at : at + 1], read.close)
    if not wrong.any():
        return None
    at = int(wrong.argmax())
    stored_at = None if stored is None else stored[at]
    return _fault_of_key(state, read, at, expected[at], stored_at, got[at], mask[at], int(wrong.sum()))


def _fault_of_key(
    state: ShadowState, read: Read, at: int, expected: Any, stored: Any, got: np.uint64, mask: np.uint64, count: int
) -> CacheFault:
    """The fault of key number `at` of a read.

    Args:
        expected: the record of its position.
        stored: the record of its slot; None in a cache without slots.
        got: the mark of the key.
        mask: the bits of the mark that are known.
        count: the number of wrong keys.
    """
    position, place, slot = int(read.positions[at]), int(expected["slot"]), read.slot(at)
    handed = None if read.handed is None else read.handed[at : at + 1]
    source = stored if stored is not None and (stored["mark"] ^ got) & mask == 0 else None
    if source is None:
        source = _source(state, read, position, got, mask, handed)
    writer = source if stored is None else stored
    kind, detail = FaultKind.LOST_KEY, ""
    if expected["mark"] and source is not None and source["mark"]:
        kind = _kind_of_source(state, read, position, source)
        detail = "" if writer is source else f"it is that of {state.writer(source)}"
    elif expected["mark"] and got in (0, ZEROS):
        kind = FaultKind.LOST_KEY if slot in (None, place) else FaultKind.WRONG_SLOT
        detail = "zeros are there" if got else "nobody wrote this slot"
    elif expected["mark"]:
        kind, detail = _change(state, int(expected["mark"]), position, handed, read.close)
    expected_slot = None if place == NO_SLOT else place
    more = {"slot": slot, "expected_slot": expected_slot, "writer": state.writer(writer), "count": count, "detail": detail}
    return _fault(state, read, kind, position, **more)


def _source(
    state: ShadowState, read: Read, position: int, got: np.uint64, mask: np.uint64, handed: Contents | None
) -> np.void | None:
    """The write of a key that attention got, as a record of a slot; None if the key was never written."""
    number = state.numbers[read.request]
    if (source := state.source(read.layer, number, got, mask)) is not None or not read.close or handed is None:
        return source
    for mark in state.marks(read.layer, position):
        if _is_close(state, mark, handed, read.close):
            return state.source(read.layer, number, np.uint64(mark), _ALL)
    return None


def _kind_of_source(state: ShadowState, read: Read, position: int, source: Any) -> FaultKind:
    """The kind of the fault, if the wrong key is one of some request.

    Args:
        source: the write of the key that attention got, as a record of a slot.
    """
    owner, where, number = int(source["request"]), int(source["position"]), state.numbers[read.request]
    track = state.tracks.get(read.layer, {}).get(owner)
    is_live = track is not None and track.get(np.array([where]))["mark"][0] == source["mark"]
    if not is_live or (owner == number and where == position):
        return FaultKind.STALE_BLOCK
    if owner != number:
        return FaultKind.OTHER_REQUEST
    return FaultKind.WRONG_SLOT if state.narrow.get(read.layer, (None,))[0] is None else FaultKind.WRONG_RING


def _is_close(state: ShadowState, mark: int, handed: Contents, close: float) -> bool:
    """True if a key is close to the one with this mark, or if the latter is not kept."""
    kept = state.kept(mark)
    return kept is None or all(_are_close(old, new, close) for _, old, new in _pairs(kept, handed))


def _pairs(kept: Contents, handed: Contents) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """The kept key and value beside those that attention got, as far as both are known."""
    pairs = (("key", kept.keys, handed.keys), ("value", kept.values, handed.values))
    return [
        (name, old[0].double().cpu(), new[0].double().cpu()) for name, old, new in pairs if old is not None and new is not None
    ]


def _are_close(old: torch.Tensor, new: torch.Tensor, close: float) -> bool:
    return bool(((new - old).abs() <= close * old.abs().max()).all())


def _change(state: ShadowState, mark: int, position: int, handed: Contents | None, close: float) -> tuple[FaultKind, str]:
    """The difference between a key that was never written and the one with this mark."""
    kept = state.kept(mark)
    if kept is None or handed is None:
        return FaultKind.ALTERED, "its bytes are no longer kept" if kept is None and state.value_bytes else ""
    for name, old, new in _pairs(kept, handed):
        if not _are_close(old, new, close):
            kind, detail = change_of(old, new, position)
            return kind, f"the {name}: {detail}" if detail else ""
    return FaultKind.ALTERED, ""


def not_shared(state: ShadowState, number: int, position: int, record: np.void) -> FaultKind | None:
    """The reason why a slot's last write cannot be taken for a position of a request; None if it can."""
    if record["mark"] == 0:
        return FaultKind.LOST_KEY
    if record["position"] != position:
        return FaultKind.WRONG_SLOT
    mine, theirs = state.tokens.get(number), state.tokens.get(int(record["request"]))
    if mine is None or theirs is None:
        return None
    known = min(position + 1, len(mine), len(theirs))
    return None if np.array_equal(mine[:known], theirs[:known]) else FaultKind.OTHER_REQUEST


def _fault(state: ShadowState, read: Read, kind: FaultKind, position: int, **more: Any) -> CacheFault:
    expected = state.own(read.layer, read.request, position)
    return CacheFault(kind, read.layer, read.request, position, state.step, expected=expected, **more)
