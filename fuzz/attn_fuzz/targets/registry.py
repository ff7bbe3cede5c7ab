"""The targets that can be named: entry points of the group `attn_parity.targets`, of this package or of any other.

A package adds one with

    [project.entry-points."attn_parity.targets"]
    my-kernel = "my_package.fuzzing:TARGET"

and then `attn-parity fuzz --target my-kernel`; without one, `--target my_package.fuzzing:TARGET` does the same.
The module of `--target MODULE:ATTRIBUTE` may lie in the current folder (`attn_fuzz.current_folder`). `my-kernel@far` is the
target in a mode (`attn_fuzz.targets.modes`).

Targets of kernels of another package are an entry point of the group `attn_parity.packages`, a `Package`, so that their names
are known before their modules are imported. A target on sources in which findings are repaired does not have these findings
(`attn_fuzz.foreign.repaired`).
"""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from importlib import metadata
from importlib.metadata import EntryPoint, EntryPoints
from typing import NamedTuple

from attn_fuzz import current_folder, foreign
from attn_fuzz.errors import EXIT_LIMIT, InputError, LimitError
from attn_fuzz.targets import modes
from attn_fuzz.targets.engine import GIVES_KEYS
from attn_fuzz.targets.support import Support
from attn_fuzz.targets.target import NoModeError, Target
from attn_fuzz.text import nearest
from attn_fuzz.verdict.rounding import Rounding

GROUP = "attn_parity.targets"
PACKAGES = "attn_parity.packages"


class TargetError(InputError):
    """There is no such target, it cannot be loaded, or it cannot run here."""


class LimitedTargetError(TargetError):
    """A target that cannot run at all because of a limit of this tool."""

    exit_code = EXIT_LIMIT


class Package(NamedTuple):
    """Kernels of another package.

    Attributes:
        name: the name of the package, as Python imports it.
        requirement: the package that installs it, such as "vllm==0.33.0".
        attributes: module and attribute of each target, by its name.
    """

    name: str
    requirement: str
    attributes: Mapping[str, str]

    def missing(self, files: Sequence[str] = ()) -> str | None:
        """See `foreign.missing`."""
        return foreign.missing(self.name, files, self.requirement)


@functools.cache
def _entries(group: str) -> EntryPoints:
    """Read once: Python would read the metadata of all installed packages each time, which takes 20 ms."""
    return metadata.entry_points(group=group)


def ours() -> list[str]:
    """Targets that are entry points of their own, the default first."""
    found = {entry.name for entry in _entries(GROUP)}
    return sorted(found, key=lambda name: (name != "triton", name))


def packages() -> dict[str, Package]:
    """The packages whose kernels are targets, by the names of their entry points."""
    return {entry.name: entry.load() for entry in sorted(_entries(PACKAGES), key=lambda entry: entry.name)}


def names() -> list[str]:
    return sorted({*ours(), *(name for package in packages().values() for name in package.attributes)})


def battery() -> list[str]:
    """All names, and those of our targets in the modes that these declare."""
    found = names()
    for name in ours():
        try:
            found += [f"{name}@{mode}" for mode in modes.declared(load(name))]
        except TargetError:
            continue
    return found


def with_modes(name: str, device: str) -> list[str]:
    """The target, and the target in each mode of its own that can run on a device type here: what a run goes through.

    A target that is named in a mode, as `triton@far`, is alone.
    """
    found = [name]
    for mode in modes.declared(load(name)) if "@" not in name else ():
        with contextlib.suppress(TargetError):
            usable(in_mode := f"{name}@{mode}", device)
            found.append(in_mode)
    return found


def runnable(device: str) -> list[str]:
    """The targets of the battery that can run on a device type here, without those that compile for other GPUs."""
    found = []
    for name in battery():
        try:
            if not usable(name, device).compiles:
                found.append(name)
        except TargetError:
            continue
    return found


def entry(name: str) -> EntryPoint:
    """The entry point of a target, not loaded yet.

    Raises:
        TargetError: there is no target of that name.
    """
    base = name.partition("@")[0]
    if ":" in base:
        if EntryPoint.pattern.match(base) is None:
            raise TargetError(f"target: got {base!r}, expected a name or module:attribute")
        current_folder.admit(base)
        return EntryPoint(base, base, GROUP)
    for found in _entries(GROUP).select(name=base):
        return found
    for package in packages().values():
        if base in package.attributes:
            return EntryPoint(base, package.attributes[base], GROUP)
    raise TargetError(f"target: no target {base!r}{nearest(base, names())}; `attn-parity targets` lists them")


def load(name: str) -> Target:
    """Load a target by the name of its entry point, or as `module:attribute`, and both with `@` and modes.

    Raises:
        TargetError: there is no target of that name, its module does not import, it is no Target, or it has no such mode.
    """
    named = entry(name)
    try:
        target = named.load()
    except (Exception, SystemExit) as error:
        raise TargetError(f"target {name}: it does not load: {type(error).__name__}: {error}") from error
    if not isinstance(target, Target):
        raise TargetError(f"target {name}: it is a {type(target).__name__}, expected an attn_fuzz.targets.Target")
    if gone := foreign.repaired():
        target = dataclasses.replace(target, findings=tuple(each for each in target.findings if each.name not in gone))
    if "@" not in name:
        return dataclasses.replace(target, findings=()) if target.architectures else target
    try:
        return modes.applied(target, name.split("@")[1:], named.value)
    except NoModeError as error:
        raise TargetError(f"target {name}: {error}") from None


def usable(name: str, device: str) -> Target:
    """A target that can run on a device type here, after a check of its declarations.

    Raises:
        TargetError: as `load`; or it says why it cannot run, or what it declares is no declaration, or a finding has no
            stored case.
        LimitedTargetError: what it declares is beyond a limit of this tool.
    """
    target = load(name)
    try:
        reason = target.unavailable(device)
        support, rounding = target.support(device), target.rounding(device)
    except LimitError as error:
        raise LimitedTargetError(f"target {name}: not run, by a limit of this tool: {error.sentence}") from error
    except (Exception, SystemExit) as error:
        raise TargetError(f"target {name}: its declarations raise {type(error).__name__}: {error}") from error
    if target.architectures and not target.compiles:
        names = " or ".join(f"{name}@{each}" for each in target.architectures)
        reason = "; ".join(filter(None, (f"Triton does not interpret Gluon: {names}", reason)))
    if reason:
        raise TargetError(f"target {name}: {reason}")
    if not isinstance(support, Support) or not isinstance(rounding, Rounding):
        raise TargetError(f"target {name}: it declares {support!r} and {rounding!r}, expected a Support and a Rounding")
    if target.dense_keys and (not support.engine.gives_keys or "rope" in support.rules):
        fields = ", ".join(f"{field}={value}" for field, value in GIVES_KEYS.items())
        needs = f"Engine({fields}), and not the rule rope"
        raise TargetError(f"target {name}: it declares dense_keys, for which its Support needs {needs}")
    for finding in target.findings:
        if not finding.path.is_file():
            raise TargetError(f"target {name}: finding {finding.name} has no stored case: {finding.path} is no file")
    return target
