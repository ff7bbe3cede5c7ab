"""One case, once: build, write the cache, attend, judge, and look at every byte that should not have changed."""

import contextlib
import copy
import dataclasses
import os
import random
import time
from collections.abc import Iterator

import attn_reference
import msgspec
import torch
from attn_fuzz.cases import allocations, tensors
from attn_fuzz.cases.case import Case, CaseError, num_elements
from attn_fuzz.cases.poison import bits, canary
from attn_fuzz.cases.tensors import Rotation, Step, Write
from attn_fuzz.interpreted import permissions, sanitizer
from attn_fuzz.run import devices
from attn_fuzz.targets.reference import REFERENCE_FP32
from attn_fuzz.targets.target import Target
from attn_fuzz.verdict import ratios
from attn_fuzz.verdict.judge import Judgement, check_scores, judge, judge_finite
from attn_fuzz.verdict.verdict import Kind, Verdict

PROPERTIES_OF_CASE = 2
# more than these, and a GPU makes and judges a case faster than a CPU does
CPU_ELEMENTS, CPU_PRODUCTS = 1 << 21, 1 << 25


def try_case(case: Case, target: Target, device: str) -> Verdict:
    """Run a case on a target and judge it. A target that raises is a verdict, not an exception.

    What is beyond the target's support it may refuse, or do right.

    A breach of the statistical bound that HARD allows is re-run with two fresh seeds; it counts if one of them breaks it too.

    Raises:
        CaseError: the target's outputs are to be judged, and the case is too large for the reference; or captured tensors are
            another file's, or attend to NaN.
    """
    if target.oracle:
        check_scores(case)
    verdict, certain = _try_once(case, target, device)
    if certain:
        return verdict
    for more in (1, 2):
        seed = (case.values.seed + more * 7919) % (1 << 32)
        again, _ = _try_once(
            msgspec.structs.replace(case, values=msgspec.structs.replace(case.values, seed=seed)), target, device
        )
        if again.failed:
            return verdict
    return msgspec.structs.replace(verdict, kind="agree", message="", differences=())


def _try_once(case: Case, target: Target, device: str) -> tuple[Verdict, bool]:
    """The verdict, and whether it needs no second look."""
    clock = time.perf_counter
    started = clock()
    step = tensors.build(case, _judged_on(case, device))
    expected = copy.deepcopy(step)
    its_own = step if step.q.device.type == device else devices.sent(step, device)
    built = clock()
    events = tuple[str, ...]()

    def verdict(kind: Kind, message: str, judgement: Judgement | None = None) -> Verdict:
        now = clock()
        seconds = {"build": built - started, "target": attended - built, "judge": now - attended}
        if judgement is None:
            return Verdict(kind=kind, message=message, seconds=seconds, events=events)
        return Verdict(
            kind=kind,
            message=message,
            differences=judgement.differences,
            ratio=judgement.ratio,
            ratios=ratios.counts(case, judgement),
            pictures=ratios.pictures(case, step, judgement),
            seconds=seconds,
            events=events,
        )

    error = None
    written, num_written = expected.memory, 0
    try:
        with _own_state():
            for write in its_own.writes:
                _write(write, its_own, target)
                _synchronize(device)
                written = {name: tensor.to(step.q.device, copy=True) for name, tensor in its_own.memory.items()}
                num_written += 1
            _attend(its_own, target)
            _synchronize(device)
            events = tuple(target.events(its_own))
    except BaseException as raised:
        error = raised
    attended = clock()
    beyond = target.support(device).beyond(case)
    not_refused = f"{beyond} is beyond its support{' and was not refused' * target.refuses}: " if beyond else ""
    if isinstance(error, sanitizer.Violation):
        return verdict("sanitizer", f"{not_refused}{error}"), True
    if error is not None and not (beyond and isinstance(error, ValueError | NotImplementedError)):
        must = (
            f"{beyond} is beyond its support and must be refused with a ValueError or NotImplementedError: " if beyond else ""
        )
        return verdict("raised", f"{must}{type(error).__name__}: {_one_line(error)}"), True

    if its_own is not step:
        step = devices.returned(its_own)
    for name, tensor in step.memory.items():
        if place := _first_change(written[name], tensor):
            what = "attention" if num_written == len(step.writes) else "a refused write"
            return verdict("cache", f"{what} wrote into the cache: {_locate(name, place, step, written[name], tensor)}"), True
    for write in expected.writes[:num_written]:
        _write(write, expected, REFERENCE_FP32)
    for name, tensor in expected.memory.items():
        if place := _first_change(tensor, written[name]):
            return verdict("cache", f"the cache write: {_locate(name, place, step, tensor, written[name])}"), True
    rotations = [write.rotation for write in expected.writes[:num_written] if write.rotation is not None]
    for rotation in rotations:
        if message := _wrong_rotation(rotation, expected.q, step.q):
            return verdict("rope", message), True
    compared = {"q", *step.memory} if rotations else {*step.memory}
    others = expected.inputs()
    for name, tensor in step.inputs().items():
        if name not in compared and not torch.equal(bits(others[name]), bits(tensor)):
            return verdict("input", f"it changed its input {name}"), True
        # what was compared above may hold another NaN
        memory = _around if name in compared else _storage
        if not (rotations and case.fused_qkv) and not torch.equal(memory(others[name]), memory(tensor)):
            return verdict("guard", f"it wrote outside of its input {name}"), True
    if message := _stray_write(case, step, owned_rows=case.query_start_loc[-1] if error is None else 0):
        return verdict("guard", message, judge(case, step, target.rounding(device)) if target.oracle else None), True
    if error is not None:
        return verdict("refused", _one_line(error)), True
    judgement = judge(case, step, target.rounding(device)) if target.oracle else judge_finite(step)
    if case.values.kind == "captured" and any(worst.expected != worst.expected for worst in judgement.differences):
        raise CaseError(f"values.file: {case.values.file}: NaN or infinity in what a request attends to")
    message = judgement.message
    if message and beyond:
        message = f"{not_refused}{message}"
    if not message and not beyond:
        try:
            with _own_state():
                broken, asked = _broken_property(case, its_own, target)
        except sanitizer.Violation as violation:
            return verdict("sanitizer", f"on a variant of the step: {violation}"), True
        except Exception as error:
            return verdict("raised", f"on a variant of the step: {type(error).__name__}: {_one_line(error)}"), True
        events += asked
        if broken:
            return verdict("property", broken, judgement), True
    return verdict(judgement.kind, message, judgement), (judgement.kind == "agree" or judgement.breaks_hard)


def _judged_on(case: Case, device: str) -> str:
    """Where a case is built and judged: of hundreds of little operations, each takes longer on a GPU that processes share."""
    products = case.num_heads * case.head_size * sum(request.query_len * request.seq_len for request in case.requests)
    return "cpu" if num_elements(case) <= CPU_ELEMENTS and products <= CPU_PRODUCTS else device


def _broken_property(case: Case, step: Step, target: Target) -> tuple[str | None, tuple[str, ...]]:
    """What of a case's properties does not hold, in words, and the names of those that were asked.

    Each asks for more calls of the target, so a case asks only so many of those that apply: which, its seed decides.
    """
    calls = 0

    def attend(part: Step) -> None:
        nonlocal calls
        calls += 1
        _attend(part, target)

    asked = tuple[str, ...]()
    for each in random.Random(case.values.seed).sample(target.properties, len(target.properties)):
        before = calls
        if message := each(step, attend):
            return f"{each.name}: {message}", asked
        if calls > before:
            asked += (each.name,)
        if len(asked) == PROPERTIES_OF_CASE:
            break
    return None, asked


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
    with sanitizer.watch(lambda: permissions.of_attention(step)):
        target.attention(q, k, v, step.kv_cache, dataclasses.replace(step.layer), batch, out=out, lse=lse)


def _write(write: Write, step: Step, target: Target) -> None:
    """One cache write by the target, or by the reference where the target has none."""
    assert step.raw is not None
    k, v, slot_mapping = (tensor.view_as(tensor) for tensor in (write.k, write.v, write.slot_mapping))
    kv_cache, layer = write.view.tensor(step.raw), dataclasses.replace(write.layer)
    if write.rotation is None:
        function = target.write_kv_cache or attn_reference.write_kv_cache
        with sanitizer.watch(lambda: permissions.of_write(write, step)):
            function(k, v, kv_cache, layer, slot_mapping)
        return
    positions, table = write.rotation.positions, write.rotation.cos_sin_cache
    rotate = target.rope_and_write_kv_cache or attn_reference.rope_and_write_kv_cache
    q, positions, table = (tensor.view_as(tensor) for tensor in (step.q, positions, table))
    with sanitizer.watch(lambda: permissions.of_write(write, step)):
        rotate(q, k, v, positions, table, kv_cache, layer, slot_mapping, is_neox=write.rotation.is_neox)


def _synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _first_change(expected: torch.Tensor, got: torch.Tensor) -> list[int] | None:
    changed = bits(expected).flatten() != bits(got).flatten()
    return changed.nonzero().flatten().tolist() if changed.any() else None


def _locate(name: str, changed: list[int], step: Step, expected: torch.Tensor, got: torch.Tensor) -> str:
    """Name the first changed element of the allocation, or of a buffer of scales, by the view of the layer under test."""
    view, at = step.view, changed[0]
    assert view is not None
    numbers = f"got {float(got.flatten()[at])}, expected {float(expected.flatten()[at])}; {len(changed)} elements differ"
    if name != "kv_cache":
        block, slot, head = (int(index) for index in torch.unravel_index(torch.tensor(at), got.shape))
        return f"{name} of block {block - 1}, slot {slot}, head {head}: {numbers}"
    return f"{allocations.place_of(view, at)}: {numbers}"


def _wrong_rotation(rotation: Rotation, expected: torch.Tensor, got: torch.Tensor) -> str | None:
    """A query that is not what the rotation makes of it, or that it leaves alone; of poison it makes any NaN."""
    rotated = torch.zeros_like(got, dtype=torch.bool)
    rotated[: len(rotation.positions), :, : rotation.cos_sin_cache.shape[1]] = True
    differs = (bits(expected) != bits(got)) & ~(rotated & expected.isnan() & got.isnan())
    if not differs.any():
        return None
    row, head, dim = differs.nonzero()[0].tolist()
    numbers = f"got {float(got[row, head, dim])}, expected {float(expected[row, head, dim])}"
    return f"q at row {row}, head {head}, dim {dim}: {numbers}; {int(differs.sum())} elements differ"


def _storage(tensor: torch.Tensor) -> torch.Tensor:
    """[bytes] uint8: all of the memory that a tensor is a part of."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def _around(tensor: torch.Tensor) -> torch.Tensor:
    """[bytes] uint8: a copy of that memory, with 0 for the tensor's own elements."""
    memory = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(tensor.untyped_storage()).clone()
    bits(memory).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).zero_()
    return _storage(memory)


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
        changed = untouched & (bits(buffer) != bits(canary((1,), buffer.dtype, buffer.device)))
        if changed.any():
            place = changed.nonzero()[0]
            row = int(place[0 if name == "out" else 1]) - tensors.GUARD
            what = "a row that it must not write" if 0 <= row < case.num_rows else "outside the tensor"
            return f"it wrote to {name} row {row}, {what}; {int(changed.sum())} elements"
    return None


def _one_line(error: BaseException) -> str:
    """An exception's message as one printable line, whatever its __str__ does."""
    try:
        text = " ".join(str(error).split())[:300]
        return "".join(character if character.isprintable() else "?" for character in text)
    except BaseException:
        return "(its message cannot be printed)"
