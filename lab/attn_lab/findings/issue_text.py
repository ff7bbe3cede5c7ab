"""The texts that a finding's owner gets, made of findings/PACKAGE/NAME.py: a script, its stand-ins, and a test in the owner's
layout.

A text holds what it uses of findings/shared, and of the stand-ins those of one package.
"""

import ast
import builtins
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from attn_lab.findings.places import SHARED, file_of

_DICTIONARIES = ("FILES", "VALUES")
"""The names of the stand-ins' dictionaries, by package."""
_LOAD = re.compile(r'\bload\("([\w.]+)"\)')
"""A script loads a module by its name."""


class Layout(NamedTuple):
    """The form in which an owner keeps issues and tests.

    Attributes:
        issue: the beginning of titles, and the sections of the template, each with what fills it: "bug", "reproduction" or a
            text.
        tests: the place of tests of attention.
        prefix: the path before the package's folder in the repository.
        header: the header of a file.
        registered: code that registers a test that is a method of a TestCase. Empty: tests are functions.
    """

    issue: tuple[str, tuple[tuple[str, str], ...]]
    tests: str
    prefix: str = ""
    header: str = ""
    registered: str = ""

    def test(self, name: str) -> Path:
        """The file of a finding's test in the repository."""
        return Path(self.tests, f"test_{name.replace('-', '_')}.py")


LAYOUTS = {
    "aiter": Layout(
        ("", (("Describe the bug", "bug"), ("Reproduction", "reproduction"), ("Environment", 'See "Run on".'))),
        "op_tests/triton_tests/attention",
        header="# SPDX-License-Identifier: MIT\n\n",
    ),
    "lmdeploy": Layout(
        (
            "[Bug] ",
            (
                (
                    "Checklist",
                    "- [ ] 1. Related issues were searched.\n- [x] 2. The latest release has it.\n- [x] 3. A demo is below.",
                ),
                ("Describe the bug", "bug"),
                ("Reproduction", "reproduction"),
                ("Environment", 'Output of `lmdeploy check_env`. See also "Run on".'),
            ),
        ),
        "tests/pytorch/kernel",
    ),
    "sglang": Layout(
        (
            "[Bug] ",
            (
                (
                    "Checklist",
                    "- [ ] Related issues were searched.\n- [x] The latest release has the bug.\n- [x] A demo is below.",
                ),
                ("Describe the bug", "bug"),
                ("Reproduction", "reproduction"),
                ("Environment", 'Output of `python3 -m sglang.check_env`. See also "Run on".'),
            ),
        ),
        "test/registered/attention",
        prefix="python/",
        registered="from sglang.test.ci.ci_register import register_cuda_ci\n\n"
        'register_cuda_ci(est_time=10, stage="base-b", runner_config="1-gpu-small")\n',
    ),
    "vllm": Layout(
        (
            "[Bug]: ",
            (
                ("Your current environment", 'Output of `python collect_env.py`. See also "Run on".'),
                ("🐛 Describe the bug", "bug"),
                ("Reproduction", "reproduction"),
                ("Before submitting a new issue...", "- [ ] Relevant issues were searched."),
            ),
        ),
        "tests/kernels/attention",
        header="# SPDX-License-Identifier: Apache-2.0\n# SPDX-FileCopyrightText: Copyright contributors to the vLLM project\n",
    ),
}


class _Statement(NamedTuple):
    node: ast.stmt
    text: str
    names: frozenset[str]
    """The names that it binds. An effect binds none: it changes the environment, or a module."""


def _bound(node: ast.stmt) -> frozenset[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return frozenset([node.name])
    if isinstance(node, ast.Import | ast.ImportFrom):
        return frozenset((alias.asname or alias.name).partition(".")[0] for alias in node.names)
    if isinstance(node, ast.Assign):
        return frozenset(target.id for target in node.targets if isinstance(target, ast.Name))
    return frozenset()


def _statements(file: Path, package: str) -> list[_Statement]:
    text = file.read_text(encoding="utf-8")
    lines, found = text.replace("  # noqa: E402", "").replace("  # noqa: F401", "").splitlines(), []
    for node in ast.parse(text).body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])
        names, said = _bound(node), "\n".join(lines[first - 1 : node.end_lineno])
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and names & {*_DICTIONARIES}:
            [entry] = (
                value
                for key, value in zip(node.value.keys, node.value.values, strict=True)
                if key and ast.literal_eval(key) == package
            )
            inner = "\n".join(lines[entry.lineno - 1 : entry.end_lineno])
            said = f"{next(iter(names))} = {{\n{inner.rstrip(',')},\n}}"
            node = ast.parse(said).body[0]
        found.append(_Statement(node, said, names))
    return found


def _used(statements: Iterable[ast.AST]) -> set[str]:
    return {node.id for each in statements for node in ast.walk(each) if isinstance(node, ast.Name)} - {*dir(builtins)}


def _local(node: ast.stmt) -> str | None:
    """The file of findings/shared that a statement imports."""
    name = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name if isinstance(node, ast.Import) else None
    return name if name and (SHARED / f"{name}.py").is_file() else None


class Source:
    """findings/PACKAGE/NAME.py, and what it shares with others."""

    def __init__(self, name: str, package: str) -> None:
        text = file_of(name, ".py").read_text(encoding="utf-8")
        tree = ast.parse(text)
        self.name, self.package, self.docstring = name, package, ast.get_docstring(tree, clean=False) or ""
        statements = _statements(file_of(name, ".py"), package)
        imports = [each for each in statements if isinstance(each.node, ast.Import | ast.ImportFrom)]
        shared = {file for each in imports if (file := _local(each.node))}
        self.shared = ["kernels", *sorted(shared - {"kernels"})]
        self.imports = [each for each in imports if not _local(each.node)]
        self.rest = [each.node for each in statements if each not in imports]
        first = min(node.lineno for node in self.rest)
        self.body = "\n".join(text.splitlines()[first - 1 :])
        self.imitates = "tf32" in shared
        self.loaded = list(dict.fromkeys(_LOAD.findall(self.body)))
        self.registers = re.findall(r"(?m)^from (\S+)", LAYOUTS[package].registered)

    def _shared(self, wanted: set[str], files: Sequence[str], without: frozenset[str], effects: str | None) -> list[_Statement]:
        """The statements that define the wanted names, those that these use, and effects whose text holds `effects`."""
        available = [
            each for file in files for each in _statements(SHARED / f"{file}.py", self.package) if not _local(each.node)
        ]
        chosen = [each for each in available if effects is not None and not each.names and effects in each.text]
        chosen = [each for each in chosen if not _used([each.node]) & without]
        names = wanted | _used(each.node for each in chosen)
        while more := [each for each in available if each not in chosen and each.names & names - without]:
            chosen += more
            names |= _used(each.node for each in more)
        return [each for each in available if each in chosen]

    def _parts(self, folder: Path, without: frozenset[str]) -> tuple[str, str, str]:
        """Imports, definitions and the body of a script or a test, which import the package's modules by themselves."""
        files = [file for file in self.shared if file != "tf32"]
        effects = None if "cannot_run" in without else "excepthook"
        shared = self._shared(_used(self.rest), files, without | {"load"}, effects)
        imports = {each.text for each in [*self.imports, *shared] if isinstance(each.node, ast.Import | ast.ImportFrom)}
        body = _LOAD.sub(lambda found: f'import_module("{resolved(found[1], folder)}")', self.body)
        rest = _joined(each for each in shared if each.text not in imports)
        return "\n".join(sorted(imports | {"from importlib import import_module"}, key=_import_order)), rest, body

    def script(self, folder: Path) -> str:
        """It exits with 1 where the finding shows, with 0 where it does not, and with 2 where it cannot run.

        Args:
            folder: that of the package.
        """
        imports, shared, body = self._parts(folder, frozenset())
        try_stand_ins = (
            f"try:\n    import stand_ins  # of {self.package}, where it cannot be imported\nexcept ImportError:\n    pass"
        )
        return f'"""{self.docstring}"""\n\n{try_stand_ins}\n\n{imports}\n\n{shared}\n\n\n{body}\n'

    def stand_ins(self) -> str:
        """stand_ins.py: what is imported before the modules of the script where the package cannot be.

        What registers the test comes first: a part of the package may have the script's modules and not that one.
        """
        files = ["kernels", *(["tf32"] if self.imitates else [])]
        shared = self._shared({"load"}, files, frozenset(["cannot_run"]), "")
        loads = (f'load("{name}")' for name in [*self.registers, *self.loaded])
        says = f"Stand-ins for what the kernels of {self.package} import, where it cannot be imported, as without a GPU."
        return "\n".join([f'"""{says}"""', "", _joined(shared), "", "", *loads, ""])

    def test(self, folder: Path) -> str:
        """A test in the layout of the owner's repository. It knows no stand-ins.

        Args:
            folder: that of the package.
        """
        layout, title = LAYOUTS[self.package], self.name.replace("-", "_")
        imports, shared, body = self._parts(folder, frozenset(["compare", "cannot_run"]))
        case = re.sub(r"\n{3,}", "\n\n", f'"""{self.docstring}"""\n{body}')
        function = f"def test_{title}({'self' if layout.registered else ''}):\n{_indented(case)}"
        if layout.registered:
            imports, function = (
                f"import unittest\n{imports}\n{layout.registered}",
                f"class Test(unittest.TestCase):\n{_indented(function)}",
            )
        return f"{layout.header}{imports}\n\n{shared}{_COMPARE}{function}\n"


_COMPARE = """


def compare(expected, got):
    torch.testing.assert_close(got.float().cpu(), torch.as_tensor(expected).float().cpu(), rtol=1e-3, atol=1e-4)


"""


def resolved(module: str, folder: Path) -> str:
    """A module's name in the release in `folder`: an older AITER has no folder `attention`."""
    is_there = folder.parent.joinpath(*module.split(".")).with_suffix(".py").is_file()
    return module if is_there or not module.startswith("aiter.") else module.replace(".attention.", ".", 1)


def _import_order(line: str) -> tuple[bool, bool, str]:
    module = line.split()[1].partition(".")[0]
    return module not in sys.stdlib_module_names, line.startswith("from"), line


def _indented(text: str) -> str:
    return re.sub(r"(?m)^(?=.)", "    ", text)


def _joined(statements: Iterable[_Statement]) -> str:
    """The statements, and two empty lines around those that are functions or classes."""
    parts: list[str] = []
    for each in statements:
        apart = isinstance(each.node, ast.FunctionDef | ast.ClassDef)
        parts += ["", "", each.text, "", ""] if apart else [each.text]
    return re.sub(r"\n{4,}", "\n\n\n", "\n".join(parts)).strip("\n")
