"""The names of Triton's language, of each supported Triton: language.txt.

`python -m tests.fuzz.interpreted --write-names` writes those of the Triton that runs. Whoever adds a Triton decides for each
new name whether it is checked, or why it is not (functions.py).
"""

import importlib
import inspect
import textwrap
from collections import defaultdict
from pathlib import Path

import triton
import triton.language as tl

from tests.fuzz.interpreted import functions

FILE = Path(__file__).with_name("language.txt")
_EXTRAS = ("cuda", "hip")


def generated() -> set[str]:
    """The names in Triton's own modules."""
    found = {*functions.names(), *(name for name, member in inspect.getmembers(tl) if inspect.isclass(member))}
    found |= {f"descriptor.{name}" for name, _ in inspect.getmembers(tl.core.tensor_descriptor_base, tl.core.is_builtin)}
    found |= {f"tensor.{name}" for name in vars(tl.tensor) if not name.startswith("_")}
    for extra in _EXTRAS:
        module = importlib.import_module(f"triton.language.extra.{extra}")
        found |= {f"{extra}.{name}" for name, _ in inspect.getmembers(module, tl.core.is_builtin)}
        library = importlib.import_module(f"triton.language.extra.{extra}.libdevice")
        found |= {f"libdevice.{name}" for name, _ in inspect.getmembers(library, callable) if not name.startswith("_")}
    info = importlib.import_module("triton.language.target_info")
    return found | {
        f"target_info.{name}" for name, _ in inspect.getmembers(info, callable) if name.startswith(("is_", "current_"))
    }


def stored() -> dict[str, set[str]]:
    """By version of Triton."""
    found: dict[str, set[str]] = defaultdict(set)
    for paragraph in FILE.read_text().split("\n\n") if FILE.is_file() else ():
        versions, _, names = paragraph.partition(":")
        for version in versions.split():
            found[version] |= set(names.split())
    return found


def write() -> None:
    """Store the names of the Triton that runs."""
    by_version = {**stored(), triton.__version__: generated()}
    by_name: dict[str, list[str]] = defaultdict(list)
    for version, names in sorted(by_version.items()):
        for name in names:
            by_name[name].append(version)
    paragraphs: dict[str, list[str]] = defaultdict(list)
    for name in sorted(by_name):
        paragraphs[" ".join(by_name[name])].append(name)
    texts = [f"{versions}:\n{textwrap.fill(' '.join(names), 128)}" for versions, names in sorted(paragraphs.items())]
    FILE.write_text("\n\n".join(texts) + "\n")
