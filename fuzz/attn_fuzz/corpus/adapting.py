"""Past cases of other targets as cases of this one: sizes, dtype and forms become those that the target draws."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
from attn_contract import AttentionType, Layout
from attn_fuzz.cases import contradictions
from attn_fuzz.cases.case import Cache, Case, CaseError, Request
from attn_fuzz.targets.engine import NUMBERS, Engine, window_by_causality
from attn_fuzz.targets.support import LatentSizes, Support

replace = msgspec.structs.replace


def adapted(case: Case, support: Support) -> tuple[Case | None, str]:
    """The case in sizes and forms that the support draws, and why there is no such case; empty if there is one.

    Block tables are refitted to another block size. A decoder becomes causal for a target that has nothing else: most shrunk
    cases are not causal because that is simpler. The attention type and all other rules stay. A captured call stays as it is,
    because its tensors have its sizes.
    """
    if case.values.kind == "captured":
        reason = _cannot_run(case, support)
        return (None, reason) if reason else (case, "")
    for adapt in _ADAPTATIONS:
        case = adapt(case, support)
    if reason := support.beyond(case) or support.not_drawn(case):
        return None, reason
    try:
        contradictions.check(case)
    except CaseError as error:
        return None, str(error)
    return case, ""


def _cannot_run(captured: Case, support: Support) -> str | None:
    """The reason why a target cannot run a captured call. A Support's sizes say what is drawn, not what the kernel can do."""
    if captured.dtype not in support.dtypes:
        return f"dtype {captured.dtype}"
    if captured.cache is not None and captured.cache.layout not in support.layouts:
        return f"layout {captured.cache.layout}"
    return support.beyond(captured)


def _with_dtype(case: Case, support: Support) -> Case:
    return case if case.dtype in support.dtypes else replace(case, dtype=support.dtypes[0])


def _with_causality(case: Case, support: Support) -> Case:
    may_mix_alibi = support.engine.mixed_alibi or not case.alibi_slopes
    may_mix_ranges = support.engine.mixed_ranges or not case.bidirectional_ranges
    if not case.non_causal or ("non_causal" in support.rules and may_mix_alibi and may_mix_ranges):
        return case
    requests = tuple(replace(request, causal=True) for request in case.requests)
    return replace(case, requests=requests, per_request_causal=False)


def _with_lengths(case: Case, support: Support) -> Case:
    """Lengths that the engine sends: enough keys for the queries, and no empty request or batch, no context, equal queries."""
    engine, dense = support.engine, case.cache is None
    least = 0 if engine.empty_requests else 1
    requests = [replace(r, query_len=max(r.query_len, least), seq_len=max(r.seq_len, least)) for r in case.requests]
    if requests and not engine.empty_batches and not any(request.query_len for request in requests):
        requests[0] = replace(requests[0], query_len=1, seq_len=1 if dense else max(1, requests[0].seq_len))
    if "any" not in engine.query_lens and requests and not dense:
        length = requests[0].query_len if "equal" in engine.query_lens else 1
        requests = [replace(request, query_len=length) for request in requests]
    if case.attn_type is AttentionType.DECODER and not engine.contexts:
        requests = [replace(request, seq_len=min(request.seq_len, request.query_len)) for request in requests]
    if case.attn_type is AttentionType.DECODER and not (engine.more_queries_than_keys and engine.prompts):
        context = 0 if engine.prompts else 1
        requests = [replace(request, seq_len=max(request.seq_len, request.query_len + context)) for request in requests]
    if tuple(requests) == case.requests:
        return case
    case = replace(case, requests=tuple(requests))
    return case if case.cache is None else _with_block_size(case, case.cache, case.cache.block_size)


def _with_layout(case: Case, support: Support) -> Case:
    """A layout that the target has. Scales stay where they are: inline scales are of one layout alone."""
    cache = case.cache
    if cache is None or cache.layout in support.layouts:
        return case
    alike = (cache.layout.has_inline_scales, cache.layout.has_latent_value)
    fitting = [one for one in support.layouts if (one.has_inline_scales, one.has_latent_value) == alike]
    # no two layouts with scales in latent rows have the same widths, and no two take two widths
    if not fitting or case.latent_format is not None or (case.head_size_v is not None and not case.has_latent_cache):
        return case
    layout = min(fitting, key=lambda one: ("content" in one.dims) != ("content" in cache.layout.dims))
    return replace(case, cache=_in_layout(cache, layout))


def _in_layout(cache: Cache, layout: Layout) -> Cache:
    cache = replace(cache, layout=layout, writer=None, neighbour=None)
    if cache.holds_content_rows:
        return replace(cache, planes=False)
    default = Cache(layout=layout, block_size=1, num_blocks=1)
    return replace(cache, order=default.order, num_layers=default.num_layers, layer=default.layer)


def _with_sizes(case: Case, support: Support) -> Case:
    """Sizes that the target draws and the layout allows: the next larger ones, else the largest."""
    if case.cache is not None and case.has_latent_cache:
        return _with_latent_sizes(case, case.cache, support.latent)
    head_unit, block_unit = case.cache.layout.packing_multiples(case.itemsize) if case.cache else (1, 1)
    head_size = _nearest(case.head_size, [size for size in support.head_sizes if size % head_unit == 0])
    case = replace(case, head_size=head_size, group_size=_nearest(case.group_size, support.group_sizes))
    if case.cache is None:
        return case
    block_size = _nearest(case.cache.block_size, [size for size in support.block_sizes if size % block_unit == 0])
    return case if block_size == case.cache.block_size else _with_block_size(case, case.cache, block_size)


def _with_latent_sizes(case: Case, cache: Cache, latent: LatentSizes) -> Case:
    """The next larger pair of widths by that of K, and the next larger heads and blocks."""
    own = (case.v_head_size, case.head_size - case.v_head_size)
    v_head_size, rotated = own if own in latent.widths else _nearest_pair(case.head_size, latent.widths)
    sizes = {"head_size": v_head_size + rotated, "head_size_v": v_head_size}
    case = replace(case, **sizes, group_size=_nearest(case.group_size, latent.group_sizes))
    block_size = _nearest(cache.block_size, latent.block_sizes)
    return case if block_size == cache.block_size else _with_block_size(case, cache, block_size)


def _nearest_pair(head_size: int, widths: Sequence[tuple[int, int]]) -> tuple[int, int]:
    nearest = _nearest(head_size, [sum(pair) for pair in widths])
    return next(pair for pair in widths if sum(pair) == nearest)


def _nearest(size: int, sizes: Sequence[int]) -> int:
    """The size itself or the next larger one of the sizes; the largest if there is none."""
    if size in sizes or not sizes:
        return size
    return min((one for one in sizes if one > size), default=max(sizes))


def _with_block_size(case: Case, cache: Cache, block_size: int) -> Case:
    """Blocks of another size. A request's blocks keep their ids as far as they go.

    Requests still share leading blocks as far as whole blocks of the new size reach.
    """
    taken: set[int] = set()
    tables: list[tuple[int, ...]] = []
    for request in case.requests:
        shared = _shared(case.requests[: len(tables)], request, cache.block_size) // block_size
        table = list(tables[0][:shared]) if shared else []
        for block in itertools.chain(request.blocks, range(1 << 20)):
            if len(table) == -(-case.num_keys(request) // block_size):
                break
            if block not in taken:
                table.append(block)
                taken.add(block)
        tables.append(tuple(table))
    requests = tuple(replace(request, blocks=blocks) for request, blocks in zip(case.requests, tables, strict=True))
    num_blocks = max(cache.num_blocks, *(block + 1 for block in taken), 1)
    return replace(case, requests=requests, cache=replace(cache, block_size=block_size, num_blocks=num_blocks))


def _shared(before: Sequence[Request], request: Request, block_size: int) -> int:
    """Leading keys whose blocks a request shares with the first one."""
    count = 0
    for own, first in zip(request.blocks, before[0].blocks if before else (), strict=False):
        if own != first:
            break
        count += 1
    return count * block_size


def _with_engine(case: Case, support: Support) -> Case:
    """Forms that the engine sends, such as a dense output; and no more rows, padding and slack than it sends."""
    engine = support.engine
    changed = dict(_forms(case, engine))
    if case.cache is not None:
        of_cache = dict(_forms(case.cache, engine))
        of_cache |= {} if engine.other_views else {"writer": None, "neighbour": None}
        if case.cache.holds_content_rows:
            of_cache.pop("planes", None)
            of_cache["order"] = case.cache.order if case.cache.order in engine.orders else engine.orders[0]
        changed["cache"] = replace(case.cache, **of_cache)
        changed["finite_slots"] = case.finite_slots or support.unused_slots == "finite"
        changed["ordinary_writes"] = case.ordinary_writes or False not in engine.ordinary_writes
    if not engine.unwritten:
        changed["unwritten"] = ()
    if "any" not in engine.windows and "by causality" in engine.windows:
        changed["window"] = window_by_causality(case.window[0], case)
    elif engine.windows == ("left",):
        changed["window"] = (case.window[0], -1)
    return replace(case, **changed)


def _forms(struct: msgspec.Struct, engine: Engine) -> Iterator[tuple[str, Any]]:
    """The fields of a case or of its cache that the engine restricts and that it never sends so, with values that it sends."""
    for field in dataclasses.fields(Engine):
        value, allowed = getattr(struct, field.name, None), getattr(engine, field.name)
        if value is None or field.name in ("writes", "unwritten", "ordinary_writes"):
            continue
        if field.name in NUMBERS:
            if value > max(allowed):
                yield field.name, max(allowed)
        elif isinstance(allowed, bool):
            if value and not allowed:
                yield field.name, False
        elif value not in allowed:
            yield field.name, allowed[0]


_ADAPTATIONS: tuple[Callable[[Case, Support], Case], ...] = (
    _with_dtype,
    _with_causality,
    _with_lengths,
    _with_layout,
    _with_sizes,
    _with_engine,
)
