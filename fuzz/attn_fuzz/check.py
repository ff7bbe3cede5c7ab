"""One case, once: build, write the cache, attend, judge, and look at every byte that should not have changed."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator
from typing import Literal

import attn_reference
import msgspec
import torch
from attn_fuzz import tensors
from attn_fuzz.case import Case
from attn_fuzz.judge import Difference, judge
from attn_fuzz.targets import Target
from attn_fuzz.tensors import Step, Write, bits

Kind = Literal[
    "agree",
    "refused",
    "value",
    "nan",
    "bitwise",
    "unwritten",
    "lse",
    "cache",
    "input",
    "guard",
    "raised",
    "crashed",
    "hung",
]


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one case.

    Attributes:
        kind: "agree"; "refused", rightly; or what went wrong first: a value past its bound, NaN, an inexact sum, a row never
            written, the LSE, a wrong or stray byte in the cache, a changed input, a byte outside the owned outputs, an
            exception, a dead process, no answer in time.
        message: one line for a person; empty if they agree.
        differences: the worst element per request.
        ratio: the largest error / bound.
        seconds: where the time went: building, the target, and the oracle with the judge.
    """

    kind: Kind
    message: str = ""
    differences: tuple[Difference, ...] = ()
    ratio: float = 0.0
    seconds: dict[str, float] = {}

    @property
    def failed(self) -> bool:
        return self.kind not in ("agree", "refused")


def check(case: Case, target: Target, device: str) -> Verdict:
    """Run a case on a target and judge it. A target that raises is a verdict, not an exception.

    What is beyond the target's support it may refuse, or do right.

    A breach of the statistical bound that HARD allows is re-run with two fresh seeds; it counts if one of them breaks it too.
    """
    verdict, certain = _check_once(case, target, device)
    if certain:
        return verdict
    for more in (1, 2):
        seed = (case.values.seed + more * 7919) % (1 << 32)
        again, _ = _check_once(
            msgspec.structs.replace(case, values=msgspec.structs.replace(case.values, seed=seed)), target, device
        )
        if again.failed:
            return verdict
    return Verdict(kind="agree", ratio=verdict.ratio, seconds=verdict.seconds)


def _check_once(case: Case, target: Target, device: str) -> tuple[Verdict, bool]:
    """The verdict, and whether it needs no second look."""
    clock = time.perf_counter
    started = clock()
    step = tensors.build(case, device)
    expected_raw = step.raw.clone() if step.raw is not None else None
    before = {name: bits(tensor).clone() for name, tensor in step.inputs().items() if name != "kv_cache"}
    built = clock()

    def verdict(kind: Kind, message: str, differences: tuple[Difference, ...] = (), ratio: float = 0.0) -> Verdict:
        now = clock()
        seconds = {"build": built - started, "target": attended - built, "judge": now - attended}
        return Verdict(kind=kind, message=message, differences=differences, ratio=ratio, seconds=seconds)

    error = None
    written = expected_raw
    try:
        with _own_state():
            for write in step.writes:
                _write(write, step, target)
            _synchronize(device)
            written = step.raw.clone() if step.raw is not None else None
            _attend(step, target)
            _synchronize(device)
    except BaseException as raised:
        error = raised
    attended = clock()
    beyond = target.support(device).beyond(case)
    if error is not None and not (beyond and isinstance(error, ValueError | NotImplementedError)):
        must = (
            f"{beyond} is beyond its support and must be refused with a ValueError or NotImplementedError: " if beyond else ""
        )
        return verdict("raised", f"{must}{type(error).__name__}: {_one_line(error)}"), True

    if written is not None and expected_raw is not None and step.raw is not None:
        if place := _first_change(written, step.raw):
            return verdict("cache", f"attention wrote into the cache: {_locate(place, step, written, step.raw)}"), True
        for write in step.writes if error is None else ():
            attn_reference.write_kv_cache(
                write.k, write.v, write.view.tensor(expected_raw), write.view.layout, write.slot_mapping
            )
        if error is None and (place := _first_change(expected_raw, written)):
            return verdict("cache", f"the cache write: {_locate(place, step, expected_raw, written)}"), True
    for name, tensor in step.inputs().items():
        if name in before and not torch.equal(before[name], bits(tensor)):
            return verdict("input", f"it changed its input {name}"), True
    if message := _stray_write(case, step, owned_rows=case.query_start_loc[-1] if error is None else 0):
        return verdict("guard", message), True
    if error is not None:
        return verdict("refused", _one_line(error)), True
    judgement = judge(case, step, target.rounding(device))
    message = _say(judgement.differences[0]) if judgement.differences else ""
    if message and beyond:
        message = f"{beyond} is beyond its support and was not refused: {message}"
    return verdict(judgement.kind, message, judgement.differences, judgement.ratio), (
        judgement.kind == "agree" or judgement.breaks_hard
    )


@contextlib.contextmanager
def _own_state() -> Iterator[None]:
    """What a target does to torch's global state ends with it; and memory that it allocates uninitialized starts as NaN."""
    default_dtype, default_device, threads = torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads()
    folder = os.getcwd()
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills uninitialized memory
    try:
        with torch.no_grad():
            yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_default_dtype(default_dtype)
        if torch.get_default_device() != default_device:
            torch.set_default_device(default_device)
        os.chdir(folder)
        torch.set_num_threads(threads)


def _attend(step: Step, target: Target) -> None:
    """Call the target with tensors of its own over the same memory, so that what it does to the objects changes nothing."""
    q, out = step.q.view_as(step.q), step.out.view_as(step.out)
    k, v, lse = (None if tensor is None else tensor.view_as(tensor) for tensor in (step.k, step.v, step.lse))
    batch = dataclasses.replace(step.batch, **{name: tensor.view_as(tensor) for name, tensor in step.batch.tensors.items()})
    target.attention(q, k, v, step.kv_cache, dataclasses.replace(step.layer), batch, out=out, lse=lse)


def _write(write: Write, step: Step, target: Target) -> None:
    assert step.raw is not None
    function = target.write_kv_cache or attn_reference.write_kv_cache
    k, v, slot_mapping = (tensor.view_as(tensor) for tensor in (write.k, write.v, write.slot_mapping))
    function(k, v, write.view.tensor(step.raw), write.view.layout, slot_mapping)


def _synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _first_change(expected: torch.Tensor, got: torch.Tensor) -> list[int] | None:
    changed = bits(expected) != bits(got)
    return changed.nonzero().flatten().tolist() if changed.any() else None


def _locate(changed: list[int], step: Step, expected: torch.Tensor, got: torch.Tensor) -> str:
    """Name the first changed element of the allocation by the view of the layer under test."""
    view = step.view
    assert view is not None
    place = f"element {changed[0]} of the allocation, which belongs to no block"
    inside = view.first_block_elements() + torch.arange(view.num_blocks).view(-1, 1, 1, 1, 1) * view.block_stride
    if len(found := (inside == changed[0]).nonzero()):
        block, kv, slot, head, dim = found[0].tolist()
        place = f"{'KV'[kv]} of block {block}, slot {slot}, head {head}, dim {dim}"
    return f"{place}: got {float(got[changed[0]])}, expected {float(expected[changed[0]])}; {len(changed)} elements differ"


def _stray_write(case: Case, step: Step, owned_rows: int) -> str | None:
    """A changed element around `out` or `lse`, or in rows that were not to be written."""
    owned = torch.zeros(case.num_rows, dtype=torch.bool, device=step.out.device)
    owned[:owned_rows] = True
    fresh = {"out": step.out_buffer, "lse": step.lse_buffer}
    for name, buffer in fresh.items():
        untouched = torch.ones_like(buffer, dtype=torch.bool)
        if name == "out":
            untouched[tensors.GUARD : tensors.GUARD + case.num_rows, : case.num_heads * case.head_size] = ~owned[:, None]
        elif step.lse is not None:
            untouched[1:-1, tensors.GUARD : tensors.GUARD + case.num_rows] = ~owned
        changed = untouched & (bits(buffer) != bits(tensors.canary((1,), buffer.dtype, buffer.device)))
        if changed.any():
            place = changed.nonzero()[0]
            row = int(place[0 if name == "out" else 1]) - tensors.GUARD
            what = "a row that it must not write" if 0 <= row < case.num_rows else "outside the tensor"
            return f"it wrote to {name} row {row}, {what}; {int(changed.sum())} elements"
    return None


def _say(worst: Difference) -> str:
    where = f"row {worst.row}, head {worst.head}" + (f", dim {worst.dim}" if worst.dim is not None else "")
    return (
        f"{worst.tensor} of request {worst.request} at {where}: got {worst.got:.9g}, expected {worst.expected:.9g} "
        f"+- {worst.bound:.2g}"
    )


def _one_line(error: BaseException) -> str:
    """An exception's message as one printable line, whatever its __str__ does."""
    try:
        text = " ".join(str(error).split())[:300]
        return "".join(character if character.isprintable() else "?" for character in text)
    except BaseException:
        return "(its message cannot be printed)"
