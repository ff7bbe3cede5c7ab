"""Checks of a call beside its outputs: the target has not raised, accessed forbidden memory, or changed other memory.

`CHECKS` are asked in order. Each takes an `Attempt`, and returns a `Wrong`, or None if it finds nothing wrong.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from attn_contract import AttentionConfig, Capabilities, UnsupportedError
from attn_contract.rules import label_of
from attn_fuzz.cases import allocations
from attn_fuzz.cases.case import GUARD, Case
from attn_fuzz.cases.poison import bits, canary, storage_of
from attn_fuzz.cases.tensors import Step
from attn_fuzz.errors import FailedCheckError
from attn_fuzz.interpreted import sanitizer
from attn_fuzz.run.case.attempt import Attempt
from attn_fuzz.run.case.exceptions import described
from attn_fuzz.targets.attention_config import config_of
from attn_fuzz.targets.of_architecture import ARCHITECTURES
from attn_fuzz.verdict.verdict import VerdictKind


class Wrong(NamedTuple):
    """The finding of a check.

    Args:
        about: the subject of the failure, as in `Verdict.about`: the name of a tensor, or the type of an exception.
        message: one line for a person.
    """

    about: str
    message: str


def forbidden_access(attempt: Attempt) -> Wrong | None:
    error = attempt.error
    if not isinstance(error, sanitizer.Violation):
        return None
    return Wrong(f"{attempt.not_refused}{error.about}", f"{attempt.not_refused}{error}{attempt.during}")


def wrong_error(attempt: Attempt) -> Wrong | None:
    """An exception that does not refuse what is beyond the target's support."""
    error = attempt.error
    if error is None or attempt.is_refused or isinstance(error, FailedCheckError):
        return None
    must = _must_refuse(attempt) if attempt.beyond else ""
    return Wrong(f"{must}{type(error).__name__}", f"{must}{described(error)}{attempt.during}")


def missing_refusal(attempt: Attempt) -> Wrong | None:
    """A call beyond the support of a target that refuses, without a refusal.

    A step without requests may be served by a target that serves causal steps alone: no query sees a key.
    """
    if attempt.error is not None or not (attempt.beyond and attempt.target.refuses):
        return None
    if not attempt.case.requests and attempt.beyond == label_of("non_causal"):
        return None
    return Wrong(str(attempt.beyond), f"{_must_refuse(attempt)}it was served")


def broken_declaration(attempt: Attempt) -> Wrong | None:
    """A call that the target declares to serve, by which it is selected, and refuses; or the other way round."""
    case, error = attempt.case, attempt.error
    if attempt.target.declares is None or not attempt.target.refuses or not case.requests:
        return None
    declared, config = attempt.target.declares(attempt.device), config_of(case)
    refusals = declared.refusals(config)
    if refusals and error is None:
        return Wrong(refusals[0].property, f"it declares {refusals[0]}, and it was served")
    if not refusals and isinstance(error, UnsupportedError) and not _is_of_an_architecture(declared, config):
        return Wrong(
            "a declared call", f"it declares that it serves this call, and refused it{attempt.during}: {described(error)}"
        )
    return None


def _is_of_an_architecture(declared: Capabilities, config: AttentionConfig) -> bool:
    """True if some architecture that runs the backend has its own refusal of a config: only a call knows which one runs."""
    return any(
        not refusal.property.startswith("architecture ")
        for architecture in (*ARCHITECTURES, "sm80", "sm90")
        for refusal in declared.refusals(config, architecture)
    )


def _must_refuse(attempt: Attempt) -> str:
    return f"{attempt.beyond} is beyond its support and must be refused with a ValueError or NotImplementedError: "


def written_cache(attempt: Attempt) -> Wrong | None:
    """A change of the cache after the target's cache writes."""
    step = attempt.step
    for name, tensor in step.memory.items():
        written = attempt.written[name]
        if place := _changes(written, tensor):
            what = "attention" if attempt.num_written == len(step.writes) else "a refused write"
            where = _locate(name, place, step, written, tensor)
            return Wrong(f"{name}, by {what}", f"{what} wrote into the cache: {where}")
    return None


def wrong_cache_write(attempt: Attempt) -> Wrong | None:
    """A byte of the cache that is not what the reference writes."""
    for name, tensor in attempt.expected.memory.items():
        written = attempt.written[name]
        if place := _changes(tensor, written):
            return Wrong(name, f"the cache write: {_locate(name, place, attempt.step, tensor, written)}")
    return None


def wrong_query(attempt: Attempt) -> Wrong | None:
    """A query that a rotating cache write did not rotate as the reference does."""
    message = _wrong_rotation(attempt.expected.q, attempt.step.q) if _rotates(attempt) else None
    return Wrong("q", message) if message else None


def changed_input(attempt: Attempt) -> Wrong | None:
    """A changed element of an input that the target must not write."""
    compared, expected = _compared(attempt), attempt.expected.inputs()
    for name, tensor in attempt.step.inputs().items():
        if name not in compared and not torch.equal(bits(expected[name]), bits(tensor)):
            return Wrong(name, f"it changed its input {name}")
    return None


def write_around_an_input(attempt: Attempt) -> Wrong | None:
    """A change in the allocation that contains an input."""
    compared, expected = _compared(attempt), attempt.expected.inputs()
    for name, tensor in attempt.step.inputs().items():
        # an input with a check of its own may hold another NaN
        memory = _around if name in compared else functools.partial(storage_of, dtype=torch.uint8)
        if not torch.equal(memory(expected[name]), memory(tensor)):
            return Wrong(name, f"it wrote outside of its input {name}")
    return None


def stray_write(attempt: Attempt) -> Wrong | None:
    """A changed element around `out` or `lse`, or in rows that were not to be written."""
    case, step = attempt.case, attempt.step
    owned = torch.zeros(case.num_rows, dtype=torch.bool, device=step.out.device)
    owned[: case.query_start_loc[-1] if attempt.error is None else 0] = True
    fresh = {"out": step.out_buffer, "lse": step.lse_buffer}
    for name, buffer in fresh.items():
        untouched = torch.ones_like(buffer, dtype=torch.bool)
        if name == "out":
            of_out = untouched.as_strided(step.out.shape, step.out.stride(), step.out.storage_offset())
            of_out[...] = ~owned.view(-1, *[1] * (step.out.dim() - 1))
        elif step.lse is not None:
            untouched[1:-1, GUARD : GUARD + case.num_rows] = ~owned
        changed = untouched & (bits(buffer) != bits(canary((1,), buffer.dtype, buffer.device)))
        if changed.any():
            first, second = changed.nonzero()[0].tolist()
            if name == "out":
                where = _place_around_out(first - GUARD, second, step, case)
            else:
                where = _place_around_lse(first - 1, second - GUARD, case)
            return Wrong(name, f"it wrote to {name} {where}; {int(changed.sum())} elements")
    return None


CHECKS_OF_ERRORS: tuple[tuple[VerdictKind, Callable[[Attempt], Wrong | None]], ...] = (
    ("sanitizer", forbidden_access),
    ("raised", wrong_error),
)
"""The checks that read no tensor."""
CHECKS: tuple[tuple[VerdictKind, Callable[[Attempt], Wrong | None]], ...] = (
    ("sanitizer", forbidden_access),
    ("served", broken_declaration),
    ("raised", wrong_error),
    ("served", missing_refusal),
    ("cache", written_cache),
    ("cache", wrong_cache_write),
    ("rope", wrong_query),
    ("input", changed_input),
    ("guard", write_around_an_input),
    ("guard", stray_write),
)
"""Each check with the kind of verdict that it gives. The first check that finds something decides."""


def _rotates(attempt: Attempt) -> bool:
    """True if a cache write that the target has made rotates q."""
    return any(cache_write.rotation is not None for cache_write in attempt.step.writes[: attempt.num_written])


def _compared(attempt: Attempt) -> set[str]:
    """The inputs that `written_cache`, `wrong_cache_write` and `wrong_query` have compared: a target may write them."""
    return {*attempt.step.memory, *(["q"] if _rotates(attempt) else [])}


def _changes(expected: torch.Tensor, got: torch.Tensor) -> list[int] | None:
    """The indices of all elements of the flattened tensors that differ in a bit, in order; None if no element differs."""
    changed = bits(expected).flatten() != bits(got).flatten()
    return changed.nonzero().flatten().tolist() if changed.any() else None


def _locate(name: str, changed: list[int], step: Step, expected: torch.Tensor, got: torch.Tensor) -> str:
    """Name the first changed element of the allocation, or of a buffer of scales, in the view of the layer under test.

    Args:
        name: "kv_cache", or the name of a tensor of scales.
        changed: indices of changed elements of the flattened tensors.
    """
    view, at = step.view, changed[0]
    assert view is not None
    numbers = f"got {float(got.flatten()[at])}, expected {float(expected.flatten()[at])}; {len(changed)} elements differ"
    if name != "kv_cache":
        row, head = divmod(at, got.shape[2])
        block, slot = divmod(row, got.shape[1])
        return f"{name} of block {block - 1}, slot {slot}, head {head}: {numbers}"
    return f"{allocations.place_of(view, at)}: {numbers}"


def _wrong_rotation(expected: torch.Tensor, got: torch.Tensor) -> str | None:
    """Name the first element of q that differs in a bit from what the rotation makes of q, in rows of no request, too."""
    differs = bits(expected) != bits(got)
    if not differs.any():
        return None
    row, head, dim = differs.nonzero()[0].tolist()
    numbers = f"got {float(got[row, head, dim])}, expected {float(expected[row, head, dim])}"
    return f"q at row {row}, head {head}, dim {dim}: {numbers}; {int(differs.sum())} elements differ"


def _place_around_out(row: int, column: int, step: Step, case: Case) -> str:
    """Name an element of the buffer around `out` [T, H, v_head_size].

    Args:
        row: a row of the buffer, where 0 is the first row of `out`. It may be negative.
        column: a column of the buffer, whose rows may be longer than those of `out`.
    """
    head_step = step.out.stride(1) if step.out.dim() == 3 and case.num_heads > 1 else case.v_head_size
    width = (case.num_heads - 1) * head_step + case.v_head_size
    if column < width:
        if column % head_step >= case.v_head_size:
            return f"row {row}, between two heads"
        return _row_in_words(row, "", case)
    if case.num_rows == 1 and row == 0:
        # torch takes a tensor of one row for contiguous, whatever its stride is: to a kernel, the next row begins here
        return _row_in_words(column // width, "", case)
    if row == -1:
        return f"{step.out_buffer.shape[1] - column} elements before row 0, outside the tensor"
    return f"{column - width + 1} elements past the end of row {row}, outside the tensor"


def _place_around_lse(head: int, row: int, case: Case) -> str:
    """Name an element of the buffer around `lse` [H, T]. Both indices may lie outside the tensor."""
    if not 0 <= head < case.num_heads:
        return f"row {row}, head {head}, outside the tensor"
    return _row_in_words(row, f", head {head}", case)


def _row_in_words(row: int, head: str, case: Case) -> str:
    what = "a row that it must not write" if 0 <= row < case.num_rows else "outside the tensor"
    return f"row {row}{head}, {what}"


def _around(tensor: torch.Tensor) -> torch.Tensor:
    """[bytes] uint8: a copy of all of the memory that a tensor is a part of, with 0 for the tensor's own elements."""
    memory = storage_of(tensor).clone()
    bits(memory).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).zero_()
    return storage_of(memory, torch.uint8)
