"""A kernel of one's own: executed with given constants, and with symbols of its parameters' names for everything else."""

import ast
from collections.abc import Mapping
from typing import Any

from attn_proofs.extract import Extraction
from attn_proofs.sources import Sources
from attn_proofs.values import Pointer, integers, symbol


def run_kernel(
    place: str,
    constants: Mapping[str, Any],
    tensors: Mapping[str, str],
    floats: tuple[str, ...] = (),
    *,
    sources: Sources | None = None,
) -> Extraction:
    """Execute a `triton.jit` function.

    The program's indices are the integers `program_0`, `program_1` and `program_2`. A number is a 32-bit integer of the
    parameter's name, and a tensor is the memory of that name (`attn_proofs.values.memory`).

    Args:
        place: the kernel's dotted name, `my_module.my_kernel`. The module is parsed, not imported.
        constants: a value for each `tl.constexpr`.
        tensors: the type of each pointer's elements: "int32", "int64", "bool" or "float".
        floats: parameters that are float numbers.
        sources: the modules, if some are changed.

    Raises:
        UnsupportedConstructError: the source has a construct that the extractor does not understand.
    """
    grid = tuple(zip(integers("program_0 program_1 program_2"), integers("programs_0 programs_1 programs_2"), strict=True))
    extraction = Extraction(sources or Sources(), grid=grid)
    node = extraction.sources.function(place).node
    assert isinstance(node, ast.FunctionDef)
    arguments: dict[str, Any] = dict(constants)
    for parameter in (argument.arg for argument in node.args.args):
        if parameter in tensors:
            arguments[parameter] = Pointer(parameter, tensors[parameter], 0)
        elif parameter not in constants:
            arguments[parameter] = symbol(parameter, "float" if parameter in floats else "int32")
    extraction.call(place, **arguments)
    return extraction
