"""Compare a saved launch with its files, with the launch that is planned here, and with its arguments."""

import json
from pathlib import Path

import torch
from attn_amdgcn import AmdgcnError, Program, load, prepare
from attn_binaries.execution import OtherCodeError
from attn_binaries.saved import SavedArgument, SavedFileError, SavedLaunch, check_files
from attn_binaries.saving import plain
from attn_fuzz.emulated.emulation import Inputs
from attn_fuzz.inputs import MAX_QUOTE
from attn_fuzz.text import one_line
from attn_optimized.kernel_call import KernelCall
from triton._utils import canonicalize_dtype

NARROW_BYTES = 1 << 31
"""A buffer below this size has a "tt.pointer_range" of 32 bits."""


def checked_program(folder: Path, launch: SavedLaunch) -> Program:
    """The program of a saved launch, compared with launches.json."""
    try:
        kernel = load(check_files(folder, launch))
        program = prepare(kernel)
    except AmdgcnError as error:
        raise SavedFileError(f"{folder / launch.assembly}: {error}") from None
    if launch.kernarg is None:
        raise SavedFileError(f"{launch.call}: kernarg: got null, expected the layout of the arguments of {launch.architecture}")
    places = [(place.offset, place.size, place.kind) for place in launch.kernarg.arguments]
    own = [place.name for place in launch.kernarg.arguments if not place.kind.startswith("hidden_")]
    for what, stated, found in (
        ("architecture", launch.architecture, kernel.architecture),
        ("name", launch.name, kernel.name),
        ("threads_per_block", launch.threads_per_block, kernel.threads),
        ("kernarg.bytes", launch.kernarg.bytes, kernel.argument_bytes),
        ("kernarg.arguments", places, [(each.offset, each.size, each.kind) for each in kernel.arguments]),
        ("arguments", [argument.name for argument in launch.arguments], own),
    ):
        if stated != found:
            stated, found = (one_line(str(value), MAX_QUOTE) for value in (stated, found))
            raise SavedFileError(f"{launch.call}: {what}: launches.json has {stated}, and {launch.assembly} has {found}")
    return program


def check_plan(launch: SavedLaunch, like: KernelCall) -> None:
    """Compare the constants of a saved launch with those of the launch that is planned here.

    Raises:
        SavedFileError: another constant, argument or type.
    """
    where = f"{launch.architecture} {launch.call}"
    for argument in launch.arguments:
        if (here := _type_here(argument, like)) != argument.type:
            raise SavedFileError(f"{where}: {argument.name} was saved as {argument.type}, and is {here} here")
    names = {argument.name for argument in launch.arguments}
    given = like.launch.constants | like.arguments
    constants = {name: json.loads(json.dumps(plain(value))) for name, value in given.items() if name not in names}
    for name in sorted({*constants, *launch.constants}):
        stated, here = (values.get(name, "no constant") for values in (launch.constants, constants))
        if stated != here:
            words = [one_line(str(value), MAX_QUOTE) for value in (name, stated, here)]
            raise SavedFileError("{}: {} was saved as {}, and is {} here".format(where, *words))


def _type_here(argument: SavedArgument, like: KernelCall) -> str:
    value = like.arguments.get(argument.name)
    if isinstance(value, torch.Tensor):
        return f"*{canonicalize_dtype(value.dtype)}"
    is_there = argument.may_be_null if argument.type.startswith("*") else value is not None
    return argument.type if is_there else "no argument"


def check_attributes(launch: SavedLaunch, inputs: Inputs) -> None:
    """Check that the arguments of a small launch have the attributes on which the code relies.

    Raises:
        OtherCodeError: the code is not made for such arguments.
    """
    for argument, value in zip(launch.arguments, inputs.arguments, strict=True):
        number = value[1] if isinstance(value, tuple) else value
        if isinstance(number, int) and number % argument.attributes.get("tt.divisibility", 1):
            raise OtherCodeError(f"{argument.name} is {number}, and the code needs {argument.attributes}")
        size = len(inputs.buffers[value[0]]) if isinstance(value, tuple) else 0
        if "tt.pointer_range" in argument.attributes and size >= NARROW_BYTES:
            raise OtherCodeError(f"{argument.name} has a buffer of {size} bytes, and the code needs {argument.attributes}")
