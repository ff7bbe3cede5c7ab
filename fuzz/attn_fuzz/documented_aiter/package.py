"""An AITER on disk, as an installation has it: a package whose functions have drawn signatures and call the double."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attn_optimized.aiter_adapter import Signature
from attn_optimized.aiter_adapter.signatures import UNKNOWN

MODULES = {
    "flash_attn_varlen_func": ("aiter.ops.mha",),
    "unified_attention": ("aiter.ops.triton.attention.unified_attention", "aiter.ops.triton.unified_attention"),
    "paged_attention_v1": ("aiter.ops.attention",),
    "pa_fwd_asm": ("aiter.ops.attention",),
}
"""Where AITER has its functions, the newest module first."""


@dataclass(frozen=True)
class Function:
    """One function of the package.

    Attributes:
        signature: as Python sees it. Its arguments and defaults are those of the double, or fewer.
        computed: the names of defaults that are no literals in the source.
        num_keywords: how many of the last arguments are given by keyword alone.
    """

    signature: Signature
    computed: frozenset[str]
    num_keywords: int

    @property
    def read(self) -> Signature:
        """The signature as the source tells it."""
        defaults = {name: UNKNOWN if name in self.computed else value for name, value in self.signature.defaults.items()}
        return replace(self.signature, defaults=defaults)

    @property
    def shown(self) -> str:
        """The signature as it is told to a reader."""
        return f"{self.signature.module}.{self.signature.function}({', '.join(self._words('...'))})"

    def text(self) -> str:
        """The source of the function."""
        words = self._words("(lambda: {})()")
        if self.num_keywords:
            words.insert(len(words) - self.num_keywords, "*")
        name = self.signature.function
        return f"def {name}({', '.join(words)}):\n    return called({name!r}, locals())\n"

    def _words(self, computed: str) -> list[str]:
        """The arguments with their defaults; `computed` is how a default is told that is no literal."""
        defaults = {
            name: computed.format(repr(value)) if name in self.computed else repr(value)
            for name, value in self.signature.defaults.items()
        }
        return [f"{name}={defaults[name]}" if name in defaults else name for name in self.signature.arguments]


def newest(functions: list[Function]) -> dict[str, Function]:
    """By the name of a function: the function in the newest of its modules."""
    found: dict[str, Function] = {}
    for name, modules in MODULES.items():
        there = [
            one for module in modules for one in functions if (one.signature.function, one.signature.module) == (name, module)
        ]
        if there:
            found[name] = there[0]
    return found


def drawn(signatures: Mapping[str, Signature], choose: random.Random) -> list[Function]:
    """Some functions of the double, in one or all of the modules where AITER has or had them."""
    return [
        _function(signatures[name], module, choose)
        for name, modules in MODULES.items()
        if choose.random() < 0.9
        for module in choose.choice([modules, *((module,) for module in modules)])
    ]


def _function(signature: Signature, module: str, choose: random.Random) -> Function:
    dropped = {name for name in signature.defaults if choose.random() < 0.1}
    arguments = tuple(name for name in signature.arguments if name not in dropped)
    defaults = {name: _tuple(value) for name, value in signature.defaults.items() if name not in dropped}
    computed = frozenset(name for name in defaults if choose.random() < 0.1)
    num_keywords = choose.choice((0, choose.randint(0, len(arguments))))
    return Function(Signature(signature.function, module, arguments, defaults), computed, num_keywords)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def write(folder: Path, functions: list[Function], *, broken: bool = False, version: str | None = None) -> None:
    """Write the package into a folder, as a release if it has a version. Its modules do not import if they are broken."""
    if version is not None:
        released = folder / f"amd_aiter-{version}.dist-info"
        released.mkdir()
        (released / "METADATA").write_text(f"Metadata-Version: 2.1\nName: amd-aiter\nVersion: {version}\n", encoding="utf-8")
    for module in {function.signature.module for function in functions} | {"aiter.ops.norm"}:
        path = folder.joinpath(*module.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        for parent in path.relative_to(folder).parents:
            if parent.name:
                (folder / parent / "__init__.py").touch()
        path.write_text("\n\n".join(_texts(module, functions, broken)), encoding="utf-8")


def _texts(module: str, functions: list[Function], broken: bool) -> Iterator[str]:
    """The source of a module. A method, and a function within another one, are no functions of the module."""
    yield "from attn_fuzz.documented_aiter.package import called"
    if broken:
        yield "assert False, 'there is no GPU'"
    yield f"class Other:\n    def {next(iter(MODULES))}(self): ..."
    yield "def other():\n    def unified_attention(): ..."
    yield from (function.text() for function in functions if function.signature.module == module)


def called(function: str, arguments: Mapping[str, Any]) -> Any:
    """What a function of the package does: call the double."""
    from attn_fuzz.documented_aiter import stand_in

    return stand_in().functions[function](**arguments)
