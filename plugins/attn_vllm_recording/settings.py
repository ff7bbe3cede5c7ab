"""The value of the environment variable that switches a recording on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

VARIABLE: Final = "ATTN_PARITY_RECORDING"
"""FOLDER, or FOLDER,OPTION=NUMBER,... with the options of Settings. Processes inherit it; see docs/guide/live-calls.md."""


@dataclass(frozen=True)
class Settings:
    """The settings of a recording, for each process.

    Args:
        folder: absolute. Each process makes a folder of its own inside.
        every: judge every call whose number is a multiple of this. 97 is prime, so each layer is judged in turn unless the
            number of layers is a multiple of 97.
        most: the number of calls that a process judges.
        limit: the number of wrong calls that a process captures.
    """

    folder: Path
    every: int = 97
    most: int = 1000
    limit: int = 10

    @classmethod
    def of(cls, value: str) -> "Settings":
        """The settings that a value of the variable asks for.

        Raises:
            ValueError: it has an unknown option, or a number that is too low.
        """
        folder, *options = value.split(",")
        numbers: dict[str, int] = {}
        for option in options:
            name, _, number = option.partition("=")
            if name not in ("every", "most", "limit") or not number.isdecimal() or int(number) < (name == "every"):
                expected = "FOLDER, or FOLDER,every=N,most=N,limit=N with every at least 1"
                raise ValueError(f"{VARIABLE}: got {option!r} in {value!r}, expected {expected}")
            numbers[name] = int(number)
        if not folder:
            raise ValueError(f"{VARIABLE}: got {value!r}, expected a folder first")
        return cls(Path(folder).absolute(), **numbers)
