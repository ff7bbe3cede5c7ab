"""The AITER that is installed, and access to its functions."""

import importlib
import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from attn_contract import UnsupportedError

from attn_optimized.aiter_adapter.signatures import (
    FLOAT8,
    FUNCTIONS,
    Signature,
    of_callable,
    read_fn_architectures,
    read_source,
    read_unified_traits,
)

RECORDED = ("0.1.7", "2026-08")
"""Versions whose signatures are recorded here, oldest first, so that any machine can use them."""

_NEWER = "an AITER whose signature has it, or TRITON_ATTN"


@dataclass(frozen=True, kw_only=True)
class Aiter:
    """An AITER, or the reason why there is none.

    Args:
        missing: None, or why it cannot be used here, in words.
        version: as its package says; None for a checkout.
        location: folder of the package; None of a recorded one.
        signatures: the signature of each function that it has, by name.
        unified_traits: the names in `signatures.UNIFIED_TRAITS` that are true of it.
        fn_architectures: those whose own float8 type it takes to be e4m3fn; that of the others is e4m3fnuz.
        functions: the functions that are loaded already. The others are imported when they are first called.
    """

    missing: str | None = None
    version: str | None = None
    location: Path | None = None
    signatures: Mapping[str, Signature] = field(default_factory=dict)
    unified_traits: frozenset[str] = frozenset()
    fn_architectures: frozenset[str] = frozenset()
    functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.missing or f"AITER {self.version or f'at {self.location}'}"

    def has(self, function: str, argument: str) -> bool:
        return function in self.signatures and argument in self.signatures[function]

    def call(self, function: str, /, **arguments: Any) -> Any:
        """Call a function of AITER by keyword.

        Raises:
            UnsupportedError: there is no AITER, or no such function; its signature lacks one of the arguments, or wants one
                that is not given; or it does not import here.
        """
        signature = self._signature_of(function)
        if lacking := [name for name in arguments if name not in signature]:
            raise UnsupportedError(f"AITER's {function}", ", ".join(lacking), f"no such argument in {self}", _NEWER)
        wanted = [name for name in signature.arguments if name not in signature.defaults and name not in arguments]
        if wanted:
            reason = f"{self} wants this argument, which nothing here knows"
            raise UnsupportedError(f"AITER's {function}", ", ".join(wanted), reason, "an older AITER, or TRITON_ATTN")
        return self.load(function)(**arguments)

    def load(self, function: str) -> Callable[..., Any]:
        """A function of AITER, imported if necessary, so that a caller of several functions can make sure that all are there.

        Raises:
            UnsupportedError: there is no AITER, or no such function, or it does not import here.
        """
        signature = self._signature_of(function)
        if function in self.functions:
            return self.functions[function]
        try:
            return getattr(importlib.import_module(signature.module), function)
        except Exception as error:  # AITER's import raises anything, from AssertionError to RuntimeError
            raise UnsupportedError("AITER", function, _does_not_import(error), "TRITON_ATTN") from error

    def _signature_of(self, function: str) -> Signature:
        if self.missing is not None:
            raise UnsupportedError("AITER", function, self.missing, "TRITON_ATTN")
        if function not in self.signatures:
            raise UnsupportedError("AITER", function, f"{self} has no such function", "TRITON_ATTN")
        return self.signatures[function]


def find_aiter() -> Aiter:
    """The AITER that this Python would import, without importing it: a wheel or a checkout.

    Its signatures are read from the source, or from the functions where they are imported already.
    """
    try:
        spec = importlib.util.find_spec("aiter")
    except ValueError:  # in sys.modules without a spec
        spec = None
    if spec is None:
        return Aiter(missing="AITER is not installed: pip install 'attn-parity[aiter]', or build ROCm/aiter")
    folder = Path(next(iter(spec.submodule_search_locations or ()), "."))
    if spec.origin is None:
        return Aiter(missing=f"AITER is not installed: the folder {folder} is no package; if it is a clone, pip install -e it")
    if spec.submodule_search_locations is None or not (folder / "ops").is_dir():
        return Aiter(
            missing=f"the package `aiter` at {spec.origin} is not AMD's but PyPI's unrelated one, for asynchronous iterators: "
            "uninstall it, then pip install 'attn-parity[aiter]'"
        )
    signatures = {}
    for function, modules in FUNCTIONS.items():
        found = [signature for module in modules if (signature := _signature(folder, module, function)) is not None]
        if found:
            signatures[function] = found[0]
    if not signatures:
        return Aiter(missing=f"the AITER at {folder} has none of {', '.join(FUNCTIONS)}: it is built without attention")
    unified = signatures.get("unified_attention")
    return Aiter(
        version=_version(folder),
        location=folder,
        signatures=signatures,
        unified_traits=frozenset() if unified is None else read_unified_traits(_file(folder, unified.module)),
        fn_architectures=read_fn_architectures(_file(folder, FLOAT8)),
    )


def import_aiter() -> Aiter:
    """The same AITER after importing its functions, which may compile kernels and needs ROCm; `missing` says what failed."""
    aiter = find_aiter()
    for signature in aiter.signatures.values():
        try:
            importlib.import_module(signature.module)
        except Exception as error:  # see Aiter.call
            return replace(aiter, missing=_does_not_import(error))
    return find_aiter()


def recorded(version: str) -> Aiter:
    """An AITER of `RECORDED`: its signatures can be read, and no function can be called.

    Raises:
        ValueError: there is no record of that version.
    """
    if version not in RECORDED:
        raise ValueError(f"AITER: got version {version!r}, expected one of {', '.join(RECORDED)}")
    record = json.loads(files("attn_optimized.aiter_adapter").joinpath(f"recorded-{version}.json").read_text(encoding="utf-8"))
    return Aiter(
        version=record["version"],
        signatures={
            entry["function"]: Signature(entry["function"], entry["module"], tuple(entry["arguments"]), entry["defaults"])
            for entry in record["signatures"]
        },
        unified_traits=frozenset(record["unified_traits"]),
        fn_architectures=frozenset(record["fn_architectures"]),
    )


def _signature(folder: Path, module: str, function: str) -> Signature | None:
    imported = getattr(sys.modules.get(module), function, None)
    if imported is not None and (signature := of_callable(imported, module, function)) is not None:
        return signature
    return read_source(_file(folder, module), module, function)


def _file(folder: Path, module: str) -> Path:
    return folder.joinpath(*module.split(".")[1:]).with_suffix(".py")


def _version(folder: Path) -> str | None:
    """The release that a folder belongs to: a checkout may hide another one that is installed."""
    try:
        release = importlib.metadata.distribution("amd-aiter")
    except importlib.metadata.PackageNotFoundError:
        return None
    return release.version if Path(str(release.locate_file("aiter"))).resolve() == folder.resolve() else None


def _does_not_import(error: Exception) -> str:
    return f"AITER does not import here: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
