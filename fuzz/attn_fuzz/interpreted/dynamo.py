"""Dynamo, torch's compiler, in a process that runs cases. A target may use it, or import it and never use it.

Dynamo would compile what fills new memory along with the target, and compiles other code where torch is deterministic. So
new memory is filled until Dynamo begins to compile. There the run of the case ends, and begins anew. From then on nothing is
filled.
"""

import importlib.machinery
import os
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")

MODULE = "torch._dynamo"
RECOMPILES = 64
"""The times that Dynamo compiles a function before it leaves the function to eager: 8 are fewer than the kinds of cases."""
COMPILED, EAGER, BREAKS = "compiled", "left to eager", "graph breaks"
"""The names of what is counted: frames, frames, and breaks."""

begun = False
"""True if Dynamo has begun to compile in this process: new memory is not filled."""
fills = False
"""True while new memory is filled."""
frames = Counter[str]()
"""The counts of all cases of this process."""
_spoiled = False
"""True if Dynamo has begun while new memory was filled, and the case has not begun anew."""


class BeginsError(BaseException):
    """Dynamo begins to compile while new memory is filled."""


def watch(tell: Callable[[bool], None] | None = None) -> None:
    """Watch Dynamo from now on, or from its import on. A second call is of use where Dynamo was reset.

    Args:
        tell: called with True when Dynamo begins to compile, and with False when it ends. None: as before.
    """
    global _tell, _pid
    if tell is not None:
        _tell, _pid = tell, os.getpid()
    if MODULE in sys.modules:
        _register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def undisturbed(run: Callable[[], Result]) -> tuple[Result, dict[str, int]]:
    """What a case's run returns, where nothing has disturbed Dynamo, and what Dynamo counted meanwhile."""
    global _spoiled
    watch()
    before = _counted()
    result: list[Result] = []
    try:
        result.append(run())
    except (BeginsError, Exception):
        if not _spoiled:
            raise
    if _spoiled:
        _spoiled = False
        sys.modules[MODULE].reset()
        watch()
        before = _counted()
        result[:] = [run()]
    gained = _counted() - before
    frames.update(gained)
    return result[0], dict(gained)


def _counted() -> Counter[str]:
    utils: Any = sys.modules.get(f"{MODULE}.utils")
    if utils is None:
        return Counter()
    of_frames = utils.counters["frames"]
    breaks = sum(utils.counters["graph_break"].values())
    return Counter({COMPILED: of_frames["ok"], EAGER: of_frames["total"] - of_frames["ok"], BREAKS: breaks})


def _register() -> None:
    handler = sys.modules[f"{MODULE}.callback"].callback_handler
    if _begins not in handler.start_callbacks:
        handler.register_start_callback(_begins)
        handler.register_end_callback(_ends)


def _begins(_: object) -> None:
    global begun, _spoiled
    is_first, begun = not begun, True
    _told(True)
    if is_first and fills:
        _spoiled = True
        raise BeginsError


def _ends(_: object) -> None:
    _told(False)


_tell: Callable[[bool], None] | None = None
_pid = 0


def _told(compiles: bool) -> None:
    if _tell is not None and os.getpid() == _pid:  # a fork has the connection of this process
        _tell(compiles)


class _Finder(importlib.machinery.PathFinder):
    """Registers with Dynamo as soon as it is imported, and leaves it to others to find it."""

    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname != MODULE:
            return None
        spec = super().find_spec(fullname, path, target)
        if spec is not None and (loader := spec.loader) is not None:
            run = loader.exec_module

            def exec_module(module: Any) -> None:
                run(module)
                module.config.recompile_limit = RECOMPILES
                _register()

            loader.exec_module = exec_module
        return spec
