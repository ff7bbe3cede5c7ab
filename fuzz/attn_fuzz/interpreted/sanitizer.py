"""Checks every address that an interpreted kernel loads, stores or updates, before the memory is touched.

Under Triton's interpreter a kernel is Python, and a pointer is a number. `attn_fuzz.interpreted.accesses` reports each access
of a kernel. `watch` lets kernels touch only what one call may touch (`attn_fuzz.interpreted.permissions`). A forbidden access
raises a Violation. There are seven kinds:

    unaligned   the address is no multiple of the size of what is loaded or stored there: a GPU traps, or takes other bytes
    outside     the address was computed from an argument, and lies outside of that argument's memory. The address may lie in
                the memory of another argument.
    no right    the call gives the element no such right: a slot without a key is read, or a row that no request owns, or a
                garbage entry of the block table; or an input is written
    foreign     the program has read queries of one request, and reads keys or writes rows of another request
    unwritten   the target allocated the memory, and the element is read before it is written
    race        two programs of one launch write the element, or one program reads it and another program writes it
    lanes       two lanes of one store write different bits to the element: a GPU promises no order among them

For kernels that declare no such rights only bounds are checked: an access outside the memory of every argument of the launch
is a Violation. A write there would change memory of this process, and spoil a later case.

Memory that the call allocates may be read once it is written, by torch or by a kernel: `attn_fuzz.interpreted.unwritten` knows
each byte, also of memory that the target keeps for its next call: there, bytes that only kernels have written are stale. Any
other memory counts as written. Atomic updates of one element by several programs are
no race. An atomic update by one program and a load or store by another one are.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from attn_fuzz.interpreted import dynamo
from attn_fuzz.interpreted.permissions import READ, REQUEST_BITS, WRITE, Region
from attn_fuzz.interpreted.permissions import region as region_with
from attn_fuzz.interpreted.together.running import Lanes as Active
from attn_fuzz.interpreted.unwritten import Unwritten

Access = Literal["load", "store", "atomic"]
Checks = Literal["nothing", "bounds", "rights"]
"""The check of a kernel's accesses: there is none; or they must lie in its arguments' memory; or the call must allow them."""

REGION = "region"
"""The attribute of the interpreter's pointers that holds the Region of the argument from which they were computed."""
_ALL_REQUESTS = (1 << REQUEST_BITS) - 1
# in a log of loads or of updates: several programs
_MANY = -1


class Violation(Exception):  # noqa: N818 - a fault of the kernel, not an error of this module
    """An access that the call does not allow.

    Args:
        message: one line, with the place in the kernel, the program, the element and the reason.
        about: the kind of access and the name of the tensor, such as "store of out".
    """

    def __init__(self, message: str, about: str) -> None:
        super().__init__(message)
        self.about = about


@contextmanager
def watch(permissions: Callable[[], Sequence[Region]]) -> Iterator["Watch | BoundsChecker"]:
    """Check the kernels that are launched inside the `with`, by the checks of `accesses.install`. No other is checked.

    Args:
        permissions: returns the regions of the call. It is called at the first launch, before a kernel has written anything.

    Raises:
        Violation: a kernel made a forbidden access. The Violation replaces any exception that the call raises, and is raised
            even if the call catches it.
    """
    global current
    memory = Unwritten()
    watching = BoundsChecker() if checks == "bounds" else Watch(permissions, memory)
    current = watching
    try:
        with memory if checks == "rights" and not dynamo.begun else nullcontext():
            yield watching
    finally:
        current = None
        if watching.violation is not None:
            raise watching.violation from None


class _Lanes(NamedTuple):
    """Lanes that access memory: [n] element of the region, and [n] place of the lane's program among the running, ascending."""

    element: np.ndarray
    places: np.ndarray


class _Launches:
    """The launches of one call, one after the other.

    Attributes:
        lanes: the number of addresses checked so far.
        violation: the first forbidden access, or None.
    """

    def __init__(self) -> None:
        self.lanes = 0
        self.violation: Violation | None = None

    def _begin(self, kernel: str) -> None:
        self._kernel = kernel
        self.programs(np.zeros((1, 3), np.int32), (1, 1, 1))

    def programs(self, indices: np.ndarray, grid_dim: tuple[int, int, int]) -> None:
        """Note that the next programs of the launch begin, which run together.

        Args:
            indices: [programs, 3], of the grid.
            grid_dim: the grid's sizes.
        """
        self._grid_dim = grid_dim
        x, y, z = indices.T
        self._programs = (x * grid_dim[1] + y) * grid_dim[2] + z + 1

    def _enabled(
        self, addresses: np.ndarray, mask: np.ndarray | None, active: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The addresses [n] of the lanes that access memory, and [n] the places of their programs, ascending."""
        count = len(self._programs)
        addresses = np.broadcast_to(addresses, (count, *addresses.shape[1:]))
        enabled = np.True_ if mask is None or mask.all() else mask
        if active is not None:
            enabled = enabled & active.reshape(-1, *[1] * (addresses.ndim - 1))
        of_program = addresses.size // count
        if enabled is np.True_:
            return addresses.ravel(), np.arange(count).repeat(of_program)
        lanes = np.flatnonzero(np.broadcast_to(enabled, addresses.shape))
        return addresses.ravel().take(lanes), lanes // of_program

    def _index(self, program: int) -> tuple[int, int, int]:
        _, num_y, num_z = self._grid_dim
        xy, z = divmod(int(program) - 1, num_z)
        return (*divmod(xy, num_y), z)

    def _violate(self, access: Access, name: str, what: str, why: str, place: int) -> None:
        program = self._index(int(self._programs[place]))
        message = f"{access} at {_line()} in {self._kernel}, program {program}: {what}: {why}"
        self.violation = Violation(message, f"{access} of {name}")
        raise self.violation


class BoundsChecker(_Launches):
    """Checks that the launches of one call stay within the storages of their arguments."""

    poisons = False

    def launch(self, kernel: str, arguments: dict[str, torch.Tensor]) -> None:
        """See `Watch`."""
        self._begin(kernel)
        storages = {tensor.untyped_storage().data_ptr(): (name, tensor) for name, tensor in arguments.items()}
        self._begins = np.array(sorted(storages), np.uint64)
        named = [storages[begin] for begin in sorted(storages)]
        self._names = [name for name, _ in named]
        self._ends = self._begins + np.array([tensor.untyped_storage().nbytes() for _, tensor in named], np.uint64)

    def argument_of(self, pointers: Any) -> None:
        """None: an address may lie in the memory of any argument."""

    def check(self, access: Access, pointers: Any, mask: np.ndarray | None, active: Active = None, value: Any = None) -> None:
        """See `Watch`.

        Raises:
            Violation: about the first lane whose address is in no argument's memory.
        """
        addresses, places = self._enabled(pointers.data, mask, active)
        if not addresses.size:
            return
        self.lanes += addresses.size
        width = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        addresses = addresses.astype(np.uint64)
        storage = np.searchsorted(self._begins, addresses, side="right") - 1
        inside = (storage >= 0) & (addresses + np.uint64(width) <= self._ends[storage])
        if not inside.all():
            lane = int(np.argmin(inside))
            where = self._nearest(int(addresses[lane]), int(storage[lane]))
            self._violate(access, "an address", where, _OUTSIDE, int(places[lane]))

    def _nearest(self, address: int, before: int) -> str:
        """An address in words, by the last storage that begins before it."""
        if before < 0:
            return f"{int(self._begins[0]) - address} bytes before the memory of {self._names[0]}"
        return f"{address - int(self._ends[before])} bytes past the memory of {self._names[before]}"


_OUTSIDE = "outside of every argument"


class Watch(_Launches):
    """Checks the launches of one call.

    Args:
        permissions: as for `watch`.
        memory: the memory that the call has allocated and not written.
    """

    poisons = True

    def __init__(self, permissions: Callable[[], Sequence[Region]], memory: Unwritten) -> None:
        super().__init__()
        self._permissions = permissions
        self._known: Sequence[Region] | None = None
        self._memory = memory

    def launch(self, kernel: str, arguments: dict[str, torch.Tensor]) -> None:
        """Note that a kernel is about to run.

        Args:
            kernel: the kernel's name.
            arguments: the tensors among its arguments, by name.
        """
        self._by_pointer = self.regions(arguments)
        self._begin(kernel)
        self._writer: dict[int, np.ndarray] = {}
        self._reader: dict[int, np.ndarray] = {}
        self._updater: dict[int, np.ndarray] = {}
        self._lane: dict[int, np.ndarray] = {}

    def regions(self, arguments: dict[str, torch.Tensor]) -> dict[int, Region]:
        """The regions of the tensors among a kernel's arguments, by the addresses of the tensors' first elements."""
        if self._known is None:
            self._known = self._permissions()
        return {tensor.data_ptr(): self._region_of(name, tensor) for name, tensor in arguments.items()}

    def _region_of(self, name: str, tensor: torch.Tensor) -> Region:
        """The region of an argument: a region of the step, or a new region if the target allocated the memory."""
        assert self._known is not None
        pointer, storage = tensor.data_ptr(), tensor.untyped_storage().data_ptr()
        candidates = [region for region in self._known if region.address == storage]
        # q, k and v may be slices of one tensor: then several regions have its storage
        for region in candidates:
            if region.tensor.data_ptr() == pointer or len(candidates) == 1:
                return region
        for region in candidates:
            if region.contains(pointer):
                return region
        return self._scratch_region(name, tensor)

    def _scratch_region(self, name: str, tensor: torch.Tensor) -> Region:
        written = self._memory.written(tensor)
        rights = WRITE | READ if written is None else torch.where(written.all(-1), WRITE | READ, WRITE)
        new = region_with(name, tensor, rights, reads="what was written", writes="its elements")
        if written is not None:
            whole = tensor.as_strided((len(new.rights),), (1,), 0)
            new.written = self._memory.written(whole)
        return new

    def programs(self, indices: np.ndarray, grid_dim: tuple[int, int, int]) -> None:
        super().programs(indices, grid_dim)
        self._requests = np.zeros(len(indices), np.int64)

    def argument_of(self, pointers: Any) -> Region | None:
        """The region of the argument from which the pointers were computed, or None if the argument is not known."""
        found = pointers.attr.get(REGION)
        if found is not None:
            return found
        first = pointers.data.flat[0]
        # `tl.where` may have chosen between arguments: the first lane tells the argument of all lanes only if all are equal
        return self._by_pointer.get(int(first)) if (pointers.data == first).all() else None

    def check(self, access: Access, pointers: Any, mask: np.ndarray | None, active: Active = None, value: Any = None) -> None:
        """Check one access by all lanes that the mask leaves.

        Args:
            pointers: a block of the interpreter, whose first axis is of the programs that run together.
            mask: a mask of the block's shape, or None.
            active: [programs] bool, True for programs that access memory; None: all of them.
            value: the block that is stored; None in a load.

        Raises:
            Violation: about the first lane whose access is forbidden.
        """
        addresses, places = self._enabled(pointers.data, mask, active)
        if not addresses.size:
            return
        self.lanes += addresses.size
        width = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        region = self.argument_of(pointers)
        if int(np.bitwise_or.reduce(addresses)) & (width - 1):
            self._violate_alignment(access, region, addresses, places, width)
        if region is not None:
            repeats_in = region if self._check_in(region, access, addresses, places, width) else None
        else:
            repeats_in = self._check_anywhere(access, addresses, places, width)
        if repeats_in is not None:
            self._check_lanes(repeats_in, addresses, places, self._enabled(_at(pointers, value), mask, active)[0])

    def _check_anywhere(self, access: Access, addresses: np.ndarray, places: np.ndarray, width: int) -> Region | None:
        """Check addresses of no known argument: they were loaded, or chosen from two arguments.

        Returns:
            a region in which lanes of a store may repeat an element, or None.
        """
        repeats_in = None
        for region in {id(region): region for region in self._by_pointer.values()}.values():
            inside = region.spans(addresses)
            if inside.any():
                if self._check_in(region, access, addresses[inside], places[inside], width):
                    repeats_in = region
                addresses, places = addresses[~inside], places[~inside]
        if addresses.size:
            what = f"address {int(addresses[0]):#x}"
            self._violate(access, "an address", what, _OUTSIDE, int(places[0]))
        return repeats_in

    def _violate_alignment(
        self, access: Access, region: Region | None, addresses: np.ndarray, places: np.ndarray, width: int
    ) -> None:
        lane = int(np.argmax(addresses & np.uint64(width - 1) != 0))
        name = "an address" if region is None else region.name
        what = f"address {int(addresses[lane]):#x} of {name}"
        self._violate(access, name, what, f"it is no multiple of {width} bytes, which are accessed at once", int(places[lane]))

    def _check_in(self, region: Region, access: Access, addresses: np.ndarray, places: np.ndarray, width: int) -> bool:
        """Check addresses in a region. Returns whether lanes of a store may repeat one."""
        itemsize = region.tensor.element_size()
        element = (addresses - np.uint64(region.address)).view(np.int64) // itemsize
        if width > itemsize:
            element = (element[:, None] + np.arange(width // itemsize)).ravel()
            places = np.repeat(places, width // itemsize)
        lanes = _Lanes(element, places)
        # as an unsigned number, a negative index is larger than any size
        if element.view(np.uint64).max() >= len(region.rights):
            self._require(element.view(np.uint64) < len(region.rights), region, lanes, access, "outside of its memory")
        rights = region.rights.take(element)
        everywhere = np.bitwise_and.reduce(rights)
        if access != "load" and not everywhere & WRITE:
            self._require(rights & WRITE != 0, region, lanes, access, f"{_only(region.writes)} may be written")
        if access != "store" and not everywhere & READ:
            self._require(rights & READ != 0, region, lanes, access, f"{_only(region.reads)} may be read")
        if region.owned:
            self._check_owner(region, lanes, access, rights)
        if region.writes:
            self._check_race(region, lanes, access)
        if access != "load":
            region.rights[element] |= READ
            if region.written is not None:
                region.written[torch.from_numpy(element)] = True
        return access == "store" and self._repeats(region, element)

    def _repeats(self, region: Region, element: np.ndarray) -> bool:
        """True if an element occurs twice."""
        if (element[1:] > element[:-1]).all():
            return False
        last, lane = self._log(self._lane, region), np.arange(len(element), dtype=np.int32)
        last[element] = lane
        return bool((last[element] != lane).any())

    def _check_lanes(self, region: Region, addresses: np.ndarray, places: np.ndarray, values: np.ndarray) -> None:
        """Check that lanes of a store with the same address store the same bits."""
        order = np.argsort(addresses, kind="stable")
        first, second = order[:-1], order[1:]
        bits = np.ascontiguousarray(values).view(f"u{values.itemsize}")
        wrong = (addresses[first] == addresses[second]) & (bits[first] != bits[second])
        if wrong.any():
            lane = int(first[np.argmax(wrong)])
            what = region.describe(int(addresses[lane] - np.uint64(region.address)) // region.tensor.element_size())
            self._violate("store", region.name, what, "two lanes of one store write different values", int(places[lane]))

    def _check_owner(self, region: Region, lanes: _Lanes, access: Access, rights: np.ndarray) -> None:
        if region.name == "q":
            firsts = np.flatnonzero(np.diff(lanes.places, prepend=-1))  # of each program
            self._requests[lanes.places[firsts]] |= np.bitwise_or.reduceat(rights, firsts) & _ALL_REQUESTS
        elif self._requests.any() and not np.bitwise_and.reduce(rights) & np.bitwise_and.reduce(self._requests):
            requests = self._requests[lanes.places]
            allowed = (rights & requests != 0) | (requests == 0)
            self._require(allowed, region, lanes, access, "it belongs to another request than the program's queries")

    def _check_race(self, region: Region, lanes: _Lanes, access: Access) -> None:
        logs = {"store": self._writer, "load": self._reader, "atomic": self._updater}
        for other, does in (("store", "writes it too"), ("load", "reads it"), ("atomic", "updates it")):
            is_race = other != access or access == "store"  # several programs may load or update an element
            if is_race and id(region) in logs[other]:
                self._require_alone(logs[other][id(region)], region, lanes, access, does)
        mine, programs = self._log(logs[access], region), self._programs[lanes.places]
        before = mine[lanes.element]
        mine[lanes.element] = np.where((before == 0) | (before == programs), programs, _MANY)
        if len(self._programs) > 1:  # of those that access an element at once, the log has the last
            if access == "store":
                self._require_alone(mine, region, lanes, access, "writes it too")
            mine[lanes.element[mine[lanes.element] != programs]] = _MANY

    def _require_alone(self, log: np.ndarray, region: Region, lanes: _Lanes, access: Access, does: str) -> None:
        others = log[lanes.element]
        alone = (others == 0) | (others == self._programs[lanes.places])
        self._require(alone, region, lanes, access, lambda lane: f"{self._name(others[lane])} of this launch {does}")

    def _log(self, logs: dict[int, np.ndarray], region: Region) -> np.ndarray:
        """The log of a region, [elements] int32: by element, 1 + the index of the program that accessed it; 0 if none did.

        `_lane` has a lane of the last store to the element.
        """
        if id(region) not in logs:
            logs[id(region)] = np.zeros(len(region.rights), np.int32)
        return logs[id(region)]

    def _require(
        self, allowed: np.ndarray, region: Region, lanes: _Lanes, access: Access, why: str | Callable[[int], str]
    ) -> None:
        if allowed.all():
            return
        lane = int(np.argmin(allowed))
        reason = why if isinstance(why, str) else why(lane)
        what = region.describe(int(lanes.element[lane]))
        of_program = ~allowed & (lanes.places == lanes.places[lane])
        self._violate(access, region.name, what, f"{self._count(of_program)}{reason}", int(lanes.places[lane]))

    def _count(self, wrong: np.ndarray) -> str:
        count = int(wrong.sum())
        return f"the first of {count} such elements; " if count > 1 else ""

    def _name(self, program: int) -> str:
        if program == _MANY:
            return "another program"
        return f"program {self._index(program)}"


current: Watch | BoundsChecker | None = None
"""The object that checks the call which runs in this process."""
checks: Checks = "nothing"
"""The checks that `attn_fuzz.interpreted.accesses` has installed."""


def _at(pointers: Any, value: Any) -> np.ndarray:
    """The numbers that are stored at each of the pointers. In exact mode, those that the elements are about."""
    numbers = getattr(value.data, "order", value.data)
    return np.broadcast_to(numbers, (len(numbers), *pointers.data.shape[1:]))


def _only(rule: str) -> str:
    return f"only {rule}" if rule else "nothing of it"


def _line() -> str:
    """The file and line that is running, in the kernel or in a function that it calls."""
    import triton

    inside = (str(Path(triton.__file__).parent), str(Path(__file__).parent))
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
