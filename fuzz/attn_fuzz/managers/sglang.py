"""SGLang's radix cache, with its allocators of tokens and of pages.

The files that are cited are those of the wheel of SGLang 0.5.23, in srt/mem_cache. The table of requests is one of our own:
that of memory_pool.py does not import without kernels. `ATTN_PARITY_SGLANG=FOLDER` takes the sources of another release.
"""

import functools
from array import array
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from attn_fuzz import foreign
from attn_fuzz.serving.manager import Slots

MAX_TOKENS = 160
HERE = "srt/mem_cache/"
FILES = (
    "allocator/base.py",
    "allocator/paged.py",
    "allocator/token.py",
    "base_prefix_cache.py",
    "cache_init_params.py",
    "evict_policy.py",
    "radix_cache.py",
    "unified_cache/component_type.py",
)


def _stubs() -> dict[str, dict[str, Any]]:
    """Stand-ins for the other imports of the files: events, metrics, kernels, and the length of pages."""

    def nothing(*arguments: object, **options: object) -> None: ...

    def ceil_align(number: Any, unit: int) -> Any:
        return -(-number // unit) * unit

    def get_num_new_pages(
        seq_lens: torch.Tensor, page_size: int, prefix_lens: torch.Tensor | None = None, decode: bool = False
    ) -> int:
        before = seq_lens - 1 if prefix_lens is None else prefix_lens
        return int((ceil_align(seq_lens, page_size) // page_size - ceil_align(before, page_size) // page_size).sum())

    class Events:
        def __init__(self, **options: object) -> None: ...

        record_all_cleared = record_store = record_remove = nothing

    def strategy(policy: str, options: object) -> Any:
        return load()["evict_policy"].LRUStrategy()

    allocator = {"BaseTokenToKVPoolAllocator": object}
    return {
        "sglang.kernels.ops.memory.allocator": {"alloc_decode_kernel": None, "alloc_extend_kernel": None},
        "sglang.srt.mem_cache.allocator": allocator,
        "sglang.srt.mem_cache.events": {"KVCacheEventRecorder": Events, "KvEventLoraNames": dict, "LoRANameTable": dict},
        "sglang.srt.mem_cache.memory_pool": {"ReqToTokenPool": object},
        "sglang.srt.mem_cache.utils": {
            "get_eviction_strategy": strategy,
            "split_node_hash_value": lambda value, length, page_size: (None, value),
        },
        "sglang.srt.observability.metrics_collector": dict.fromkeys(
            (
                "STAT_LOGGER_ROLE_RADIX_CACHE",
                "RadixCacheMetricsCollector",
                "radix_cache_metric_labels",
                "resolve_collector_class",
            )
        ),
        "sglang.srt.platforms": {"current_platform": SimpleNamespace(capabilities=SimpleNamespace(supports_triton=False))},
        "sglang.srt.runtime_context": {"get_observability": nothing, "get_parallel": nothing},
        "sglang.srt.utils": {
            "get_bool_env_var": lambda name, default="false": False,
            "get_num_new_pages": get_num_new_pages,
            "is_hip": lambda: False,
            "next_power_of_2": lambda number: 1 << (number - 1).bit_length(),
        },
        "sglang.srt.utils.common": {"ceil_align": ceil_align},
    }


@functools.cache
def load() -> dict[str, ModuleType]:
    """The modules of FILES, each by its own name."""
    modules = foreign.load("sglang", tuple(f"{HERE}{file}" for file in FILES), stubs=_stubs())
    return {module.__name__.rpartition(".")[2]: module for module in modules}


class RadixManager:
    """A radix cache over an allocator, called as the scheduler does (common.py: release_kv_cache; allocation.py).

    Args:
        page_size: 1: the allocator of tokens.
        num_tokens: the pool's number of tokens.
    """

    max_tokens = MAX_TOKENS
    salts = True

    def __init__(self, page_size: int = 1, num_tokens: int = 160) -> None:
        modules = load()
        self.page_size, self._radix, self._base = page_size, modules["radix_cache"], modules["base_prefix_cache"]
        if page_size == 1:
            self.pool = modules["token"].TokenToKVPoolAllocator(num_tokens, torch.int8, "cpu", None, False)
        else:
            allocator = modules["paged"].PagedTokenToKVPoolAllocator
            self.pool = allocator(num_tokens, page_size, torch.int8, "cpu", None, False)
        self.rows = torch.zeros(64, 2 * MAX_TOKENS, dtype=torch.int32)
        self.free_rows = list(range(64))
        table = SimpleNamespace(req_to_token=self.rows, write=self.rows.__setitem__)
        params = modules["cache_init_params"].CacheInitParams(False, table, self.pool, page_size)
        self.tree = self._radix.RadixCache(params)
        self.requests: dict[int, Any] = {}

    def allocate(self, request: int, tokens: Sequence[int], salt: int) -> int:
        extra = f"adapter {salt}" if salt else None
        found = self.tree.match_prefix(self._base.MatchPrefixParams(self._radix.RadixKey(array("q", tokens[:-1]), extra)))
        node, length = found.last_device_node, found.device_prefix_len
        kv = SimpleNamespace(
            req_pool_idx=self.free_rows.pop(), cache_protected_len=length, cache_inserted_len=0, swa_evict_floor=0,
            kv_allocated_len=length, kv_committed_len=length,
        )  # fmt: skip
        self.rows[kv.req_pool_idx, :length] = self.tree.path_device_indices(node)[:length]
        self.requests[request] = SimpleNamespace(
            kv=kv, lock=self.tree.lock(node), last_node=node, extra_key=extra, cache_salt=None, priority=0,
            origin_input_ids=array("q", tokens), full_untruncated_fill_ids=array("q", tokens), end=length,
        )  # fmt: skip
        return length

    def append(self, request: int, tokens: Sequence[int], drafts: int) -> bool:
        served = self.requests[request]
        kv = served.kv
        end, allocated = served.end + len(tokens), kv.kv_allocated_len
        del served.full_untruncated_fill_ids[served.end :]
        served.full_untruncated_fill_ids.extend(tokens)
        if end > allocated:
            slots = self._alloc(kv, end)
            if slots is None:
                return False
            self.rows[kv.req_pool_idx, allocated:end] = slots.int()
            kv.kv_allocated_len = end
        served.end = end
        return True

    def _alloc(self, kv: Any, end: int) -> torch.Tensor | None:
        """Slots up to `end`, after evicting unused slots if there are too few (base.py: evict_to_free_tokens)."""
        start = kv.kv_allocated_len
        wanted = end - start if self.page_size == 1 else end - start + self.page_size
        if (short := wanted - self.pool.available_size()) > 0:
            self.tree.evict_for_alloc(self._base.EvictParams(num_tokens=short))
        if self.page_size == 1:
            return self.pool.alloc(end - start)
        last = self.rows[kv.req_pool_idx, start - 1 : start].long() if start else torch.tensor([-1])
        starts, ends = torch.tensor([start]), torch.tensor([end])
        return self.pool.alloc_extend(starts, starts, ends, ends, last, end - start)

    def slots(self, request: int, group: int) -> Slots:
        served = self.requests[request]
        return self.rows[served.kv.req_pool_idx, : served.end].tolist()

    def roll_back(self, request: int, count: int) -> None:
        self.requests[request].end -= count

    def commit(self, request: int) -> None:
        """After a chunk of a prompt the tree learns it."""
        served = self.requests[request]
        is_prefill = served.kv.kv_committed_len < len(served.origin_input_ids)
        served.kv.kv_committed_len = served.end
        if is_prefill:
            self.tree.checkpoint(served, up_to=served.end)

    def free(self, request: int) -> None:
        served = self.requests.pop(request)
        kv, end = served.kv, served.kv.kv_committed_len
        self.tree.checkpoint(served, up_to=end)
        row = self.rows[kv.req_pool_idx].long()
        over = -(-end // self.page_size) * self.page_size
        for first, last in ((kv.cache_protected_len, end), (over, kv.kv_allocated_len)):
            if first < last:
                self.pool.free_segment(row[first:last], start_pos=first)
        self.tree.unlock(served.lock)
        self.free_rows.append(kv.req_pool_idx)

    def free_slots(self) -> int:
        return self.pool.available_size() + self.tree.evictable_size()


tokens = RadixManager
pages = functools.partial(RadixManager, 16)
