"""A mutant: patches of modules that a worker process installs before it imports these modules, as plain data."""

from typing import Annotated

import msgspec
from attn_fuzz.errors import InputError

CONTRACT = "attn_contract"


REFUSALS = ("AssertionError", "CaseError", "ContractError", "UnsupportedError")
"""Exceptions that say on purpose that a call is not legal, or that something does not hold: no broken patch raises them."""


class MutantError(InputError):
    """A mutant file that cannot be read, a patch that does not apply, or a mutant that does not run."""


class NeverRanError(MutantError):
    """A mutant that raised in every case that has something to compute."""


class Patch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"place": "in"}):
    place: Annotated[str, msgspec.Meta(pattern=r"^\w+(\.\w+)*$")]
    find: Annotated[str, msgspec.Meta(pattern=r"\S")]
    replace: str


class Mutant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"patches": "patch"}):
    """Patches that are installed together.

    Attributes:
        raises: a part of the message of the exceptions that count as a finding; empty if all count, None if only REFUSALS do.
            Several texts: a message that has any of them counts.
    """

    name: str
    patches: tuple[Patch, ...]
    raises: str | tuple[str, ...] | None = None

    @property
    def is_early(self) -> bool:
        """True if it patches the contract, which the processes of a run have imported before they know of a mutant."""
        return any(patch.place.partition(".")[0] == CONTRACT for patch in self.patches)

    def check_announced(self, exception: str, name: str) -> None:
        """Tell an exception that is the bug from one that only shows that the mutant is broken.

        Args:
            exception: what the mutated target raised, as text.
            name: the name of its type.

        Raises:
            MutantError: no text of `raises` is a part of it.
        """
        if self.raises is None and name in REFUSALS:
            return
        if self.raises is None:
            raise MutantError(f"{self.name}: it has no `raises`, and raised {exception}")
        texts = (self.raises,) if isinstance(self.raises, str) else self.raises
        if not any(text in exception for text in texts):
            raise MutantError(f"{self.name}: it has raises = {self.raises!r}, and raised {exception}")


INSTALLED: list[Mutant] = []
"""The mutant that this process runs, if any: a process that compiles for it has to install it, too."""
