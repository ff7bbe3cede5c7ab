"""Caches of transformers: those of `generate`, whose tensors are read as slots, and the allocators of continuous batching.

A key of `generate`'s caches is a serial number. It is written into the tensors, and `slots` reads what `update` returned.
The lines that are cited are those of transformers 5.24.0.
"""

import copy
import functools
import itertools
import unittest.mock
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from attn_fuzz import extras
from attn_fuzz.serving.manager import Group, Slots

try:
    from transformers import DynamicCache, LlamaConfig, StaticCache
    from transformers.generation.configuration_utils import ContinuousBatchingConfig
    from transformers.generation.continuous_batching import cache as paging
    from transformers.generation.continuous_batching.cache_allocators import SlidingAttentionCacheAllocator
    from transformers.generation.continuous_batching.distributed import DistributedHelper
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(extras.missing("transformers"), name="transformers") from error

WINDOW = 19
MAX_TOKENS = 160
FULL, SLIDING = "full_attention", "sliding_attention"


def _config(layer_types: Sequence[str]) -> LlamaConfig:
    sizes = {"hidden_size": 8, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8}
    layers: dict[str, Any] = {"layer_types": list(layer_types), "sliding_window": WINDOW}
    return LlamaConfig(**sizes, **layers, num_hidden_layers=len(layer_types), max_position_embeddings=MAX_TOKENS)


def _groups(layer_types: Sequence[str], *, reads_first: bool = False) -> list[Group]:
    """Each layer is a group, as each has keys of its own."""
    return [
        Group(f"layer {i} ({kind})", WINDOW, reads_first=reads_first) if kind == SLIDING else Group(f"layer {i}")
        for i, kind in enumerate(layer_types)
    ]


class GenerateCache:
    """A Cache for each request. A beam is a row that was repeated and selected, as generation does it.

    Args:
        make: makes a Cache of a config.
        layer_types: the types of the layers.
        croppable: False: without drafts.
    """

    max_tokens = MAX_TOKENS

    def __init__(self, make: Callable[[LlamaConfig], Any], layer_types: Sequence[str], *, croppable: bool = True) -> None:
        self.groups = _groups(layer_types)
        self._make, self._config = make, _config(layer_types)
        self._serials = itertools.count(1)
        self.caches: dict[int, Any] = {}
        self._handed: dict[int, list[tuple[Slots, Slots]]] = {}
        self.roll_back = self._crop if croppable else None

    def allocate(self, request: int, tokens: Sequence[int], salt: int) -> int:
        self.caches[request] = self._make(self._config)
        return 0

    def append(self, request: int, tokens: Sequence[int], drafts: int) -> bool:
        """Write serial numbers as keys and values, and keep what attention gets, by position."""
        cache, handed = self.caches[request], []
        for index, group in enumerate(self.groups):
            start = int(cache.get_seq_length(index))
            length, offset = cache.get_mask_sizes(len(tokens), index)
            new = [next(self._serials) for _ in tokens]
            states = torch.tensor(new, dtype=torch.float64)[None, None, :, None].expand(1, 1, -1, 2)
            keys, values = cache.update(states, -states, index)
            read, of_values = ([int(number) for number in tensor[0, 0, :, 0]] for tensor in (keys, -values))
            if read != of_values or len(read) != length:
                got = f"keys {read}, values {of_values}, and a mask of {length} keys"
                raise ValueError(
                    f"{group.name}: expected keys and values of the same tokens, and a mask of their number: {got}"
                )
            end = start + len(tokens)
            at = {position: slot for position, slot in zip(range(offset, offset + length), read, strict=True) if slot > 0}
            handed.append(([at.get(position) for position in range(end)], new))
        self._handed[request] = handed
        return True

    def slots(self, request: int, group: int) -> Slots:
        return self._handed[request][group][0]

    def write_slots(self, request: int, group: int) -> Slots:
        return self._handed[request][group][1]

    def fork(self, request: int, child: int) -> bool:
        """Two rows of one cache, of which each request keeps one, in the other's place."""
        both = copy.deepcopy(self.caches[request])
        if hasattr(both.layers[0], "batch_repeat_interleave"):
            both.batch_repeat_interleave(2)
            both.reorder_cache(torch.tensor([1, 0]))
            both.batch_select_indices(torch.tensor([0]))
        else:
            both.reorder_cache(torch.tensor([0]))
        self.caches[child] = both
        return True

    def _crop(self, request: int, count: int) -> None:
        self.caches[request].crop(-count)

    def free(self, request: int) -> None:
        self.caches.pop(request).reset()


def _recording(config: LlamaConfig) -> DynamicCache:
    """A cache as assisted generation has it: a sliding layer keeps the tokens that a roll-back needs."""
    cache = DynamicCache(config=config)
    for layer in cache.layers:
        if (activate := getattr(layer, "activate_past_recording", None)) is not None:
            activate()
    return cache


class _Assisted(GenerateCache):
    """Assisted generation crops after each step, if only to shorten sliding layers."""

    def commit(self, request: int) -> None:
        self.caches[request].crop(0)


def _static(config: LlamaConfig) -> StaticCache:
    return StaticCache(config, max_cache_len=MAX_TOKENS)


dynamic = functools.partial(GenerateCache, lambda config: DynamicCache(), (FULL, FULL))
dynamic_hybrid = functools.partial(GenerateCache, lambda config: DynamicCache(config=config), (SLIDING, FULL), croppable=False)
assisted = functools.partial(_Assisted, _recording, (SLIDING, FULL))
static = functools.partial(GenerateCache, _static, (FULL, FULL))
static_hybrid = functools.partial(GenerateCache, _static, (SLIDING, FULL), croppable=False)


class BatchingCache:
    """The PagedAttentionCache of continuous batching, with the calls of its scheduler (generation/continuous_batching).

    A slot is a row of the one tensor that all allocators share, so that layers of different allocators may collide in it.
    """

    max_tokens = MAX_TOKENS
    PAGE_SIZE = 16

    def __init__(self, layer_types: Sequence[str], num_blocks: int = 10) -> None:
        self.groups = _groups(layer_types, reads_first=True)
        settings = ContinuousBatchingConfig(
            page_size=self.PAGE_SIZE, num_blocks=num_blocks, max_batch_tokens=512, max_memory_percent=0.5
        )
        memory = (None, 1 << 34, 0, 0)
        with unittest.mock.patch.object(paging, "get_device_and_memory_breakdown", return_value=memory):
            helper = DistributedHelper(None, None)
            self.cache = paging.PagedAttentionCache(_config(layer_types), settings, "cpu", helper, torch.float32)
        self.states: dict[int, Any] = {}
        self._pending: list[tuple[int, int]] = []

    def allocate(self, request: int, tokens: Sequence[int], salt: int) -> int:
        self.states[request] = self._state(request, list(tokens), self.cache.search_prefix_match(str(request), list(tokens)))
        return self.states[request].past

    def _state(self, request: int, tokens: list[int], past: int) -> Any:
        state = SimpleNamespace(
            request_id=str(request), initial_tokens=tokens, generated_tokens=[], status=None, past=past, new=0
        )
        state.current_len = lambda: state.past
        return state

    def append(self, request: int, tokens: Sequence[int], drafts: int) -> bool:
        state = self.states[request]
        state.initial_tokens[state.past :] = tokens
        if not self.cache.can_store_request_tokens(state, len(tokens)):
            self.cache.evict_cached_blocks()
            self.cache.pool.try_to_free_sectors()
            if not self.cache.can_store_request_tokens(state, len(tokens)):
                return False
        state.new = len(tokens)
        state.complete = self.cache.count_new_complete_blocks(state, state.new)
        return True

    def slots(self, request: int, group: int) -> Slots:
        """In a sliding layer the new keys are attended to as they are: there, the slots that they go to are told."""
        allocator, state = self.cache.layer_to_allocator[group], self.states[request]
        read = allocator.get_read_indices(str(request), state.past, state.new)
        if isinstance(allocator, SlidingAttentionCacheAllocator):
            return [*self._rows(group, read[: len(read) - state.new]), *self.write_slots(request, group)]
        return self._rows(group, read)

    def write_slots(self, request: int, group: int) -> Slots:
        allocator, state = self.cache.layer_to_allocator[group], self.states[request]
        rows = self._rows(group, allocator.get_write_indices(str(request), state.past, state.new))
        trash = allocator.write_trash_index + self._first_row(group)
        return [None if row == trash else row for row in rows]

    def _first_row(self, group: int) -> int:
        """The first row of a layer's first page: see register_cache_tensor in cache_allocators/full_attention.py."""
        return 2 * self.PAGE_SIZE * self.cache.layer_to_allocator[group].layer_indices.index(group)

    def _rows(self, group: int, indices: Sequence[int]) -> list[int]:
        return [index + self._first_row(group) for index in indices]

    def fork(self, request: int, child: int) -> bool:
        state = self.states[request]
        pairs = {name: ([], []) for name in self.cache.cache_allocators}
        if not self.cache.prepare_fork_request(state, [str(child)], pairs):
            return False
        self.states[child] = self._state(child, state.initial_tokens[: state.past], state.past)
        for name, (sources, targets) in pairs.items():
            size = self.cache.cache_allocators[name].block_physical_stride
            blocks = zip(sources, targets, strict=True)
            self._pending += [(source * size + row, target * size + row) for source, target in blocks for row in range(size)]
        return True

    def copies(self) -> Sequence[tuple[int, int]]:
        pending, self._pending = self._pending, []
        return pending

    def commit(self, request: int) -> None:
        state = self.states[request]
        state.past += state.new
        self.cache.mark_complete_blocks(state, state.complete)

    def free(self, request: int) -> None:
        self.cache.free_blocks(str(request))

    def free_slots(self) -> int:
        """Bytes that are free, or kept only for a prefix."""
        free = self.cache.pool.num_free_sectors * self.cache.bytes_per_sector
        for allocator in self.cache.cache_allocators.values():
            blocks = self.cache.pool.count_free_blocks(allocator.index) + len(allocator.ledger.cached_blocks)
            free += blocks * allocator.bytes_per_block
        return free


batching = functools.partial(BatchingCache, (FULL, FULL))
batching_hybrid = functools.partial(BatchingCache, (SLIDING, FULL, SLIDING, SLIDING))
