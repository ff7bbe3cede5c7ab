"""What the command line of `attn-parity fuzz` says."""

import time
from dataclasses import dataclass
from pathlib import Path

from attn_fuzz import outputs
from attn_parity.options import PROFILES

KEEP_GOING_EXAMPLES, KEEP_GOING_MINUTES = 100_000, 10.0
"""What a run that keeps going draws, and how long, if no option says so."""


@dataclass(frozen=True)
class Options:
    names: tuple[str, ...]
    manager: str | None
    keep_going: bool
    profile: str
    examples: int | None
    minutes: float | None
    seed: int | None
    workers: int | None
    case_seconds: float
    device: str
    sanitize: bool | None
    exactly: bool | None
    in_modes: bool
    fenced: bool
    malformed: bool
    required: tuple[str, ...]
    json_file: Path | None
    report_folder: Path | None
    corpus: str | None
    database: str | None
    address: str | None
    resources: tuple[str, ...]
    working_dir: Path | None

    @property
    def folder(self) -> Path:
        return self.report_folder or outputs.RUNS

    @property
    def past(self) -> str | None:
        """The corpus to run first. Its cases were legal calls: where calls are corrupted, there is none by default."""
        return "none" if self.malformed and self.corpus is None else self.corpus

    @property
    def max_examples(self) -> int:
        return self.examples or (KEEP_GOING_EXAMPLES if self.keep_going else PROFILES[self.profile])

    @property
    def max_minutes(self) -> float | None:
        return KEEP_GOING_MINUTES if self.keep_going and self.minutes is None and self.examples is None else self.minutes

    def until(self, share: float = 1.0) -> float | None:
        """The time when this share of the minutes will be over; None without a limit of time."""
        return time.time() + 60 * self.max_minutes * share if self.max_minutes else None
