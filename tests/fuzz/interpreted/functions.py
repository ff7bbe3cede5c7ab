"""The checks of each function of Triton's language, or the reason why it has none."""

import inspect
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton.language as tl
from attn_fuzz.interpreted import libdevice
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from tests.fuzz.interpreted import blocks, casts, device_library, memory, operators

MOVES = "it moves elements"
NO_NUMBER = "it has no number"
COMPOSED = "it is made of functions that are checked"
LIMIT = "a limit of this tool, by its name: test_libdevice.py"
TYPE = "a type: the functions that take it are checked"
ALIAS = "a tensor's method, for the function of this name"


def language() -> list[str]:
    """Names of all functions of `tl`, `tl.math` and a tensor."""
    found = {name for module in (tl, tl.math) for name, member in inspect.getmembers(module) if _is_function(member)}
    found |= {f"tensor.{name}" for name, member in inspect.getmembers(tl.tensor) if tl.core.is_builtin(member)}
    return sorted(found)


def names() -> list[str]:
    """The functions of the language, and those of libdevice under "libdevice."."""
    return [*language(), *(f"libdevice.{name}" for name in device_library.names())]


def _is_function(member: Any) -> bool:
    return tl.core.is_builtin(member) or isinstance(member, JITFunction | InterpretedFunction)


def _all_casts() -> None:
    for source, target in casts.PAIRS:
        casts.cast(source, target)


def _casts_toward_zero() -> None:
    for source, target in casts.TOWARD_ZERO:
        casts.toward_zero(source, target)


def _erf(x: np.ndarray) -> np.ndarray:
    return torch.erf(torch.from_numpy(x)).numpy()


_OPERATORS = [
    f"__{side}{name}__"
    for name, side in itertools.product(
        (*operators.ARITHMETIC, "truediv", "floordiv", "mod", *operators.BITWISE, "lshift", "rshift", *operators.COMPARISONS),
        ("", "r"),
    )
]
_UNARY = {
    "exp": (np.exp, 2e-6),
    "exp2": (np.exp2, 2e-6),
    "log": (np.log, 2e-6),
    "log2": (np.log2, 2e-6),
    "sin": (np.sin, 2e-6),
    "cos": (np.cos, 2e-6),
    "sqrt": (np.sqrt, 2e-7),
    "sqrt_rn": (np.sqrt, 0.0),
    "rsqrt": (lambda x: 1 / np.sqrt(x), 4e-7),
    "erf": (_erf, 2e-6),
    "floor": (np.floor, 0.0),
    "ceil": (np.ceil, 0.0),
}

CHECKED: dict[str, Callable[[], None]] = {
    "cast": _all_casts,
    "cast, rtz": _casts_toward_zero,
    **{f"tensor.{name}": operators.binary(name) for name in _OPERATORS},
    "tensor.__neg__": operators.negated,
    "tensor.__invert__": operators.inverted,
    "tensor.__not__": operators.logical,
    "compared, then cast": operators.compared_then_cast,
    "abs": operators.absolute,
    "minimum": operators.smaller_and_larger("minimum"),
    "maximum": operators.smaller_and_larger("maximum"),
    "clamp": operators.clamped,
    "where": operators.chosen,
    "fdiv": operators.divided("fdiv"),
    "div_rn": operators.divided("div_rn"),
    "fma": operators.fused,
    "umulhi": operators.high_bits,
    "full": operators.constants,
    **{name: operators.of_one_number(name, *how) for name, how in _UNARY.items()},
    "max": blocks.largest("max"),
    "min": blocks.largest("min"),
    "argmax": blocks.largest_with_index("max"),
    "argmin": blocks.largest_with_index("min"),
    "sum": blocks.summed,
    "sum, rounded": blocks.rounded_sums,
    "cumsum": blocks.scanned("cumsum"),
    "cumprod": blocks.scanned("cumprod"),
    "reduce": blocks.own_function,
    "xor_sum": blocks.bits_together("xor_sum"),
    "reduce_or": blocks.bits_together("reduce_or"),
    "sort": blocks.sorted_blocks,
    "flip": blocks.moved("flip", lambda x: tl.flip(x, 1), lambda x: x[:, ::-1]),
    "trans": blocks.moved("trans", lambda x: tl.trans(x), lambda x: x.T),
    "reshape": blocks.moved("reshape", lambda x: tl.reshape(x, [16, 64]), lambda x: x.reshape(16, 64)),
    "broadcast_to": blocks.moved(
        "broadcast_to",
        lambda x: tl.broadcast_to(tl.reshape(x, [1, 32, 32]), [2, 32, 32]),
        lambda x: np.stack([x, x]),
    ),
    "join": blocks.moved("join", lambda x, y: tl.join(x, y), lambda x, y: np.stack([x, y], -1), operands=2),
    "split": blocks.moved("split", lambda x: tl.split(tl.reshape(x, [32, 16, 2]))[1], lambda x: x.reshape(32, 16, 2)[..., 1]),
    "interleave": blocks.moved(
        "interleave", lambda x, y: tl.interleave(x, y), lambda x, y: np.stack([x, y], -1).reshape(32, 64), operands=2
    ),
    "gather": blocks.gathered,
    "histogram": blocks.counted,
    "dot": blocks.multiplied,
    "dot_scaled": blocks.scaled,
    "load": memory.loaded_and_stored,
    **{name: memory.updated(name) for name in memory.ATOMIC},
    "atomic_cas": memory.swapped,
    "a descriptor, strides that are arguments": memory.described,
    "types": blocks.made_once,
    **{f"libdevice.{name}": device_library.checked(name) for name in device_library.names() if not libdevice.why_not(name)},
}
"""By the name of a function, or of something else that is checked."""

NOT_CHECKED: dict[str, str] = {
    **dict.fromkeys(("broadcast", "cat", "expand_dims", "permute", "ravel", "squeeze", "unsqueeze", "view"), MOVES),
    **dict.fromkeys(("tensor.__getitem__", "tensor.item"), MOVES),
    **dict.fromkeys(("device_assert", "device_print", "static_assert", "static_print", "debug_barrier", "assume"), NO_NUMBER),
    **dict.fromkeys(("expect_zero", "max_constancy", "max_contiguous", "multiple_of", "to_tensor"), NO_NUMBER),
    **dict.fromkeys(("program_id", "num_programs", "arange", "make_block_ptr", "advance", "tensor.advance"), "it counts"),
    **dict.fromkeys(("cdiv", "sigmoid", "softmax", "swizzle2d", "bitonic_merge", "zeros", "zeros_like", "topk"), COMPOSED),
    **dict.fromkeys(("pair_uniform_to_normal", "philox", "philox_impl", "uint_to_uniform_float"), COMPOSED),
    **dict.fromkeys(("rand", "rand4x", "randint", "randint4x", "randn", "randn4x"), COMPOSED),
    **dict.fromkeys(("add", "sub", "mul"), "the operator, by its name"),
    **dict.fromkeys(("inline_asm_elementwise", "map_elementwise"), LIMIT),
    **dict.fromkeys(("range", "static_range", "condition"), "a loop: test_loops.py"),
    **dict.fromkeys(("block_type", "const", "constexpr", "constexpr_type", "dtype", "pointer_type", "slice"), TYPE),
    **dict.fromkeys(("tensor", "tensor_descriptor", "tensor_descriptor_type", "tuple", "tuple_type", "PropagateNan"), TYPE),
    **dict.fromkeys(
        (f"libdevice.{name}" for name in ("byte_perm", "double2hiint", "double2loint", "hiloint2double", "jn", "yn")),
        "no attention calls it",
    ),
    **dict.fromkeys((f"libdevice.{name}" for name in ("mul24", "mulhi", "rcp64h", "sad")), "no attention calls it"),
    "tensor.T": "tl.trans",
    "tensor.sort": "a stub of Triton's, which returns None in compiled code, too",
    **dict.fromkeys((f"{verb}_tensor_descriptor" for verb in ("make", "load", "store")), "tl.load with other addresses"),
    **dict.fromkeys(("atomic_load", "atomic_store", "atomic_poll"), "tl.load and tl.store, of programs that run one by one"),
    "store": "with tl.load",
    "associative_scan": "with tl.reduce",
    "tensor.to": "tl.cast, with every cast",
    "tensor.logical_and": "with tensor.__not__",
    "tensor.logical_or": "with tensor.__not__",
}


_OF_MODULES = {
    "cuda": LIMIT,
    "hip": LIMIT,
    "descriptor": "tl.load, tl.store and atomics with other addresses; every form of every argument: forms.py",
    "target_info": "it is told no GPU",
}
"""By the modules that have them, and tl.tensor_descriptor."""


def reason(name: str) -> str | None:
    """The reason why a function is not checked, or None."""
    kind, _, own = name.partition(".")
    if kind in _OF_MODULES:
        return _OF_MODULES[kind]
    if kind == "libdevice" and name not in NOT_CHECKED:
        why = libdevice.why_not(own)
        return None if why == libdevice.UNKNOWN else why
    plain = name.removeprefix("tensor.")
    if name != plain and (plain in CHECKED or plain in NOT_CHECKED):
        return ALIAS
    return NOT_CHECKED.get(name)
