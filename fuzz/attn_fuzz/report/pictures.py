"""A case as grids of cells: which keys each query sees, where each block lies, and how large the errors of the output are."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import msgspec
import torch
from attn_contract.layouts import K, V
from attn_fuzz.cases import allocations, tensors
from attn_fuzz.cases.case import Cache, Case, slots_of_keys, written_slots
from attn_fuzz.cases.poison import bits, poison
from attn_fuzz.cases.tensors import Step
from attn_fuzz.report.grid import NUM_OWNER_COLOURS, Cell, Picture, Room, cell, cuts, sampled, span
from attn_fuzz.verdict import oracle, ratios
from attn_fuzz.verdict.ratios import EDGES, NOT_FINITE, STRAY, UNOWNED, UNWRITTEN
from attn_fuzz.verdict.verdict import Verdict
from attn_reference import Request, masks

MAX_REQUESTS = 8
MAX_PAIRS = 1 << 24
MAX_STRETCHES = 96


def draw(case: Case, verdict: Verdict | None, room: Room) -> list[Picture]:
    """All pictures of a case. Pictures of the output need a verdict on judged outputs."""
    step = tensors.build(case)
    blocks = [] if case.cache is None else [block_table(case, step, room), *_allocation(case, case.cache, step, room)]
    output = [] if verdict is None else [error_over_bound(case, name, x, room) for name, x in verdict.pictures.items()]
    return [*output, *visible_keys(case, step, verdict, room), *blocks]


def error_over_bound(case: Case, tensor: str, codes: bytes, room: Room) -> Picture:
    """Error over bound by head and row of q.

    Args:
        codes: the bytes of `attn_fuzz.verdict.ratios.picture`.
    """
    by_row = torch.tensor(list(codes), dtype=torch.int64).reshape(-1, case.num_heads)
    by_row = torch.where(by_row == UNOWNED, -1, by_row)  # a cell shows its largest code, and any other code counts more
    heads, rows = cuts(case.num_heads, room.rows), cuts(len(by_row), room.columns)
    worst = [[int(by_row[row, head].max()) for row in rows] for head in heads]
    starts = {start: f"r{r}" for r, start in reversed(list(enumerate(case.query_start_loc[:-1])))}
    return Picture(
        f"{tensor}: error / bound by head and row of q",
        [
            [_heat(code, f"{span('row', row)}, {span('head', head)}") for code, row in zip(codes, rows, strict=True)]
            for codes, head in zip(worst, heads, strict=True)
        ],
        [span("head", head) for head in heads],
        {i: starts[row] for i, cut in enumerate(rows) for row in range(cut.start, cut.stop) if row in starts},
        note=sampled(heads, rows),
    )


def _heat(code: int, place: str) -> Cell:
    if code in (kinds := {NOT_FINITE: "nan", UNWRITTEN: "unwritten", STRAY: "stray", -1: "unowned"}):
        return cell(kinds[code], place)
    if code >= ratios.BROKEN:
        return cell("broken", f"{place}: at least {EDGES[code - 1]:.2g} times its bound")
    most = EDGES[code]
    colour = max(0, 5 - int(math.log(1 / most, 4)))  # a colour spans a factor of 4, and the last colour ends at the bound
    return Cell(str(int(10 * most * 0.999)), f"heat-{colour}", f"{place}: below {most:.2g} of its bound")


def visible_keys(case: Case, step: Step, verdict: Verdict | None, room: Room) -> Iterator[Picture]:
    """One picture per request that has a query: which keys each query sees, and which rule hides the others.

    If there are too many requests, the wrong requests are drawn first.
    """
    differing = {difference.request for difference in verdict.differences} if verdict else set[int]()
    asking = [r for r, request in enumerate(case.requests) if request.query_len]
    chosen = sorted(asking, key=lambda r: r not in differing)[:MAX_REQUESTS]
    small = [r for r in chosen if case.requests[r].query_len * case.num_keys(case.requests[r]) <= MAX_PAIRS]
    found: dict[int, list[Request]] = {r: [] for r in small}
    for part in oracle.requests(step) if small else ():
        if part.index in found:
            found[part.index].append(part)
    for r in sorted(chosen):
        request = case.requests[r]
        title = f"request {r}: mask, {request.query_len} x {case.num_keys(request)} (queries x keys)"
        if r not in found:
            yield Picture(title, [], [], note=f"not drawn: more than {MAX_PAIRS} pairs of a query and a key")
            continue
        past = len(request.blocks) * case.cache.block_size - case.num_keys(request) if case.cache else 0
        kinds = torch.cat([kinds_of(part, step, request.causal) for part in found[r]])
        rows, columns = cuts(kinds.shape[0], room.rows), _key_cuts(kinds.shape[1], past, room.columns)
        kinds = torch.nn.functional.pad(kinds, (0, past), value=KINDS.index("past"))
        first = request.context_len
        cells = [[_mask_cell(kinds[row, column], row, column, first) for column in columns] for row in rows]
        every = max(1, len(columns) // 8)
        left_out = len(asking) - len(chosen)
        more = f"{left_out} more requests are not drawn" if left_out and r == max(chosen) else ""
        yield Picture(
            title,
            cells,
            [f"p={first + row.start}" for row in rows],
            {i: str(columns[i].start) for i in range(0, len(columns), every)},
            note="; ".join(filter(None, (sampled(rows, columns), more))),
        )


_VISIBLE = ("visible", "sink-token", "range")
KINDS = (*_VISIBLE, "causal", "window", "chunk", "tree", "other", "past")


def kinds_of(part: Request, step: Step, causal: bool) -> torch.Tensor:
    """[q, k]: indices into KINDS, from the rules of the reference. If several rules hide a key, the first one counts.

    Of heads that see unlike keys, the first.
    """
    layer, batch = step.layer, step.batch
    visible = part.visible if part.visible.dim() == 2 else part.visible[0]
    p, j = part.query_positions[:, None], masks.position_of(torch.arange(visible.shape[1])[None], layer.key_unit)
    in_window = masks.in_window(p, j, layer.window)
    unexplained = "tree" if batch.qq_bias is not None else "other"
    held = {
        "causal": masks.is_causal(p, j) | torch.tensor(not causal),
        "window": in_window | masks.is_sink_token(j, layer.sink_tokens),
        "chunk": masks.in_chunk(p, j, layer.chunked_local) if layer.chunked_local else torch.ones_like(in_window),
        unexplained: visible,
    }
    kinds = torch.full(visible.shape, KINDS.index("visible"))
    kinds[visible & ~in_window] = KINDS.index("sink-token")
    for rule in (unexplained, "chunk", "window", "causal"):
        kinds[~held[rule].expand_as(kinds) & ~visible] = KINDS.index(rule)
    if batch.bidirectional_ranges is not None:
        kinds[visible & ~(held["causal"] & held["window"] & held["chunk"])] = KINDS.index("range")
        left = layer.window[0] if layer.ranges_clamped else -1
        together = masks.in_range(p, j, batch.bidirectional_ranges[part.index], left)
        kinds[together & ~visible] = KINDS.index("tree")
    return kinds


def _key_cuts(keys: int, past: int, most: int) -> list[slice]:
    """Slices of a mask's columns. None has both keys and slots past them: it would look like a key that some queries see."""
    after = cuts(past, max(1, most - keys))
    return [*cuts(keys, most - len(after)), *(slice(keys + cut.start, keys + cut.stop) for cut in after)]


def _mask_cell(kinds: torch.Tensor, row: slice, column: slice, first: int) -> Cell:
    """A cell of several pairs has their commonest kind. It is "some" if some of the pairs are visible and others are not."""
    counts = Counter(KINDS[kind] for kind in kinds.flatten().tolist())
    (commonest, _), *others = counts.most_common()
    if not others:
        return cell(commonest)
    kind = "some" if 0 < sum(counts[visible] for visible in _VISIBLE) < counts.total() else commonest
    place = f"{span('p', row, first)}, {span('key', column)}"
    return cell(kind)._replace(title=f"{place}: " + ", ".join(f"{count} {kind}" for kind, count in counts.most_common()))


def block_table(case: Case, step: Step, room: Room) -> Picture:
    """The block table as the target gets it, with its unused entries."""
    table = step.batch.block_table
    assert table is not None
    users = Counter(block for request in case.requests for block in request.blocks)
    cells = []
    for r, request in list(enumerate(case.requests))[: room.rows]:
        used = [
            Cell(f"{block}*", "shared", f"{users[block]} requests") if users[block] > 1 else Cell(str(block), _owner(r))
            for block in request.blocks
        ]
        unused = [Cell(f"({'max' if entry == 2**31 - 1 else entry})", "garbage") for entry in table[r, len(used) :].tolist()]
        cells.append([*used, *unused][: room.columns // 3])
    cut = "" if table.numel() == sum(map(len, cells)) else f"; of {table.shape[0]} x {table.shape[1]} entries the first"
    names = [f"request {r}" for r in range(len(cells))]
    return Picture("block table", cells, names, note=f"a row per request{cut}", num_requests=len(case.requests))


def _allocation(case: Case, cache: Cache, step: Step, room: Room) -> Iterator[Picture]:
    owners: dict[int, list[int]] = {}
    for r, request in enumerate(case.requests):
        for block in request.blocks:
            owners.setdefault(block, []).append(r)
    yield slots(case, cache, step, owners, room)
    yield memory(case, cache, step, owners, room)


def slots(case: Case, cache: Cache, step: Step, owners: Mapping[int, Sequence[int]], room: Room) -> Picture:
    """For every block, the requests that own it, and the contents of its slots when attention begins."""
    if case.finite_slots:  # their numbers may be those of a key: poison tells where no key is
        step = tensors.build(msgspec.structs.replace(case, finite_slots=False))
    assert step.raw is not None
    assert step.view is not None
    # [BS, D + Dv]: all heads of a slot are written together
    k, v = (inside[:, 0] for inside in step.view.first_block_elements())
    elements = torch.cat([k[:, : case.head_size], v[:, : case.v_head_size]], dim=1)
    chosen = sorted([*sorted(owners), *(block for block in range(cache.num_blocks) if block not in owners)][: room.rows])
    every = torch.tensor(chosen).view(-1, 1, 1) * step.view.block_stride + elements
    held = bits(step.raw)[every]
    empty = poison((1,), step.raw.dtype, step.raw.device)
    unused = (held == bits(empty)).all(-1)
    written = set(written_slots(case))
    by_neighbour = set(step.writes[-1].slot_mapping.tolist()) if cache.neighbour and step.writes else set[int]()
    keys = set(slots_of_keys(case, cache))
    columns = cuts(cache.block_size, room.columns)
    cells = []
    for block, is_unused in zip(chosen, unused.tolist(), strict=True):
        kinds = []
        for offset in range(cache.block_size):
            slot = block * cache.block_size + offset
            if slot in written:
                kinds.append("written")
            elif slot in by_neighbour and block not in owners:
                kinds.append("neighbour")
            elif is_unused[offset]:
                kinds.append("unseen" if slot in keys else "leftover" if case.finite_slots else "unused")
            else:
                kinds.append("before")
        cells.append([cell(Counter(kinds[column]).most_common(1)[0][0]) for column in columns])
    cut = f"; {cache.num_blocks - len(chosen)} more blocks are not drawn" if len(chosen) < cache.num_blocks else ""
    return Picture(
        "blocks: who owns them, and what their slots hold when attention begins",
        cells,
        [f"block {block}: {_owned_by(owners.get(block, ()))}" for block in chosen],
        {i: str(columns[i].start) for i in range(0, len(columns), max(1, len(columns) // 8))},
        note=f"num_blocks {cache.num_blocks}, block_size {cache.block_size}, {cache.layout}{cut}",
    )


def memory(case: Case, cache: Cache, step: Step, owners: Mapping[int, Sequence[int]], room: Room) -> Picture:
    """The allocation from its first element to its last. A cell is a stretch of one block's K or V, or one of evenly spaced
    samples."""
    assert step.raw is not None
    assert step.view is not None
    views = allocations.layer_views(case, cache)
    codes = torch.full((step.raw.numel(),), _GUARD)
    guard = views[0].offset
    codes[guard:-guard] = _PADDING
    for index, view in enumerate(views):
        block = torch.arange(view.num_blocks)[:, None]
        for kv in (K,) if view.layout.has_latent_value else (K, V):
            inside = view.first_block_elements()[kv].flatten() + block * view.block_stride
            codes[inside] = ((index * view.num_blocks + block) * 2 + kv).expand_as(inside)
    runs, note = _stretches(codes), "a cell per stretch of K or V, not to scale"
    if are_together := len(runs) > MAX_STRETCHES:
        runs = _stretches(codes.div(2, rounding_mode="floor"))
        note = "a cell per stretch, not to scale; K and V alternate in it"
    if len(runs) > MAX_STRETCHES:
        runs, note = cuts(len(codes), MAX_STRETCHES), f"sampled: a cell for each {len(codes) / MAX_STRETCHES:.0f} elements"
    width = max(1, min(room.columns // 4, 16))
    cells = [_memory_cell(int(codes[run.start]), run, cache, owners, are_together) for run in runs]
    lines = [cells[i : i + width] for i in range(0, len(cells), width)]
    shape = "a plane of K and one of V" if cache.planes else "K and V in each block"
    if cache.layout.has_latent_value:
        shape = "rows of K, whose first elements are V"
    if cache.holds_content_rows:
        shape = f"order {cache.order}"
    layers = f", layer {cache.layer} of {cache.num_layers} under test" if cache.num_layers > 1 else ""
    return Picture(
        "allocation, in the order of memory",
        lines,
        [str(runs[i].start) for i in range(0, len(runs), width)],
        note=f"{len(codes)} elements, {shape}{layers}; {note}",
        num_requests=len(case.requests),
    )


_PADDING, _GUARD = -1, -3
"""Codes of elements that belong to no block. Halved and rounded down, they still differ from each other."""


def _stretches(codes: torch.Tensor) -> list[slice]:
    """Stretches of equal codes."""
    starts = [0, *((codes[1:] != codes[:-1]).nonzero().flatten() + 1).tolist(), len(codes)]
    return [slice(start, end) for start, end in itertools.pairwise(starts)]


def _memory_cell(code: int, run: slice, cache: Cache, owners: Mapping[int, Sequence[int]], are_together: bool) -> Cell:
    extent = f"elements {run.start} to {run.stop - 1}"
    if code < 0:
        return cell("padding" if code == _PADDING else "guard", extent)
    place, kv = divmod(code, 2)
    layer, block = divmod(place, cache.num_blocks)
    part = "" if are_together else "KV"[kv]
    where = f"{part or 'K and V'} of block {block}"
    if layer != cache.layer:
        return Cell(f"L{layer}", "layer", f"layer {layer}, {where}, {extent}")
    users = owners.get(block, ())
    kind = "free" if not users else "shared" if len(users) > 1 else _owner(users[0])
    mark = "*" if kind == "shared" else ""
    return Cell(f"{block}{part}{mark}", kind, f"{where}, {_owned_by(users)}, {extent}")


def _owned_by(users: Sequence[int]) -> str:
    if len(users) < 2:
        return f"request {users[0]}" if users else "no request"
    return f"requests {', '.join(map(str, users[:4]))}{' …' if len(users) > 4 else ''}"


def _owner(r: int) -> str:
    return f"owner-{r % NUM_OWNER_COLOURS}"
