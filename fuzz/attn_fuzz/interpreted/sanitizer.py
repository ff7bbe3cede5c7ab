"""Every address that an interpreted kernel loads, stores or updates, checked before the memory is touched.

Under Triton's interpreter a kernel is Python, and a pointer a number: `install` replaces the places where it goes to memory,
and `watch` says what one call may touch (`attn_fuzz.interpreted.permissions`). What is found is a Violation, of one line:

    outside     an address computed from an argument lies outside of what that argument may lead to, wherever else it lies
    no right    a slot without a key, a row that no request owns, a garbage entry of the block table; a write into an input
    foreign     a program that has read queries of one request reads keys, or writes rows, of another
    unwritten   memory that the target allocated, and that neither it nor a kernel has written since
    race        two programs of one launch write one element, or one reads what the other writes

Scratch memory, which the launch brings along, may be read once it is written. Torch fills what it allocates uninitialized with
NaN while it is deterministic (`torch.utils.deterministic.fill_uninitialized_memory`): that NaN is how it is known. Integers
have none, so those count as written. Atomic updates of several programs are no race.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from attn_fuzz.cases.poison import bits
from attn_fuzz.interpreted.permissions import READ, REQUEST_BITS, WRITE, Region

Access = Literal["load", "store", "atomic"]

# on a handle of pointers: the Region of the argument that they were computed from
_REGION = "region"
_ALL_REQUESTS = (1 << REQUEST_BITS) - 1
_MANY = -1
# what makes pointers of pointers: by method, which of its operands they are
_BUILDER_HOOKS = {
    "create_addptr": 0,
    "create_bitcast": 0,
    "create_broadcast": 0,
    "create_expand_dims": 0,
    "create_reshape": 0,
    "create_trans": 0,
    "create_splat": 1,
}
_ACCESS_HOOKS = ("create_masked_load", "create_masked_store", "create_atomic_rmw", "create_atomic_cas", "set_grid_idx")


class Violation(Exception):  # noqa: N818 - what a kernel did, not what went wrong here
    """An access that is not allowed; its message is one line.

    Args:
        message: the line.
        about: the kind of access and the name of the tensor, such as "store of out".
    """

    def __init__(self, message: str, about: str) -> None:
        super().__init__(message)
        self.about = about


def install() -> None:
    """Put the checks into Triton's interpreter, for the life of this process; without a `watch` they do nothing.

    Raises:
        RuntimeError: Triton compiles in this process, or its interpreter has not the parts that are replaced.
    """
    import triton
    from triton import knobs
    from triton.runtime import interpreter

    builder = getattr(interpreter, "InterpreterBuilder", None)
    executor = getattr(interpreter, "GridExecutor", None)
    missing = [name for name in (*_BUILDER_HOOKS, *_ACCESS_HOOKS) if not hasattr(builder, name)]
    missing += [name for name in ("_init_args_hst",) if not hasattr(executor, name)]
    if missing:
        raise RuntimeError(
            f"triton {triton.__version__}: its interpreter has no {', '.join(missing)}, where accesses are checked"
        )
    if not knobs.runtime.interpret:
        raise RuntimeError("the sanitizer checks interpreted kernels: set TRITON_INTERPRET=1 before Triton is imported")
    if is_installed():
        return
    assert builder is not None
    assert executor is not None
    for name, operand in _BUILDER_HOOKS.items():
        setattr(builder, name, _keeping_region(getattr(builder, name), operand, begins=name == "create_addptr"))
    builder.create_masked_load = _checking_load(builder.create_masked_load)
    builder.create_masked_store = _checking_store(builder.create_masked_store)
    builder.create_atomic_rmw = _checking_rmw(builder.create_atomic_rmw)
    builder.create_atomic_cas = _checking_cas(builder.create_atomic_cas)
    builder.set_grid_idx = _counting_programs(builder.set_grid_idx)
    executor._init_args_hst = _announcing_launch(executor._init_args_hst)
    _state.installed = True


def is_installed() -> bool:
    return _state.installed


@contextmanager
def watch(permissions: Callable[[], Sequence[Region]]) -> Iterator["Watch"]:
    """Hold the kernels that are launched meanwhile to what a call may touch; only where `install` was called.

    Args:
        permissions: called at the first launch, before anything is written.

    Raises:
        Violation: a kernel did what it may not. Whatever else the call raises, or keeps to itself, this is what comes out.
    """
    watching = Watch(permissions)
    _state.watch = watching if _state.installed else None
    try:
        yield watching
    finally:
        _state.watch = None
        if watching.violation is not None:
            raise watching.violation from None


class Watch:
    """The launches of one call.

    Attributes:
        lanes: addresses checked so far.
        violation: the first.
    """

    def __init__(self, permissions: Callable[[], Sequence[Region]]) -> None:
        self.lanes = 0
        self.violation: Violation | None = None
        self._permissions = permissions
        self._known: Sequence[Region] | None = None
        self._scratch: dict[tuple[int, int], Region] = {}

    def launch(self, kernel: str, arguments: dict[str, torch.Tensor]) -> None:
        """A kernel is about to run on these tensors."""
        if self._known is None:
            self._known = self._permissions()
        self._kernel = kernel
        self._program = 0
        self._grid_idx, self._grid_dim = (0, 0, 0), (1, 1, 1)
        self._requests = 0
        self._writer: dict[int, np.ndarray] = {}
        self._reader: dict[int, np.ndarray] = {}
        self._by_pointer = {tensor.data_ptr(): self._region_of(name, tensor) for name, tensor in arguments.items()}

    def _region_of(self, name: str, tensor: torch.Tensor) -> Region:
        """The region of an argument: the step's, or one for memory that is the target's own."""
        assert self._known is not None
        pointer, storage = tensor.data_ptr(), tensor.untyped_storage().data_ptr()
        candidates = [region for region in self._known if region.address == storage]
        # several where q, k and v are slices of one tensor
        for region in candidates:
            if region.tensor.data_ptr() == pointer or len(candidates) == 1:
                return region
        for region in candidates:
            if region.contains(pointer):
                return region
        return self._scratch_region(name, tensor)

    def _scratch_region(self, name: str, tensor: torch.Tensor) -> Region:
        storage = tensor.untyped_storage()
        key = (storage.data_ptr(), tensor.element_size())
        region = self._scratch.get(key)
        if region is None:
            rights = np.zeros(storage.nbytes() // tensor.element_size(), np.int32)
            region = Region(name, tensor, rights, reads="what was written", writes="its elements")
            self._scratch[key] = region
        region.name, region.tensor = name, tensor  # for this launch; the storage stays alive with either
        rights = torch.from_numpy(region.rights).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        rights |= torch.where(_is_filled(tensor), WRITE, WRITE | READ)
        return region

    def program(self, grid_idx: tuple[int, int, int], grid_dim: tuple[int, int, int]) -> None:
        """The next program of the launch."""
        self._grid_idx, self._grid_dim = grid_idx, grid_dim
        x, y, z = grid_idx
        self._program = (x * grid_dim[1] + y) * grid_dim[2] + z + 1
        self._requests = 0

    def argument_of(self, pointers: Any) -> Region | None:
        """What the pointers were computed from, if that is known."""
        found = pointers.attr.get(_REGION)
        if found is not None:
            return found
        first = pointers.data.flat[0]
        # of several arguments, chosen by `tl.where`, the first lane speaks for itself alone
        return self._by_pointer.get(int(first)) if (pointers.data == first).all() else None

    def check(self, access: Access, pointers: Any, mask: np.ndarray | None) -> None:
        """Raise the Violation of the first lane that may not do this."""
        addresses = pointers.data
        if mask is not None and not mask.all():
            addresses = addresses[np.broadcast_to(mask, addresses.shape)]
        addresses = addresses.ravel()
        if not addresses.size:
            return
        self.lanes += addresses.size
        width = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        region = self.argument_of(pointers)
        if region is not None:
            self._check_in(region, access, addresses, width)
            return
        # computed from no argument: a pointer that was loaded, or a choice between two
        for region in {id(region): region for region in self._by_pointer.values()}.values():
            inside = region.spans(addresses)
            if inside.any():
                self._check_in(region, access, addresses[inside], width)
                addresses = addresses[~inside]
        if addresses.size:
            self._violate(access, "an address", f"address {int(addresses[0]):#x}", "outside of every argument")

    def _check_in(self, region: Region, access: Access, addresses: np.ndarray, width: int) -> None:
        itemsize = region.tensor.element_size()
        element = (addresses - np.uint64(region.address)).view(np.int64) // itemsize
        if width > itemsize:
            element = (element[:, None] + np.arange(width // itemsize)).ravel()
        # unsigned, what lies before the first element is more than any size
        outside = element.view(np.uint64) >= len(region.rights)
        if outside.any():
            at = int(element[outside][0])
            self._violate(access, region.name, region.describe(at), f"{self._count(outside)}outside of its memory")
        rights = region.rights[element]
        if access != "load":
            self._require(rights & WRITE != 0, region, element, access, f"{_only(region.writes)} may be written")
        if access != "store":
            self._require(rights & READ != 0, region, element, access, f"{_only(region.reads)} may be read")
        if region.owned:
            self._check_owner(region, element, access, rights)
        if region.writes and access != "atomic":
            self._check_race(region, element, access)
        if access != "load":
            region.rights[element] |= READ

    def _check_owner(self, region: Region, element: np.ndarray, access: Access, rights: np.ndarray) -> None:
        if region.name == "q":
            self._requests |= int(np.bitwise_or.reduce(rights)) & _ALL_REQUESTS
        elif self._requests:
            self._require(
                rights & self._requests != 0, region, element, access, "it belongs to another request than its queries"
            )

    def _check_race(self, region: Region, element: np.ndarray, access: Access) -> None:
        writer = self._log(self._writer, region)
        reader = self._log(self._reader, region)
        me = self._program
        wrote = writer[element]
        alone = (wrote == 0) | (wrote == me)
        self._require(alone, region, element, access, lambda lane: f"{self._name(wrote[lane])} of this launch writes it too")
        read = reader[element]
        alone = (read == 0) | (read == me)
        if access == "load":
            reader[element] = np.where(alone, me, _MANY)
            return
        self._require(alone, region, element, access, lambda lane: f"{self._name(read[lane])} of this launch reads it")
        writer[element] = me

    def _log(self, logs: dict[int, np.ndarray], region: Region) -> np.ndarray:
        """By element, the program that did it in this launch; 0: none."""
        if id(region) not in logs:
            logs[id(region)] = np.zeros(len(region.rights), np.int32)
        return logs[id(region)]

    def _require(
        self, allowed: np.ndarray, region: Region, element: np.ndarray, access: Access, why: str | Callable[[int], str]
    ) -> None:
        if allowed.all():
            return
        lane = int(np.argmin(allowed))
        reason = why if isinstance(why, str) else why(lane)
        self._violate(access, region.name, region.describe(int(element[lane])), f"{self._count(~allowed)}{reason}")

    def _count(self, wrong: np.ndarray) -> str:
        count = int(wrong.sum())
        return f"the first of {count} such elements; " if count > 1 else ""

    def _name(self, program: int) -> str:
        if program == _MANY:
            return "another program"
        _, num_y, num_z = self._grid_dim
        xy, z = divmod(int(program) - 1, num_z)
        return f"program {(*divmod(xy, num_y), z)}"

    def _violate(self, access: Access, name: str, what: str, why: str) -> None:
        message = f"{access} at {_line()} in {self._kernel}, program {self._grid_idx}: {what}: {why}"
        self.violation = Violation(message, f"{access} of {name}")
        raise self.violation


class _State:
    """What is installed in this process, and the call that is watched."""

    installed = False
    watch: Watch | None = None


_state = _State()


def _is_filled(tensor: torch.Tensor) -> torch.Tensor:
    """Where a tensor is as torch fills uninitialized memory of floats."""
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return torch.zeros(tensor.shape, dtype=torch.bool)
    return bits(tensor) == bits(torch.full((1,), torch.nan, dtype=tensor.dtype))


def _only(rule: str) -> str:
    return f"only {rule}" if rule else "nothing of it"


def _line() -> str:
    """File and line of the kernel, or of the function that it calls, that is running."""
    import triton

    inside = (str(Path(triton.__file__).parent), __file__)
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def _keeping_region(method: Any, operand: int, *, begins: bool) -> Any:
    """Pointers that are computed from pointers come from the same argument; where that `begins`, from the one that they are."""

    def op(builder: Any, *operands: Any) -> Any:
        result = method(builder, *operands)
        source = operands[operand]
        if _REGION in source.attr:
            result.attr[_REGION] = source.attr[_REGION]
        elif begins and _state.watch is not None and (region := _state.watch.argument_of(source)) is not None:
            result.attr[_REGION] = region
        return result

    return op


def _checking_load(create_masked_load: Any) -> Any:
    def load(builder: Any, pointers: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        if _state.watch is not None:
            _state.watch.check("load", pointers, mask.data)
        return create_masked_load(builder, pointers, mask, *rest, **named)

    return load


def _checking_store(create_masked_store: Any) -> Any:
    def store(builder: Any, pointers: Any, value: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        if _state.watch is not None:
            _state.watch.check("store", pointers, mask.data)
        return create_masked_store(builder, pointers, value, mask, *rest, **named)

    return store


def _checking_rmw(create_atomic_rmw: Any) -> Any:
    def rmw(builder: Any, op: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        if _state.watch is not None:
            _state.watch.check("atomic", pointers, mask.data)
        return create_atomic_rmw(builder, op, pointers, value, mask, *rest)

    return rmw


def _checking_cas(create_atomic_cas: Any) -> Any:
    def cas(builder: Any, pointers: Any, *rest: Any) -> Any:
        if _state.watch is not None:
            _state.watch.check("atomic", pointers, None)
        return create_atomic_cas(builder, pointers, *rest)

    return cas


def _counting_programs(set_grid_idx: Any) -> Any:
    def count(builder: Any, *grid_idx: int) -> None:
        set_grid_idx(builder, *grid_idx)
        if _state.watch is not None:
            _state.watch.program(builder.grid_idx, builder.grid_dim)

    return count


def _announcing_launch(init_args_hst: Any) -> Any:
    def announce(executor: Any, args: Any, kwargs: Any) -> Any:
        host_args, host_kwargs = init_args_hst(executor, args, kwargs)
        if _state.watch is not None:
            named = {**dict(zip(executor.arg_names, host_args, strict=False)), **host_kwargs}
            _state.watch.launch(executor.fn.__name__, dict(_tensors(named)))
        return host_args, host_kwargs

    return announce


def _tensors(arguments: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors among a kernel's arguments, also in tuples, descriptors and views of another dtype."""
    for name, argument in arguments.items():
        if isinstance(argument, tuple):
            yield from _tensors({f"{name}[{i}]": item for i, item in enumerate(argument)})
        elif isinstance(argument, torch.Tensor):
            if argument.numel():
                yield name, argument
        elif hasattr(argument, "base"):
            yield from _tensors({name: argument.base})
