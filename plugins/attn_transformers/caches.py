"""A shadow of transformers' caches: it follows the keys that they get, and checks those that they return.

A layer updates its cache with new keys, and then attends to all keys. A cache of `generate` has a row for each sequence: a
request of the shadow is a row of a cache. Key j of a layer has the position for which transformers makes its mask, by
`get_mask_sizes`. Continuous batching names its requests. Its slots are those of the index by which its cache reads and writes.
"""

import contextlib
import functools
import itertools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
from attn_fuzz.shadow import Contents, Shadow, contents_of

QUANTIZED = 0.25
"""The largest error, relative to a token's largest element. A 4-bit cache rounds by less; two tokens differ by more."""


class Row(NamedTuple):
    """A sequence of a cache of `generate`."""

    cache: int
    row: int

    def __str__(self) -> str:
        return f"row {self.row} of cache {self.cache}"


@contextlib.contextmanager
def watched(shadow: Shadow) -> Iterator[Callable[[torch.Tensor, torch.Tensor, int], None]]:
    """Report to a shadow inside the `with`, in all threads, what caches do.

    Yields:
        a function that checks the keys and values that a layer's attention gets from a cache without an update, as in
            cross-attention after its first step.
    """
    from transformers.cache_utils import Cache

    rows = _Rows(shadow)
    hooks: list[tuple[type, str, Callable[..., Any]]] = [
        (kind, "update", rows.update) for kind in _with_subclasses(Cache) if "update" in vars(kind)
    ]
    hooks += [
        (Cache, name, getattr(rows, name))
        for name in ("reorder_cache", "batch_repeat_interleave", "batch_select_indices", "crop", "reset")
    ]
    hooks += _hooks_of_the_engine(shadow)
    lock = threading.RLock()
    with contextlib.ExitStack() as patches:
        for owner, name, hook in hooks:
            patches.enter_context(mock.patch.object(owner, name, _around(getattr(owner, name), hook, shadow, lock)))
        yield rows.hold


def _hooks_of_the_engine(shadow: Shadow) -> list[tuple[type, str, Callable[..., Any]]]:
    from transformers.generation.continuous_batching.cache import PagedAttentionCache
    from transformers.generation.continuous_batching.input_outputs import ContinuousBatchingIOs
    from transformers.generation.continuous_batching.offloading_manager import OffloadingManager

    engine = _Engine(shadow)
    methods = {
        ContinuousBatchingIOs: ("prepare_batch_tensors",),
        OffloadingManager: ("restore_scheduled_requests",),
        PagedAttentionCache: (
            *("update", "search_prefix_match", "mark_complete_blocks", "free_blocks", "free_all_requests"),
            *("prepare_fork_request", "perform_cache_copy"),
        ),
    }
    return [(owner, name, getattr(engine, name)) for owner, names in methods.items() for name in names]


def _with_subclasses(kind: type) -> Iterator[type]:
    yield kind
    for below in kind.__subclasses__():
        yield from _with_subclasses(below)


def _around(method: Callable[..., Any], hook: Callable[..., Any], shadow: Shadow, lock: threading.RLock) -> Callable[..., Any]:
    """A method with a hook: a generator that runs up to its `yield` before the method, and then gets its result.

    An error of a hook is counted as a reason, and ends no program.
    """

    def advance(running: Iterator[None], *result: Any) -> bool:
        try:
            with lock:
                running.send(*result) if result else next(running)  # pyright: ignore[reportAttributeAccessIssue]  # a generator
            return True
        except StopIteration:
            return True
        except Exception as error:
            shadow.pass_over(f"{method.__qualname__}: {type(error).__name__}: {error}")
            return False

    @functools.wraps(method)
    def method_with_hook(self: Any, *args: Any, **kwargs: Any) -> Any:
        running = hook(self, *args, **kwargs)
        is_told = advance(running)
        result = method(self, *args, **kwargs)
        if is_told:
            advance(running, result)
        return result

    return method_with_hook


class _Rows:
    """Hooks of transformers' Cache, for caches that are new, or were reset, at their first update."""

    def __init__(self, shadow: Shadow) -> None:
        self.shadow = shadow
        self.numbers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self.count = itertools.count(1)
        self.lengths: dict[int, dict[int, int]] = {}
        self.sizes: dict[int, int] = {}
        self.inside: set[int] = set()
        self.gone: deque[int] = deque()
        self.given: dict[int, dict[int, weakref.ref[torch.Tensor]]] = {}

    def update(
        self, cache: Any, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> Iterator[None]:
        number = self._number(cache)
        if number is None or number in self.inside:
            yield
            return
        begin = self.lengths[number].get(layer_idx, 0)
        end = begin + key_states.shape[2]
        mask_length, offset = cache.get_mask_sizes(key_states.shape[2], layer_idx)
        self.inside.add(number)
        try:
            keys, values = yield
        finally:
            self.inside.discard(number)
        if keys.shape[0] != key_states.shape[0] or keys.dim() != 4:
            return  # a layer that keeps no keys
        self.lengths[number][layer_idx], self.sizes[number] = end, len(keys)
        self.given.setdefault(number, {})[layer_idx] = weakref.ref(keys)
        layer = cache.layers[layer_idx]
        self.shadow.narrow(layer_idx, window=_window_of(layer))
        new, given = _contents(key_states.to(keys.dtype), value_states.to(values.dtype)), _contents(keys, values)
        num_keys, count = keys.shape[2], end - begin
        seen = min(num_keys, end - int(offset)) if _is_static(layer) else num_keys
        positions = range(int(offset), int(offset) + seen)
        for row in range(len(keys)):
            written = new[row * count : (row + 1) * count]
            self.shadow.write(layer_idx, Row(number, row), range(begin, end), keys=written)
        masked = None if num_keys == mask_length else int(mask_length)
        for row in range(len(keys)):
            handed = given[row * num_keys : row * num_keys + seen]
            self.shadow.read(layer_idx, Row(number, row), positions, keys=handed, masked=masked, close=_rounding(layer))

    def hold(self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int) -> None:
        """See `watched`. An error is counted as a reason, and ends no program."""
        try:
            self._hold(keys, values, layer_idx)
        except Exception as error:
            self.shadow.pass_over(f"attention of a layer: {type(error).__name__}: {error}")

    def _hold(self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int) -> None:
        for cache, number in list(self.numbers.items()):
            layer = cache.layers[layer_idx] if layer_idx < len(cache.layers) else None
            given = self.given.get(number, {}).get(layer_idx)
            if given is None or given() is keys or getattr(layer, "keys", None) is not keys:
                continue
            self.shadow.narrow(layer_idx)
            handed, num_keys = _contents(keys, values), keys.shape[2]
            seen = min(num_keys, self.lengths[number].get(layer_idx, 0)) if _is_static(layer) else num_keys
            for row in range(len(keys)):
                own = handed[row * num_keys : row * num_keys + seen]
                self.shadow.read(layer_idx, Row(number, row), range(seen), keys=own, close=_rounding(layer))

    def reorder_cache(self, cache: Any, beam_idx: torch.Tensor) -> Iterator[None]:
        yield
        self._become(cache, beam_idx.tolist())

    def batch_repeat_interleave(self, cache: Any, repeats: int) -> Iterator[None]:
        yield
        rows = self.sizes.get(self.numbers.get(cache, 0), 0)
        self._become(cache, [row for row in range(rows) for _ in range(repeats)])

    def batch_select_indices(self, cache: Any, indices: torch.Tensor) -> Iterator[None]:
        yield
        rows = range(self.sizes.get(self.numbers.get(cache, 0), 0))
        self._become(cache, torch.tensor(rows, device="cpu")[indices.cpu()].tolist())

    def crop(self, cache: Any, tokens_to_remove: int) -> Iterator[None]:
        """A positive number is the length to keep, before transformers 5.24."""
        yield
        number = self.numbers.get(cache, 0)
        for layer, length in self.lengths.get(number, {}).items():
            left = max(0, length + tokens_to_remove) if tokens_to_remove <= 0 else min(length, tokens_to_remove)
            self.lengths[number][layer] = left
            for row in range(self.sizes[number]):
                self.shadow.roll_back(Row(number, row), left, layer=layer)

    def reset(self, cache: Any) -> Iterator[None]:
        yield
        number = self.numbers.get(cache, 0)
        self._forget(number)
        if number:
            self.lengths[number] = {}

    def _become(self, cache: Any, sources: list[int]) -> None:
        number = self.numbers.get(cache, 0)
        rows = self.sizes.get(number, 0)
        if not rows:
            return
        self.shadow.reorder({Row(number, row): Row(number, of) for row, of in enumerate(sources)})
        for row in range(len(sources), rows):
            self.shadow.free(Row(number, row))
        self.sizes[number] = len(sources)

    def _number(self, cache: Any) -> int | None:
        """The number of a cache; None if it held keys before the recording."""
        while self.gone:
            self._forget(self.gone.popleft())
        number = self.numbers.get(cache)
        if number is None:
            number = 0 if any(_holds_keys(layer) for layer in cache.layers) else next(self.count)
            self.numbers[cache] = number
            if number:
                self.lengths[number] = {}
                weakref.finalize(cache, self.gone.append, number)
            else:
                self.shadow.pass_over("a cache that held keys before the recording")
        return number or None

    def _forget(self, number: int) -> None:
        for row in range(self.sizes.pop(number, 0)):
            self.shadow.free(Row(number, row))
        self.lengths.pop(number, None)
        self.given.pop(number, None)


class _Engine:
    """Hooks of continuous batching. Its cache does not get the requests: they are those of the step that was prepared last."""

    def __init__(self, shadow: Shadow) -> None:
        self.shadow = shadow
        self.step: list[tuple[str, int, int]] = []
        self.is_blind = False

    def prepare_batch_tensors(self, inputs: Any, requests_in_batch: list[Any], *args: Any, **kwargs: Any) -> Iterator[None]:
        self.step = [(one.state.request_id, one.state.position_offset, one.query_length) for one in requests_in_batch]
        yield

    def update(
        self,
        cache: Any,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        kwargs: dict[str, Any],
    ) -> Iterator[None]:
        keys, values = yield
        if self.is_blind or kwargs.get("block_table") is not None:
            self.is_blind = True
            self.shadow.pass_over("keys that FlashAttention reads and writes by a block table")
            return
        allocator = cache.layer_to_allocator[layer_idx]
        window = getattr(allocator, "sliding_window", None)
        self.shadow.narrow(layer_idx, window=window)
        written = _slots(allocator, kwargs["write_index"][allocator.index])
        read = _slots(allocator, kwargs["read_index"][allocator.index])
        new, given = _contents(key_states, value_states), _contents(keys, values)
        starts, row = kwargs["cu_seq_lens_k"].tolist(), 0
        parts = []
        for (request, past, count), (begin, end) in zip(self.step, itertools.pairwise(starts), strict=False):
            parts.append((request, range(past, past + count), slice(row, row + count), slice(begin, end)))
            row += count
        for request, positions, rows, _ in parts:
            # a ring is read before it is overwritten
            slots = written[rows] if window is None else None
            self.shadow.write(layer_idx, request, positions, slots=slots, keys=new[rows])
        for request, positions, rows, handed in parts:
            num_keys = handed.stop - handed.start
            slots = (
                read[handed] if len(read) else written[rows] if window is None else torch.full((num_keys,), -1, device="cpu")
            )
            first = 0 if window is None else max(0, positions.stop - num_keys)
            self.shadow.read(layer_idx, request, range(first, first + num_keys), slots=slots, keys=given[handed])
        for request, positions, rows, _ in parts if window is not None else ():
            self.shadow.place(layer_idx, request, positions, written[rows])

    def search_prefix_match(self, cache: Any, request_id: str, prompt_ids: list[int]) -> Iterator[None]:
        length = yield
        self.shadow.tell(request_id, prompt_ids)
        if length:
            for layer, allocator in cache.layer_to_allocator.items():
                slots = _slots_of_blocks(allocator, allocator.block_table[request_id])[:length]
                self.shadow.adopt(layer, request_id, range(length), slots)

    def mark_complete_blocks(self, cache: Any, state: Any, complete_blocks: dict[str, int]) -> Iterator[None]:
        """Requests drop a block for an equal one."""
        tables = {name: list(one.block_table.get(state.request_id, ())) for name, one in cache.cache_allocators.items()}
        yield
        if not complete_blocks:
            return
        self.shadow.tell(state.request_id, state.initial_tokens + state.generated_tokens)
        for layer, allocator in cache.layer_to_allocator.items():
            old, new = tables[allocator.layer_type], allocator.block_table.get(state.request_id, ())
            size = allocator.tokens_per_page
            for place, (before, after) in enumerate(zip(old, new, strict=False)):
                if before != after:
                    positions = range(place * size, (place + 1) * size)
                    self.shadow.adopt(layer, state.request_id, positions, _slots_of_blocks(allocator, [after]))

    def free_blocks(self, cache: Any, request_id: str, no_cache: bool = False) -> Iterator[None]:
        # with `no_cache` the request may come back from the CPU, with its keys
        is_held = not no_cache and any(request_id in one.block_table for one in cache.cache_allocators.values())
        yield
        if is_held:
            self.shadow.free(request_id)

    def free_all_requests(self, cache: Any, clear_ledgers: bool = False) -> Iterator[None]:
        held = {request for one in cache.cache_allocators.values() for request in one.block_table}
        yield
        for request in held:
            self.shadow.free(request)

    def restore_scheduled_requests(self, manager: Any, requests_in_batch: list[Any]) -> Iterator[None]:
        """Requests come back from the CPU into other blocks."""
        restored = [one.state for one in requests_in_batch if one.state.is_cpu_offloaded]
        yield
        for state, (layer, allocator) in itertools.product(restored, manager.cache.layer_to_allocator.items()):
            window, length = getattr(allocator, "sliding_window", None), state.position_offset
            positions = torch.arange(0 if window is None else max(0, length - window), length, device="cpu")
            own = positions if window is None else positions % window
            slots = _slots_of_blocks(allocator, allocator.block_table[state.request_id])[own]
            self.shadow.place(layer, state.request_id, positions, slots)

    def prepare_fork_request(self, cache: Any, src_state: Any, dst_req_ids: list[str], *args: Any) -> Iterator[None]:
        forked = yield
        for request in forked:
            self.shadow.fork(request, of=src_state.request_id)

    def perform_cache_copy(self, cache: Any, copy_src_and_dst: dict[str, tuple[list[int], list[int]]]) -> Iterator[None]:
        yield
        for layer, allocator in cache.layer_to_allocator.items():
            source, target = (_slots_of_blocks(allocator, blocks) for blocks in copy_src_and_dst[allocator.layer_type])
            self.shadow.copy(layer, source, target)


def _contents(keys: torch.Tensor, values: torch.Tensor) -> Contents:
    """The contents of keys and values [B, HK, K, D], row after row."""
    return contents_of(*(x.detach().transpose(1, 2).flatten(0, 1) for x in (keys, values)))


def _slots(allocator: Any, index: torch.Tensor) -> torch.Tensor:
    """The slots of physical indices, [n]: a layer's tokens, numbered block after block; -1 in sectors that no request has."""
    block, offset = index // allocator.block_physical_stride, index % allocator.block_physical_stride
    slots = block * allocator.tokens_per_page + offset
    return torch.where(index < 2 * allocator.write_trash_index, -1, slots).cpu()


def _slots_of_blocks(allocator: Any, blocks: list[int]) -> torch.Tensor:
    size = allocator.tokens_per_page
    return (torch.tensor(blocks, dtype=torch.int64, device="cpu")[:, None] * size + torch.arange(size, device="cpu")).flatten()


def _rounding(layer: Any) -> float:
    """The largest difference of a layer from what it was given, as a share of its largest element."""
    from transformers import cache_utils

    base = getattr(cache_utils, "BaseQuantizedLayer", cache_utils.QuantizedLayer)  # since 5.24
    return QUANTIZED if isinstance(layer, base) or getattr(layer, "kv_cache_dtype", None) is not None else 0.0


def _is_static(layer: Any) -> bool:
    """True if a layer also returns slots that are not written yet, which the mask hides."""
    from transformers.cache_utils import StaticLayer

    return isinstance(layer, StaticLayer)


def _window_of(layer: Any) -> int | None:
    if not getattr(layer, "is_sliding", False):
        return None
    return getattr(layer, "sliding_window", None) or layer.max_cache_len


def _holds_keys(layer: Any) -> bool:
    has_length = getattr(layer, "is_initialized", False) and hasattr(layer, "keys") and hasattr(layer, "get_seq_length")
    return bool(has_length) and int(layer.get_seq_length()) > 0
