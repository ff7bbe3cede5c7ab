"""Rotary position embedding (RoPE; Su et al., arXiv:2104.09864), and its fusion with the cache write.

Each pair of dims (x1, x2) of a query or key is turned by an angle that depends on the position and the pair:

    x1' = x1 * cos - x2 * sin        x2' = x2 * cos + x1 * sin

Each product and each sum is rounded to float32 by itself, without fused multiply-add, and the result once to the dtype of q.
So every bit is defined. In the style of GPT-NeoX the pairs are (i, i + rotary_dim / 2); in the style of GPT-J they are
interleaved, (2i, 2i + 1). Dims from rotary_dim on stay as they are (partial rotation).
"""

import torch
from attn_contract import Layer
from attn_contract.validation import check_rope_and_write_kv_cache

from attn_reference.arithmetic import joined
from attn_reference.kv_cache import write_rows


def rope_and_write_kv_cache(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    cos_sin_cache: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: Layer,
    slot_mapping: torch.Tensor,
    *,
    is_neox: bool,
) -> None:
    """Rotate q in place, and write the rotated k and the unrotated v to the cache. The tensor k itself stays as it is.

    Args:
        q: [T, H, D]. Rows 0 to len(positions) - 1 are rotated, also where their slot is -1.
        k, v: [T_kv, HK, D] of q's dtype; rows from len(slot_mapping) on are not read. The rotated k is rounded to its dtype
            before it is written (and quantized, if the cache is).
        positions: [P] int64, S <= P <= T: the position of each row of q and k.
        cos_sin_cache: [max_position, rotary_dim] float32 or q's dtype. The row of a position holds the cosines of its
            rotary_dim / 2 pairs, then the sines.
        kv_cache, layer, slot_mapping: as for `write_kv_cache`.
        is_neox: True if the pairs are GPT-NeoX's; otherwise they are GPT-J's.

    Raises:
        ContractError: an argument contradicts the contract. Nothing is written then.
    """
    view = check_rope_and_write_kv_cache(
        q, k, v, positions, cos_sin_cache, is_neox, kv_cache, layer, slot_mapping, values=True
    )  # fmt: skip
    cos, sin = cos_sin_cache[positions].float().chunk(2, dim=-1)
    rows, slots = len(positions), len(slot_mapping)
    rotated = rotate(k[:slots], cos[:slots], sin[:slots], is_neox=is_neox)
    write_rows(rotated, v[:slots], kv_cache, layer, slot_mapping, view)
    q[:rows] = rotate(q[:rows], cos, sin, is_neox=is_neox)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, is_neox: bool) -> torch.Tensor:
    """x with each of its pairs of dims turned.

    Args:
        x: [T, heads, D].
        cos, sin: [T, rotary_dim / 2] float32, of the angle of each pair.
        is_neox: True if the pairs are GPT-NeoX's; otherwise they are GPT-J's.

    Returns:
        Of x's shape and dtype.
    """
    cos, sin = cos[:, None], sin[:, None]
    rotary_dim = 2 * cos.shape[-1]
    turning, rest = x[..., :rotary_dim].float(), x[..., rotary_dim:]
    x1, x2 = turning.chunk(2, dim=-1) if is_neox else (turning[..., 0::2], turning[..., 1::2])
    turned = x1 * cos - x2 * sin, x2 * cos + x1 * sin
    pairs = torch.cat(turned, dim=-1) if is_neox else torch.stack(turned, dim=-1).flatten(-2)
    return joined(pairs.to(x.dtype), rest)
