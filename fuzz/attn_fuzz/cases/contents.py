"""The numbers in a case's tensors. They are drawn on the CPU from the case's seed, so they are the same for every device.

In a latent cache V is the beginning of K, so only the last R dims of K can be chosen freely. In the kinds one_hot and
signature, whose V has a meaning, q is 0 in the dims of V, and only the last R dims decide the logits.

Value kinds (Case.values.kind), simplest first:
    exact       q is 0, v holds small integers: each output is a sum divided by a count, compared bitwise
    one_hot     v is 256 in one channel of keys where sequences, blocks, tiles and rules end, else 0: outputs are the weights
    signature   v spells its slot and head; one key outweighs all others: outputs name the slot that was read
    random      everything normal; in half of the rows of q some blocks of dims are far smaller than the others
    extreme     logits of both signs around EXTREME_LOGIT, whatever the head size and scale, with ties; odd seeds have values up
                to MAX_VALUE, unless a dtype or a scale for all tokens is too narrow for them
    below       all logits around -FAR_BELOW, before rotations and rules of logits: a maximum of 0 loses their weights
"""

import math
from collections.abc import Callable
from typing import Final
from zlib import crc32

import attn_reference
import torch
from attn_contract import RULES, Batch, Layer
from attn_contract.rules import HEADS, KV_HEADS, QUERIES, REQUESTS, ROWS, Axis, held_rules
from attn_contract.validation.values import MAX_LOGIT, MAX_VALUE
from attn_fuzz.cases import axes
from attn_fuzz.cases.case import Cache, Case, Request, Rope, slot_of
from attn_fuzz.cases.poison import leftovers, poison

TILES = 32
MIN_SCALE = 2.0**-20
"""The scale of logits below which no finite key can outweigh the others."""
EXTREME_QUERY, EXTREME_LOGIT = 16, 100
FAR_BELOW = 150
"""exp(-FAR_BELOW) is 0 in float32, whose smallest number is exp(-103)."""
# one row or element in this many that a neighbour writes is special
SPECIAL_ROWS, SPECIAL_ELEMENTS, TIES = 8, 64, 4
# one element of k and v in this many is infinite where infinities saturate
SATURATED_ELEMENTS = 256
HIDDEN_BY_BIAS, HIDDEN_FROM_ALL, LATE_BY_BIAS = 0.3, 0.1, 0.25
SMALL = 2.0**-8
MAX_NARROW_SINK = 2.0**15  # in float16
SCALE_EXPONENTS = range(-4, 4)
ROPE_BASE = 10000.0
MEANING_VALUES = ("one_hot", "signature")
# finite, and large enough to be noticed if a kernel adds it: no two tokens of a request have this bias
STRAY_BIAS = 3e4


def queries(case: Case, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """q of the owned rows [rows, H, D], and the direction [D] that all queries share if one key is to outweigh the others."""
    shape = (case.query_start_loc[-1], case.num_heads, case.head_size)
    direction = torch.randint(0, 2, (case.head_size,), generator=generator) * 2.0 - 1.0
    noise = torch.randn(shape, generator=generator)
    if case.has_latent_cache and case.values.kind in MEANING_VALUES:
        direction[: case.v_head_size] = noise[..., : case.v_head_size] = 0
    if case.values.kind == "exact":
        return torch.zeros(shape), direction
    if case.values.kind == "signature":
        return direction + noise / 8, direction
    if case.values.kind == "extreme":
        return noise.sign() * EXTREME_QUERY, direction
    if case.values.kind == "below":
        return (direction + noise / 8) * EXTREME_QUERY, direction
    if case.values.kind == "random" and case.values.choice("magnitudes of q", 4):
        noise *= _magnitudes(case, shape)
    return noise, direction


def _magnitudes(case: Case, shape: tuple[int, ...]) -> torch.Tensor:
    """[rows, H, D]: 1, or in half of the rows of q SMALL for every other dim, or for every other block of a power of two."""
    generator = torch.Generator().manual_seed(case.values.seed + 2)
    of_rows = (*shape[:2], 1)
    bit = torch.randint(0, max(1, (case.head_size - 1).bit_length()), of_rows, generator=generator)
    parity = torch.randint(0, 4, of_rows, generator=generator)  # beyond 1: of no dim
    return torch.where(torch.arange(case.head_size) >> bit & 1 == parity, SMALL, 1.0)


def unowned_queries(case: Case) -> torch.Tensor:
    """q of the rows that no request owns [rows, H, D], if the step rotates q. It is drawn by a generator of its own."""
    generator = torch.Generator().manual_seed(case.values.seed + 1)
    return torch.randn((case.num_rows - case.query_start_loc[-1], case.num_heads, case.head_size), generator=generator)


def q_scale(case: Case, generator: torch.Generator) -> torch.Tensor:
    """[], [1] or [HK] float32: scales by which queries of most kinds span their range, or 1. Neighbouring heads differ."""
    count = case.num_kv_heads if case.q_scale == "head" else 1
    exponents = (torch.arange(count) * 3 + int(torch.randint(0, 8, (), generator=generator))) % 8 - 5
    scales = torch.exp2(exponents.float()) * (1 + torch.rand(count, generator=generator))
    scales = torch.where(exponents == 0, 1.0, scales)  # the scale of an engine without calibration is 1
    return scales.reshape(()) if count == 1 and case.values.seed % 2 else scales


def stored_queries(case: Case, q: torch.Tensor, layer: Layer, generator: torch.Generator) -> torch.Tensor:
    """q [rows, H, D] in float8, for a layer with a q_scale. In the kind random, one element in 64 is any finite number."""
    assert layer.q_scale is not None
    assert layer.kv_cache_dtype is not None
    scales = layer.q_scale.cpu().expand(case.num_kv_heads).repeat_interleave(case.group_size)
    stored = attn_reference.quantize(q, scales[:, None], layer.kv_cache_dtype)
    if case.values.kind == "random":
        codes = torch.randint(0, 256, q.shape, generator=generator).to(torch.uint8).view(stored.dtype)
        chosen = (torch.randint(0, SPECIAL_ELEMENTS, q.shape, generator=generator) == 0) & codes.float().isfinite()
        stored = torch.where(chosen, codes.view(torch.uint8), stored.view(torch.uint8)).view(stored.dtype)
    return stored


def keys_and_values(case: Case, direction: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """K [slots, HK, D] and V [slots, HK, Dv] of every slot of the cache, or of every query row where there is no cache."""
    keys, values = _keys_and_values(case, direction, generator)
    if not case.has_latent_cache:
        return keys, values
    if case.values.kind in MEANING_VALUES:
        keys[..., : case.v_head_size] = values
    return keys, keys[..., : case.v_head_size]


def stale_keys_and_values(case: Case, cache: Cache, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """K [slots, HK, D] and V [slots, HK, Dv] that earlier requests may have left in any slot of the cache.

    A key has the signs of a query, so that its logit is among the largest of that query: in a request's own blocks of one of
    its queries, of the last one in the slot after its last key, and in other blocks of any. Dims in which q is 0 have any sign.

    Args:
        q: [rows, H, D] of the owned rows.
    """
    slots = torch.arange(cache.num_blocks * cache.block_size)
    shape = (len(slots), case.num_kv_heads, case.head_size)
    keys, values = leftovers(shape, torch.float32, "cpu"), leftovers((*shape[:2], case.v_head_size), torch.float32, "cpu")
    rows = (-1 - slots) % max(len(q), 1)
    for request, first in zip(case.requests, case.query_start_loc, strict=False):
        if request.query_len:
            for at, block in enumerate(request.blocks):
                key = at * cache.block_size + torch.arange(cache.block_size)
                own = first + (case.num_keys(request) - 1 - key) % request.query_len
                rows[block * cache.block_size :][: cache.block_size] = own
    if len(q):
        heads = torch.arange(case.num_kv_heads) * case.group_size + slots[:, None] % case.group_size
        signs = q.float()[rows[:, None], heads].sign() * (-1 if case.scale < 0 else 1)
        keys = torch.where(signs == 0, keys, keys.abs() * signs)
    return (keys, keys[..., : case.v_head_size]) if case.has_latent_cache else (keys, values)


def _keys_and_values(case: Case, direction: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V as if they were stored separately."""
    cache = case.cache
    slots = cache.num_blocks * cache.block_size if cache else case.query_start_loc[-1]
    shape, shape_of_v = ((slots, case.num_kv_heads, size) for size in (case.head_size, case.v_head_size))
    kind = case.values.kind
    if kind == "exact":
        return torch.randint(-2, 3, shape, generator=generator).float(), torch.randint(
            -8, 9, shape_of_v, generator=generator
        ).float()
    keys, values = torch.randn(shape, generator=generator), torch.randn(shape_of_v, generator=generator)
    if kind == "extreme":
        # a product of random signs is about the root of their number
        size = EXTREME_LOGIT / EXTREME_QUERY / max(abs(case.scale), 1e-3) / math.sqrt(case.head_size)
        keys = (keys.sign() * size).clamp(-1000, 1000)
        keys[::3] = keys[:1].clone()
        if case.values.seed % 2 and case.dtype != "float16" and (cache is None or cache.dtype is None or cache.scales_tokens):
            longest = max(map(case.num_keys, case.requests), default=0)
            # a number of the normal distribution is below 8, and bfloat16 may round up
            values *= MAX_VALUE / 16 / max(longest, 1)
    elif kind == "below":
        size = FAR_BELOW / EXTREME_QUERY / max(abs(case.scale), 1e-3) / case.head_size
        keys = (direction + keys / 8) * math.copysign(size, -case.scale)
    elif kind == "one_hot":
        values = torch.zeros(shape_of_v)
        for r, request in enumerate(case.requests):
            for channel, key in enumerate(_edges(case, request)[: case.v_head_size]):
                values[_slot(case, r, key), :, channel] = 256
    elif kind == "signature":
        values = _signatures(shape_of_v)
        keys = keys / 8
        dims = int(direction.abs().sum())  # all of them, or those of a latent key that are no value
        for r, request in enumerate(case.requests):
            if (num_keys := case.num_keys(request)) and abs(case.scale) > MIN_SCALE and dims:
                key = int(torch.randint(0, num_keys, (), generator=generator))
                logit = math.log(num_keys) + 3
                keys[_slot(case, r, key)] = direction * (logit / (case.scale * dims))
    return keys, values


def sinks(case: Case, generator: torch.Generator) -> torch.Tensor | None:
    """[H] float32: the logit of each head's sink, of the kind that the case names; None for a case without sinks."""
    near = torch.randn(case.num_heads, generator=generator)
    # the kinds "above" and "below": a seed says with which of the three a case of few heads begins
    largest = MAX_NARROW_SINK if case.dtype == "float16" and case.narrow_sinks else MAX_LOGIT
    far = torch.tensor([20.0, 300.0, largest])[(torch.arange(case.num_heads) + case.values.seed) % 3]
    off = torch.full_like(near, -torch.inf)
    some = torch.where(torch.arange(case.num_heads) % 2 == 0, near, off)
    kinds = {"off": off, "zero": near * 0, "near": near, "above": far, "below": -far, "some": some}
    return kinds[case.sinks] if case.sinks else None


def alibi_slopes(case: Case, generator: torch.Generator) -> torch.Tensor:
    """[H] slopes from 2^-8 to 1, as in models. No two are equal. Signed slopes are negative, 0 and positive by turns."""
    slopes = torch.exp2(-8 * torch.rand(case.num_heads, generator=generator))
    return slopes * (torch.arange(case.num_heads) % 3 - 1) if case.signed_slopes else slopes


def qq_bias(case: Case, generator: torch.Generator) -> torch.Tensor:
    """[Q, Q] biases between the queries of the longest request. Rows and columns beyond them hold a large number."""
    queries = case.max_query_len - case.slack
    bias = torch.full((case.max_query_len + 1, case.max_query_len + 1), STRAY_BIAS)
    if case.qq_bias == "tree":
        bias[:queries, :queries] = torch.where(_ancestors(queries, generator), 0.0, -torch.inf)
    else:
        bias[:queries, :queries] = torch.randn(queries, queries, generator=generator) * 2
    if case.qq_bias == "hiding":
        hidden = torch.rand(queries, queries, generator=generator) < HIDDEN_BY_BIAS
        # some keys from all rows, and from some rows all keys before one that is anywhere: whole tiles
        hidden |= torch.rand(1, queries, generator=generator) < HIDDEN_FROM_ALL
        firsts = torch.randint(0, max(queries, 1), (queries, 1), generator=generator)
        is_late = torch.rand(queries, 1, generator=generator) < LATE_BY_BIAS
        bias[:queries, :queries][hidden | (is_late & (torch.arange(queries) < firsts))] = -torch.inf
    return bias


def selected(case: Case, generator: torch.Generator) -> torch.Tensor:
    """[1 or HK, rows of requests, W] int32: the units of the kind that the case names."""
    heads = case.num_kv_heads if case.selected_per_head else 1
    most, has_holes = _most_units(case, generator), case.selected in ("holes", "ahead")
    # an indexer that found nothing for a whole step hands over rows without an entry
    all_empty = case.empty_selections and not torch.randint(0, 4, (), generator=generator)
    chosen = [
        _chosen_units(case, request, position, 0 if all_empty else most, generator)
        for _ in range(heads)
        for request in case.requests
        for position in range(request.context_len, request.seq_len)
    ]
    longest = max((len(units) for units in chosen), default=0)
    # as many holes as units, and more: whole tiles of places may hold no key
    further = 2 * longest + 4 if has_holes and not all_empty else 4
    width = longest + int(torch.randint(0, further, (), generator=generator))
    width = most if case.selected == "top" else width
    rows = torch.full((len(chosen), width), -1, dtype=torch.int32)
    for row, units in zip(rows, chosen, strict=True):
        places = torch.arange(len(units))
        if has_holes:
            places = torch.randperm(width, generator=generator)[: len(units)]
        row[places] = units
    if has_holes:
        rows[rows < 0] -= torch.randint(0, 3, rows.shape, generator=generator, dtype=torch.int32)[rows < 0]
    return rows.view(heads, case.query_start_loc[-1], width)


def _most_units(case: Case, generator: torch.Generator) -> int:
    """The number of units that an indexer selects for a query: from one to two more than the longest request has."""
    assert case.selection_unit is not None
    longest = max(map(case.num_keys, case.requests), default=0)
    return int(torch.randint(1, -(-longest // case.selection_unit) + 3, (), generator=generator))


def _chosen_units(case: Case, request: Request, position: int, most: int, generator: torch.Generator) -> torch.Tensor:
    """The units that the query at a position selects, in any order. One row in eight selects nothing, if rows may; and each one
    does if `most` is 0."""
    assert case.selection_unit is not None
    tokens = request.seq_len if case.selected == "ahead" or not request.causal else max(position + 1, 0)
    keys = tokens // (case.key_unit or 1)
    units = torch.randperm(-(-keys // case.selection_unit), generator=generator).int()
    if not len(units) or not most or (case.empty_selections and not torch.randint(0, 8, (), generator=generator)):
        return units[:0]
    if case.selected in ("all", "top"):
        return units[:most] if case.selected == "top" else units
    return units[: int(torch.randint(1, len(units) + 1, (), generator=generator))]


def _ancestors(count: int, generator: torch.Generator) -> torch.Tensor:
    """[count, count]: whether token j is token i or one of its ancestors in a random tree."""
    back = torch.randint(1, 4, (count,), generator=generator).tolist()
    sees = torch.eye(count, dtype=torch.bool)
    for i in range(count):
        if i >= back[i]:
            sees[i] |= sees[i - back[i]]
    return sees


def fixed_scales(case: Case, cache: Cache, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """k_scale and v_scale in a shape that the contract allows. They are powers of two if sums must be exact.

    Up to eight heads differ from each other in both, and K from V in each head. By the seed, K or V has one scale beside those
    of the other's heads. A latent cache has k_scale alone.
    """
    if cache.scales not in ("tensor", "head"):
        return {}
    count = case.num_kv_heads if cache.scales == "head" else 1
    of_k = torch.arange(count)
    of_v = of_k + (count if 2 * count <= len(SCALE_EXPONENTS) else 1)
    order = torch.randperm(len(SCALE_EXPONENTS), generator=generator)
    exponents = order[torch.cat([of_k, of_v]) % len(SCALE_EXPONENTS)] + SCALE_EXPONENTS.start
    factors = 1 + torch.rand(2 * count, generator=generator)
    scales = torch.exp2(exponents.float()) * (1 if case.values.kind == "exact" else factors)
    is_scalar = count == 1 and bool(torch.randint(0, 2, (), generator=generator))
    found = {
        name: part.reshape(()) if is_scalar else part
        for name, part in zip(("k_scale", "v_scale"), scales.split(count), strict=True)
    }
    if count > 1 and (one := case.values.choice("one scale for all heads", 6)) > 3:
        name = ("k_scale", "v_scale")[one - 4]
        found[name] = found[name][:1]
    return {"k_scale": found["k_scale"]} if case.has_latent_cache else found


def output_scale(case: Case, generator: torch.Generator) -> torch.Tensor:
    """[1] or [] float32: a positive number that is no power of two, so that a division by it rounds."""
    exponent = torch.randint(-6, 3, (1,), generator=generator)
    scale = torch.exp2(exponent.float()) * (1 + torch.rand(1, generator=generator))
    return scale.reshape(()) if case.values.seed % 2 else scale


def rope_positions(case: Case, rope: Rope, generator: torch.Generator) -> list[int]:
    """A position for each row that counts, or for all rows: the request's own plus a constant. Rows that no request owns have
    small ones, and not only 0, whose rotation changes nothing."""
    positions: list[int] = []
    for request in case.requests:
        shift = int(torch.randint(0, 4, (), generator=generator))
        positions += [max(request.context_len + i, 0) + shift for i in range(request.query_len)]
    rows = case.num_rows if rope.all_rows else case.num_actual_tokens
    return positions + [(i + 1) % 3 for i in range(rows - len(positions))]


def cos_sin_cache(rope: Rope, num_positions: int) -> torch.Tensor:
    """[num_positions, rotary_dim] float64: the cosines of each position's pairs, then the sines."""
    pairs = torch.arange(rope.rotary_dim // 2, dtype=torch.float64) / (rope.rotary_dim // 2)
    angles = torch.arange(num_positions, dtype=torch.float64)[:, None] * ROPE_BASE**-pairs
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def with_specials(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Rows in which some elements are hard to write: NaN, infinities, zeros of both signs, the largest and smallest numbers."""
    limits = torch.finfo(rows.dtype)
    numbers = torch.tensor([torch.inf, -torch.inf, 0.0, -0.0, limits.max, -limits.max, limits.tiny, -limits.tiny / 2])
    specials = torch.cat([poison((1,), rows.dtype, "cpu"), numbers.to(rows.dtype)])
    chosen = specials[torch.randint(0, len(specials), rows.shape, generator=generator)]
    in_row = torch.randint(0, SPECIAL_ROWS, rows.shape[:2], generator=generator) == 0
    in_element = torch.randint(0, SPECIAL_ELEMENTS, rows.shape, generator=generator) == 0
    return torch.where(in_element, chosen, torch.where(in_row[..., None], 0, rows))


def with_infinities(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Rows in which a few elements are infinite, of both signs."""
    is_infinite = torch.randint(0, SATURATED_ELEMENTS, rows.shape, generator=generator) == 0
    return torch.where(is_infinite, torch.where(rows < 0, -torch.inf, torch.inf).to(rows.dtype), rows)


def with_ties(rows: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Rows in which some elements lie halfway between two numbers of a quantized dtype, as far as theirs can say it.

    Only such elements show that a quotient was rounded twice.
    """
    halves = torch.randint(0, 60, rows.shape, generator=generator) + 0.5
    if dtype != torch.int8:
        # the fifth bit decides how a number is rounded to four bits
        fifth = 2 * torch.randint(8, 16, rows.shape, generator=generator) + 1
        halves = torch.ldexp(fifth.float(), torch.randint(-4, 3, rows.shape, generator=generator))
    is_tie = (torch.randint(0, TIES, rows.shape, generator=generator) == 0) & rows.isfinite() & (rows != 0)
    return torch.where(is_tie, (halves * scale).to(rows.dtype), rows)


NUMBERS: Final[dict[str, Callable[[Case, torch.Generator], torch.Tensor | None]]] = {
    "sinks": sinks,
    "q_scale": q_scale,
    "alibi_slopes": alibi_slopes,
    "qq_bias": qq_bias,
}
"""The numbers of each rule's tensor, in the order in which they are drawn. A rule that is not named has those of `_plain`."""
_DRAWN_ALWAYS = "sinks"
"""Cases without sinks draw them, too: the numbers that follow in a stored case depend on it."""
IN_REQUESTS = ("bidirectional_ranges",)
"""The rules whose numbers a case has in its requests."""


def of_rules(holder: type[Layer | Batch], case: Case, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """The tensors of the rules of a layer or of a step that a case asks for, by name."""
    asked = {name for name, rule in held_rules(holder).items() if rule.is_tensor and name in case.rules}
    drawn = [name for name in NUMBERS if name in asked or (name == _DRAWN_ALWAYS and RULES[name].holder == holder.__name__)]
    found = {name: NUMBERS[name](case, generator) for name in drawn}
    plain = asked.difference(NUMBERS, IN_REQUESTS)
    return {name: _plain(holder, name, case) for name in plain} | {name: x for name, x in found.items() if x is not None}


def sizes(case: Case) -> dict[Axis, int]:
    """The sizes of the axes that a case knows, of rows that requests own."""
    rows, requests = case.query_start_loc[-1], len(case.requests)
    of_heads = {HEADS: case.num_heads, KV_HEADS: case.num_kv_heads}
    return {**of_heads, REQUESTS: requests, ROWS: rows, QUERIES: case.max_query_len}


def _plain(holder: type[Layer | Batch], name: str, case: Case) -> torch.Tensor:
    """Float32 numbers from 0.5 to 1.5 in the shape of a rule's axes, no two of which are equal.

    They are drawn by a generator of their own, so that the other numbers of a case do not depend on the rule.
    """
    known = sizes(case) | {ROWS: case.num_rows}
    shape = axes.shape(holder, name, known)
    return 0.5 + torch.rand(shape, generator=torch.Generator().manual_seed(case.values.seed ^ crc32(name.encode())))


def _signatures(shape: tuple[int, int, int]) -> torch.Tensor:
    """Digits of (slot, head), base 16, over the channels; other channels hold the slot's parity."""
    slots, num_kv_heads, head_size = shape
    slot = torch.arange(slots)[:, None].expand(slots, num_kv_heads)
    head = torch.arange(num_kv_heads).expand(slots, num_kv_heads)
    digits = torch.stack([slot % 16, slot // 16 % 16, slot // 256 % 16, head, slot % 2], dim=-1) + 1
    return digits[..., torch.arange(head_size).clamp(max=4)].float()


def _edges(case: Case, request: Request) -> list[int]:
    """Keys where masks and tiles often go wrong: both ends, and the edges of the case's rules, of blocks and of tiles."""
    num_keys = case.num_keys(request)
    last = num_keys - 1
    near = [0, last, last - 1, 1]
    for first, end in request.bidirectional_ranges:
        near += [end, end + 1, first, first - 1]
    if case.sink_tokens:
        near += [case.sink_tokens - 1, case.sink_tokens]
    if case.window[0] >= 0:
        near += [edge - case.window[0] - more for edge in (last, request.context_len) for more in (0, 1)]
    periods = [case.chunked_local] if case.chunked_local else []
    periods += [case.cache.block_size if case.cache else TILES // 2, TILES]
    for period in periods:
        for edge in range(period, num_keys, period):
            near += [edge - 1, edge]
    return [key for key in dict.fromkeys(near) if 0 <= key < num_keys]


def _slot(case: Case, r: int, key: int) -> int:
    if case.cache is not None:
        return slot_of(case.requests[r], case.cache, key)
    return case.query_start_loc[r] + key
