"""The summary of a recording's folder: what all processes of an engine have seen. It needs neither vLLM nor torch."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from attn_vllm_recording.settings import VARIABLE

FILE: Final = "recording.json"
SCHEMA: Final = "attn-parity.vllm-recording/1"

NO_PROCESS = (
    f"no process has loaded the recording: was {VARIABLE} set where vLLM was started, is attn-parity installed beside vLLM, "
    "and does VLLM_PLUGINS, if it is set, name attn_parity_recording?"
)
NO_LAYER = "no process has built a layer of attention: has vLLM loaded its model?"
NO_CALL = "layers were built, and not one was called: does vLLM replay CUDA graphs? --enforce-eager calls its layers"
NO_TURN = "it was the turn of no call that can be judged"


class FolderError(ValueError):
    """The folder is no recording's. The message names it."""


@dataclass(frozen=True)
class Summary:
    """Sums over the processes of a folder.

    Args:
        folder: that ATTN_PARITY_RECORDING named.
        processes: what each file holds, and the folder of the file.
    """

    folder: Path
    processes: tuple[tuple[Path, dict[str, Any]], ...]

    @classmethod
    def of(cls, folder: Path) -> "Summary":
        """Read what is there. Processes may still be writing: each file is replaced in one step.

        Raises:
            FolderError: there is no such folder, or a file in it is none of a recording.
        """
        if not folder.is_dir():
            raise FolderError(f"{folder}: there is no such folder. {NO_PROCESS}")
        return cls(folder, tuple((path.parent, _read(path)) for path in sorted(folder.glob(f"*/{FILE}"))))

    def total(self, name: str) -> int:
        return sum(state[name] for _, state in self.processes)

    def counts(self, name: str) -> Counter[str]:
        return sum((Counter(state[name]) for _, state in self.processes), Counter())

    @property
    def exit_code(self) -> int:
        """0: all judged calls are right. 1: a call is wrong. 2: no call was judged."""
        if self.total("judged") == 0:
            return 2
        return 1 if self.total("wrong") else 0

    def lines(self) -> list[str]:
        lines = [self._first_line()]
        if self.total("judged") == 0:
            lines.append(f"NO CALL WAS JUDGED: {self._why_none()}")
        if reasons := self.counts("not_judged").most_common():
            lines.append("not judged:")
            lines += [f"{count:7}  {reason}" for reason, count in reasons]
        for folder, state in self.processes:
            for found in state["found"]:
                lines += _lines_of(folder, found)
        return lines

    def _first_line(self) -> str:
        calling = sum(state["calls"] > 0 for _, state in self.processes)
        made = ", ".join(f"{name} {count}" for name, count in sorted(self.counts("calls_by_backend").items()))
        every = ", ".join(map(str, sorted({state["every"] for _, state in self.processes})))
        ratio = max((state["ratio"] for _, state in self.processes), default=0.0)
        judged = f"{self.total('judged')} judged" + (f" (every {every})" if every else "")
        bound = f", largest error {ratio:.2g} of its bound" if self.total("judged") else ""
        return (
            f"{calling} of {len(self.processes)} processes made {self.total('calls')} calls"
            f"{f' ({made})' if made else ''}, {judged}, {self.total('wrong')} wrong{bound}"
        )

    def _why_none(self) -> str:
        if not self.processes:
            return NO_PROCESS
        if self.total("calls"):
            return NO_TURN
        return NO_CALL if self.counts("layers") else NO_LAYER


def _lines_of(folder: Path, found: dict[str, Any]) -> list[str]:
    head = "wrong" if found["wrong"] else "not judged"
    case = "not captured" if found["case"] is None else str(folder / found["case"])
    lines = [f"{head}: call {found['index']} of {found['function']}: {case}"]
    return [*lines, *(f"    {text}" for text in (found["message"], found["error"]) if text)]


def _read(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(state, dict) or state.get("schema") != SCHEMA:
            raise ValueError(f"its schema is not {SCHEMA}")
    except (OSError, ValueError) as error:
        raise FolderError(f"{path}: not a file of a recording: {error}") from None
    return state
