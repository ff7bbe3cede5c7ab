"""A kernel with the signature of vLLM's `unified_attention`: causal attention of a ragged batch over a paged cache, with a
window, a soft cap and grouped heads. A program has ROWS rows of one request and KV head: its tokens, each with its group's
heads."""

import torch
import triton
import triton.language as tl

ROWS, TILE = 16, 32


@triton.jit
def _attend(
    q_ptr, k_ptr, v_ptr, out_ptr, cu_seqlens_q, seqused_k, block_table, scale, softcap, window_left,
    q_row, q_head, out_row, out_head, k_block, k_slot, k_head, v_block, v_slot, v_head, table_row,
    GROUP_SIZE: tl.constexpr, HEAD_SIZE: tl.constexpr, PADDED: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    request, kv_head = tl.program_id(0), tl.program_id(2)
    start, end = tl.load(cu_seqlens_q + request), tl.load(cu_seqlens_q + request + 1)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    token, head = row // GROUP_SIZE, kv_head * GROUP_SIZE + row % GROUP_SIZE
    first_token = tl.program_id(1) * ROWS // GROUP_SIZE
    last_token = tl.minimum((tl.program_id(1) * ROWS + ROWS - 1) // GROUP_SIZE, end - start - 1)
    if first_token > last_token:
        return
    context_len = tl.load(seqused_k + request) - (end - start)
    position = context_len + token
    dim = tl.arange(0, PADDED)
    in_q = (token <= last_token)[:, None] & (dim < HEAD_SIZE)[None, :]
    q_at = q_ptr + ((start + token) * q_row + head * q_head)[:, None] + dim[None, :]
    q = tl.load(q_at, mask=in_q, other=0.0).to(tl.float32)

    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, PADDED], tl.float32)
    first_key, last_key = 0, context_len + last_token
    if window_left >= 0:
        first_key = tl.maximum(context_len + first_token - window_left, 0)
    for tile in range(first_key // TILE, tl.cdiv(last_key + 1, TILE)):
        key = tile * TILE + tl.arange(0, TILE)
        in_range = (key >= first_key) & (key <= last_key)
        block = tl.load(block_table + request * table_row + key // BLOCK_SIZE, mask=in_range, other=0).to(tl.int64)
        in_kv = in_range[:, None] & (dim < HEAD_SIZE)[None, :]
        k_at = k_ptr + (block * k_block + key % BLOCK_SIZE * k_slot + kv_head * k_head)[:, None] + dim[None, :]
        v_at = v_ptr + (block * v_block + key % BLOCK_SIZE * v_slot + kv_head * v_head)[:, None] + dim[None, :]
        k = tl.load(k_at, mask=in_kv, other=0.0).to(tl.float32)
        v = tl.load(v_at, mask=in_kv, other=0.0).to(tl.float32)

        logits = scale * tl.dot(q, tl.trans(k), input_precision="ieee")
        if softcap > 0:
            logits = softcap * (1 - 2 / (tl.exp(2 * logits / softcap) + 1))  # tanh
        visible = in_range[None, :] & (key[None, :] <= position[:, None])
        if window_left >= 0:
            visible = visible & (position[:, None] - key[None, :] <= window_left)
        logits = tl.where(visible, logits, float("-inf"))
        larger = tl.maximum(largest, tl.max(logits, axis=1))
        anchor = tl.where(larger == float("-inf"), 0.0, larger)  # of a row that has seen no key yet
        weights = tl.exp(logits - anchor[:, None])
        rescale = tl.exp(largest - anchor)
        acc = acc * rescale[:, None] + tl.dot(weights, v, input_precision="ieee")
        total = total * rescale + tl.sum(weights, axis=1)
        largest = larger

    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]  # a row that sees no key is 0
    out_at = out_ptr + ((start + token) * out_row + head * out_head)[:, None] + dim[None, :]
    tl.store(out_at, acc.to(out_ptr.dtype.element_ty), mask=in_q)


def unified_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    max_seqlen_q: int,
    seqused_k: torch.Tensor,
    max_seqlen_k: int,
    softmax_scale: float,
    causal: bool,
    window_size: tuple[int, int],
    block_table: torch.Tensor,
    softcap: float,
    q_descale: None = None,
    k_descale: None = None,
    v_descale: None = None,
) -> None:
    """Attend to the cache and write `out`.

    Args:
        q, out: [T, H, D].
        k, v: [num_blocks, block_size, HK, D], any strides with a dense last dimension.
        cu_seqlens_q, seqused_k: [R + 1] and [R] int32.
        window_size: (left, right), -1 unlimited; causal attention sees nothing on the right.
        softcap: 0 is off.

    Raises:
        NotImplementedError: attention that is not causal, or quantized tensors.
    """
    if not causal or any(scale is not None for scale in (q_descale, k_descale, v_descale)):
        raise NotImplementedError("only causal attention of tensors that are not quantized")
    head_size, group_size = q.shape[2], q.shape[1] // k.shape[2]
    _attend[(len(seqused_k), triton.cdiv(max_seqlen_q * group_size, ROWS), k.shape[2])](
        q, k, v, out, cu_seqlens_q, seqused_k, block_table, softmax_scale, softcap, window_size[0],
        *q.stride()[:2], *out.stride()[:2], *k.stride()[:3], *v.stride()[:3], block_table.stride(0),
        GROUP_SIZE=group_size, HEAD_SIZE=head_size, PADDED=triton.next_power_of_2(head_size), BLOCK_SIZE=k.shape[1],
        ROWS=ROWS, TILE=TILE,
    )  # fmt: skip
