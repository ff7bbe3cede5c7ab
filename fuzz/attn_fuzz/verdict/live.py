"""Judges calls of attention in a running program: `check` judges one call, and `recording` judges the calls that it makes.

Both trust the arguments of a call: the cache, the block table and the lengths.
"""

import dataclasses
import functools
import inspect
import json
import os
import sys
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import attn_reference
import msgspec
import torch
from attn_contract import FLOAT8_DTYPES, FLOAT_DTYPES, ContractError
from attn_contract.arguments import check_tensor
from attn_fuzz import outputs
from attn_fuzz.cases.call import Call
from attn_fuzz.cases.captures import CaptureError, capture
from attn_fuzz.shadow import Shadow
from attn_fuzz.verdict.held_caches import held_caches
from attn_fuzz.verdict.judge import Judgement, judge_call
from attn_fuzz.verdict.rounding import Rounding

MAX_REASONS = 32
"""The most different reasons that a recording counts. Reasons may contain numbers, and a server makes calls for weeks."""

ROUNDING = "rounding"
"""The name in a capture's file of the Rounding by which its outputs were judged, as JSON."""
UNKNOWN_KERNEL = Rounding(keys_per_tile=16, dot_is_chained=True, splits=64, rounds_dequantized=True, float16_dots=True)
"""The roundings allowed to an unknown kernel: it has tiles of at least 16 keys, adds the keys of a row one after the other,
splits the keys into at most 64 parts, rounds K and V of a quantized cache to q's dtype before the dot products, or multiplies
those of a float8 cache as float16."""


def check(call: Call, out: torch.Tensor, lse: torch.Tensor | None = None, *, rounding: Rounding = UNKNOWN_KERNEL) -> Judgement:
    """Judge a kernel's outputs of a call by the reference, which computes in float64 from exactly the stored values.

    Rows that a request owns are first compared with the statistical bound, which generic numbers keep. If a row breaks
    this bound, all rows are compared with the bound HARD, which no rounding breaks: numbers of a real model need not be
    generic. The result's `statistical_ratio` is the largest error / statistical bound. `attn_fuzz.verdict.oracle` derives both
    bounds.

    The judge runs on the device of the tensors. It needs memory for about twelve tensors of [H, 256, seq_len] float64.

    Args:
        call: the inputs of the kernel.
        out: [T, H, Dv] or [T, H * Dv] with Dv = `layer.v_head_size`, the kernel's output. Its dtype is q's, or float8 if the
            layer has an output_scale, or any of `FLOAT_DTYPES` beside a float8 q.
        lse: [H, T] float32, natural logarithms that include the sinks; None if the kernel wrote none.
        rounding: the roundings of the kernel. A float32 kernel whose products are TF32 needs one with operands="tf32".

    Returns:
        The differences, beginning with the worst element of each request. `.message` is a line for people. Tests call
        `.raise_for_differences()`.

    Raises:
        ContractError: the call contradicts the contract, or a request attends to a number that is not finite. Or `out` or
            `lse` is not a tensor on q's device of the right shape and dtype.

    Warns:
        RuntimeWarning: the outputs agree, and an error is beyond the statistical bound. In float32 the bound HARD is 20 to
            1,000 times the errors of a right kernel, so that it hides faults which this bound shows.
    """
    judgement = _checked(call, out, lse, rounding)
    if judgement.is_unlikely:
        warnings.warn(f"check: {_unlikely(judgement)}", RuntimeWarning, stacklevel=2)
    return judgement


def _checked(call: Call, out: torch.Tensor, lse: torch.Tensor | None, rounding: Rounding) -> Judgement:
    """`check` without its warning."""
    layer, q, rows = call.layer, call.q, len(call.q)
    own = (q.dtype,) if layer.q_scale is None else FLOAT_DTYPES
    dtypes = own if layer.output_scale is None else FLOAT8_DTYPES
    shapes = [(rows, layer.num_heads, layer.v_head_size), (rows, layer.num_heads * layer.v_head_size)]
    _check_output("out", out, q, shapes, dtypes)
    if lse is not None:
        _check_output("lse", lse, q, [(layer.num_heads, rows)], (torch.float32,))
    judgement = judge_call(call, out, lse, rounding, generic=True)
    statistical_ratio = judgement.ratio
    if not judgement.agrees:
        judgement = judge_call(call, out, lse, rounding)
    for worst in judgement.differences:
        if worst.expected != worst.expected:
            raise ContractError("q, k, v", f"NaN or infinity in what request {worst.request} attends to", "finite numbers")
    return msgspec.structs.replace(judgement, compared=(), statistical_ratio=statistical_ratio)


def _unlikely(judgement: Judgement) -> str:
    bounds = (
        f"{judgement.statistical_ratio:.3g} times the statistical bound, and {judgement.ratio:.3g} of the bound that decides"
    )
    return f"the outputs agree, but an error is {bounds}: look closer, unless the numbers are not generic"


def _check_output(
    name: str, tensor: object, q: torch.Tensor, shapes: Sequence[tuple[int, ...]], dtypes: Sequence[torch.dtype]
) -> None:
    check_tensor(name, tensor)
    assert isinstance(tensor, torch.Tensor)
    if tuple(tensor.shape) not in shapes:
        raise ContractError(name, f"shape {tuple(tensor.shape)}", " or ".join(map(str, shapes)))
    if tensor.dtype not in dtypes:
        raise ContractError(name, tensor.dtype, " or ".join(map(str, dtypes)))
    if tensor.device != q.device:
        raise ContractError(name, f"a tensor on {tensor.device}", f"{q.device}, where q is")


@dataclass(frozen=True)
class Found:
    """A call that was wrong, captured, or could not be judged."""

    index: int
    """number of the call in the recording, from 0"""
    function: str
    judgement: Judgement | None
    case: Path | None
    """path of the captured case, or None if the call was not captured"""
    error: str | None
    """why the call was not judged or not captured, or None"""
    wrong: str | None = None
    """what is wrong, in one line; None if nothing is, or if the call was not judged"""

    @property
    def is_judged(self) -> bool:
        return self.judgement is not None or self.wrong is not None


@dataclass
class Recording:
    """The calls of attention that a program has made, with the judgements on them.

    Args:
        folder: the folder for captured calls, as call-N.json. Files that are there stay: a name that is taken gets a number,
            as in call-N-2.json.
        every: judge every call whose number is a multiple of this.
        limit: how many judged calls to keep in `found`, and how many that could not be judged. Further calls are only counted.
        captures: which of the judged calls are captured.
        rounding: as for `check`.
        most: the number of calls to judge. None: all whose turn it is.
        shadow: the shadow with which the cache is compared in every call. Its `faults` are a verdict of their own.

    Attributes:
        requests: names of the requests of the next step, row by row, which the caller sets. Without them, caches of functions
            and ops are not compared with the shadow.
        calls, judged, wrong: the numbers of calls, of judged calls, and of wrong ones.
        unlikely: the number of calls that agree with an error beyond the statistical bound. The first one is a RuntimeWarning.
        not_judged: by reason, how many calls could not be judged though it was their turn.
        ratio, statistical_ratio: the largest of all judgements.
        hidden, first_hidden: the number of tokens, without padding, whose mask hides every key, once for each layer, and the
            first of them. With such a mask it is right to attend to nothing.
    """

    folder: Path
    every: int = 1
    limit: int = 10
    captures: Literal["wrong", "all"] = "wrong"
    rounding: Rounding = UNKNOWN_KERNEL
    most: int | None = None
    shadow: Shadow | None = None
    requests: Sequence[Hashable] = field(default=(), init=False)
    calls: int = field(default=0, init=False)
    judged: int = field(default=0, init=False)
    wrong: int = field(default=0, init=False)
    unlikely: int = field(default=0, init=False)
    not_judged: dict[str, int] = field(default_factory=dict, init=False)
    ratio: float = field(default=0.0, init=False)
    statistical_ratio: float = field(default=0.0, init=False)
    found: list[Found] = field(default_factory=list, init=False)
    hidden: int = field(default=0, init=False)
    first_hidden: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.folder = Path(self.folder)
        if self.every < 1 or self.limit < 0 or (self.most or 0) < 0 or self.captures not in ("wrong", "all"):
            raise ValueError(
                f"recording: got every={self.every}, limit={self.limit}, most={self.most}, captures={self.captures!r}, "
                "expected at least 1, at least 0, None or at least 0, and 'wrong' or 'all'"
            )
        nearest = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK):
            raise ValueError(f"recording: got folder={str(self.folder)!r}, expected a folder that can be written")

    def see(self, call: Call, out: torch.Tensor, lse: torch.Tensor | None = None, *, function: str = "") -> None:
        """Judge a call that a kernel has answered, and capture it if `captures` says so. It raises no error about a wrong call.

        Args:
            call, out, lse: as for `check`.
            function: the name of the kernel in `found`.
        """
        if self.is_due():
            self.judge(call, out, lse, function=function)

    def is_due(self) -> bool:
        """Count a call that is made, and say whether it is this call's turn to be judged."""
        index, self.calls = self.calls, self.calls + 1
        return index % self.every == 0 and (self.most is None or self.judged < self.most)

    def pass_over(self, reason: str) -> None:
        """Count a call that cannot be judged although it is its turn."""
        if reason not in self.not_judged and len(self.not_judged) >= MAX_REASONS:
            reason = "other reasons"
        self.not_judged[reason] = self.not_judged.get(reason, 0) + 1

    def note_hidden(self, tokens: Sequence[str], *, function: str = "") -> None:
        """Count tokens, given in words and without padding, whose mask hides every key."""
        if tokens and not self.hidden:
            self.first_hidden = ", ".join(filter(None, (function, tokens[0])))
        self.hidden += len(tokens)

    def judge(
        self,
        call: Call,
        out: torch.Tensor,
        lse: torch.Tensor | None = None,
        *,
        function: str = "",
        rounding: Rounding | None = None,
    ) -> None:
        """Judge the call that was counted last, and capture it if `captures` says so. It raises no error about a wrong call.

        Args:
            call, out, lse, function: as for `see`.
            rounding: the rounding of this call; None: the recording's.
        """
        index = self.calls - 1
        judgement, case, error = None, None, None
        try:
            judgement = _checked(call, out, lse, rounding or self.rounding)
            self.judged += 1
            self.wrong += not judgement.agrees
            self.unlikely += judgement.is_unlikely
            if judgement.is_unlikely and self.unlikely == 1:
                told = f"recording: call {index}{function and f' ({function})'}: {_unlikely(judgement)}"
                warnings.warn(told, RuntimeWarning, stacklevel=3)
            self.ratio = max(self.ratio, judgement.ratio)
            self.statistical_ratio = max(self.statistical_ratio, judgement.statistical_ratio or 0.0)
            judgement = msgspec.structs.replace(judgement, of_bound={})  # as large as the output
            if judgement.agrees and self.captures == "wrong":
                return
            if self._has_room(is_judged=True):
                self.folder.mkdir(parents=True, exist_ok=True)
                case = _captured(call, judgement, self.folder, index, out, lse, rounding or self.rounding)
        except (ContractError, CaptureError, OSError, torch.OutOfMemoryError) as reason:
            error = str(reason)
            if judgement is None:
                self.pass_over(error)
        if self._has_room(is_judged=judgement is not None):
            wrong = judgement.message if judgement is not None and not judgement.agrees else None
            self.found.append(Found(index, function, judgement, case, error, wrong))

    def note(self, wrong: str | None, *, function: str = "") -> None:
        """Count a verdict on the call that was counted last, which is no call of attention. It is not captured.

        Args:
            wrong: the fault, in one line; None: there is none.
            function: as for `see`.
        """
        self.judged += 1
        if wrong is None:
            return
        self.wrong += 1
        if self._has_room(is_judged=True):
            self.found.append(Found(self.calls - 1, function, None, None, None, wrong))

    def why_nothing_was_judged(self, no_call: str) -> str | None:
        """The reason, in words, why no call was judged; None if one was, or none should be.

        Args:
            no_call: the reason where no call was seen.
        """
        if self.judged or self.most == 0:
            return None
        if not self.not_judged:
            return no_call
        return f"{sum(self.not_judged.values())} could not be, the first because of: {next(iter(self.not_judged))}"

    def _has_room(self, *, is_judged: bool) -> bool:
        """True if `found` has room for such a call. Calls that cannot be judged take no room from wrong ones."""
        return sum(found.is_judged == is_judged for found in self.found) < self.limit


@contextmanager
def recording(
    folder: str | Path,
    *,
    every: int = 1,
    limit: int = 10,
    captures: Literal["wrong", "all"] = "wrong",
    rounding: Rounding = UNKNOWN_KERNEL,
    most: int | None = None,
    shadow: Shadow | None = None,
) -> Iterator[Recording]:
    """Judge the calls of attention that this process makes inside the `with`, and capture the wrong calls.

    A call is seen if the caller looks `paged_attention` or `varlen_attention` up in `attn_reference` or `attn_optimized` when
    it calls. The torch ops do so, and so do TRITON_ATTN and vLLM's PARITY backends. `attn_optimized` must be imported before
    the `with`. Hand calls of other kernels to `see`. A replayed CUDA graph makes no calls.

    With a shadow, every call over a cache of DECODER layers is compared with it, in steps whose `requests` were set. Writes are
    seen as calls are. The engine tells the shadow which requests end (`free`), and whose drafts are rejected (`roll_back`).

    Args:
        folder, every, limit, captures, rounding, most, shadow: see Recording.

    Warns:
        UserWarning: no call was judged, with the reason.
    """
    recording = Recording(Path(folder), every, limit, captures, rounding, most, shadow)
    with ExitStack() as patches:
        for module in filter(None, (attn_reference, sys.modules.get("attn_optimized"))):
            for name in ("paged_attention", "varlen_attention"):
                watched = _watched(getattr(module, name), f"{module.__name__}.{name}", recording)
                patches.enter_context(mock.patch.object(module, name, watched))
        if shadow is not None:  # around the judged functions
            patches.enter_context(held_caches(shadow, lambda: recording.requests))
        yield recording
    if reason := recording.why_nothing_was_judged(
        "attn_reference and attn_optimized were not called, and nothing came to `see`"
    ):
        warnings.warn(f"recording: NO CALL WAS JUDGED: {reason}", stacklevel=3)


def _watched(function: Callable[..., torch.Tensor], name: str, recording: Recording) -> Callable[..., torch.Tensor]:
    signature = inspect.signature(function)

    @functools.wraps(function)  # its signature, too, which whoever wraps it next asks for
    def watched(*arguments: Any, **options: Any) -> torch.Tensor:
        out = function(*arguments, **options)
        given = signature.bind(*arguments, **options).arguments
        call = Call(**{each.name: given[each.name] for each in dataclasses.fields(Call) if each.name in given})
        recording.see(call, out, given.get("lse"), function=name)
        return out

    return watched


def _captured(
    call: Call,
    judgement: Judgement,
    folder: Path,
    index: int,
    out: torch.Tensor,
    lse: torch.Tensor | None,
    rounding: Rounding,
) -> Path:
    """Capture a call and its outputs as a case that is not there yet."""
    path = next(path for path in outputs.numbered(folder / f"call-{index}.json") if _is_taken_now(path))
    kept: dict[str, Any] = {"out": out, "lse": lse, "metadata": {ROUNDING: json.dumps(dataclasses.asdict(rounding))}}
    try:
        return _capture(call, judgement, path, kept)
    except BaseException:
        path.with_suffix(".safetensors").unlink(missing_ok=True)
        raise


def _is_taken_now(path: Path) -> bool:
    """Take the name of a case, and return False if it was taken. An empty file of tensors keeps other processes from it."""
    if os.path.lexists(path):
        return False
    try:
        path.with_suffix(".safetensors").open("xb").close()
    except FileExistsError:
        return False
    return True


def _capture(call: Call, judgement: Judgement, path: Path, kept: dict[str, Any]) -> Path:
    """Capture the whole call. If no case can hold the whole call, capture the requests with differences."""
    try:
        return capture(call, path, **kept)
    except CaptureError:
        wrong = {worst.request for worst in judgement.differences}
        if not wrong:
            raise
        return capture(call, path, requests=sorted(wrong), **kept)
