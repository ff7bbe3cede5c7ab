"""All findings of targets, and two that no target meets."""

from collections.abc import Iterable, Sequence

from attn_fuzz.errors import InputError
from attn_fuzz.findings import sglang
from attn_fuzz.findings.aiter.sparse import OF_MAIN
from attn_fuzz.findings.finding import Finding
from attn_fuzz.targets import registry
from attn_fuzz.text import nearest

Shared = dict[str, tuple[Finding, list[str]]]
"""Findings by name, each with the targets that share it."""


def shared(targets: Iterable[tuple[str, Iterable[Finding]]]) -> Shared:
    found: Shared = {}
    for target, findings in targets:
        for finding in findings:
            found.setdefault(finding.name, (finding, []))[1].append(target)
    return found


def known() -> Shared:
    """All findings but those that have a script alone."""
    found = shared((name, registry.load(name).findings) for name in registry.names())
    return found | {finding.name: (finding, []) for finding in (*OF_MAIN, *sglang.HOST)}


def named(names: Sequence[str]) -> dict[str, Finding]:
    """The findings of these names, or all.

    Raises:
        InputError: there is no such finding.
    """
    findings = known()
    if unknown := [name for name in names if name not in findings]:
        raise InputError(f"NAME: got {unknown[0]}, which is no finding of a target{nearest(unknown[0], findings)}")
    return {name: findings[name][0] for name in names or findings}
