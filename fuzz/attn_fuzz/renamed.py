"""Names of targets before their modes had names of their own. Stored cases may have them: docs/reference/renamed.md."""

_FORMATS = ("scaled", "e8m0", "e8m0-planes")
NOW = {
    **{f"triton-{mode}": f"triton@{mode}" for mode in ("returned", "invariant", "properties", "far")},
    **{f"triton-latent-{mode}": f"triton-latent@{mode}" for mode in ("returned", "invariant", "far", *_FORMATS)},
    **{f"triton-latent-{form}-{mode}": f"triton-latent@{form}@{mode}" for form in _FORMATS for mode in ("invariant", "far")},
    **{f"triton-gfx{number}": f"triton@gfx{number}" for number in ("90a", "942", "950", "1100", "1201", "1250")},
    "triton-cascade-returned": "triton-cascade@returned",
    "triton-plans": "triton@planned",
    "triton-plans-cascade": "triton-cascade@planned",
    "triton-plans-latent": "triton-latent@planned",
    "triton-plans-latent-scaled": "triton-latent@scaled@planned",
    "triton-ranks-latent": "triton-ranks@latent",
    "torch-ops-latent": "torch-ops@latent",
}
"""The name of today by the old one."""


def renamed(name: str) -> str:
    """The name that a target has now, with the modes that `name` has behind an `@`."""
    base, at, modes = name.partition("@")
    return NOW.get(base, base) + at + modes


def before(name: str) -> list[str]:
    """The names that a target had."""
    return [old for old, now in NOW.items() if now == name]
