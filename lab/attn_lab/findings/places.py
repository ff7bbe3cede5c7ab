"""The folder of findings: findings/PACKAGE/NAME.py and NAME.toml."""

from pathlib import Path

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "findings"
SHARED = FOLDER / "shared"


def names() -> list[str]:
    """The names of the findings that have a report."""
    return sorted(file.stem for file in FOLDER.glob("*/*.toml"))


def package_of(name: str) -> str:
    """The package that a finding's name begins with."""
    return name.partition("-")[0]


def file_of(name: str, suffix: str) -> Path:
    """findings/PACKAGE/NAME.py, or NAME.toml beside it."""
    return FOLDER / package_of(name) / f"{name}{suffix}"
