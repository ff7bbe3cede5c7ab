"""Load a part of a file whose imports need a GPU, for scripts of this folder."""

import __future__

import ast
import importlib.util
from pathlib import Path


def excerpt(package, file, name, **names):
    """A function or a class of a package's file, which sees `names`. The rest of the file is not executed."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"{package} is not installed")
    path = Path(spec.submodule_search_locations[0], file)
    [found] = [node for node in ast.parse(path.read_text()).body if getattr(node, "name", None) == name]
    code = compile(ast.Module([found], []), str(path), "exec", flags=__future__.annotations.compiler_flag)
    exec(code, names)
    return names[name]
