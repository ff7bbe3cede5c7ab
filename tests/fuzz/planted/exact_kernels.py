"""Attention in parts, for any tile of keys, order of tiles and number of parts, and the ways in which it is to be wrong."""

import torch
import triton
import triton.language as tl

LOG2E = 1.4426950408889634
MINUS_INFINITY = float("-inf")


@triton.jit
def part_kernel(
    acc_ptr, max_ptr, sum_ptr, q_ptr, k_ptr, v_ptr, qk_scale, num_keys, keys_per_part, lost_key,
    ROWS: tl.constexpr, DIM: tl.constexpr, TILE: tl.constexpr, BACKWARD: tl.constexpr, FAULT: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0)
    row, dim = tl.arange(0, ROWS), tl.arange(0, DIM)
    q = tl.load(q_ptr + row[:, None] * DIM + dim[None, :])
    largest = tl.full([ROWS], MINUS_INFINITY, tl.float32)
    total = tl.full([ROWS], 0.0, tl.float32)
    acc = tl.full([ROWS, DIM], 0.0, tl.float32)
    begin, end = part * keys_per_part, tl.minimum(num_keys, (part + 1) * keys_per_part)
    tiles = tl.cdiv(end - begin, TILE)
    for i in range(tiles):
        tile = tiles - 1 - i if BACKWARD else i
        key = begin + tile * TILE + tl.arange(0, TILE)
        there = key < end
        k = tl.load(k_ptr + key[:, None] * DIM + dim[None, :], mask=there[:, None], other=0.0)
        v = tl.load(v_ptr + key[:, None] * DIM + dim[None, :], mask=there[:, None], other=0.0)
        logits = tl.where((there & (key != lost_key))[None, :], tl.dot(q, tl.trans(k)) * qk_scale, MINUS_INFINITY)
        new = tl.maximum(largest, tl.max(logits, 1))
        shift = tl.where(new == MINUS_INFINITY, 0.0, new)
        weights = tl.exp2(logits - shift[:, None])
        decay = tl.exp2(largest - shift)
        total = total * decay + tl.sum(weights, 1)
        acc = (acc if FAULT == "no decay" else acc * decay[:, None]) + tl.dot(weights.to(v.dtype), v)
        largest = new
    if FAULT == "unknown operation":
        total = tl.sqrt(total * total)
    tl.store(acc_ptr + (part * ROWS + row[:, None]) * DIM + dim[None, :], acc)
    tl.store(max_ptr + part * ROWS + row, largest)
    tl.store(sum_ptr + part * ROWS + row, total)


@triton.jit
def merge_kernel(out_ptr, lse_ptr, acc_ptr, max_ptr, sum_ptr, PARTS: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr):
    row, dim = tl.arange(0, ROWS), tl.arange(0, DIM)
    largest = tl.full([ROWS], MINUS_INFINITY, tl.float32)
    for part in range(PARTS):
        largest = tl.maximum(largest, tl.load(max_ptr + part * ROWS + row))
    total = tl.full([ROWS], 0.0, tl.float32)
    acc = tl.full([ROWS, DIM], 0.0, tl.float32)
    for part in range(PARTS):
        weight = tl.exp2(tl.load(max_ptr + part * ROWS + row) - largest)
        total += weight * tl.load(sum_ptr + part * ROWS + row)
        acc += weight[:, None] * tl.load(acc_ptr + (part * ROWS + row[:, None]) * DIM + dim[None, :])
    out = acc / total[:, None]
    tl.store(out_ptr + row[:, None] * DIM + dim[None, :], out.to(out_ptr.dtype.element_ty))
    tl.store(lse_ptr + row, largest * 0.6931471805599453 + tl.log(total))


def attend(q, k, v, out, lse, scale, *, tile=32, backward=False, parts=1, lost_key=-1, fault=""):
    """Attention of q [ROWS, DIM] over k and v [keys, DIM], into out [ROWS, DIM] and lse [ROWS]."""
    (rows, dim), keys = q.shape, len(k)
    acc, largest, total = torch.empty(parts, rows, dim), torch.empty(parts, rows), torch.empty(parts, rows)
    sizes = {"ROWS": rows, "DIM": dim}
    part_kernel[(parts,)](
        acc, largest, total, q, k, v, scale * LOG2E, keys, -(-keys // parts), lost_key,
        **sizes, TILE=tile, BACKWARD=backward, FAULT=fault,
    )  # fmt: skip
    if fault == "host arithmetic":
        acc = acc * acc[0, 0, 0].item()
    merge_kernel[(1,)](out, lse, acc, largest, total, PARTS=parts, **sizes)
