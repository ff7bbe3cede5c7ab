"""Methods of Triton's InterpreterBuilder, for blocks whose first axis is of the programs that run together.

Arithmetic needs no change: NumPy broadcasts one entry for all programs to one for each. The methods of this module name
an axis or a shape, or access memory, which only the active programs do. Each calls the method that it replaces, which
`inner` has.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from attn_fuzz.errors import RefusedByTritonError
from attn_fuzz.interpreted.together import running
from attn_fuzz.interpreted.together.running import Running, apart

Handle = Any
Method = Callable[..., Any]
inner: dict[str, Method] = {}
"""The methods that the methods of this module call, by name. Exact mode replaces them: see `replace`."""
# methods of the builder that have no meaning for several programs at once: for one they run as they are, with the blocks' first
# axis taken away, and given back to what they return
_OF_ONE = (
    *("create_histogram", "create_descriptor_gather", "create_descriptor_scatter"),
    *("create_atomic_poll", "create_print", "create_inline_asm"),
)
_DESCRIBED_BYTES = 16
"""A descriptor's base, strides and boxes are multiples of this number."""


def install(interpreter: Any) -> None:
    """Replace the methods of Triton's module `triton.runtime.interpreter`."""
    handle, tl, builder = interpreter.TensorHandle, interpreter.tl, interpreter.InterpreterBuilder
    found = _of_shapes(handle) | _of_programs(handle, tl) | _of_memory(handle, tl, builder)
    found |= {name: _of_one(name, handle) for name in _OF_ONE if hasattr(builder, name)}
    if hasattr(interpreter, "BlockPointerHandle"):  # Triton 3.9 has none
        interpreter.BlockPointerHandle.materialize_pointers = _addresses(handle, tl)
    descriptor = interpreter.TensorDescHandle
    descriptor.materialize_pointers, descriptor.validate = _described(handle, tl), _check_described
    for name, method in found.items():
        if hasattr(builder, name):
            inner[name] = getattr(builder, name)
        setattr(builder, name, method)


def replace(builder: Any, name: str, method: Method) -> None:
    """Replace a method of the builder beneath the ones of this module, whose blocks have the first axis already."""
    if name in inner:
        inner[name] = method
    else:
        setattr(builder, name, method)


def method(builder: Any, name: str) -> Method:
    """The method that `replace` would replace."""
    return inner.get(name) or getattr(builder, name)


def _of_shapes(handle: Any) -> dict[str, Method]:
    def create_reshape(self: Any, block: Handle, shape: Any, *rest: Any) -> Handle:
        return inner["create_reshape"](self, block, (len(block.data), *shape), *rest)

    def create_broadcast(self: Any, block: Handle, shape: Any) -> Handle:
        return inner["create_broadcast"](self, block, (len(block.data), *shape))

    def create_trans(self: Any, block: Handle, order: Any) -> Handle:
        return inner["create_trans"](self, block, (0, *(axis + 1 for axis in order)))

    def create_expand_dims(self: Any, block: Handle, axis: int) -> Handle:
        return inner["create_expand_dims"](self, block, axis + 1)

    def create_make_range(self: Any, *arguments: Any) -> Handle:
        return inner["create_expand_dims"](self, inner["create_make_range"](self, *arguments), 0)

    def create_splat(self: Any, result: Any, scalar: Handle) -> Handle:
        ones = inner["create_reshape"](self, scalar, (len(scalar.data), *[1] * len(result.shape)), False)
        return create_broadcast(self, ones, result.shape)

    def create_unsplat(self: Any, block: Handle) -> Handle:
        return handle(block.data.reshape(len(block.data), -1)[:, 0], block.dtype.scalar)

    def create_cat(self: Any, *blocks: Handle) -> Handle:
        # the method joins along the first axis
        turned = [handle(np.swapaxes(block.data, 0, 1), block.dtype) for block in _alike(self, *_of_one_dtype("cat", blocks))]
        joined = inner["create_cat"](self, *turned)
        return handle(np.swapaxes(joined.data, 0, 1), joined.dtype)

    def create_join(self: Any, *blocks: Handle) -> Handle:
        return inner["create_join"](self, *_alike(self, *_of_one_dtype("join", blocks)))

    def create_gather(self: Any, source: Handle, indices: Handle, axis: int) -> Handle:
        return inner["create_gather"](self, *_alike(self, source, indices), axis + 1)

    def _alike(self: Any, *blocks: Handle) -> list[Handle]:
        """The blocks with a first axis of one length."""
        longest = max(len(block.data) for block in blocks)
        return [inner["create_broadcast"](self, block, (longest, *block.data.shape[1:])) for block in blocks]

    def _of_one_dtype(name: str, blocks: tuple[Handle, ...]) -> tuple[Handle, ...]:
        dtypes = [block.dtype.scalar for block in blocks]
        if dtypes[0] != dtypes[1]:
            raise RefusedByTritonError(f"tl.{name} of {dtypes[0]} and {dtypes[1]}: compiled code joins blocks of one dtype")
        return blocks

    return {name: method for name, method in locals().items() if name.startswith("create_")}


def _of_programs(handle: Any, tl: Any) -> dict[str, Method]:
    def create_get_program_id(self: Any, axis: int) -> Handle:
        return handle(running.current.indices[:, axis], tl.int32)

    def create_assert(self: Any, condition: Handle, message: str) -> None:
        assert _hold(condition), message

    def create_assume(self: Any, condition: Handle) -> None:
        assert _hold(condition), "Assume failed"

    def _hold(condition: Handle) -> bool:
        active, truth = running.current.active, condition.data
        return bool((truth if active is None else truth | ~_to_rank(active, truth.ndim)).all())

    return {name: method for name, method in locals().items() if name.startswith("create_")}


def _of_memory(handle: Any, tl: Any, builder: Any) -> dict[str, Method]:
    # after the builder, pointers and mask, and the load's `other` or the store's value: how many there are differs by release
    load_options = [None] * (len(inspect.signature(builder.create_masked_load).parameters) - 4)
    store_options = [None] * (len(inspect.signature(builder.create_masked_store).parameters) - 4)

    def create_masked_load(self: Any, pointers: Handle, mask: Handle, other: Handle | None, *rest: Any, **named: Any) -> Handle:
        if mask.data.shape[1:] != pointers.data.shape[1:]:  # the mask is fitted first, and compiled code refuses it
            raise RefusedByTritonError("tl.load: `other` is larger than the block of pointers and its mask")
        if _runs_alone(running.current):
            return inner["create_masked_load"](self, pointers, mask, other, *rest, **named)
        blocks = [pointers, mask, *([] if other is None else [other])]
        count = max(len(block.data) for block in blocks)
        pointers, mask, *others = (_of_length(block, count) for block in blocks)
        return inner["create_masked_load"](self, pointers, _of_active(mask, count), *(others or [None]), *rest, **named)

    def create_masked_store(self: Any, pointers: Handle, value: Handle, mask: Handle, *rest: Any, **named: Any) -> Any:
        if _runs_alone(running.current):
            return inner["create_masked_store"](self, pointers, value, mask, *rest, **named)
        count = max(len(block.data) for block in (pointers, value, mask))
        pointers, value, mask = _to_write(self, count, pointers, value, mask)
        return inner["create_masked_store"](self, pointers, value, mask, *rest, **named)

    def create_atomic_rmw(self: Any, op: Any, pointers: Handle, value: Handle, mask: Handle, *rest: Any) -> Handle:
        if _runs_alone(running.current):
            return inner["create_atomic_rmw"](self, op, pointers, value, mask, *rest)
        pointers, value, mask = _to_write(self, running.current.count, pointers, value, mask)
        return inner["create_atomic_rmw"](self, op, pointers, value, mask, *rest)

    def create_atomic_cas(self: Any, pointers: Handle, *operands: Any) -> Handle:
        shapes = [each.data.shape[1:] for each in (pointers, *operands[:2])]
        if shapes.count(shapes[0]) != 3:  # they cannot be broadcast, and compiled code refuses them
            raise RefusedByTritonError(
                "tl.atomic_cas of pointers {}, compared with {}, for values {}: they have one shape".format(*shapes)
            )
        if not _runs_alone(running.current):
            raise apart("an atomic comparison and exchange")
        return inner["create_atomic_cas"](self, pointers, *operands)

    def _of_length(block: Handle, count: int) -> Handle:
        if len(block.data) == count:
            return block
        return handle(np.broadcast_to(block.data, (count, *block.data.shape[1:])), block.dtype)

    def _of_active(mask: Handle, count: int) -> Handle:
        """A mask that leaves the active programs. One entry for all programs is for as soon as one is active."""
        active = running.current.active
        if active is None:
            return mask
        taking = active if count > 1 else np.array([active.any()])
        return handle(mask.data & _to_rank(taking, mask.data.ndim), tl.int1)

    def _to_write(self: Any, count: int, pointers: Handle, value: Handle, mask: Handle) -> tuple[Handle, Handle, Handle]:
        """The blocks with so many entries, and a mask that leaves the active programs. `undo` knows what memory holds there."""
        pointers, value, mask = (_of_length(block, count) for block in (pointers, value, mask))
        mask = _of_active(mask, count)
        running.current.has_stored = True
        held = inner["create_masked_load"](self, pointers, mask, None, *load_options)
        running.current.undone_by.append((pointers, mask, held))
        return pointers, value, mask

    def undo(self: Any) -> None:
        """Give memory back what it held before the running programs stored."""
        for pointers, mask, held in reversed(running.current.undone_by):
            inner["create_masked_store"](self, pointers, held, mask, *store_options)

    return {name: method for name, method in locals().items() if name.startswith("create_") or name == "undo"}


def _addresses(handle: Any, tl: Any) -> Method:
    """A replacement of `materialize_pointers` of a block pointer: the mask is a block, too, and both have the first axis."""

    def materialize_pointers(self: Any, boundary_check: Any) -> tuple[Handle, Handle]:
        if not _runs_alone(running.current):
            raise apart("tl.make_block_ptr")
        shape, element = tuple(self.block_shape), self.base.get_element_ty()
        address, mask = np.broadcast_to(self.base.data, shape), np.ones(shape, bool)
        for axis, size in enumerate(shape):
            index = self.offsets[axis].data + np.arange(size).reshape(-1, *[1] * (len(shape) - 1 - axis))
            address = address + (element.primitive_bitwidth // 8 * index * self.strides[axis].data).astype(np.uint64)
            if axis in boundary_check:
                mask = mask & (index >= 0) & (index < self.shape[axis].data)
        return handle(address[None], self.base.dtype.scalar), handle(mask[None], tl.int1)

    return materialize_pointers


def _described(handle: Any, tl: Any) -> Method:
    """A replacement of `materialize_pointers` of a descriptor: addresses and mask have the first axis."""

    def materialize_pointers(self: Any, offsets: Any) -> tuple[Handle, Handle]:
        shape, size = tuple(self.block_shape), self.base.dtype.element_ty.primitive_bitwidth // 8
        assert not (offsets[-1].data * size % _DESCRIBED_BYTES).any(), (
            f"a descriptor's box begins at no multiple of {_DESCRIBED_BYTES} bytes"
        )
        address, mask = _to_rank(self.base.data, len(shape) + 1), np.ones(1, bool)
        for axis, length in enumerate(shape):
            offset, stride, end = (
                _to_rank(np.asarray(each.data), len(shape) + 1)
                for each in (offsets[axis], self.strides[axis], self.shape[axis])
            )
            index = offset.astype(np.int64) + np.arange(length).reshape(-1, *[1] * (len(shape) - 1 - axis))
            address = address + (size * index * stride).astype(np.uint64)
            mask = mask & (index >= 0) & (index < end)
        mask = np.broadcast_to(mask, address.shape) if len(mask) == 1 else mask
        return handle(np.broadcast_to(address, mask.shape), self.base.dtype.scalar), handle(mask, tl.int1)

    return materialize_pointers


def _check_described(self: Any) -> None:
    """`validate` of a descriptor, for all programs."""
    size = self.base.dtype.element_ty.primitive_bitwidth // 8
    assert not (self.base.data % _DESCRIBED_BYTES).any(), f"a descriptor begins at no multiple of {_DESCRIBED_BYTES} bytes"
    for stride in self.strides[:-1]:
        assert not (stride.data * size % _DESCRIBED_BYTES).any(), (
            f"a descriptor's stride is no multiple of {_DESCRIBED_BYTES} bytes"
        )
    assert (self.strides[-1].data == 1).all(), "the last dimension of a descriptor is not dense"


def _runs_alone(programs: Running) -> bool:
    return programs.count == 1


def _to_rank(lanes: np.ndarray, rank: int) -> np.ndarray:
    return lanes.reshape(-1, *[1] * (rank - 1))


def _of_one(name: str, handle: Any) -> Method:
    def op(self: Any, *operands: Any, **named: Any) -> Any:
        if not _runs_alone(running.current):
            raise apart(f"tl.{name.removeprefix('create_')}")
        result = inner[name](self, *(_without_axis(handle, operand) for operand in operands), **named)
        return handle(np.asarray(result.data)[None], result.dtype) if isinstance(result, handle) else result

    return op


def _without_axis(handle: Any, operand: Any) -> Any:
    """A block without its first axis, which has one entry. A scalar keeps it: as it comes, it is an array of one number."""
    if isinstance(operand, handle) and operand.data.ndim > 1:
        return handle(operand.data[0], operand.dtype, operand.attr)
    if isinstance(operand, list | tuple):
        return type(operand)(_without_axis(handle, each) for each in operand)
    return operand
