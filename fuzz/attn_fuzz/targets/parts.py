"""Parts of the keys of a step, to which the reference attends, and memory for what it finds."""

import random
from collections.abc import Iterator
from typing import NamedTuple

import attn_reference
import torch
from attn_contract import Batch, Layer
from attn_fuzz.cases.poison import poison

MAX_PADDING = 8


class AttentionState(NamedTuple):
    """Attention to a part of the keys: out [rows, H, D] and its LSE [H, rows]."""

    out: torch.Tensor
    lse: torch.Tensor


def requests_of(
    q: torch.Tensor,
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    kv_cache: torch.Tensor | None,
    layer: Layer,
    batch: Batch,
) -> Iterator[attn_reference.Request]:
    """The requests of a call in float64, of a cache or of dense tokens."""
    if kv_cache is not None:
        return attn_reference.paged_requests(q, kv_cache, layer, batch, torch.float64)
    assert k is not None
    assert v is not None
    return attn_reference.varlen_requests(q, k, v, layer, batch, torch.float64)


def parts_like(q: torch.Tensor, out: torch.Tensor, layer: Layer, rows: int) -> torch.Tensor:
    """The first rows of a tensor with the dtype of parts: q's; the output's if q is float8; float32 if both are float8."""
    if layer.q_scale is None:
        return q[:rows]
    return out[:rows] if layer.output_scale is None else q[:rows].float()


def state(q: torch.Tensor, layer: Layer, rng: random.Random) -> AttentionState:
    """Memory for a part, with poison around and between its rows."""
    rows, heads, head_size = len(q), layer.num_heads, layer.v_head_size
    head_step = head_size + rng.choice((0, 0, MAX_PADDING))
    row_step = heads * head_step + rng.choice((0, MAX_PADDING))
    lse_step = rows + rng.choice((0, 1, MAX_PADDING))
    out = poison(((rows + 2) * row_step,), q.dtype, q.device)
    lse = poison(((heads + 2) * lse_step,), torch.float32, q.device)
    return AttentionState(
        out.as_strided((rows, heads, head_size), (row_step, head_step, 1), row_step),
        lse.as_strided((heads, rows), (lse_step, 1), lse_step),
    )


def stacked(q: torch.Tensor, layer: Layer, parts: int, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory for parts: outs [N, rows, H, D] and LSEs [N, H, rows], each nested in some order, with poison between."""
    rows, heads, head_size = len(q), layer.num_heads, layer.v_head_size
    padded = head_size + rng.choice((0, 0, MAX_PADDING))
    outs, lses = rng.choice(("nthd", "tnhd", "htnd")), rng.choice(("nht", "nth", "thn"))
    sizes = {"n": parts, "t": rows, "h": heads, "d": padded}
    out = poison(tuple(sizes[dim] for dim in outs), q.dtype, q.device)[..., :head_size]
    lse = poison(tuple(sizes[dim] + rng.choice((0, 1)) for dim in lses), torch.float32, q.device)
    lse = lse[tuple(slice(sizes[dim]) for dim in lses)]
    return out.permute([outs.index(dim) for dim in "nthd"]), lse.permute([lses.index(dim) for dim in "nht"])


def write_state(part: AttentionState, rows: slice, out: torch.Tensor, lse: torch.Tensor, empty_lse: float) -> None:
    """Write rows of a part. A part without a key holds anything, and has `empty_lse`."""
    seen = lse > -torch.inf
    part.out[rows] = torch.where(seen.T[..., None], out, torch.nan).to(part.out.dtype)
    part.lse[:, rows] = torch.where(seen, lse, empty_lse).to(part.lse.dtype)
