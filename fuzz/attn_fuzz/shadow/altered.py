"""The difference between a key that was never written and the one that should be there: a factor, or a rotation."""

import math

import torch
from attn_fuzz.shadow.faults import FaultKind

_CLOSE = 0.02
"""The largest difference of equal norms (relative) and angles (radians). Rounding to bfloat16 makes less."""


def change_of(written: torch.Tensor, handed: torch.Tensor, position: int) -> tuple[FaultKind, str]:
    """The kind of a change, and its description in words.

    A rotation is recognised by its first pair of dims, which RoPE turns by one radian a position, in pairs of neighbours or of
    halves, and in the dims that differ.

    Args:
        written, handed: [..., D], the key or value that was written, and the one that attention got.
        position: the position by which the written key is rotated.
    """
    old, new = (x.double().reshape(-1, x.shape[-1] if x.dim() else 1).cpu() for x in (written, handed))
    if old.shape != new.shape:
        return FaultKind.ALTERED, f"of {new.numel()} elements in place of {old.numel()}"
    if not (old.isfinite().all() and new.isfinite().all()):
        return FaultKind.ALTERED, "NaN or infinity"
    factor = (old * new).sum(1) / (old * old).sum(1).clamp_min(1e-300)
    if bool(((new - factor[:, None] * old).norm(dim=1) <= _CLOSE * new.norm(dim=1)).all()) and bool((factor > 0).all()):
        return FaultKind.SCALE, f"{float(factor[0]):.4g} times what was written"
    angle = _first_angle(old, new)
    if angle is None:
        return FaultKind.ALTERED, ""
    for kind, turn in ((FaultKind.ROTATED_TWICE, position), (FaultKind.NOT_ROTATED, -position)):
        if abs(math.remainder(angle - turn, 2 * math.pi)) < 2 * _CLOSE:
            return kind, ""
    return FaultKind.ALTERED, f"rotated by {angle:.3g} radians in its first pair of dims"


def _first_angle(old: torch.Tensor, new: torch.Tensor) -> float | None:
    """The angle by which the first pair of dims is turned; None if the rows [H, D] are no rotations of each other."""
    changed = (old != new).any(0).nonzero()
    dims = (int(changed.max()) // 2 + 1) * 2 if len(changed) else 0
    for paired in (lambda x: x.unflatten(1, (2, -1)).transpose(1, 2), lambda x: x.unflatten(1, (-1, 2))):
        for width in dict.fromkeys((dims, old.shape[1] // 2 * 2)):
            if not width:
                continue
            before, after = (torch.view_as_complex(paired(x[:, :width]).contiguous()) for x in (old, new))
            close = (before.abs() - after.abs()).abs() <= _CLOSE * before.abs().amax(1, keepdim=True)
            turn = (after * before.conj()).sum(0)
            aligned = (after - before * (turn / turn.abs().clamp_min(1e-300))).norm() <= _CLOSE * 4 * after.norm()
            if bool(close.all()) and bool(aligned):
                return float(turn[0].angle())
    return None
