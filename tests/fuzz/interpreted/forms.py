"""Every function of Triton's language with every form of every argument: the cases, and what an interpreter makes of them.

The cases of a function come of its signature. An argument whose forms nobody has named here fails a test.
"""

import inspect
import itertools
import random
from collections.abc import Collection, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from tests.fuzz.interpreted import functions, reduced
from tests.fuzz.interpreted.blocks import SMALL, small
from tests.fuzz.interpreted.dtypes import dtype_of, numbers, unsigned

PROGRAMS = 2
"""The programs of each launch. Their numbers differ, so that blocks have an axis of programs."""
_RESULTS, _ROOM = 4, 1 << 9
"""How many results a function may have, and how many elements a program's."""
_OMITTED = object()
"""The form of an argument that is not given."""
_HIDDEN = ("_semantic", "_generator")


@dataclass(frozen=True, repr=False)
class Block:
    """A block that a program loads; the shape () is a scalar's."""

    shape: tuple[int, ...]
    dtype: str = "fp32"
    values: tuple[float, ...] = SMALL

    def bits(self, seed: int) -> np.ndarray:
        """[programs, *shape]"""
        return small(self.dtype, (PROGRAMS, *self.shape), self.values, seed)

    def made(self, pointer: Any) -> Any:
        """The argument that the function gets.

        Args:
            pointer: to the program's bits.
        """
        bits = tl.load(self.pointers(pointer))
        return bits.to(dtype_of(self.dtype), bitcast=self.dtype != "int1")

    def pointers(self, pointer: Any) -> Any:
        count = int(np.prod(self.shape))
        return tl.reshape(pointer + tl.arange(0, count), list(self.shape)) if self.shape else pointer

    def __repr__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


class Different(Block):
    """A block whose elements all differ."""

    def bits(self, seed: int) -> np.ndarray:
        shape = (PROGRAMS, *self.shape)
        numbers = np.random.default_rng(seed).permutation(int(np.prod(shape))).reshape(shape)
        return (numbers - 5).astype({"fp32": np.float32}.get(self.dtype, self.dtype)).view(unsigned(self.dtype))


class Pointers(Block):
    """Pointers to the elements of such a block, which a case may write."""

    def made(self, pointer: Any) -> Any:
        return self.pointers(pointer).to(tl.pointer_type(dtype_of(self.dtype)), bitcast=True)

    def __repr__(self) -> str:
        return f"pointers to {super().__repr__()}"


class Matrix(Block):
    """A descriptor of such a block, by blocks of [4, 8]."""

    def made(self, pointer: Any) -> Any:
        rows, columns = self.shape
        base = pointer.to(tl.pointer_type(dtype_of(self.dtype)), bitcast=True)
        return tl.make_tensor_descriptor(base, [rows, columns], [columns, 1], [4, 8])

    def __repr__(self) -> str:
        return f"a descriptor of {super().__repr__()}"


@dataclass(frozen=True)
class Case:
    """A call.

    Attributes:
        function: its name.
        way: "by place", "by name" or "as a method". By name, each number is a tl.constexpr, too.
        arguments: by the names of the parameters, in their order.
    """

    function: str
    way: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.function}({', '.join(f'{name}={_said(value)}' for name, value in self.arguments.items())}) {self.way}"


def _said(value: Any) -> str:
    return str(getattr(value, "__name__", value))


SHAPES = ((), (1,), (8,), (4, 8), (2, 4, 2))
FLOATS, INTEGERS = (tuple(Block(shape, dtype) for shape in SHAPES) for dtype in ("fp32", "int32"))
_SHAPED = (*((shape, "fp32") for shape in SHAPES), ((4, 1), "int32"))
POINTERS = (Pointers(()), Pointers((1,), "int32"), Pointers((4, 8)), Pointers((4, 8), "int32"))
FEW = (Block(()), Block((8,)), Block((4, 1)), Block((4, 8)))
BOTH = tuple(Block(*each) for each in _SHAPED)
FLAGS = (True, False)
MASKS = (Block((), "int1"), Block((1,), "int1"), Block((8,), "int1"), Block((4, 8), "int1"), *FLAGS)
AXES = tuple(range(-4, 4))
ORDERS = ((), (0,), (1, 0), (0, 1), (2, 0, 1), (-1, 0), (0, 0))
SQUARES = tuple(Block(shape, dtype) for shape in ((16, 16), (2, 16, 16)) for dtype in ("fp32", "fp16"))
MATRICES = (Matrix((8, 16)),)
OFFSETS = ([0, 0], [4, 8], [6, 12], [0, 32])


def _by_name(forms: dict[str, Any]) -> dict[str, Any]:
    return {name: each for several, each in forms.items() for name in several.split()}


FORMS: dict[str, tuple[Any, ...]] = _by_name(
    {
        "x y z input other a b u1 u2 src self": BOTH,
        "mask condition": MASKS,
        "cond": (Block((), "int32", (1,)), Block((8,), "int1", (1,)), True),
        "axis dim": AXES,
        "dims": ORDERS,
        "shape": ((32,), (8, 4), (2, 16), (1, 32), (5, 5)),
        "keep_dims reverse return_indices return_indices_tie_break_left tie_break_left": FLAGS,
        "descending can_reorder bitcast ieee_rounding approx sanitize_overflow volatile": FLAGS,
        "hex flush allow_tf32 fast_math lhs_k_pack rhs_k_pack is_pure": FLAGS,
        "combine_fn": tuple(reduced.COMBINED),
        "propagate_nan": (tl.PropagateNan.NONE, tl.PropagateNan.ALL),
        "dtype": (tl.float32, tl.int32),
        "out_dtype": (tl.float32, tl.float16),
        "fp_downcast_rounding": ("rtne", "rtz"),
        "pointer": POINTERS,
        "val": (Block((), "int32"), Block((8,), "int32"), Block((4, 8), "int32"), Block((4, 8)), 3),
        "value": (Block(()), Block((8,)), Block((4, 8)), Block((4, 8), "int32"), 3, 1.5),
        "cmp": (Block((), "int32"), Block((4, 8), "int32"), 3),
        "expected_value": (-2, 1),
        "timeout_ns": (1,),
        "sem": ("relaxed", "acq_rel", "acquire", "release"),
        "scope": ("gpu", "cta"),
        "cache_modifier": ("", ".ca", ".cg", ".wb"),
        "eviction_policy": ("", "evict_first", "evict_last"),
        "values": (8, (1, 8), [8, 4]),
        "div": (*(Block(shape, "int32", (1, 2, 5)) for shape in SHAPES), 3),
        "seed": (7, Block((), "int32")),
        "offset offsets": INTEGERS,
        "n_rounds": (10, 7),
        "c0 c1 c2 c3 k0 k1": (Block((8,), "uint32"),),
        "i j": (Block((), "int32", (0, 1, 3)), 1),
        "size_i size_j": (4,),
        "size_g": (2, 3),
        "num_bins": (1, 8),
        "k": (1, 2, 8, 16),
        "msg prefix": ("a message",),
        "sep": (",",),
        "end": ("\n",),
        "file": (),
        "acc": (Block((16, 16)), Block((2, 16, 16)), Block((16, 16), "fp16")),
        "input_precision": ("ieee", "tf32"),
        "max_num_imprecise_acc": (0, 32),
        "lhs_scale rhs_scale": (Block((16, 1), "uint8", (126, 127, 128)), None),
        "lhs_format rhs_format": ("fp16", "e2m1"),
        "asm constraints": ("",),
        "args": ((Block((8,)), Block((8,))), ()),
        "pack": (1, 2),
        "scalar_fn": (tl.standard._sum_combine,),
        "desc": MATRICES,
        "base": (Pointers((4, 8)), Pointers(())),
        "strides": ([8, 1], [1, 8]),
        "block_shape": ([4, 4], [2, 8]),
        "padding_option": ("zero", "nan"),
        "order": ([1, 0], [0, 1]),
        "boundary_check": ((), (0,)),
        "slices": ((None, slice(None)), (slice(None), None), (slice(None), slice(None)), None, slice(None), 0, slice(0, 1)),
    }
)
"""The forms of an argument, by its name. What has a default is left out, too, and is None where that is the default."""

OWN: dict[str, dict[str, tuple[Any, ...]]] = _by_name(
    {
        "abs add sub mul cdiv maximum minimum": {"x": (*FEW, *INTEGERS, 2), "y": (*FEW, *INTEGERS, 3)},
        "fma clamp": dict.fromkeys(("x", "y", "z", "min", "max"), (*FEW, 1.5)),
        "max min argmax argmin": {"input": tuple(Different(*each) for each in _SHAPED)},
        "softmax": {"x": FLOATS[1:]},
        "where": {"x": (*FEW, 1, 2.5), "y": (*FEW, 3)},
        "umulhi": {"x": INTEGERS, "y": INTEGERS},
        "fdiv div_rn": {"x": FLOATS, "y": (*FLOATS, 2.0)},
        "xor_sum reduce_or": {"input": INTEGERS},
        "reshape view": {"input": (Block((4, 8)), Block((32,)), Block((1,)), Block(()))},
        "broadcast_to": {
            "input": (Block(()), Block((1,)), Block((1, 4)), Block((8, 1))),
            "shape": ((4,), (1,), (8, 4), (2, 8, 4), (3,)),
        },
        "expand_dims": {"axis": (*AXES, (0, 1), (-1, 0), [0, 3], (0, 0))},
        "gather": {"index": tuple(Block(shape, "int32", (0, 1)) for shape in (*SHAPES, (4, 2), (2, 8)))},
        "histogram": {"input": INTEGERS, "mask": (*MASKS, Block((4, 8), "int32", (0, 1)))},
        "full zeros": {
            "shape": ((), (1,), (8,), (4, 8), [4, 8], (3,)),
            "value": (0, -1.5, True, Block(()), Block((8,))),
        },
        "arange": {"start": (0, 8, -8), "end": (8, 16, 11)},
        "program_id num_programs": {"axis": (-1, 0, 1, 2, 3)},
        "static_assert": {"cond": FLAGS},
        "static_print": {"values": (("a word", 1),)},
        "device_print": {"args": ((Block((8,)),), ())},
        "dot": {"input": SQUARES, "other": SQUARES},
        "dot_scaled": {"lhs": (Block((16, 32), "fp16"),), "rhs": (Block((32, 16), "fp16"),)},
        "uint_to_uniform_float": {"x": (Block((8,), "uint32"), Block((8,), "int32"))},
        "pair_uniform_to_normal": {"u1": (Block((8,), "fp32", (0.25, 0.5)),), "u2": (Block((8,)), Block(()))},
        "make_tensor_descriptor": {"shape": ([4, 8],)},
        "make_block_ptr": {"shape": ([4, 8],), "offsets": ([0, 0], [2, 4])},
        "inline_asm_elementwise": {"args": ([Block((8,))],)},
        "to_tensor": {"x": (*FEW, 1, 2.5, True)},
        "cast tensor.to": {"dtype": (tl.float16, tl.int32, tl.float64, tl.int1)},
        "load_tensor_descriptor store_tensor_descriptor descriptor.load descriptor.store": {
            "self": MATRICES,
            "offsets": OFFSETS,
            "value": (Block((4, 8)), Block(())),
        },
        "descriptor.atomic_add descriptor.atomic_min descriptor.atomic_max": {"self": MATRICES, "offsets": OFFSETS},
        "descriptor.atomic_and descriptor.atomic_or descriptor.atomic_xor": {"self": MATRICES, "offsets": OFFSETS},
        "descriptor.gather descriptor.scatter": {"self": MATRICES, "args": ((Block((8,), "int32", (0, 1, 5)), 0),)},
    }
)
"""The forms of a function's own arguments."""


def names() -> list[str]:
    """The names of all functions, without methods of a tensor that are functions, too."""
    of_descriptors = inspect.getmembers(tl.core.tensor_descriptor_base, tl.core.is_builtin)
    return [name for name in functions.language() if functions.reason(name) != functions.ALIAS] + [
        f"descriptor.{name}" for name, _ in of_descriptors
    ]


def found(name: str) -> Any:
    holder, _, plain = name.rpartition(".")
    holders = {"": (tl, tl.math), "tensor": (tl.tensor,), "descriptor": (tl.core.tensor_descriptor_base,)}[holder]
    return next(getattr(holder, plain) for holder in holders if hasattr(holder, plain))


def parameters(name: str) -> list[inspect.Parameter]:
    """The parameters of a function, without those that the compiler adds."""
    return _PARAMETERS[name]


def _parameters_of(name: str) -> list[inspect.Parameter]:
    function = found(name)
    given = inspect.signature(getattr(function, "fn", function)).parameters.values()
    return [each for each in given if each.name not in _HIDDEN]


_PARAMETERS = {name: _parameters_of(name) for name in names()}
"""Parameters by function, as they are before Triton's interpreter wraps functions in this process."""


def forms(name: str, parameter: inspect.Parameter) -> list[Any]:
    """The forms of one argument.

    Raises:
        KeyError: nobody has named them.
    """
    own = OWN.get(name, {})
    known = own[parameter.name] if parameter.name in own else FORMS[parameter.name]
    return [*known, *[None] * (parameter.default is None)]


def cases(name: str, takes: list[inspect.Parameter]) -> Iterator[Case]:
    """Cases of a function in which any two forms of two arguments meet, and any three if it reduces or scans.

    Args:
        takes: its parameters.
    """
    ways = ["by place", "by name"] + ["as a method"] * ("." not in name and hasattr(tl.tensor, name))
    choices = [forms(name, each) + [_OMITTED] * (each.default is not each.empty) for each in takes]
    reduces = any(each.name in ("keep_dims", "reverse") for each in takes)
    for number, values in enumerate(_meeting(choices, 3 if reduces else 2)):
        given = {each.name: value for each, value in zip(takes, values, strict=True) if value is not _OMITTED}
        yield Case(name, ways[number % len(ways)], given)


def _meeting(choices: list[list[Any]], together: int) -> Iterator[list[Any]]:
    """Choices, one of each list, such that any of so many lists meet in one of them."""
    rows = list(itertools.product(*(range(len(each)) for each in choices)))
    random.Random(1).shuffle(rows)
    met: set[Any] = set()
    for row in rows:
        groups = set(itertools.combinations(enumerate(row), min(together, len(row))))
        if not groups <= met:
            met |= groups
            yield [each[number] for each, number in zip(choices, row, strict=True)]


@triton.jit
def call_kernel(memories, results, BODY: tl.constexpr):
    BODY(memories, results)


def outcome(case: Case, takes: list[inspect.Parameter], following: Any = nullcontext) -> list[Any]:
    """The results of a case in each program: the dtype, shape and numbers of each result, and what memory holds after it.

    Args:
        takes: the parameters of its function.
        following: of the memories, a context in which the launch runs.
    """
    blocks = list(_blocks(case.arguments.values()))
    memories = tuple(torch.from_numpy(each.bits(seed)) for seed, each in enumerate(blocks))
    room = tuple(torch.zeros(PROGRAMS * _ROOM, dtype=torch.int64) for _ in range(_RESULTS))
    described: list[tuple[str, list[int]]] = []

    def body(pointers: Any, results: Any) -> None:
        program = tl.program_id(0)
        made = (each.made(pointer + program * int(np.prod(each.shape))) for each, pointer in zip(blocks, pointers, strict=True))
        given = {name: _given(value, case.way == "by name", made) for name, value in case.arguments.items()}
        found = list(_tensors(_called(case, takes, given)))
        described[:] = [_stored(each, memory, program) for each, memory in zip(found, results, strict=False)]

    with following(memories):
        call_kernel[(PROGRAMS,)](memories, room, BODY=body)
    if case.function.startswith("atomic") and case.arguments.get("mask") is not None:
        described.clear()  # a lane that the mask leaves out returns anything
    return [
        *([dtype, shape, _listed(memory, dtype, shape)] for (dtype, shape), memory in zip(described, room, strict=False)),
        *(
            numbers(memory.numpy(), each.dtype).tolist()
            for each, memory in zip(blocks, memories, strict=True)
            if isinstance(each, Pointers | Matrix)
        ),
    ]


def _blocks(values: Any) -> Iterator[Block]:
    for value in values:
        if isinstance(value, Block):
            yield value
        elif isinstance(value, tuple | list):
            yield from _blocks(value)


def _given(value: Any, by_name: bool, made: Iterator[Any]) -> Any:
    if isinstance(value, Block):
        return next(made)
    if isinstance(value, tuple | list):
        return type(value)(_given(each, by_name, made) for each in value)
    return tl.constexpr(value) if by_name and isinstance(value, int | float | str) else value


def _called(case: Case, takes: list[inspect.Parameter], given: dict[str, Any]) -> Any:
    function, places, named = found(case.function), list[Any](), dict[str, Any]()
    for place, parameter in enumerate(takes):
        if parameter.name not in given:
            continue
        value = given[parameter.name]
        if parameter.kind is parameter.VAR_POSITIONAL:
            places += value if case.way != "by name" else [value]
        elif parameter.kind is parameter.KEYWORD_ONLY or len(places) < place or (case.way == "by name" and place):
            named[parameter.name] = value
        else:
            places.append(value)
    if case.way == "as a method":
        function = getattr(places.pop(0), case.function)
    return function(*places, **named)


def _tensors(value: Any) -> Iterator[Any]:
    if isinstance(value, tl.tensor):
        yield value
    elif isinstance(value, tuple | list | tl.tuple):
        for each in value:
            yield from _tensors(each)


def _stored(result: Any, memory: Any, program: Any) -> tuple[str, list[int]]:
    """The dtype and shape of a result, which is stored."""
    shape, dtype = [int(size) for size in result.shape], result.dtype
    if not dtype.is_ptr():
        bits = result.to(tl.uint8) if dtype.is_int1() else result
        first = memory.to(tl.pointer_type(bits.dtype), bitcast=True) + program * _ROOM
        count = int(np.prod(shape))
        tl.store(first + tl.arange(0, count), tl.reshape(bits, [count])) if shape else tl.store(first, bits)
    return str(dtype), shape


def _listed(memory: torch.Tensor, dtype: str, shape: list[int]) -> list[Any]:
    """The numbers of a result, [programs, elements]; NaN is None."""
    if dtype.startswith("pointer"):
        return []
    bits = memory.numpy().view(unsigned(dtype))[: PROGRAMS * _ROOM].reshape(PROGRAMS, _ROOM)[:, : int(np.prod(shape))]
    return [[None if number != number else number for number in row] for row in numbers(bits.copy(), dtype).tolist()]


def by_numpy(case: Case) -> list[Any]:
    """What `outcome` is to give of a case of `reduced.BY_NUMPY`.

    Raises:
        Exception: compiled code has no result.
    """
    block, *rest = case.arguments.values()
    named = dict(zip(list(case.arguments)[1:], rest, strict=True))
    axis = named.get("axis", 0 if case.function.startswith("cum") else None)
    if axis is not None and not -len(block.shape) <= axis < len(block.shape):
        raise ValueError(f"axis {axis} of {block}")
    of_programs = [reduced.BY_NUMPY[case.function](each, **named) for each in numbers(block.bits(0), block.dtype)]
    dtype = "int32" if case.function.startswith("arg") else (named.get("dtype") or dtype_of(block.dtype)).name
    return [
        ["int32" if place else dtype, list(parts[0].shape), [part.reshape(-1).tolist() for part in parts]]
        for place, parts in enumerate(zip(*of_programs, strict=True))
    ]


def outcomes(wanted: Collection[str], *, follow: bool = False, judge: bool = False) -> dict[str, dict[str, Any]]:
    """By function and case, what `outcome` gives, or the error as a text.

    Args:
        wanted: the functions.
        follow: in exact mode.
        judge: what it is to give: by NumPy where there is such a function, else by this process's interpreter.
    """
    from attn_fuzz.exact import followed_call
    from attn_fuzz.exact.quantities import Quantities
    from attn_fuzz.interpreted.together import launches

    def following(memories: tuple[torch.Tensor, ...]) -> Any:
        return followed_call.following(followed_call.FollowedCall(Quantities({}), memories) if follow else None)

    # a launch replaces functions by others, whose signatures say nothing
    of_functions = {name: parameters(name) for name in wanted}
    known: dict[str, dict[str, Any]] = {}
    for name, takes in of_functions.items():
        known[name] = {}
        for case in cases(name, takes):
            launches.apart.clear()  # what was refused together is tried together again
            try:
                of_numpy = judge and name in reduced.BY_NUMPY
                known[name][str(case)] = by_numpy(case) if of_numpy else outcome(case, takes, following)
            except Exception as error:
                known[name][str(case)] = f"{type(error).__name__}: {error}"
    return known


def prepare_judge() -> None:
    """Have Triton's interpreter as it comes replace the language once, and update atomically what a block says.

    To replace the language takes most of a launch. Atomic updates take a block that was broadcast for another (Triton 3.8).
    """
    from triton.runtime import interpreter

    patch, patched = interpreter._patch_lang, set[int]()
    update = interpreter.InterpreterBuilder.create_atomic_rmw

    def patch_lang(function: Any) -> Any:
        if id(function.__globals__) not in patched:
            patched.add(id(function.__globals__))
            patch(function)
        return interpreter._LangPatchScope()

    def create_atomic_rmw(builder: Any, op: Any, *operands: Any) -> Any:
        for block in operands[:3]:
            block.data = np.ascontiguousarray(block.data)
        return update(builder, op, *operands)

    interpreter._patch_lang, interpreter.InterpreterBuilder.create_atomic_rmw = patch_lang, create_atomic_rmw
