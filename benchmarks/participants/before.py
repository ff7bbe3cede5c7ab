"""This project's kernels as another folder has them, such as an earlier commit, beside today's in one run."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace

from benchmarks.participants.loading import MissingPeerError

PACKAGE = "attn_optimized"


def load_before(folder: Path) -> SimpleNamespace:
    """The attention functions of a folder that holds this project, such as one that `git worktree add` makes.

    They get layers and batches of today's `attn_contract`. Today's `attn_optimized` stays imported, and torch's ops call it.

    Raises:
        MissingPeerError: the folder has no such package or functions, or they do not import beside today's `attn_contract`.
    """
    root = folder / "optimized" / PACKAGE
    if not root.is_dir():
        raise MissingPeerError(f"--before: got {folder}, expected a folder that holds optimized/attn_optimized")
    try:
        with _instead(ModuleType(PACKAGE), root):
            attention, cascade = (importlib.import_module(f"{PACKAGE}.{name}") for name in ("attention", "cascade"))
        return SimpleNamespace(
            paged_attention=attention.paged_attention,
            varlen_attention=attention.varlen_attention,
            cascade_attention=cascade.cascade_attention,
        )
    except Exception as error:  # any error of an earlier source
        raise MissingPeerError(f"--before: got {folder}, expected one with today's functions of attention: {error}") from error


@contextmanager
def _instead(package: ModuleType, root: Path) -> Iterator[None]:
    """Replace the package by that of a folder, inside the `with`. Its own `__init__.py` does not run."""
    today = {name: sys.modules.pop(name) for name in [*sys.modules] if name.partition(".")[0] == PACKAGE}
    package.__path__ = [str(root)]
    sys.modules[PACKAGE] = package
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]
        sys.modules.update(today)
