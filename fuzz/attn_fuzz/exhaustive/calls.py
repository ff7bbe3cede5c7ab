"""The calls of a scope for one target: which layers there are, which requests each layer can have, and what is left out."""

import functools
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import msgspec
from attn_contract import AttentionType, Layout
from attn_fuzz.cases.case import Cache, Case, Dtype, Float8, Request, Values
from attn_fuzz.cases.contradictions import contradiction
from attn_fuzz.cases.dimensions import FLAGS, Causality, Ranges, Setting
from attn_fuzz.exhaustive import symmetry
from attn_fuzz.exhaustive.scope import ScopePart
from attn_fuzz.exhaustive.symmetry import Requests
from attn_fuzz.targets.support import LatentSizes, Support
from attn_fuzz.targets.target import Target

DTYPES: tuple[Dtype, ...] = get_args(Dtype)
EMPTY_RANGE = (1, 0)


@dataclass(frozen=True)
class Group:
    """Calls of one layer that are served.

    Args:
        template: everything of the calls but their requests and the number of blocks.
        batches: the requests of each call, with blocks as `symmetry.tables` names them.
    """

    template: Case
    batches: tuple[Requests, ...]


@dataclass
class LeftOut:
    """The calls of a part that are not run, counted by reason.

    Args:
        undefined: the contract has no such call, such as cross-attention with a window.
        not_served: the target does not serve it, or its engine does not send it.
    """

    undefined: Counter[str] = field(default_factory=Counter)
    not_served: Counter[str] = field(default_factory=Counter)


def base(name: str, target: Target, device: str) -> Case:
    """The plainest call that a target serves: its smallest heads, its simplest dtype, layout and form, and no rule. A target
    that names a latent layout first has a latent cache."""
    support = target.support(device)
    engine = support.engine
    layouts = support.layouts or tuple(Layout)
    is_latent = layouts[0].has_latent_value
    layout = Layout.BLOCKS_FIRST_NHD if Layout.BLOCKS_FIRST_NHD in layouts and not is_latent else layouts[0]
    sizes = _latent_sizes(support.latent) if is_latent else _sizes(support)
    float8 = [dtype for dtype in get_args(Float8) if dtype in support.cache_dtypes]
    return Case(
        target=name,
        dtype=next(dtype for dtype in DTYPES if dtype in support.dtypes),
        **sizes,
        scale=sizes["head_size"] ** -0.5,
        cache=Cache(
            layout=layout,
            block_size=1,
            num_blocks=1,
            planes=engine.planes[0] and not is_latent,
            order=engine.orders[0],
            dtype=float8[0] if layout.latent_format is not None else None,
        ),
        writes=True in engine.writes,
        finite_slots=support.unused_slots == "finite",
        fused_qkv=engine.fused_qkv[0],
        unlike_strides=engine.unlike_strides[0],
        flat_out=engine.flat_out[0],
        dense_out=engine.dense_out[0],
        values=Values(kind="random"),
    )


def _sizes(support: Support) -> dict[str, Any]:
    return {"head_size": min(support.head_sizes), "group_size": min(support.group_sizes)}


def _latent_sizes(sizes: LatentSizes) -> dict[str, Any]:
    """The smallest widths, of those for which K is wider than V if there are any."""
    latent, rotated = min(sizes.widths, key=lambda widths: (widths[1] == 0, sum(widths)))
    return {"head_size": latent + rotated, "head_size_v": latent, "group_size": min(sizes.group_sizes)}


def groups(part: ScopePart, plainest: Case, target: Target, device: str, left_out: LeftOut) -> Iterator[Group]:
    """The calls of a part, layer by layer: few choices first. Calls that are not run are added to `left_out`."""
    sizes = block_sizes(part, plainest, target.support(device))
    for setting in layers(part):
        for template in templates(setting, plainest, sizes):
            served = []
            for batch in _batches(part, template, setting):
                if reason := contradiction(call(template, (batch,))):
                    left_out.undefined[reason] += 1
                elif reason := not_served(call(template, (batch,)), target, device):
                    left_out.not_served[reason] += 1
                else:
                    served.append(batch)
            if served:
                yield Group(template, tuple(served))


def layers(part: ScopePart) -> Iterator[Setting]:
    """The setting of each layer: nothing, one, and if the part has pairs, two of different choices that do not set the same."""
    yield Setting({}, {})
    yield from itertools.chain.from_iterable(choice.settings for choice in part.choices)
    if part.pairs:
        for one, other in itertools.combinations(part.choices, 2):
            yield from (a | b for a, b in itertools.product(one.settings, other.settings) if not a.names & b.names)


def block_sizes(part: ScopePart, plainest: Case, support: Support) -> tuple[int, ...]:
    """The block sizes of a part on a target. A size that the target does not serve becomes the next larger one that it does."""
    served = (support.latent if plainest.has_latent_cache else support).block_sizes
    nearest = (min((size for size in served if size >= wanted), default=max(served)) for wanted in part.block_sizes)
    return tuple(dict.fromkeys(nearest))


def templates(setting: Setting, plainest: Case, sizes: Sequence[int]) -> Iterator[Case]:
    """The layer of a setting, in each block size. A layer without a cache has none, and some settings fix it."""
    fields, in_cache = setting.fields, setting.cache
    layer = msgspec.structs.replace(plainest, **fields, per_request_causal=setting.causality == "per request")
    if not layer.attn_type.reads_cache:
        # what speaks of a cache contradicts a layer without one, and is refused by `check`
        layer = msgspec.structs.replace(layer, cache=None, writes=fields.get("writes", True), finite_slots=False)
        if not in_cache:
            yield layer
        return
    assert plainest.cache is not None
    for block_size in (in_cache["block_size"],) if "block_size" in in_cache else sizes:
        cache = msgspec.structs.replace(plainest.cache, **{**in_cache, "block_size": block_size})
        if cache.holds_content_rows:
            cache = msgspec.structs.replace(cache, planes=in_cache.get("planes", False))
        yield msgspec.structs.replace(layer, cache=cache)


def call(template: Case, batches: Sequence[Requests]) -> Case:
    """The call of a layer with some batches beside each other, each in blocks of its own."""
    requests, num_blocks = symmetry.numbered(batches)
    cache = template.cache and msgspec.structs.replace(template.cache, num_blocks=num_blocks)
    return msgspec.structs.replace(template, requests=requests, cache=cache)


def requests_of(
    part: ScopePart, attn_type: AttentionType, causality: Causality | None, ranges: Ranges | None
) -> tuple[Request, ...]:
    """The requests, without blocks, that a call of a layer can have."""
    if attn_type in (AttentionType.ENCODER, AttentionType.ENCODER_ONLY):
        lengths = [(length, length) for length in part.seq_lens]
    else:
        lengths = list(itertools.product(part.query_lens, part.seq_lens))
    flags = FLAGS[causality or "causal"]
    found = []
    for query_len, seq_len in lengths:
        for flag in flags if attn_type is AttentionType.DECODER else (False,):
            request = Request(query_len=query_len, seq_len=seq_len, causal=flag)
            if ranges is None:
                found.append(request)
            else:
                of_request = ranges_of(query_len, seq_len, ranges)
                found += [msgspec.structs.replace(request, bidirectional_ranges=own) for own in of_request]
    return tuple(found)


def ranges_of(query_len: int, seq_len: int, kind: Ranges) -> list[tuple[tuple[int, int], ...]]:
    """The bidirectional ranges of a request: one at a time, and at the end two that overlap."""
    last = seq_len - 1
    if kind == "all":
        single = [(first, end) for first in range(-1, seq_len + 1) for end in range(first, seq_len + 1)]
    else:
        single = [(0, last), (seq_len - query_len, last), (1, 2), (-1, 0), (last, last + 1)]
    kept = [one for one in dict.fromkeys(single) if one[0] <= one[1]]
    return [((one),) for one in (*kept, EMPTY_RANGE)] + [((0, 1), (1, 2))]


def _batches(part: ScopePart, template: Case, setting: Setting) -> tuple[Requests, ...]:
    requests = requests_of(part, template.attn_type, setting.causality, setting.ranges)
    return _all_batches(requests, part.num_requests, template.cache.block_size if template.cache else 0, template.key_unit or 1)


@functools.lru_cache(maxsize=64)
def _all_batches(requests: tuple[Request, ...], num_requests: int, block_size: int, key_unit: int) -> tuple[Requests, ...]:
    """One batch of each orbit, the shortest first."""
    found = symmetry.batches([requests] * num_requests, block_size, key_unit)
    return tuple(sorted(found, key=lambda batch: sum(r.query_len + r.seq_len for r in batch)))


def not_served(case: Case, target: Target, device: str) -> str | None:
    """The reason why a target does not serve a case, in words; None if it does."""
    return target.beyond(case, device) or target.support(device).not_drawn(case)
