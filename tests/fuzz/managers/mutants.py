"""Public reports about cache managers, put back in substance into managers of today: patches in memory, in our own words.

The number names the repository and its issue or pull request, the kind the verdict.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from attn_fuzz.managers import sglang, vllm


class Mutant(NamedTuple):
    """A report, the manager into which it is put back, and the patch."""

    report: str
    substance: str
    manager: str
    kind: str
    patch: Callable[[pytest.MonkeyPatch], None]

    @property
    def name(self) -> str:
        return f"{self.report.partition('/')[2].replace('#', '-')}"


MUTANTS: list[Mutant] = []


def mutant(report: str, substance: str, manager: str, kind: str = "cache") -> Callable[[Any], Any]:
    def add(patch: Callable[[pytest.MonkeyPatch], None]) -> Callable[[pytest.MonkeyPatch], None]:
        MUTANTS.append(Mutant(report, substance, manager, kind, patch))
        return patch

    return add


def _wrap(patch: pytest.MonkeyPatch, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Replace a method by wrapper(original, self, ...)."""
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **options: Any) -> Any:
        return wrapper(original, *arguments, **options)

    patch.setattr(owner, name, wrapped)


def _vllm(module: str, name: str) -> Any:
    return getattr(vllm.load()[module], name)


@mutant("vllm-project/vllm#3264", "the hash of a block ignores the LoRA adapter, so adapters share keys", "vllm-full")
def _hash_without_adapter(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(vllm.load()["kv_cache_utils"], "generate_block_hash_extra_keys", lambda *arguments: (None, 0))


@mutant(
    "vllm-project/vllm#12603", "what tells two prompts apart is in the hash of its own block, not of later ones", "vllm-sliding"
)
def _hash_without_parent(patch: pytest.MonkeyPatch) -> None:
    _wrap(
        patch,
        vllm.load()["kv_cache_utils"],
        "hash_block_tokens",
        lambda hashed, function, parent, tokens, extra=None: hashed(function, None, tokens, extra),
    )


@mutant("vllm-project/vllm#17305", "hits are looked up once, and believed when the request runs again later", "vllm-full")
def _hits_of_the_first_lookup(patch: pytest.MonkeyPatch) -> None:
    def lookup(original: Any, self: Any, request: Any) -> Any:
        if not getattr(request, "hits", (None, 0))[1]:
            request.hits = original(self, request)
        return request.hits

    _wrap(patch, _vllm("kv_cache_manager", "KVCacheManager"), "get_computed_blocks", lookup)


@mutant("ovg-project/kvcached#362", "an evicted block keeps its hash, and is a hit when it holds another prefix", "vllm-full")
def _stale_hash(patch: pytest.MonkeyPatch) -> None:
    def keep(self: Any, block: Any) -> bool:
        block.reset_hash()
        return False

    patch.setattr(_vllm("block_pool", "BlockPool"), "_maybe_evict_cached_block", keep)


@mutant(
    "vllm-project/vllm#37076", "a block that is hit stays in the free queue, and is given away while it is read", "vllm-full"
)
def _hit_stays_free(patch: pytest.MonkeyPatch) -> None:
    pool = _vllm("block_pool", "BlockPool")
    patch.setattr(pool, "touch", lambda self, blocks: None)
    _wrap(patch, pool, "free_blocks", lambda free, self, blocks: free(self, [block for block in blocks if block.ref_cnt > 0]))


@mutant("NVIDIA/TensorRT-LLM#10875", "each window sets the length of the known prefix, not the least of all", "vllm-hybrid")
def _longest_hit(patch: pytest.MonkeyPatch) -> None:
    def longest(self: Any, hashes: Any, length: int) -> Any:
        blocks, hits = self.find_longest_cache_hit_per_group(hashes, length)
        return blocks, max(hits), 0

    patch.setattr(_vllm("kv_cache_coordinator", "HybridKVCacheCoordinator"), "find_longest_cache_hit", longest)


@mutant("vllm-project/vllm#39450", "a hit of a sliding group ends inside a larger block of the full group", "vllm-hybrid-sizes")
def _hit_is_not_aligned(patch: pytest.MonkeyPatch) -> None:
    manager = _vllm("single_type_kv_cache_manager", "SlidingWindowManager")
    find = manager.find_longest_cache_hit.__func__
    unaligned = classmethod(lambda cls, **given: find(cls, **{**given, "alignment_tokens": given["kv_cache_spec"].block_size}))
    patch.setattr(manager, "find_longest_cache_hit", unaligned)


@mutant("vllm-project/vllm#40019", "skipped tokens that do not fill a block free it all the same", "vllm-sliding")
def _skipped_rounded_up(patch: pytest.MonkeyPatch) -> None:
    manager = _vllm("single_type_kv_cache_manager", "SlidingWindowManager")
    _wrap(patch, manager, "get_num_skipped_tokens", lambda skipped, self, tokens: -(-skipped(self, tokens) // 16) * 16)


@mutant("LMCache/LMCache#3322", "a prompt that is known as a whole leaves no token to compute", "vllm-full", "count")
def _whole_prompt_is_known(patch: pytest.MonkeyPatch) -> None:
    manager = _vllm("kv_cache_manager", "KVCacheManager")
    _wrap(patch, manager, "get_computed_blocks", lambda hits, self, request: hits(self, request, request.num_tokens))


@mutant("kekzl/imp#1115", "one block of each request never goes back to the pool", "vllm-full", "count")
def _lost_block(patch: pytest.MonkeyPatch) -> None:
    manager = _vllm("single_type_kv_cache_manager", "SingleTypeKVCacheManager")
    _wrap(patch, manager, "pop_blocks_for_free", lambda pop, self, request: pop(self, request)[1:])


@mutant(
    "huggingface/transformers#46117",
    "a fork takes blocks that are not there, and fails half way",
    "transformers-batching-hybrid",
    "raised",
)
def _fork_without_room(patch: pytest.MonkeyPatch) -> None:
    def fork(self: Any, state: Any, children: list[str], pairs: Any) -> list[str]:
        for child in children:
            for name, allocator in self.cache_allocators.items():
                taken = allocator.fork_blocks(state.request_id, child, state.current_len())
                for kept, blocks in zip(pairs[name], taken, strict=True):
                    kept.extend(blocks)
        return children

    from attn_fuzz.managers.transformers import paging

    patch.setattr(paging.PagedAttentionCache, "prepare_fork_request", fork)


@mutant(
    "huggingface/transformers#47708",
    "a ring is read from one slot early, and written from where the prompt began",
    "transformers-batching-hybrid",
)
def _ring(patch: pytest.MonkeyPatch) -> None:
    from attn_fuzz.managers.transformers import SlidingAttentionCacheAllocator

    def read(self: Any, request: str, past: int, new: int) -> list[int]:
        start = 0 if past < self.sliding_window else past % self.sliding_window
        length = min(past, self.sliding_window - 1)
        return self._token_indices_to_physical_indices(request, start, length) + [self.sentinel_index] * new

    patch.setattr(SlidingAttentionCacheAllocator, "get_read_indices", read)


@mutant(
    "huggingface/transformers#37574",
    "a static window rolls one token early, when it is just full",
    "transformers-static-hybrid",
)
def _rolls_early(patch: pytest.MonkeyPatch) -> None:
    from transformers.cache_utils import StaticSlidingWindowLayer

    def update(original: Any, self: Any, keys: Any, values: Any, *rest: Any, **options: Any) -> Any:
        if self.is_initialized and self.cumulative_length_int + keys.shape[-2] == self.max_cache_len:
            self.keys, self.values = self.keys.roll(-1, dims=-2), self.values.roll(-1, dims=-2)
        return original(self, keys, values, *rest, **options)

    _wrap(patch, StaticSlidingWindowLayer, "update", update)


@mutant(
    "ml-explore/mlx-swift-lm#39",
    "the mask of a sliding layer is one key longer than what the cache returns",
    "transformers-assisted",
    "raised",
)
def _long_mask(patch: pytest.MonkeyPatch) -> None:
    from transformers.cache_utils import DynamicSlidingWindowLayer

    def sizes(original: Any, self: Any, length: int) -> tuple[int, int]:
        keys, offset = original(self, length)
        return keys + (self.cumulative_length >= self.sliding_window), offset

    _wrap(patch, DynamicSlidingWindowLayer, "get_mask_sizes", sizes)


@mutant(
    "sgl-project/mini-sglang#142",
    "slots that repeat a known prefix are freed, and the request goes on to read them",
    "sglang-tokens",
)
def _table_not_repointed(patch: pytest.MonkeyPatch) -> None:
    def checkpoint(original: Any, self: Any, served: Any, *, up_to: int) -> None:
        row = self.req_to_token_pool.req_to_token[served.kv.req_pool_idx]
        before = row.clone()
        original(self, served, up_to=up_to)
        row[:] = before

    _wrap(patch, _radix(), "checkpoint", checkpoint)


@mutant(
    "sgl-project/sglang#12224", "two ways of releasing a request both free its last slot", "sglang-tokens", "cache or count"
)
def _freed_twice(patch: pytest.MonkeyPatch) -> None:
    def free(original: Any, self: Any, slots: Any, *, start_pos: int) -> None:
        original(self, slots, start_pos=start_pos)
        self.free(slots[-1:])

    _wrap(patch, sglang.load()["token"].TokenToKVPoolAllocator, "free_segment", free)


def _radix() -> Any:
    return sglang.load()["radix_cache"].RadixCache


@mutant(
    "bytedance-iaas/sglang#508",
    "a lock of a match holds more of the tree than was matched, and for ever",
    "sglang-tokens",
    "count",
)
def _lock_leaks(patch: pytest.MonkeyPatch) -> None:
    def split(original: Any, self: Any, key: Any, child: Any, length: int) -> Any:
        self.inc_lock_ref(child)
        return original(self, key, child, length)

    _wrap(patch, _radix(), "_split_node", split)


@mutant("sgl-project/sglang#35270", "the size that can be evicted counts shared pages twice", "sglang-pages", "count")
def _counted_twice(patch: pytest.MonkeyPatch) -> None:
    def split(original: Any, self: Any, key: Any, child: Any, length: int) -> Any:
        self.evictable_size_ += length
        return original(self, key, child, length)

    _wrap(patch, _radix(), "_split_node", split)


@mutant(
    "sgl-project/sglang-jax#1618", "a request frees the slots that the tree has just adopted", "sglang-pages", "cache or count"
)
def _frees_what_the_tree_has(patch: pytest.MonkeyPatch) -> None:
    def insert(original: Any, self: Any, params: Any) -> Any:
        result = original(self, params)
        if result.prefix_len < len(params.key):
            self.token_to_kv_pool_allocator.free(params.value[result.prefix_len :])
        return result

    _wrap(patch, _radix(), "insert", insert)


@mutant(
    "vllm-project/vllm#43569",
    "blocks are known as a prefix before they are written, and a preemption comes first",
    "vllm-priority",
)
def _as_it_is(patch: pytest.MonkeyPatch) -> None:
    """Nothing is patched: vLLM 0.33.0 has it."""
