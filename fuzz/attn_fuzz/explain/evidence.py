"""More outputs of a failing target: for the case with other numbers, and for richer cases that fail as well.

The smallest failing case often has one key, one head and zeros in q, and a dozen mistakes give the same output. So the case
runs again with random numbers, and grows as long as it fails: it gets more keys, heads, queries and requests. Memory that holds
NaN is filled with numbers, so that an output shows which of them were read.
"""

from collections.abc import Callable, Iterator

import msgspec
import torch
from attn_fuzz.cases.case import Case, Request
from attn_fuzz.cases.contradictions import contradiction
from attn_fuzz.cases.poison import LEFTOVER, POISON, storage_of
from attn_fuzz.cases.tensors import Step
from attn_fuzz.explain.search import SeenOutput
from attn_fuzz.run.case.attempt import Attempt, judged_on
from attn_fuzz.run.case.checks import CHECKS
from attn_fuzz.targets.target import Target

KEYS, LONGEST = 19, 192
"""The number of keys by which a request grows, and the largest number of keys from which it still does."""
WIDER = 4
SCALE = 0.8125
"""A factor of the scale, which may be 1 or a number of heads or dims ** -0.5."""
MORE_BLOCKS = 11
"""The number of blocks by which a cache grows. It is odd, so that block ids that lose their upper bits are out of order."""


def filled(step: Step) -> None:
    """Replace the NaN of a step's memory by numbers, and entries of the block table that lead nowhere by blocks of the cache.

    Rows with scales of their own keep their poison: random bytes are no scales.
    """
    generator = torch.Generator().manual_seed(0)
    tensors = {"q": step.q, "k": step.k, "v": step.v, **step.scale_buffers}
    if step.view is not None and not step.view.layout.has_inline_scales:
        tensors["raw"] = step.raw
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        whole = storage_of(tensor)
        poisoned = whole == POISON[torch.int8] - 256 if tensor.dtype is torch.int8 else whole.float().isnan()
        numbers = torch.randn(whole.shape, generator=generator).to(whole.device)
        if tensor.dtype is torch.int8:
            numbers = numbers * LEFTOVER
        elif name in step.scale_buffers:
            numbers = 1 + numbers.abs()
        whole.copy_(torch.where(poisoned, numbers, whole.float()))
    table = step.batch.block_table
    if table is not None and step.view is not None and step.view.num_blocks:
        whole = storage_of(table)
        stray = (whole < 0) | (whole >= step.view.num_blocks)
        whole.copy_(torch.where(stray, torch.arange(len(whole), device=whole.device) % step.view.num_blocks, whole))


def seen(case: Case, target: Target, device: str, fill: Callable[[Step], None] | None = filled) -> SeenOutput | None:
    """The outputs of one run of a case; None if the target raises, or writes wrong bytes elsewhere."""
    if contradiction(case) or target.beyond(case, device) or target.not_drawn(case, device):
        return None
    if judged_on(case, device) != "cpu":
        return None  # a mistake may index past a tensor, which breaks a process on a GPU
    attempt = Attempt(case, target, device, prepare=fill)
    if attempt.error is not None or any(check(attempt) for _, check in CHECKS):
        return None
    step = attempt.step
    out = step.out if step.out.dim() == 3 else step.out.unflatten(1, (case.num_heads, case.v_head_size))
    return SeenOutput(step, out, step.lse, target.rounding(device), case.values.kind == "random")


def with_random_numbers(case: Case) -> Case:
    """The case with random numbers, which seldom fit two mistakes. A captured case keeps its own."""
    if case.values.kind == "captured":
        return case
    sinks = "near" if case.sinks in ("zero", "above", "below") else case.sinks
    return msgspec.structs.replace(case, values=msgspec.structs.replace(case.values, kind="random"), sinks=sinks)


def grown(case: Case) -> Iterator[Callable[[Case], Case]]:
    """Ways to make a case richer, in the order of their trials. Each is applied to the richest case that still fails."""
    if case.values.kind == "captured":
        return
    yield lambda case: msgspec.structs.replace(case, lse=True)
    yield _with_more_blocks
    yield _with_more_queries
    yield _with_wider_rules
    if not case.has_latent_cache:
        yield lambda case: msgspec.structs.replace(
            case, num_kv_heads=max(case.num_kv_heads, 3), group_size=max(case.group_size, 2)
        )
    yield lambda case: msgspec.structs.replace(case, scale=SCALE * case.scale)
    yield _with_more_keys
    yield _with_more_queries
    yield _with_more_requests


def _with_more_blocks(case: Case) -> Case:
    """The case with a larger cache: a wrong block table or stride leads to a block of no request, and not out of the cache."""
    if case.cache is None:
        return case
    return msgspec.structs.replace(
        case, cache=msgspec.structs.replace(case.cache, num_blocks=case.cache.num_blocks + MORE_BLOCKS)
    )


def _with_wider_rules(case: Case) -> Case:
    """The case with wider windows: one that holds only the query's own key hides the same keys as causality."""
    left, right = (edge + WIDER if edge >= 0 else edge for edge in case.window)
    more = {"sink_tokens": case.sink_tokens and case.sink_tokens + 1, "window": (left, right)}
    if case.chunked_local is not None:
        more["chunked_local"] = case.chunked_local + WIDER
    return _with_more_keys(msgspec.structs.replace(case, **more), WIDER + 3)


def _with_more_keys(case: Case, keys: int = KEYS) -> Case:
    return _with_requests(case, [_longer(request, case, 0, keys) for request in case.requests])


def _with_more_queries(case: Case) -> Case:
    return _with_requests(case, [_longer(request, case, 2, 2) for request in case.requests])


def _with_more_requests(case: Case) -> Case:
    more = [msgspec.structs.replace(request, blocks=()) for request in case.requests[:2]]
    return _with_requests(case, [*case.requests, *more])


def _longer(request: Request, case: Case, queries: int, keys: int) -> Request:
    if request.query_len == 0 or request.seq_len > LONGEST:
        return request
    both = max(queries, keys) if case.cache is None else None
    return msgspec.structs.replace(
        request, query_len=request.query_len + (both or queries), seq_len=request.seq_len + (both or keys)
    )


def _with_requests(case: Case, requests: list[Request]) -> Case:
    """The case with other requests. The cache grows by the blocks that they lack."""
    cache = case.cache
    if cache is None:
        return msgspec.structs.replace(case, requests=tuple(requests))
    num_blocks, placed = cache.num_blocks, []
    for request in requests:
        missing = -(-case.num_keys(request) // cache.block_size) - len(request.blocks)
        # not in order, so that a kernel that ignores the table is wrong
        fresh = [num_blocks + (i ^ 1 if i ^ 1 < missing else i) for i in range(missing)]
        num_blocks += max(missing, 0)
        placed.append(msgspec.structs.replace(request, blocks=(*request.blocks, *fresh)))
    cache = msgspec.structs.replace(cache, num_blocks=num_blocks)
    return msgspec.structs.replace(case, requests=tuple(placed), cache=cache)
