"""Signatures of AITER's functions, read from its source, which needs neither a GPU nor a compiler, or from a function."""

import ast
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FUNCTIONS = {
    "flash_attn_varlen_func": ("aiter.ops.mha",),
    "unified_attention": ("aiter.ops.triton.attention.unified_attention", "aiter.ops.triton.unified_attention"),
    "paged_attention_v1": ("aiter.ops.attention",),
    "pa_fwd_asm": ("aiter.ops.attention",),
}
"""The functions that are called here, and the modules that hold or held them, the newest first."""
UNIFIED_TRAITS = {
    "rounded tiles": "next_power_of_2(block_size)",
    "tiles of whole blocks": "TILE_SIZE % block_size == 0",
    "the device's own float8": "assert kv_cache_dtype in (",
}
"""Properties of unified_attention that no signature shows, each with the text of its source that shows it.

A tile is a block, rounded up to a power of two (ROCm/aiter#2393). Where keys are split, a tile must hold whole blocks, and a
float8 cache must be of the type that AITER takes for the device's own.
"""
FLOAT8 = "aiter.ops.triton.utils.types"
"""The module that names the architectures whose own float8 is e4m3fn."""


class _Unknown:
    def __repr__(self) -> str:
        return "..."


UNKNOWN = _Unknown()
"""A default that is no literal in the source."""


@dataclass(frozen=True)
class Signature:
    """Arguments of one function of AITER, in order; `defaults` of those that have one, UNKNOWN where it is no literal."""

    function: str
    module: str
    arguments: tuple[str, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def __contains__(self, argument: str) -> bool:
        return argument in self.arguments

    def __str__(self) -> str:
        words = [f"{name}={self.defaults[name]!r}" if name in self.defaults else name for name in self.arguments]
        return f"{self.module}.{self.function}({', '.join(words)})"


@functools.cache
def read_source(path: Path, module: str, function: str) -> Signature | None:
    """The signature of a function that a source file defines at its top level; None if there is none to be read."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            positional = [*node.args.posonlyargs, *node.args.args]
            # defaults belong to the last ones
            pairs = list(zip(positional[::-1], node.args.defaults[::-1], strict=False))[::-1]
            pairs += list(zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True))
            defaults = {argument.arg: _literal(default) for argument, default in pairs if default is not None}
            names = tuple(argument.arg for argument in (*positional, *node.args.kwonlyargs))
            return Signature(function, module, names, defaults)
    return None


def read_unified_traits(path: Path) -> frozenset[str]:
    """The names of UNIFIED_TRAITS whose text a source file of unified_attention has; none if it cannot be read."""
    source = _text(path)
    return frozenset(name for name, text in UNIFIED_TRAITS.items() if text in source)


def read_fn_architectures(path: Path) -> frozenset[str]:
    """The architectures that the source file of FLOAT8 names."""
    return frozenset(re.findall(r"gfx\w+", _text(path)))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def of_callable(function: Callable[..., Any], module: str, name: str) -> Signature | None:
    """The signature of a function of this process; None if it has none that Python can see."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None
    defaults = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    return Signature(name, module, tuple(parameters), defaults)


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return UNKNOWN
