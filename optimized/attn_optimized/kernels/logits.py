"""Logits, from the dot product to the softmax, in float32."""

from typing import NamedTuple

import triton
import triton.language as tl

from attn_optimized.kernels.online_softmax import LOG2E


class Operands(NamedTuple):
    """Operands of the dots of a tile of queries with a tile of keys, [M, ...] and [N, ...].

    q and k hold all dims of the first dot, or its even dims if `q_odd` and `k_odd` hold the odd ones. For `q_rest` and `k_rest`
    see key_rest. If the dots are hidden, `q_rest` has the opposite sign.
    """

    q: tl.tensor
    k: tl.tensor
    q_odd: tl.tensor
    k_odd: tl.tensor
    q_rest: tl.tensor
    k_rest: tl.tensor


@triton.jit
def added_to_logits(rows, position, key, context_len, args, HAS_BIAS: tl.constexpr):
    """[M, N]: ALiBi and qq_bias; the number 0 without either. `position` is [M], `key` is [N]."""
    bias = 0.0
    if HAS_BIAS:
        bias = alibi(args.tensors.alibi_slopes_ptr, args.flags.has_alibi_slopes, rows, position, key)
        bias += qq_bias(args.tensors.qq_bias_ptr, args.strides.qq_bias, args.rules.qq_bias_len, rows.query, key - context_len)
    return bias


@triton.jit
def scores(
    operands, factor, bias, source, block, slot, in_tile, args,
    KIND: tl.constexpr, PAIRS: tl.constexpr, FLOAT16: tl.constexpr, HIDDEN: tl.constexpr,
):  # fmt: skip
    """Logits [M, N] of a tile of keys, the positive factor that converts them to base 2, and the scales of its values.

    If FLOAT16, each row has a factor of its own, [M].

    Args:
        factor: the magnitude of the layer's scale times K's scale. If FLOAT16, it is [M], and times the scale of the row of q.
        bias: see `added_to_logits`.
        source, block, slot, in_tile: where the keys are. If each token has its own scales, those of values, [N], are loaded
            with those of keys; otherwise the scale of values here is 1.0.
    """
    # ieee: the default is TF32 on NVIDIA and XF32 on gfx942, which is no float32 arithmetic
    logits = tl.dot(operands.q, tl.trans(operands.k), input_precision="ieee")
    if PAIRS:
        logits = tl.dot(operands.q_odd, tl.trans(operands.k_odd), logits, input_precision="ieee")
    if KIND.block_rest > 0:
        if HIDDEN:
            # no dot may depend on another: Triton would turn a sum into a dot with an accumulator
            logits -= tl.dot(operands.q_rest, tl.trans(operands.k_rest), input_precision="ieee")
        else:
            logits = tl.dot(operands.q_rest, tl.trans(operands.k_rest), logits, input_precision="ieee")
    to_base_2 = factor * LOG2E
    if FLOAT16:
        factor = factor[:, None]
    v_token_scale = 1.0
    if KIND.has_token_scales:
        tensors, strides = args.tensors, args.strides
        k_offset = block * strides.k_scale_block + slot * strides.k_scale_slot + source.kv_head * strides.k_scale_head
        v_offset = block * strides.v_scale_block + slot * strides.v_scale_slot + source.kv_head * strides.v_scale_head
        logits *= tl.load(tensors.k_scale_ptr + k_offset, mask=in_tile, other=0.0)[None, :]
        v_token_scale = tl.load(tensors.v_scale_ptr + v_offset, mask=in_tile, other=0.0)
    if KIND.has_soft_cap:
        logits_soft_cap = args.rules.logits_soft_cap
        logits = tanh(logits * tl.minimum(factor / logits_soft_cap, 2.0**100))
        to_base_2 = to_base_2 * 0.0 + logits_soft_cap * LOG2E if FLOAT16 else logits_soft_cap * LOG2E
    if KIND.has_bias:
        logits = logits * (args.rules.logits_soft_cap if KIND.has_soft_cap else factor) + bias
        to_base_2 = to_base_2 * 0.0 + LOG2E if FLOAT16 else LOG2E
    return logits, to_base_2, v_token_scale


@triton.jit
def tanh(x):
    """tanh by one exponential, that of minus twice the magnitude, which cannot overflow."""
    magnitude = tl.abs(x)
    decayed = tl.exp2(magnitude * (-2.0 * LOG2E))
    large = (1.0 - decayed) / (1.0 + decayed)
    # for small x, where 1 - decayed cancels: the series, which is accurate to 2^-29
    square = x * x
    small = magnitude * (1.0 + square * (-1.0 / 3.0 + square * (2.0 / 15.0 - square * (17.0 / 315.0))))
    result = tl.where(magnitude < 0.125, small, large)
    return tl.where(x < 0.0, -result, result)


@triton.jit
def alibi(slopes_ptr, has_slopes, rows, position, key):
    """[M, N]: minus the head's slope times the distance of query and key."""
    # has_slopes is 0 or 1: without slopes, a row reads the one element that is there
    has_any = has_slopes != 0
    slope_ptr = slopes_ptr + rows.head * has_slopes  # int32: a head or 0
    slope = tl.where(has_any, tl.load(slope_ptr, mask=rows.owned, other=0.0), 0.0)
    return -slope[:, None] * tl.abs(key[None, :] - position[:, None]).to(tl.float32)


@triton.jit
def qq_bias(bias_ptr, stride_bias, bias_len, query, new_key):
    """[M, N]: the bias between the step's own tokens, both counted from the step's first: query [M], new_key [N]; else 0."""
    known = (query < bias_len)[:, None] & ((new_key >= 0) & (new_key < bias_len))[None, :]
    return tl.load(bias_ptr + query.to(tl.int64)[:, None] * stride_bias + new_key[None, :], mask=known, other=0.0)
