"""The source that statements are extracted from: modules as syntax trees, never imported and never run."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from attn_fuzz.patches.source import file_of
from attn_proofs.errors import UnsupportedConstructError

Definition = ast.FunctionDef | ast.ClassDef | ast.expr


@dataclass(frozen=True)
class Located:
    """A definition and the module that holds it. Names in the definition are looked up in that module."""

    module: str
    node: Definition


@dataclass
class Sources:
    """The modules by name. `patched` has the text of the modules that a mutant changes."""

    patched: Mapping[str, str] = field(default_factory=dict)
    scenes: dict[Any, Any] = field(default_factory=dict)
    """the extractions of these sources, which several theorems share"""

    def tree(self, module: str) -> ast.Module:
        return _tree(self.text(module))

    def text(self, module: str) -> str:
        if module in self.patched:
            return self.patched[module]
        return path_of(module).read_text(encoding="utf-8")

    def find(self, module: str, name: str) -> Located | None:
        """The definition of a module's top-level name; None if the module imports it from outside this project, or has no such
        name."""
        for node in self.tree(module).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
                return Located(module, node)
            if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
                return Located(module, node.value)
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                for alias in node.names:
                    if (alias.asname or alias.name) == name and file_of(node.module) is not None:
                        return self.find(node.module, alias.name)
        return None

    def imports(self, module: str, name: str) -> str | None:
        """The dotted name that an imported name of a module stands for."""
        for node in self.tree(module).body:
            for alias in node.names if isinstance(node, ast.Import | ast.ImportFrom) else ():
                if (alias.asname or alias.name) == name:
                    return f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
        return None

    def function(self, place: str) -> Located:
        """A function by its dotted name.

        Raises:
            UnsupportedConstructError: there is no such function.
        """
        module, _, name = place.rpartition(".")
        found = self.find(module, name)
        if found is None or not isinstance(found.node, ast.FunctionDef):
            raise UnsupportedConstructError(f"{path_of(module)}: there is no function {name}, which a theorem speaks of")
        return found


def path_of(module: str) -> Path:
    """The file of a module."""
    path = file_of(module)
    if path is None:
        raise UnsupportedConstructError(f"there is no module {module}, which a theorem speaks of")
    return path


@lru_cache(maxsize=256)
def _tree(text: str) -> ast.Module:
    return ast.parse(text)
