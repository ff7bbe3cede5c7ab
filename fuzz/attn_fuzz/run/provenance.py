"""Versions of packages and of our own sources: they decide which cases a seed draws, and which numbers a kernel computes."""

import functools
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from attn_fuzz.targets import registry

DIGITS = 16
_PACKAGES = ("attn_contract", "attn_reference", "attn_optimized", "attn_amdgcn", "attn_fuzz")


def versions() -> dict[str, str]:
    """The versions of the packages that matter, without those that are not installed."""
    found = {}
    for package in ("attn-parity", "torch", "triton", "hypothesis"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def identity(target: str) -> dict[str, str]:
    """Two machines of one identity run the same shards: versions, and digests of our sources and of the target's module.

    Raises:
        TargetError: there is no such target.
    """
    module = registry.entry(target).module
    digests = {"sources of attn-parity": _digest(), f"module {module}": _digest_of_module(module)}
    return versions() | {name: digest for name, digest in digests.items() if digest is not None}


def _digest_of_module(name: str) -> str | None:
    try:
        spec = importlib.util.find_spec(name)
    except ImportError:  # of a package that the module is in
        return None
    if spec is None or spec.origin is None:
        return None
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()[:DIGITS]


@functools.cache
def _digest() -> str:
    digest = hashlib.sha256()
    for name, path in _files():
        digest.update(f"{name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:DIGITS]


def _files() -> Iterator[tuple[str, Path]]:
    """Our files, each with its name from its package on: packages lie elsewhere on other machines."""
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations is not None
        root = Path(spec.submodule_search_locations[0])
        for path in sorted(root.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield str(path.relative_to(root.parent)), path
