"""Finds a mistake in a cache write, or in its rotation, that leaves exactly the bits that a kernel left."""

import dataclasses
from collections.abc import Callable, Iterator

import torch
from attn_fuzz.cases import tensors
from attn_fuzz.cases.case import Case
from attn_fuzz.cases.poison import bits
from attn_fuzz.cases.tensors import Rotation, Step, Write
from attn_fuzz.run.case.attempt import Attempt, write
from attn_fuzz.targets.reference import REFERENCE_FP32
from attn_fuzz.targets.target import Target


def _table(change: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]) -> Callable[[Rotation], Rotation]:
    """A mistake that rotates by the cosines and sines that `change(cosines, sines)` returns."""
    return lambda turn: dataclasses.replace(turn, cos_sin_cache=torch.cat(change(*turn.cos_sin_cache.chunk(2, -1)), -1))


def _moved(by: int) -> Callable[[Rotation], Rotation]:
    def changed(turn: Rotation) -> Rotation:
        return dataclasses.replace(turn, positions=(turn.positions + by).clamp(0, len(turn.cos_sin_cache) - 1))

    return changed


def _by_row(turn: Rotation) -> Rotation:
    rows = torch.arange(len(turn.positions), device=turn.positions.device)
    return dataclasses.replace(turn, positions=rows.clamp(max=len(turn.cos_sin_cache) - 1))


ROTATIONS: dict[str, Callable[[Rotation], Rotation]] = {
    "rotated in pairs of dims of the other style, GPT-NeoX's or GPT-J's": lambda turn: dataclasses.replace(
        turn, is_neox=not turn.is_neox
    ),
    "rotated by one position too many": _moved(1),
    "rotated by one position too few": _moved(-1),
    "rotated by the row in the step and not by the position": _by_row,
    "rotated the other way round": _table(lambda cosines, sines: (cosines, -sines)),
    "rotated by cosines for sines, and sines for cosines": _table(lambda cosines, sines: (sines, cosines)),
    "not rotated": _table(lambda cosines, sines: (torch.ones_like(cosines), torch.zeros_like(sines))),
}
WRITES: dict[str, Callable[[Write], Write]] = {
    "exchanged with V": lambda one: dataclasses.replace(one, k=one.v, v=one.k),
    "written, as V is, one slot too far": lambda one: dataclasses.replace(
        one, slot_mapping=torch.where(one.slot_mapping < 0, -1, one.slot_mapping + 1)
    ),
}
"""Mistakes by the words that say what became of K or q: those in a rotation, and those in a write."""


def explanations(cases: list[Case], target: Target, device: str) -> list[str]:
    """Lines like those of `explanation_lines`, of mistakes that explain the writes of all cases; none if all is right."""
    found = [set(_of(case, target, device)) for case in cases]
    common = [words for words in found[0] if all(words in each for each in found)]
    return [f"{'or' if i else 'explanation'}: {words}" for i, words in enumerate(sorted(common, key=len))]


def _of(case: Case, target: Target, device: str) -> Iterator[str]:
    attempt = Attempt(case, target, device)
    if attempt.error is not None:
        return
    right = _same(attempt, attempt.expected)
    changes = {words: _rotating(change) for words, change in ROTATIONS.items()} | WRITES
    for words, change in changes.items():
        step = tensors.build(case)
        try:
            for each in step.writes:
                write(change(each), step, REFERENCE_FP32)
        except (ValueError, RuntimeError, IndexError):  # it leads out of the cache, or breaks the contract
            continue
        explained = _same(attempt, step)
        wrong = [name for name, is_right in right.items() if not is_right]
        if wrong and all(explained[name] for name in wrong):
            yield f"{' and '.join(wrong)} {'is' if len(wrong) == 1 else 'are'} {words}"


def _rotating(change: Callable[[Rotation], Rotation]) -> Callable[[Write], Write]:
    return lambda one: one if one.rotation is None else dataclasses.replace(one, rotation=change(one.rotation))


def _same(attempt: Attempt, step: Step) -> dict[str, bool]:
    """True for the cache ("K") and for the queries ("q") if the target left those of the step, bit by bit."""
    return {
        "K": all(torch.equal(bits(attempt.written[name]), bits(tensor)) for name, tensor in step.memory.items()),
        "q": torch.equal(bits(attempt.step.q), bits(step.q)),
    }
