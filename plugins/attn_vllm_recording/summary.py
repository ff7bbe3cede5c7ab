"""The summary of a recording's folder: the results of all processes of an engine. It needs neither vLLM nor torch.

No file of the folder is trusted. A file that no process of a recording can have written is named and left out. Texts of files
are printed as printable characters, each on one line.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from attn_fuzz import inputs
from attn_fuzz.errors import InputError
from attn_fuzz.text import one_line, printable

from attn_vllm_recording.settings import VARIABLE

FILE: Final = "recording.json"
SCHEMA: Final = "attn-parity.vllm-recording/2"

NO_PROCESS = (
    f"no process has loaded the recording: was {VARIABLE} set where vLLM was started, is attn-parity installed beside vLLM, "
    "and does VLLM_PLUGINS, if it is set, name attn_parity_recording?"
)
NO_LAYER = "no process has built a layer of attention: has vLLM loaded its model?"
NO_CALL = "layers were built, and not one was called: does vLLM replay CUDA graphs? --enforce-eager calls its layers"
NO_TURN = "no call that can be judged was due"

MAX_BYTES: Final = 1 << 24
MAX_TEXT: Final = 500
MAX_SHOWN: Final = 20
"""The most entries of a kind that are shown."""


class FolderError(ValueError):
    """The folder cannot be read. The message names it."""


@dataclass(frozen=True)
class Summary:
    """Sums over the processes of a folder.

    Args:
        folder: the folder that ATTN_PARITY_RECORDING named.
        processes: the content of each file, and its folder.
        left_out: the reasons why files were left out. Each begins with the file's name.
    """

    folder: Path
    processes: tuple[tuple[Path, dict[str, Any]], ...]
    left_out: tuple[str, ...] = ()

    @classmethod
    def of(cls, folder: Path) -> "Summary":
        """Read the files. Processes may still be writing: each file is replaced in one step.

        Raises:
            FolderError: there is no such folder, or it cannot be read.
        """
        try:
            if not folder.is_dir():
                raise FolderError(f"{printable(str(folder))}: there is no such folder. {NO_PROCESS}")
            paths = [each / FILE for each in sorted(folder.iterdir()) if each.is_dir() and _is_there(each / FILE)]
        except OSError as error:
            raise FolderError(f"{printable(str(folder))}: {error.strerror}") from None
        processes, left_out = [], []
        for path in paths:
            try:
                processes.append((path.parent, _read(path)))
            except InputError as error:
                left_out.append(one_line(str(error)))
        return cls(folder, tuple(processes), tuple(left_out))

    def total(self, name: str) -> int:
        return sum(state[name] for _, state in self.processes)

    def counts(self, name: str) -> Counter[str]:
        return sum((Counter(state[name]) for _, state in self.processes), Counter())

    @property
    def exit_code(self) -> int:
        """0: all judged calls and all blocks are right. 1: one is wrong. 2: no call was judged, or a file was left out."""
        if self.total("wrong") or self.total("wrong_reads"):
            return 1
        return 0 if self.total("judged") and not self.left_out else 2

    def lines(self) -> list[str]:
        lines = [self._first_line()]
        if self.total("judged") == 0:
            lines.append(f"NO CALL WAS JUDGED: {self._why_none()}")
        else:
            lines += [f"NO CALL WAS JUDGED of {name}, which made {calls} calls" for name, calls in self._silent()]
        lines += _first((f"left out: {reason}" for reason in self.left_out), "files that are left out")
        if reasons := self.counts("not_judged").most_common():
            lines.append("not judged:")
            lines += _first((f"{count:7}  {_shown(reason)}" for reason, count in reasons), "reasons")
        if reads := self.total("reads"):
            lines.append(f"blocks: {reads} rows of steps compared with what was written, {self.total('wrong_reads')} wrong")
        if reasons := self.counts("not_seen").most_common():
            lines.append("blocks not compared with what was written:")
            lines += _first((f"{count:7}  {_shown(reason)}" for reason, count in reasons), "reasons")
        faults = [(folder, fault) for folder, state in self.processes for fault in state["faults"]]
        lines += _first((f"wrong blocks: {printable(each.name)}: {_shown(fault)}" for each, fault in faults), "wrong blocks")
        found = [(folder, each) for folder, state in self.processes for each in state["found"]]
        for kind, is_wrong in (("wrong calls", True), ("calls that are not judged", False)):
            lines += _first((_lines_of(folder, each) for folder, each in found if each["wrong"] == is_wrong), kind)
        return "\n".join(lines).split("\n")

    def _first_line(self) -> str:
        calling = sum(state["calls"] > 0 for _, state in self.processes)
        made = ", ".join(f"{_shown(name)} {count}" for name, count in sorted(self.counts("calls_by_backend").items()))
        every = ", ".join(map(str, sorted({state["every"] for _, state in self.processes})))
        ratio = max((state["ratio"] for _, state in self.processes), default=0.0)
        judged = f"{self.total('judged')} judged" + (f" (every {every})" if every else "")
        bound = f", largest error {ratio:.2g} of its bound" if self.total("judged") else ""
        return (
            f"{calling} of {len(self.processes)} processes made {self.total('calls')} calls"
            f"{f' ({made})' if made else ''}, {judged}, {self.total('wrong')} wrong{bound}"
        )

    def _silent(self) -> list[tuple[str, int]]:
        """Processes without a judged call, each with the number of calls that it made."""
        calls = ((printable(folder.name), state["calls"], state["judged"]) for folder, state in self.processes)
        return [(name, made) for name, made, judged in calls if made and not judged]

    def _why_none(self) -> str:
        if self.left_out and not self.processes:
            return "no file of the folder is one of a recording"
        if not self.processes:
            return NO_PROCESS
        if self.total("calls"):
            return NO_TURN
        return NO_CALL if self.counts("layers") else NO_LAYER


def _first(entries: Iterable[str], kind: str) -> list[str]:
    """The first entries of a kind, and the number of the others."""
    every = list(entries)
    return every[:MAX_SHOWN] + [f"and {len(every) - MAX_SHOWN} more {kind}"] * (len(every) > MAX_SHOWN)


def _lines_of(folder: Path, found: dict[str, Any]) -> str:
    head = "wrong" if found["wrong"] else "not judged"
    case = "not captured" if found["case"] is None else printable(str(folder / found["case"]))
    lines = [f"{head}: call {found['index']} of {_shown(found['function'])}: {case}"]
    return "\n".join([*lines, *(f"    {_shown(text)}" for text in (found["message"], found["error"]) if text)])


def _shown(text: str) -> str:
    return one_line(text, MAX_TEXT)


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError:
        pass  # such as a file of another user: reading it gives the reason
    return True


def _read(path: Path) -> dict[str, Any]:
    """Read and check the file of a process.

    Raises:
        InputError: no process of a recording writes such a file. The message begins with the path.
    """
    state = inputs.read_record(path, SCHEMA, MAX_BYTES)
    if wrong := next((name for name, is_right in _FIELDS.items() if name not in state or not is_right(state[name])), None):
        raise InputError(f"{path}: {wrong}: not what a recording writes")
    if not (state["wrong"] <= state["judged"] <= state["calls"] and state["wrong_reads"] <= state["reads"]):
        calls = f"{state['wrong']} wrong of {state['judged']} judged of {state['calls']} calls"
        raise InputError(f"{path}: {calls}, {state['wrong_reads']} wrong of {state['reads']} reads")
    return state


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _are_counts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_count, value.values()))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_text_or_none(value: Any) -> bool:
    return value is None or _is_text(value)


def _is_case(value: Any) -> bool:
    """The name of a file beside this one, or none."""
    return value is None or (isinstance(value, str) and Path(value).name == value != "")


def _are_found(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, dict) and all(name in one and is_right(one[name]) for name, is_right in _OF_FOUND.items())
        for one in value
    )


_OF_FOUND: Final[dict[str, Callable[[Any], bool]]] = {
    "index": _is_count,
    "function": _is_text,
    "wrong": lambda value: isinstance(value, bool),
    "message": _is_text_or_none,
    "case": _is_case,
    "error": _is_text_or_none,
}
_COUNTED: Final = ("layers", "calls_by_backend", "not_judged", "not_seen")
_FIELDS: Final[dict[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("pid", "every", "most", "calls", "judged", "wrong", "reads", "wrong_reads"), _is_count),
    **dict.fromkeys(("host", "program"), _is_text),
    **dict.fromkeys(_COUNTED, _are_counts),
    "ratio": lambda value: type(value) in (int, float) and value >= 0,
    "found": _are_found,
    "faults": lambda value: isinstance(value, list) and all(map(_is_text, value)),
}
"""The fields of a process's file, each with the values that a process can have written."""
