"""Calls of attention in somebody's running program: judge one, or record all that go by."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import attn_reference
import msgspec
import torch
from attn_contract import FLOAT8_DTYPES, Batch, ContractError, Layer
from attn_contract.arguments import check_tensor
from attn_fuzz.cases.call import Call
from attn_fuzz.cases.captures import CaptureError, capture
from attn_fuzz.verdict.judge import Judgement, judge_call
from attn_fuzz.verdict.rounding import Rounding

UNKNOWN_KERNEL = Rounding(keys_per_tile=16, dot_is_chained=True, splits=64, rounds_dequantized=True)
"""What is allowed to a kernel of which nothing is known: tiles of 16 keys or more, all keys of a row added one after the other,
up to 64 splits, and K and V of a quantized cache rounded to q's dtype before the dots."""


def check(call: Call, out: torch.Tensor, lse: torch.Tensor | None = None, *, rounding: Rounding = UNKNOWN_KERNEL) -> Judgement:
    """Judge what a kernel made of a call, by the reference in float64 on exactly the stored values.

    Every row that a request owns is held to the bound that no rounding breaks (HARD; `attn_fuzz.verdict.oracle` derives it),
    since nothing is known about the numbers; but first to the lower bound that generic numbers keep to, and if they do it is
    done. `statistical_ratio` says how it stands with that one. Runs where the tensors are, in [H, 256, seq_len] float64
    numbers a dozen times over.

    Args:
        call: what the kernel was given.
        out: [T, H, D] or [T, H * D], what it wrote: of q's dtype, or float8 with an output_scale.
        lse: [H, T] float32, natural logarithm, sinks included; None if it wrote none.
        rounding: where the kernel rounds. A float32 kernel whose products are TF32's is not described by any.

    Returns:
        What differs, the worst element of each request first; `.message` for people, `.raise_for_differences()` for tests.

    Raises:
        ContractError: the call contradicts the contract, or a number that it attends to is not finite; `out` or `lse` is no
            tensor where q is, or has another shape or dtype.
    """
    layer, q, rows = call.layer, call.q, len(call.q)
    dtypes = (q.dtype,) if layer.output_scale is None else FLOAT8_DTYPES
    _check_output("out", out, q, [(rows, layer.num_heads, layer.head_size), (rows, layer.num_heads * layer.head_size)], dtypes)
    if lse is not None:
        _check_output("lse", lse, q, [(layer.num_heads, rows)], (torch.float32,))
    judgement = judge_call(call, out, lse, rounding, generic=True)
    statistical_ratio = judgement.ratio
    if not judgement.agrees:
        judgement = judge_call(call, out, lse, rounding)
    for worst in judgement.differences:
        if worst.expected != worst.expected:
            raise ContractError("q, k, v", f"NaN or infinity in what request {worst.request} attends to", "finite numbers")
    return msgspec.structs.replace(judgement, statistical_ratio=statistical_ratio)


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


@dataclass
class Recording:
    """The calls of attention that a program has made, with the judgements on them.

    Args:
        folder: where captured calls are written, as call-N.json.
        every: judge every call whose number is a multiple of this.
        limit: how many calls to keep in `found`; further calls are only counted.
        captures: which of the judged calls are captured.
        rounding: as for `check`.

    Attributes:
        calls, judged, wrong: how many calls were made, how many were judged, and how many of these were wrong.
        ratio, statistical_ratio: the largest of all judgements.
    """

    folder: Path
    every: int = 1
    limit: int = 10
    captures: Literal["wrong", "all"] = "wrong"
    rounding: Rounding = UNKNOWN_KERNEL
    calls: int = field(default=0, init=False)
    judged: int = field(default=0, init=False)
    wrong: int = field(default=0, init=False)
    ratio: float = field(default=0.0, init=False)
    statistical_ratio: float = field(default=0.0, init=False)
    found: list[Found] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.folder = Path(self.folder)
        if self.every < 1 or self.limit < 0 or self.captures not in ("wrong", "all"):
            raise ValueError(
                f"recording: got every={self.every}, limit={self.limit}, captures={self.captures!r}, "
                "expected at least 1, at least 0, and 'wrong' or 'all'"
            )

    def see(self, call: Call, out: torch.Tensor, lse: torch.Tensor | None = None, *, function: str = "") -> None:
        """Judge a call that a kernel of your own has answered, and capture it if it is to be; never raises for what is wrong.

        Args:
            call, out, lse: as for `check`.
            function: what to call the kernel in `found`.
        """
        index, self.calls = self.calls, self.calls + 1
        if index % self.every:
            return
        self.judged += 1
        judgement, case, error = None, None, None
        try:
            judgement = check(call, out, lse, rounding=self.rounding)
            self.wrong += not judgement.agrees
            self.ratio = max(self.ratio, judgement.ratio)
            self.statistical_ratio = max(self.statistical_ratio, judgement.statistical_ratio or 0.0)
            judgement = msgspec.structs.replace(judgement, of_bound={})  # as large as the output
            if judgement.agrees and self.captures == "wrong":
                return
            if len(self.found) < self.limit:
                self.folder.mkdir(parents=True, exist_ok=True)
                case = _capture(call, judgement, self.folder / f"call-{index}.json")
        except (ContractError, CaptureError, OSError, torch.OutOfMemoryError) as reason:
            error = str(reason)
        if len(self.found) < self.limit:
            self.found.append(Found(index, function, judgement, case, error))


@contextmanager
def recording(
    folder: str | Path,
    *,
    every: int = 1,
    limit: int = 10,
    captures: Literal["wrong", "all"] = "wrong",
    rounding: Rounding = UNKNOWN_KERNEL,
) -> Iterator[Recording]:
    """Judge the calls of attention that this process makes inside the `with`, and capture those that are wrong.

    These are all calls of `paged_attention` and `varlen_attention` of `attn_reference` and, if it is imported by then, of
    `attn_optimized` that look them up in their package: the torch ops do, TRITON_ATTN and vLLM's PARITY backends. Hand calls
    of other kernels to `see`. A CUDA graph that is replayed makes no calls.

    Args:
        folder, every, limit, captures, rounding: see Recording.
    """
    recording = Recording(Path(folder), every, limit, captures, rounding)
    with ExitStack() as patches:
        for module in (attn_reference, sys.modules.get("attn_optimized")):
            for name, watch in {"paged_attention": _watch_paged, "varlen_attention": _watch_varlen}.items():
                if module is not None:
                    watched = watch(getattr(module, name), f"{module.__name__}.{name}", recording)
                    patches.enter_context(mock.patch.object(module, name, watched))
        yield recording


def _watch_paged(function: Callable[..., torch.Tensor], name: str, recording: Recording) -> Callable[..., torch.Tensor]:
    def paged_attention(
        q: torch.Tensor,
        kv_cache: torch.Tensor,
        layer: Layer,
        batch: Batch,
        *,
        lse: torch.Tensor | None = None,
        **options: Any,
    ) -> torch.Tensor:
        out = function(q, kv_cache, layer, batch, lse=lse, **options)
        recording.see(Call(q=q, layer=layer, batch=batch, kv_cache=kv_cache), out, lse, function=name)
        return out

    return paged_attention


def _watch_varlen(function: Callable[..., torch.Tensor], name: str, recording: Recording) -> Callable[..., torch.Tensor]:
    def varlen_attention(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: Layer,
        batch: Batch,
        *,
        lse: torch.Tensor | None = None,
        **options: Any,
    ) -> torch.Tensor:
        out = function(q, k, v, layer, batch, lse=lse, **options)
        recording.see(Call(q=q, layer=layer, batch=batch, k=k, v=v), out, lse, function=name)
        return out

    return varlen_attention


def _capture(call: Call, judgement: Judgement, path: Path) -> Path:
    """The whole call, or where no case can hold it the requests that differ."""
    try:
        return capture(call, path)
    except CaptureError:
        wrong = {worst.request for worst in judgement.differences}
        if not wrong:
            raise
        return capture(call, path, requests=sorted(wrong))
