"""Cache managers that can be named: those of other packages, and a user's as module:attribute."""

import importlib
from collections.abc import Callable

from attn_fuzz import current_folder
from attn_fuzz.errors import InputError, LimitError
from attn_fuzz.serving.managed import ManagedEngine
from attn_fuzz.serving.manager import Manager
from attn_fuzz.text import nearest

PACKAGES = {"sglang": "sglang==0.5.23", "transformers": "transformers==5.24.0", "vllm": "vllm==0.33.0"}
"""The requirement that installs each package. A manager's name begins with that of its package."""
NAMES = {
    "sglang": ("tokens", "pages"),
    "transformers": ("dynamic", "dynamic_hybrid", "assisted", "static", "static_hybrid", "batching", "batching_hybrid"),
    "vllm": (
        "full",
        "sliding",
        "chunked",
        "hybrid",
        "hybrid_sizes",
        "hybrid_chunked",
        "eagle",
        "sparse",
        "priority",
        "uncached",
    ),
}
MANAGERS = {
    f"{package}-{name.replace('_', '-')}": f"attn_fuzz.managers.{package}:{name}"
    for package in NAMES
    for name in NAMES[package]
}


def load(name: str) -> Callable[[], Manager]:
    """The function that makes a manager, named or given as module:attribute. It has been called once.

    Raises:
        InputError: there is none of that name, it does not load or is not made, or it lacks a method.
        LimitError: its package is not here.
    """
    place = MANAGERS.get(name, name)
    module, colon, attribute = place.partition(":")
    if not colon:
        near = nearest(name, MANAGERS)
        raise InputError(f"manager: got {name!r}, expected one of {', '.join(MANAGERS)}, or module:attribute{near}")
    if place is name:
        current_folder.admit(module)
    try:
        make = getattr(importlib.import_module(module), attribute)
        ManagedEngine(make)
    except (InputError, LimitError):
        raise
    except ModuleNotFoundError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"manager {name}: it is not made: {type(error).__name__}: {error}") from error
    return make
