"""What a plan of attention is, stated once more: whom it is refused to, its tiles, and its stages in the memory of a GPU.

A wrong tile may give the same output under the interpreter, which has no registers and no shared memory. So plans are looked
at, those of calls and those of drawn sizes. For drawn sizes nothing is launched: no case need have heads as many and as wide.
"""

import random
from typing import TYPE_CHECKING, Any

import torch
from attn_contract import AttentionType, Batch, Layer, Layout, UnsupportedError
from attn_fuzz.targets.wrong_arguments import must_refuse

if TYPE_CHECKING:
    from attn_optimized.launch.plan import AttentionPlan
    from attn_optimized.launch.table import Entry, Parameters
    from attn_optimized.launch.tiles import AttentionTiles

MOST_HEADS_OF_A_GROUP, LARGEST_HEAD_SIZE = 64, 256
LARGEST_LATENT_V, MOST_DIMS_BEHIND_IT = 512, 128
_MOST_LATENT_HEADS = 256
_LEAST_SIDE = 16
"""tl.dot takes no shorter side of a tile."""
_MOST_DECODE_ROWS = 64
"""A request of no more rows (pairs of query and head of a group) has a tile of its own size."""
_MOST_SPECULATED, _MOST_GROUPS, _MOST_GROUPED_DIMS = 16, 8, 128
"""A request of no more tokens has a tile of its own size for each group, if no more groups and no wider heads want them."""
_ROWS_OF_ASYNC_DOT, _BYTES_OF_ASYNC_DOT = 64, 2
"""Rows of such dots at least, and bytes of an element: wgmma."""
_KIB_OF_CAPABILITIES = {
    64: (75,),
    96: (70,),
    99: (86, 89, 120, 121),
    163: (80, 87),
    227: (90, 100, 103, 110),
}
"""CUDA C++ Programming Guide, technical specifications per compute capability: shared memory of a thread block at most."""
SHARED_MEMORY = {f"sm{number}": 1024 * kib for kib, numbers in _KIB_OF_CAPABILITIES.items() for number in numbers}


def check_drawn(architecture: str, compute_units: int, given: "Parameters | None", choose: random.Random) -> None:
    """Check the plan of a drawn layer and step for a GPU, or that it is refused.

    Args:
        given: launch parameters in place of those of the GPU's table.

    Raises:
        AssertionError: a plan is made of heads that no tile holds, or it is not the plan of the layer, or of another mode than
            was asked for.
        UnsupportedError, ContractError: there is no plan of a layer that tiles hold.
    """
    import attn_optimized

    layer, dtype = _layer(choose)
    batch = _batch(choose, layer)
    q = torch.empty((batch.num_actual_tokens, layer.num_heads, layer.head_size), dtype=dtype, device="meta")
    is_invariant = choose.random() < 0.2
    # as most callers have it, who say nothing of what they do not ask for
    asked = {
        "architecture": architecture,
        "compute_units": compute_units,
        **({} if given is None else {"parameters": given}),
        **({"batch_invariant": True} if is_invariant else {}),
    }
    if too_large := _too_large(layer):
        must_refuse(lambda: attn_optimized.plan_of(q, layer, batch, **asked), too_large)
        return
    try:
        plan = attn_optimized.plan_of(q, layer, batch, **asked)
    except UnsupportedError as error:
        raise AssertionError(f"{layer}: refused: {error}") from error
    assert plan.batch_invariant is is_invariant, f"a plan with batch_invariant={plan.batch_invariant}, asked for {asked}"
    check(plan, q, layer, batch, given)


def check(plan: "AttentionPlan", q: torch.Tensor, layer: Layer, batch: Batch, given: "Parameters | None") -> None:
    """Check the tiles of a plan, and that its stages fit the shared memory of its GPU.

    Args:
        given: the launch parameters that were asked for; None: those of the GPU's table.

    Raises:
        AssertionError: they are not those of the layer and the step, or do not fit.
    """
    tiles, planned = plan.tiles, plan.tiles.parameters
    asked = [
        one
        for one in _asked_for(plan, q, layer, given)
        # of its stages a plan takes those that fit the GPU's memory
        if vars(one) == vars(planned) | {"num_stages": one.num_stages} and 1 <= planned.num_stages <= one.num_stages
    ]
    assert asked, f"a plan for {plan.architecture} has {planned}, expected {given or 'those of a table'}"
    assert plan.splits == 1 or not plan.batch_invariant, f"a batch-invariant plan in {plan.splits} parts"
    _check_widths(tiles, layer)
    _check_rows(plan, layer, batch)
    _check_memory(plan, q, layer, batch)


def _check_widths(tiles: "AttentionTiles", layer: Layer) -> None:
    """Check that dims stand in the smallest powers of two that a dot takes."""
    widths = tiles.widths
    sizes = (widths.first_size, layer.head_size - widths.first_size, layer.value_size)
    got, expected = (widths.block_d, widths.block_rest, widths.block_v), tuple(_side(size) if size else 0 for size in sizes)
    is_whole = 1 <= widths.first_size <= layer.head_size
    assert (widths.head_size, widths.value_size) == (layer.head_size, layer.value_size), f"{layer} has {widths}"
    assert is_whole and got == expected, f"dims {sizes} of q and K, of the rest and of V stand in {got}"  # noqa: PT018


def _check_rows(plan: "AttentionPlan", layer: Layer, batch: Batch) -> None:
    """Check that a tile has the rows that are asked for, or as many as the heads that it has to hold.

    The heads of a KV head are dealt to groups, so many that none is larger than a tile may have. A request that speculates has
    one tile for each of a few groups.
    """
    tiles, asked = plan.tiles, plan.tiles.parameters.block_m
    heads = layer.num_heads // layer.num_kv_heads
    is_latent = layer.layout is not None and layer.layout.has_latent_value
    most = asked if is_latent else _most_heads(plan, layer, batch, heads)
    groups = next(n for n in range(1, heads + 1) if n * most >= heads)
    group = len(range(0, heads, groups))
    is_decode = not (is_latent or plan.batch_invariant) and batch.max_query_len * group <= _MOST_DECODE_ROWS
    rows = {max(asked, 1 << (group - 1).bit_length()), *([max(asked, _MOST_DECODE_ROWS)] if is_decode else [])}
    got = (tiles.group, tiles.groups_per_kv_head, tiles.heads_per_kv_head, tiles.queries)
    assert tiles.block_m in rows, f"a tile of {tiles.block_m} rows for {group} heads, expected one of {rows}"
    expected = (group, groups, heads, tiles.block_m // group)
    assert got == expected, f"a tile has heads, groups, heads of a KV head and queries {got}, expected {expected}"
    assert 0 <= tiles.small_block_m < tiles.block_m, f"a small tile of {tiles.small_block_m} rows beside {tiles.block_m}"


def _most_heads(plan: "AttentionPlan", layer: Layer, batch: Batch, heads: int) -> int:
    """The most query heads of a group, of a cache that is not latent."""
    speculates = 0 < batch.max_query_len <= _MOST_SPECULATED and max(layer.head_size, layer.value_size) <= _MOST_GROUPED_DIMS
    if speculates and not plan.batch_invariant:
        fitting = _MOST_DECODE_ROWS // batch.max_query_len
        if len(range(0, heads, fitting)) <= _MOST_GROUPS:
            return fitting
    return MOST_HEADS_OF_A_GROUP


def _check_memory(plan: "AttentionPlan", q: torch.Tensor, layer: Layer, batch: Batch) -> None:
    """Check that tiles of several stages fit shared memory, as far as Triton keeps them there."""
    stages, most = plan.tiles.parameters.num_stages, SHARED_MEMORY.get(plan.architecture)
    if most is None or stages == 1:
        return
    widths, has_bias = plan.tiles.widths, layer.alibi_slopes is not None or batch.qq_bias is not None
    # dots of many rows of 16 bits run on while the next tile of keys is loaded, and others end before
    buffers = stages - (plan.tiles.block_m < _ROWS_OF_ASYNC_DOT or q.element_size() != _BYTES_OF_ASYNC_DOT)
    is_latent = layer.layout is not None and layer.layout.has_latent_value
    dims = widths.block_d + widths.block_rest + (0 if is_latent else widths.block_v)
    of_keys = plan.tiles.block_n * dims * (q.element_size() if layer.kv_cache_dtype is None else 1)
    of_queries = plan.tiles.block_m * (widths.block_d + widths.block_rest) * q.element_size()
    of_logits = 4 * plan.tiles.block_m * plan.tiles.block_n if has_bias else 0
    taken = of_queries + of_logits + buffers * of_keys
    assert taken <= most, f"{stages} stages take {taken} bytes of the {most} of {plan.architecture}: {plan.tiles}"


def _asked_for(plan: "AttentionPlan", q: torch.Tensor, layer: Layer, given: "Parameters | None") -> "list[Parameters]":
    from attn_optimized.launch.table import entries

    if given is not None:
        return [given]
    return [entry.parameters for entry in entries(plan.architecture) if is_of(entry, q, layer)]


def is_of(entry: "Entry", q: torch.Tensor, layer: Layer) -> bool:
    """Whether the parameters of a table's entry are for tensors such as these. What they are for beside that is the plan's."""
    has_latent_value = layer.layout is not None and layer.layout.has_latent_value
    quantized = layer.kv_cache_dtype is not None
    return (entry.itemsize, entry.quantized, entry.phase.startswith("latent")) == (
        q.element_size(),
        quantized,
        has_latent_value,
    )


def _side(size: int) -> int:
    return max(_LEAST_SIDE, 1 << (size - 1).bit_length())


def _layer(choose: random.Random) -> tuple[Layer, torch.dtype]:
    """A layer without a cache, with one, or with a latent one, and its dtype. Some heads are too large."""
    kind = choose.choice(("dense", "paged", "latent"))
    fields: dict[str, Any] = {"attn_type": AttentionType.ENCODER_ONLY if kind == "dense" else AttentionType.DECODER}
    if kind == "latent":
        value_size = _size(choose, LARGEST_LATENT_V)
        more = choose.choice((0, 64, _size(choose, MOST_DIMS_BEHIND_IT)))
        kv_heads, group = 1, choose.choice((choose.randint(1, _MOST_LATENT_HEADS), _beside_a_power(choose, _MOST_LATENT_HEADS)))
        fields |= {"layout": Layout.LATENT, "head_size": value_size + more, "head_size_v": value_size}
    else:
        fields["head_size"] = _size(choose, LARGEST_HEAD_SIZE)
        kv_heads, group = choose.randint(1, 8), _size(choose, MOST_HEADS_OF_A_GROUP)
        if choose.random() < 0.3:
            fields["head_size_v"] = _size(choose, LARGEST_HEAD_SIZE)
        if kind == "paged":
            fields["layout"] = Layout.CONTENT_PACKED
    if kind != "dense" and choose.random() < 0.3:
        scale = torch.empty((), device="meta")
        fields |= {"kv_cache_dtype": torch.float8_e4m3fn, "k_scale": scale, **({"v_scale": scale} if kind == "paged" else {})}
    if choose.random() < 0.3:
        fields["alibi_slopes"] = torch.empty((kv_heads * group,), device="meta")
    layer = Layer(num_heads=kv_heads * group, num_kv_heads=kv_heads, scale=1.0, **fields)
    return layer, choose.choice((torch.float32, torch.float16, torch.bfloat16))


def _size(choose: random.Random, most: int) -> int:
    """Any size up to the largest one, one beside a power of two, the largest one itself, or one that is larger."""
    larger = most + choose.choice((1, 1, 36, most))
    return choose.choice((choose.randint(1, most), choose.randint(1, most), _beside_a_power(choose, most), most, larger))


def _beside_a_power(choose: random.Random, most: int) -> int:
    """A power of two from 16 on, one more or one less, and at most the largest size: sides of tiles are powers of two."""
    sides = [1 << bit for bit in range(4, most.bit_length())]
    return min(most, choose.choice(sides) + choose.choice((-1, 0, 1)))


def _batch(choose: random.Random, layer: Layer) -> Batch:
    requests, longest = choose.choice((1, 2, 9, 64)), choose.choice((1, 1, 2, 5, 64, 300, 4096))
    others = (requests - 1) * choose.choice((1, longest))
    integers = torch.empty((requests + 1,), dtype=torch.int32, device="meta")
    return Batch(
        query_start_loc=integers,
        seq_lens=integers[1:],
        max_query_len=longest,
        max_seq_len=longest + choose.choice((0, 100, 10_000)),
        num_actual_tokens=longest + others,
        causal=layer.attn_type is AttentionType.DECODER,
    )


def _too_large(layer: Layer) -> str:
    """What no tile of a layer holds, in words; empty if tiles hold it."""
    value_size = layer.value_size
    if layer.layout is not None and layer.layout.has_latent_value:
        more = layer.head_size - value_size
        is_too_large = value_size > LARGEST_LATENT_V or more > MOST_DIMS_BEHIND_IT
        return f"a latent V of {value_size} dims with {more} behind it" if is_too_large else ""
    is_too_large = max(layer.head_size, value_size) > LARGEST_HEAD_SIZE
    return f"heads of sizes {layer.head_size} and {value_size}" if is_too_large else ""
