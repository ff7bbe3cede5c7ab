"""The shadow cache: it records what an engine wrote, and checks that attention gets it."""

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from attn_contract import ContractError
from attn_contract.arguments import check_int
from attn_fuzz.shadow.contents import Contents, contents_of
from attn_fuzz.shadow.faults import CacheFault, FaultKind
from attn_fuzz.shadow.judging import Read, faults, not_shared
from attn_fuzz.shadow.state import ShadowState
from attn_fuzz.shadow.tables import MAX_SLOT


class Shadow:
    """A record of what each request wrote in each layer: the mark, slot and step of each position, and each slot's last write.

    An engine needs three calls for each layer: `write` for the new keys of each request, `read` for the keys that attention
    gets, and `free` for requests that end. It reports other moves of keys or requests by `fork`, `reorder`, `adopt`, `copy` and
    `roll_back`. A step ends when a layer that was read is written again, or by `next_step`.

    The names of layers and requests are any hashable objects. Positions of a request are counted from 0. A slot is a number in
    a pool; each layer has a pool of its own unless `pools` says otherwise. Slots below 0 are those of padding, and are not
    written.

    Args:
        value_bytes: the number of bytes of keys and values to keep, of the latest writes. Without them, a key that was never
            written is ALTERED: its cause is not known.
        pools: the pool of each layer that shares memory with others.
        limit: the number of faults to keep in `faults`. Further ones are only counted, in `wrong`.

    Attributes:
        reads, wrong: the number of reads that were checked, and the number of those with faults.
        faults: the faults of the first reads that had any.
        not_seen: the number of events that could not be reported to the shadow, by reason.
    """

    def __init__(self, *, value_bytes: int = 0, pools: Mapping[Any, Hashable] | None = None, limit: int = 100) -> None:
        check_int("value_bytes", value_bytes, minimum=0)
        check_int("limit", limit, minimum=0)
        self.reads, self.wrong, self.limit = 0, 0, limit
        self.faults: list[CacheFault] = []
        self.not_seen: dict[str, int] = {}
        self._state = ShadowState(value_bytes, pools or {})
        self._was_read: set[Hashable] = set()
        self._ends_steps = True
        self._read_since: set[tuple[Hashable, Hashable]] = set()
        self._missing: dict[tuple[Hashable, Hashable], CacheFault] = {}

    @property
    def step(self) -> int:
        """The number of the step, from 0."""
        return self._state.step

    @property
    def nbytes(self) -> int:
        """The bytes of all tables, without the kept keys and values."""
        return self._state.nbytes

    def first_seen(self, layer: Hashable, query: int) -> int:
        """The first position that a query of a layer sees: see `narrow`."""
        return self._state.first_seen(layer, query)

    def length(self, layer: Hashable, request: Hashable) -> int:
        """The end of the positions that a request has in a layer; 0 if it has none."""
        track = self._state.tracks.get(layer, {}).get(self._state.numbers.get(request, -1))
        return 0 if track is None else track.end

    def has_written(self, layer: Hashable, slots: Any) -> bool:
        """True if anything was written into any of these slots of the layer's pool."""
        return bool(self._state.slots(layer).get(_numbers("slots", slots))["mark"].any())

    def next_step(self) -> None:
        """Begin a step. Whoever calls this once must call it for every step."""
        self._ends_steps = False
        self._state.step += 1

    def narrow(self, layer: Hashable, *, window: int | None = None, chunk: int | None = None) -> None:
        """Say that a layer's queries see only the last `window` keys, their own included, or only the keys of their chunk."""
        for name, given in (("window", window), ("chunk", chunk)):
            if given is not None:
                check_int(name, given, minimum=1)
        self._state.narrow[layer] = (window, chunk)

    def write(
        self,
        layer: Hashable,
        request: Hashable,
        positions: Any,
        *,
        slots: Any = None,
        keys: Any = None,
        values: Any = None,
    ) -> list[CacheFault]:
        """Note that a request's keys and values are written.

        Args:
            positions: [n], the positions of the keys, as numbers, a range, an array or a tensor.
            slots: [n]; None in a cache without slots.
            keys, values: [n, ...], tensors or arrays, as the cache holds them; keys can be Contents. None: not known.

        Returns:
            The fault WRITE_AFTER_READ if attention read a position before this write; otherwise nothing.

        Raises:
            ContractError: an argument is malformed; it is named.
        """
        state = self._state
        positions, slots = _positions(positions), _slots(slots, positions)
        written = _contents(keys, values, len(positions))
        number = state.number(request)
        track = state.track(layer, number)
        if self._ends_steps and layer in self._was_read:
            state.step += 1
            self._was_read.clear()
        if not len(positions):
            return []
        marks = state.serials(len(positions)) if written is None else written.marks
        track.slide(state.first_seen(layer, int(positions.min())))
        track.put(positions, marks, slots, state.step)
        if slots is not None:
            state.fill(layer, number, positions, slots, marks)
        if written is not None:
            state.keep(written)
        return self._written_late(layer, request, positions)

    def read(
        self,
        layer: Hashable,
        request: Hashable,
        positions: Any,
        *,
        slots: Any = None,
        keys: Any = None,
        values: Any = None,
        whole: bool = True,
        masked: int | None = None,
        close: float = 0.0,
    ) -> list[CacheFault]:
        """Check the keys that attention gets for a request's queries, and return the faults.

        The queries are at the positions that this step wrote. The keys are compared with the written ones. If no keys are
        given, the last writes into the slots are compared.

        Args:
            positions: [n], the positions for which attention takes the keys, in order.
            slots: [n], where attention finds the keys.
            keys, values: [n, ...], as for `write`.
            whole: True if attention gets no other keys for this request: then none may be missing, and the last one must be
                the last that this step wrote.
            masked: the number of keys for which attention has a mask; None: the number that it gets.
            close: the largest difference of a key from the written one, relative to the largest element of the latter, as in
                a quantized cache. Keys that are not kept are not compared so.

        Raises:
            ContractError: an argument is malformed; it is named.
        """
        positions, slots = _positions(positions), _slots(slots, positions)
        handed = _contents(keys, values, len(positions))
        self.reads += 1
        self._was_read.add(layer)
        found = faults(self._state, Read(layer, request, positions, slots, handed, masked, close), whole=whole)
        self._missing.pop((layer, request), None)
        for fault in found:
            # if attention precedes the step's write, it reads a position that is written later
            if fault.expected is None and (layer, request) in self._read_since:
                self._missing[layer, request] = fault
        self._read_since.add((layer, request))
        return self._noted(found)

    def place(self, layer: Hashable, request: Hashable, positions: Any, slots: Any) -> None:
        """Note that a request's keys lie in these slots from now on, as in a ring that is read before it is overwritten."""
        positions = _positions(positions)
        slots = _slots(slots, positions)
        number = self._state.number(request)
        track = self._state.track(layer, number)
        marks = track.get(positions)["mark"]
        if slots is None:
            raise ContractError("slots", None, "those where the positions lie")
        if not marks.all():
            raise ContractError("positions", positions.tolist(), "positions that the request has written")
        track.place(positions, slots)
        self._state.fill(layer, number, positions, slots, marks)

    def adopt(self, layer: Hashable, request: Hashable, positions: Any, slots: Any) -> list[CacheFault]:
        """Note that a request uses the keys in slots as its own: it shares the blocks of a prefix.

        Returns:
            A fault for the first slot that holds another position, or one that follows other tokens, if the tokens of both
            requests are known.
        """
        state, positions = self._state, _positions(positions)
        slots = _slots(slots, positions)
        if slots is None:
            raise ContractError("slots", None, "the slots of the shared blocks")
        number, records = state.number(request), state.slots(layer).get(slots)
        state.track(layer, number).adopt(positions, records["mark"], slots, state.step)
        for position, slot, record in zip(positions.tolist(), slots.tolist(), records, strict=True):
            if (kind := not_shared(state, number, position, record)) is not None:
                fault = CacheFault(
                    kind, layer, request, position, state.step, slot, writer=state.writer(record), detail="of a shared block"
                )
                return self._noted([fault])
        return []

    def fork(self, request: Hashable, of: Hashable, length: int | None = None) -> None:
        """Note that a request begins as a copy of another one, or of its first `length` positions, in all layers."""
        if length is not None:
            check_int("length", length, minimum=0)
        self.reorder({request: of}, length)

    def reorder(self, sources: Mapping[Any, Hashable], length: int | None = None) -> None:
        """Note that requests become copies of other requests, all at once, as beams do.

        Args:
            sources: for each request the one that it becomes a copy of.
        """
        state = self._state
        if missing := [of for of in sources.values() if of not in state.numbers]:
            raise ContractError("sources" if len(sources) > 1 else "of", missing[0], "a request that has written")
        copies = []
        for request, of in sources.items():
            old = state.numbers[of]
            tracks = {layer: tracks[old].copy(length) for layer, tracks in state.tracks.items() if old in tracks}
            copies.append((request, tracks, state.tokens.get(old)))
        for request, tracks, tokens in copies:
            state.free(request)
            number = state.number(request)
            if tokens is not None:
                state.tokens[number] = tokens[:length]
            for layer, track in tracks.items():
                state.tracks[layer][number] = track

    def copy(self, layer: Hashable, from_slots: Any, to_slots: Any) -> None:
        """Note that slots in the pool of a layer were copied, as by a copy on write."""
        source, target = _numbers("from_slots", from_slots), _numbers("to_slots", to_slots)
        if len(source) != len(target):
            raise ContractError("to_slots", f"{len(target)} slots", f"{len(source)}, as from_slots")
        pool = self._state.slots(layer)
        pool.put(target, pool.get(source))

    def roll_back(self, request: Hashable, length: int, *, layer: Hashable | None = None) -> None:
        """Note that a request forgets the positions from `length` on, such as rejected drafts, in all layers or in one."""
        check_int("length", length, minimum=0)
        state = self._state
        number = state.numbers.get(request, -1)
        for name, tracks in state.tracks.items():
            if number in tracks and layer in (None, name):
                tracks[number].truncate(length)
        if number in state.tokens and layer is None:
            state.tokens[number] = state.tokens[number][:length]

    def free(self, request: Hashable) -> None:
        """Note that a request has ended, or was preempted. A later request with this name is another one."""
        self._state.free(request)

    def tell(self, request: Hashable, tokens: Iterable[int]) -> None:
        """Note all tokens of a request, from position 0 on, by which `adopt` checks sharing.

        A token may be any number, such as a hash of an id and of an adapter.
        """
        array = np.asarray(tokens if isinstance(tokens, np.ndarray) else list(tokens))
        if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
            raise ContractError("tokens", f"{array.dtype} of shape {array.shape}", "a list of whole numbers")
        self._state.tokens[self._state.number(request)] = array.astype(np.int64)

    def pass_over(self, reason: str) -> None:
        """Count an event that the shadow cannot check, by its reason."""
        self.not_seen[reason] = self.not_seen.get(reason, 0) + 1

    def _written_late(self, layer: Hashable, request: Hashable, positions: np.ndarray) -> list[CacheFault]:
        self._read_since.discard((layer, request))
        fault = self._missing.pop((layer, request), None)
        if fault is None or fault.position not in positions:
            return []
        late = CacheFault(
            FaultKind.WRITE_AFTER_READ, layer, request, fault.position, fault.step, fault.slot, detail="attention came first"
        )
        self.faults = [late if one is fault else one for one in self.faults]
        return [late]

    def _noted(self, found: list[CacheFault]) -> list[CacheFault]:
        self.wrong += bool(found)
        self.faults += found[: max(0, self.limit - len(self.faults))]
        return found


def _positions(given: Any) -> np.ndarray:
    positions = _numbers("positions", given)
    if len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < 1 << 31:
        raise ContractError("positions", f"{positions.min()} to {positions.max()}", "numbers from 0 on, below 2^31")
    return positions


def _slots(given: Any, positions: np.ndarray) -> np.ndarray | None:
    if given is None:
        return None
    slots = _numbers("slots", given)
    if len(slots) != len(positions):
        raise ContractError("slots", f"{len(slots)} slots", f"{len(positions)}, as positions")
    if len(slots) and int(slots.max()) >= MAX_SLOT:
        raise ContractError("slots", int(slots.max()), f"less than {MAX_SLOT}")
    return slots


def _numbers(name: str, given: Any) -> np.ndarray:
    """[n] int64"""
    if isinstance(given, range):
        return np.arange(given.start, given.stop, given.step)
    given = given.detach().cpu().numpy() if isinstance(given, torch.Tensor) else given
    try:
        array = np.asarray(given)
    except ValueError:
        raise ContractError(name, given, "a list of whole numbers") from None
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise ContractError(name, f"{array.dtype} of shape {array.shape}", "a list of whole numbers")
    return array.astype(np.int64)


def _contents(keys: Any, values: Any, count: int) -> Contents | None:
    if keys is None and values is None:
        return None
    if isinstance(keys, Contents) and values is not None:
        raise ContractError("values", "values beside Contents", "None: Contents hold both")
    found = keys if isinstance(keys, Contents) else contents_of(keys, values)
    if len(found) != count:
        raise ContractError("keys" if keys is not None else "values", f"{len(found)} tokens", f"{count}, as positions")
    return found
