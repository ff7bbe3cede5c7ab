"""One case, once: build, write the cache, attend, judge, and look at every byte that should not have changed."""

import contextlib
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

Kind = Literal["agree", "value", "nan", "bitwise", "unwritten", "lse", "cache", "input", "guard", "raised", "crashed", "hung"]


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one case.

    Attributes:
        kind: "agree", or what went wrong first: a value past its bound, NaN, an inexact sum, a row never written, the LSE, a
            wrong or stray byte in the cache, a changed input, a byte outside the owned outputs, an exception, a dead process,
            no answer in time.
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
        return self.kind != "agree"


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

    try:
        with _poisoned_memory():
            for write in step.writes:
                _write(write, step, target)
            _synchronize(device)
            written = step.raw.clone() if step.raw is not None else None
            target.attention(step.q, step.k, step.v, step.kv_cache, step.layer, step.batch, out=step.out, lse=step.lse)
            _synchronize(device)
    except Exception as error:
        attended = clock()
        refused = isinstance(error, ValueError | NotImplementedError) and target.support(device).beyond(case)
        if not refused:
            return verdict("raised", f"{type(error).__name__}: {_one_line(error)}"), True
        wrote = _wrote(step)
        return (verdict("guard", f"it refused {refused} after it had written {wrote}") if wrote else verdict("agree", "")), True
    attended = clock()

    if written is not None and expected_raw is not None and step.raw is not None:
        for write in step.writes:
            attn_reference.write_kv_cache(
                write.k, write.v, write.view.tensor(expected_raw), write.view.layout, write.slot_mapping
            )
        if place := _first_change(expected_raw, written):
            return verdict("cache", f"the cache write: {_locate(place, step, expected_raw, written)}"), True
        if place := _first_change(written, step.raw):
            return verdict("cache", f"attention wrote into the cache: {_locate(place, step, written, step.raw)}"), True
    for name, tensor in step.inputs().items():
        if name in before and not torch.equal(before[name], bits(tensor)):
            return verdict("input", f"attention changed its input {name}"), True
    if message := _stray_write(case, step):
        return verdict("guard", message), True
    judgement = judge(case, step, target.rounding(device))
    message = _say(judgement.differences[0]) if judgement.differences else ""
    return verdict(judgement.kind, message, judgement.differences, judgement.ratio), (
        judgement.kind == "agree" or judgement.breaks_hard
    )


@contextlib.contextmanager
def _poisoned_memory() -> Iterator[None]:
    """Memory that the target allocates uninitialized starts as NaN: torch fills it in its deterministic mode."""
    was = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was[0], warn_only=was[1])


def _write(write: Write, step: Step, target: Target) -> None:
    assert step.raw is not None
    function = target.write_kv_cache or attn_reference.write_kv_cache
    function(write.k, write.v, write.view.tensor(step.raw), write.view.layout, write.slot_mapping)


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


def _stray_write(case: Case, step: Step) -> str | None:
    """A changed element around `out` or `lse`, or in rows that no request owns."""
    owned = torch.zeros(case.num_rows, dtype=torch.bool, device=step.out.device)
    owned[: case.query_start_loc[-1]] = True
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
            what = "a row that no request owns" if 0 <= row < case.num_rows else "outside the tensor"
            return f"attention wrote to {name} row {row}, {what}; {int(changed.sum())} elements"
    return None


def _wrote(step: Step) -> str | None:
    """The first of the outputs in which anything has changed."""
    fresh = {"out": step.out_buffer, "lse": step.lse_buffer}
    for name, buffer in fresh.items():
        if not torch.equal(bits(buffer), bits(tensors.canary(tuple(buffer.shape), buffer.dtype, buffer.device))):
            return name
    return None


def _say(worst: Difference) -> str:
    where = f"row {worst.row}, head {worst.head}" + (f", dim {worst.dim}" if worst.dim is not None else "")
    return (
        f"{worst.tensor} of request {worst.request} at {where}: got {worst.got:.9g}, expected {worst.expected:.9g} "
        f"+- {worst.bound:.2g}"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
