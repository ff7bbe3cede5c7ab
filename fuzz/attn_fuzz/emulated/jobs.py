"""Messages between a fuzzing process and the process that compiles for it."""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

architecture: ContextVar[str | None] = ContextVar("architecture", default=None)
"""For which launches are compiled now; None where none are. Host code that asks for its GPU may be told so."""


@dataclass(frozen=True)
class Pointer:
    """A tensor, as far as the compiler looks at one.

    Attributes:
        dtype: torch's.
        is_aligned: True if its address is a multiple of 16.
        bytes: the number of bytes of the whole storage. Below 2 GiB AMD's compiler addresses it by 32 bits.
    """

    dtype: Any
    is_aligned: bool
    bytes: int

    def data_ptr(self) -> int:
        return 0 if self.is_aligned else 1

    def ptr_range(self) -> int:
        return self.bytes


class Job(NamedTuple):
    """A launch to compile.

    Attributes:
        module, kernel: the module of the kernel, and its name there.
        architecture: such as "gfx942".
        arguments: by the kernel's names: pointers, numbers and None, then constants and the compiler's options.
        modules: what returns modules that have the kernel, as `pkgutil.resolve_name` takes it. None: `module` can be imported.
    """

    module: str
    kernel: str
    architecture: str
    arguments: dict[str, Any]
    modules: str | None = None


class Compiled(NamedTuple):
    """A compiled kernel, with all that its launch needs.

    Attributes:
        text: the assembly.
        names: the arguments that are no constants, in the kernel's order.
        scratch: the number of pointers to scratch memory that follow them, and that may be null.
        lds_bytes: dynamic LDS of a workgroup.
    """

    text: str
    names: tuple[str, ...]
    scratch: int
    lds_bytes: int
