"""The attention kernel's arguments in groups, so that its functions take and read them by name.

The kernel itself has flat parameters: `do_not_specialize` does not reach into a tuple, so Triton would compile the kernel anew
for special values of a number in a tuple (1, multiples of 16).
"""

from dataclasses import dataclass
from typing import NamedTuple

import triton.language as tl

from attn_optimized.kernels.visibility import Rules


@dataclass(frozen=True, kw_only=True)
class Kind:
    """The constants that the attention kernel is compiled for: its one `tl.constexpr`.

    Triton 3.6 takes a string from it only by way of a local constant: `KV_FORMAT: tl.constexpr = KIND.kv_format`.
    """

    q_unit: int
    """the unit of the strides of q and out, in elements; see `launch.units`"""
    kv_unit: int
    """the unit of the strides of K and V, in elements"""
    is_paged: bool
    """True if K and V are blocks of a cache; False if they are rows, as q is"""
    block_size: int
    interior: str
    """how a page lies in memory, and the elements of 16 bytes in it: see kv_layout; "latent" if K's first dims are V, and
    "latent_scaled" if they also have scales, and dims without one are bfloat16, at v_ptr"""
    x: int
    scale_dims: int
    """in "latent_scaled": the number of dims of V that share a scale"""
    kept_dims: int
    """the number of last dims of V that are bfloat16: 0 or scale_dims. The dims of K after V are bfloat16, too"""
    q_format: str
    """the format of q's elements (see quantization). Unless it is "float", dots take them as float16"""
    q_scale_step: int
    """the stride of q's scales from one KV head to the next: 0 if all heads share one scale"""
    kv_format: str
    """the format of the elements of K and V, and that of the output's elements: see quantization"""
    out_format: str
    has_token_scales: bool
    has_value_pairs: bool
    """True if tiles of few rows load two dims of V at once, and of K in a latent cache: see `load.load_value_pairs`"""
    has_float16_dots: bool
    """True if the dots of such tiles are in float16 although q is not: see float16_dots"""
    has_integer_bfloat16: bool
    """True if float32 is converted to bfloat16 in integer arithmetic: see bfloat16"""
    has_hidden_dots: bool
    """True if larger tiles compute logits in a branch that is always taken. Triton gives all warps of a program to rows where a
    dot depends on a dot, and it does not look into branches. Of 64 rows, two groups of 4 warps would both compute all logits;
    so each group has half of the keys."""
    has_sums_in_columns: bool
    """True if the sums of weights are added up after the loops: see `online_softmax.in_columns`"""
    scale_sign: int
    """the sign of the layer's scale: 1, -1 or 0"""
    has_other_masks: bool
    """True if a rule besides causality and the window may change which keys are seen: sink tokens, chunks, ranges, qq_bias"""
    selection_unit: int
    """the tokens of a unit if queries select units, and each tile is one query; 0 without a selection: see selection.py"""
    key_unit: int
    """the number of tokens that share a key; 1 if each token has its own"""
    has_unmasked_loop: bool
    """True if the tiles of keys that every query sees have a loop of their own, without a mask"""
    skips_masked_loop: bool
    """True if the kernel enters the masked loop only where it has a tile. Most parts of the keys have no masked tile, and the
    beginning of a loop takes as long as a tile"""
    has_soft_cap: bool
    has_bias: bool
    """True if something is added to logits: ALiBi, qq_bias"""
    is_partial: bool
    """True if the softmax's state for parts of the keys is written"""
    has_dependent: bool
    """True if the kernel that reduces parts is launched before this one ends: see dependent_launch"""
    head_size: int
    """the number of dims of q and K"""
    first_size: int
    """the number of these dims in the first of two dots; all of them if there is one dot: see key_rest"""
    v_head_size: int
    """the number of dims of V and of the output"""
    first_v_head_size: int
    """the number of these dims in the first of two sums of values; all of them if there is one sum: see key_rest"""
    groups_per_kv_head: int
    """the number of groups, each with tiles of its own, into which the query heads of a KV head are cut"""
    heads_per_kv_head: int
    """the number of query heads of a KV head if there are several groups; else 0, so that layers with one group share compiled
    code"""
    small_block_m: int
    """the rows of the smaller tile for a request that needs no more; 0 if all tiles are alike"""
    block_m: int
    block_n: int
    block_d: int
    """first_size, padded to a power of two"""
    block_rest: int
    """the other dims of q and K, padded to a power of two; 0 if there is one dot"""
    block_v: int
    """first_v_head_size, padded to a power of two"""
    block_v_rest: int
    """the other dims of V, padded to a power of two; 0 if there is one sum of values"""


class Tensors(NamedTuple):
    """Pointers. The pointer of an optional tensor that is not given points to other memory, which is not read."""

    out_ptr: tl.tensor
    lse_ptr: tl.tensor
    acc_ptr: tl.tensor
    row_max_ptr: tl.tensor
    row_sum_ptr: tl.tensor
    q_ptr: tl.tensor
    k_ptr: tl.tensor
    v_ptr: tl.tensor
    k_scale_ptr: tl.tensor
    v_scale_ptr: tl.tensor
    output_scale_ptr: tl.tensor
    sinks_ptr: tl.tensor
    alibi_slopes_ptr: tl.tensor
    qq_bias_ptr: tl.tensor
    bidirectional_ranges_ptr: tl.tensor
    block_table_ptr: tl.tensor
    selected_ptr: tl.tensor


class Flags(NamedTuple):
    """1 or 0 each: which optional tensors are given, and what is written."""

    has_lse: tl.tensor
    has_sinks: tl.tensor
    has_alibi_slopes: tl.tensor
    has_scales: tl.tensor
    has_output_scale: tl.tensor
    writes_output: tl.tensor


class Sizes(NamedTuple):
    """Sizes of the batch, of groups of heads, of parts of the keys, and of a row of the selection: see query_tiles.py,
    split_keys.py and selection.py."""

    num_tokens: tl.tensor
    heads_per_group: tl.tensor
    inverse_heads_per_group: tl.tensor
    num_splits: tl.tensor
    tiles_per_split: tl.tensor
    first_part: tl.tensor
    num_selected: tl.tensor


class Strides(NamedTuple):
    """Strides, in the units that the kernel's signature says."""

    acc_part: tl.tensor
    acc_row: tl.tensor
    out_row: tl.tensor
    out_head: tl.tensor
    q_row: tl.tensor
    q_head: tl.tensor
    kv: tl.tensor
    block: tl.tensor
    k_slot: tl.tensor
    k_head: tl.tensor
    v_slot: tl.tensor
    v_head: tl.tensor
    k_scale_block: tl.tensor
    k_scale_slot: tl.tensor
    k_scale_head: tl.tensor
    v_scale_block: tl.tensor
    v_scale_slot: tl.tensor
    v_scale_head: tl.tensor
    state_part: tl.tensor
    state_head: tl.tensor
    lse_head: tl.tensor
    block_table: tl.tensor
    qq_bias: tl.tensor
    selected_head: tl.tensor
    selected_row: tl.tensor


class Arguments(NamedTuple):
    """All groups."""

    tensors: Tensors
    flags: Flags
    rules: Rules
    sizes: Sizes
    strides: Strides
