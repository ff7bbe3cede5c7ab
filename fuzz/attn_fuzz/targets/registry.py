"""The targets that can be named: entry points of the group `attn_parity.targets`, this package's and anybody's alike.

A package adds one with

    [project.entry-points."attn_parity.targets"]
    my-kernel = "my_package.fuzzing:TARGET"

and then `attn-parity fuzz --target my-kernel`; without one, `--target my_package.fuzzing:TARGET` does the same.
The module of `--target MODULE:ATTRIBUTE` may lie in the current folder (`attn_fuzz.current_folder`).
`my-kernel@gfx942` is the target with its kernels compiled for gfx942, and emulated. A target on sources in which findings are
mended does not have these findings (`attn_fuzz.foreign.mended`).
"""

import dataclasses
from importlib.metadata import EntryPoint, entry_points

from attn_fuzz import current_folder, foreign
from attn_fuzz.errors import InputError
from attn_fuzz.targets.target import Support, Target
from attn_fuzz.text import nearest
from attn_fuzz.verdict.rounding import Rounding

GROUP = "attn_parity.targets"


class UnknownTargetError(InputError):
    """No such target, or one that cannot be loaded."""


def names() -> list[str]:
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def runnable(device: str) -> list[str]:
    """The names of the targets that can run on a device type here, without those that compile for other GPUs, which is slow."""
    found = []
    for name in names():
        try:
            if not usable(name, device).compiles:
                found.append(name)
        except UnknownTargetError:
            continue
    return found


def entry(name: str) -> EntryPoint:
    """The entry point of a target, which is loaded by nobody yet.

    Raises:
        UnknownTargetError: there is none of that name.
    """
    name = name.partition("@")[0]
    if ":" in name:
        if EntryPoint.pattern.match(name) is None:
            raise UnknownTargetError(f"target: got {name!r}, expected a name or module:attribute")
        current_folder.admit(name)
        return EntryPoint(name, name, GROUP)
    found = [entry for entry in entry_points(group=GROUP) if entry.name == name]
    if not found:
        known = names()
        near = nearest(name, known)
        raise UnknownTargetError(f"target: got {name!r}, expected one of {', '.join(known)}, or module:attribute{near}")
    return found[0]


def load(name: str) -> Target:
    """Load a target by the name of its entry point, or as `module:attribute`, and both with `@` and an architecture of AMD.

    Raises:
        UnknownTargetError: there is none of that name, its module does not import, it is no Target, or it has no kernels that
            can be compiled for the architecture.
    """
    named = entry(name)
    try:
        target = named.load()
    except (Exception, SystemExit) as error:
        raise UnknownTargetError(f"target {name}: it does not load: {type(error).__name__}: {error}") from error
    if not isinstance(target, Target):
        raise UnknownTargetError(f"target {name}: it is a {type(target).__name__}, expected an attn_fuzz.targets.Target")
    if gone := foreign.mended():
        target = dataclasses.replace(target, findings=tuple(each for each in target.findings if each.name not in gone))
    base, at, architecture = name.partition("@")
    if at:
        return _compiled_for(target, base, architecture)
    return dataclasses.replace(target, findings=()) if target.architectures else target


def _compiled_for(target: Target, name: str, architecture: str) -> Target:
    from attn_amdgcn.program import ARCHITECTURES
    from attn_fuzz.targets.emulated import compiled_for

    if architecture not in ARCHITECTURES:
        raise UnknownTargetError(f"target {name}@{architecture}: expected one of {', '.join(ARCHITECTURES)} behind the @")
    if target.compiled_for is not None:
        return target.compiled_for(architecture)
    if target.modules is None:
        raise UnknownTargetError(
            f"target {name}@{architecture}: {name} does not name the modules of its kernels (Target.modules)"
        )
    if target.architectures and architecture not in target.architectures:
        raise UnknownTargetError(f"target {name}@{architecture}: its kernels are those of {', '.join(target.architectures)}")
    return compiled_for(target, entry(name).value, architecture)


def usable(name: str, device: str) -> Target:
    """A target that can run on a device type here, its declarations looked at once.

    Raises:
        UnknownTargetError: as `load`; or it says why it cannot run, or what it declares is no declaration, or a finding has no
            stored case.
    """
    target = load(name)
    try:
        reason = target.unavailable(device)
        support, rounding = target.support(device), target.rounding(device)
    except (Exception, SystemExit) as error:
        raise UnknownTargetError(f"target {name}: its declarations raise {type(error).__name__}: {error}") from error
    if target.architectures and not target.compiles:
        names = " or ".join(f"{name}@{each}" for each in target.architectures)
        reason = "; ".join(filter(None, (f"Triton does not interpret Gluon: {names}", reason)))
    if reason:
        raise UnknownTargetError(f"target {name}: {reason}")
    if not isinstance(support, Support) or not isinstance(rounding, Rounding):
        raise UnknownTargetError(f"target {name}: it declares {support!r} and {rounding!r}, expected a Support and a Rounding")
    if target.dense_keys and (not support.engine.gives_keys or "rope" in support.rules):
        needs = "Engine(writes=(True,), unwritten=False, saturated=False), and not the rule rope"
        raise UnknownTargetError(f"target {name}: it declares dense_keys, for which its Support needs {needs}")
    for finding in target.findings:
        if not finding.path.is_file():
            raise UnknownTargetError(f"target {name}: finding {finding.name} has no stored case: {finding.path} is no file")
    return target
