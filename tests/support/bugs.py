"""Bugs of the zoo that tests plant, and their files."""

from attn_fuzz.patches.mutant import Patch
from attn_lab.zoo.known_bugs import KnownBug


def planted(name: str, *patches: Patch, raises: str | None = None) -> KnownBug:
    return KnownBug(
        name=name, origin="planted", kind="mask", what="", trigger="", target="triton", patches=patches, raises=raises
    )


def toml(bug: KnownBug) -> str:
    """The file of a bug with one patch."""
    (patch,) = bug.patches
    raises = "" if bug.raises is None else f"raises = '{bug.raises}'"
    return f"""
        name = "{bug.name}"
        origin = "planted"
        class = "mask"
        what = "planted"
        trigger = "planted"
        target = "{bug.target}"
        {raises}

        [[patch]]
        in = "{patch.place}"
        find = "{patch.find}"
        replace = "{patch.replace}"
    """
