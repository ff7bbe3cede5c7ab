"""vLLM's KVCacheManager with its block pool, its cache of prefixes, and its managers of full, sliding and chunked groups.

The lines that are cited are those of the wheel of vLLM 0.33.0. Its scheduler's calls are made here, without its scheduler: a
request takes its hits and its slots in one go (sched/scheduler.py:1207, :1435, :914), and its accepted drafts are cached after
the step (:2412). `ATTN_PARITY_VLLM=FOLDER` takes the sources of another release.
"""

import functools
import hashlib
import math
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from attn_fuzz import foreign
from attn_fuzz.serving.manager import Group, Slots

BLOCK_SIZE = 16
FILES = (
    "v1/core/block_pool.py",
    "v1/core/kv_cache_coordinator.py",
    "v1/core/kv_cache_manager.py",
    "v1/core/kv_cache_metrics.py",
    "v1/core/kv_cache_utils.py",
    "v1/core/single_type_kv_cache_manager.py",
    "v1/hisparse/block_pool.py",
    "v1/kv_cache_interface.py",
    "v1/kv_cache_layout.py",
    "v1/kv_cache_spec_registry.py",
    "v1/request.py",
    "utils/math_utils.py",
)


def _names(*names: str, **members: object) -> dict[str, type]:
    """Classes that are only named, with some members."""
    return {name: type(name, (), members) for name in names}


def _hash(key: object) -> bytes:
    return hashlib.sha256(repr(key).encode()).digest()


def _stubs() -> dict[str, dict[str, Any]]:
    """Stand-ins for the other imports of the files: logging, events, statistics, parts of a request that no manager reads."""

    def silent(*words: object) -> None: ...

    logger = SimpleNamespace(**dict.fromkeys(("debug", "info", "warning", "error", "warning_once", "info_once"), silent))
    nothing = SimpleNamespace(from_sampling_params=lambda params: None, register_custom_kv_cache_specs=silent)
    reasons = _names("FinishReason", **dict.fromkeys(("STOP", "LENGTH", "ABORT", "ERROR", "REPETITION"), 0))
    events = _names("AllBlocksCleared", "BlockRemoved", "BlockStored", "KVCacheEvent")
    return {
        "vllm.envs": {},
        "vllm.config": {**_names("VllmConfig"), "get_current_vllm_config_or_none": lambda: None},
        "vllm.distributed.kv_events": {**events, "MEDIUM_CPU": "CPU", "MEDIUM_GPU": "GPU"},
        "vllm.logger": {"init_logger": lambda name: logger},
        "vllm.multimodal.inputs": _names("MultiModalFeatureSpec"),
        "vllm.multimodal.utils": {"get_mm_features_in_window": None},
        "vllm.platforms": {"current_platform": nothing},
        "vllm.pooling_params": _names("PoolingParams"),
        "vllm.sampling_params": _names("SamplingParams"),
        "vllm.utils": {"length_from_prompt_token_ids_or_embeds": lambda tokens, embeds: len(tokens)},
        "vllm.utils.hashing": {"xxhash": None, "xxhash_cbor": None},
        "vllm.utils.torch_utils": {"get_dtype_size": lambda dtype: dtype.itemsize},
        "vllm.v1.attention.backends.registry": _names("MambaAttentionBackendEnum", MAMBA2=0),
        "vllm.v1.engine": {**_names("EngineCoreEvent", "EngineCoreEventType", "EngineCoreRequest"), **reasons},
        "vllm.v1.kv_hints": _names("KvHintsEnvelope"),
        "vllm.v1.metrics.stats": _names("KVCacheEvictionEvent", "PrefillStats", "PrefixCacheStats", "RequestSpecDecodeMetrics"),
        "vllm.v1.structured_output.request": {"StructuredOutputRequest": nothing},
        "vllm.v1.utils": {"ConstantList": lambda tokens: tokens, "tensor_data": None},
    }


@functools.cache
def load() -> dict[str, ModuleType]:
    """The modules of FILES, each by its own name: of two of one name, the first. They are not in `sys.modules`."""
    modules = foreign.load("vllm", FILES, stubs=_stubs())
    named = {module.__name__.rpartition(".")[2]: module for module in reversed(modules)}
    named["kv_cache_utils"].init_none_hash(_hash)
    return named


class VllmManager:
    """A KVCacheManager of some groups, which share one pool.

    Args:
        groups: window and chunk say which manager a group has.
        block_sizes: the block sizes of the groups.
        num_blocks: the number of blocks of the pool, with its null block.
        retention: the `retention_interval` of KVCacheManager.
        by_priority: as the scheduling policy "priority" preempts (sched/scheduler.py:932).
        options: the options of KVCacheManager.
    """

    salts = True

    def __init__(
        self,
        groups: Sequence[Group] = (Group(),),
        block_sizes: Sequence[int] = (BLOCK_SIZE,),
        num_blocks: int = 11,
        retention: int | None = None,
        by_priority: bool = False,
        **options: Any,
    ) -> None:
        modules = load()
        interface = self._interface = modules["kv_cache_interface"]
        self.groups, self.block_sizes, self.by_priority = groups, block_sizes, by_priority
        specs = [self._spec(group, size) for group, size in zip(groups, block_sizes, strict=True)]
        config = interface.KVCacheConfig(
            num_blocks=num_blocks,
            kv_cache_tensors=[],
            kv_cache_groups=[interface.KVCacheGroupSpec([group.name], spec) for group, spec in zip(groups, specs, strict=True)],
            prefix_cache_retention_interval=retention,
        )
        self.manager = modules["kv_cache_manager"].KVCacheManager(
            config,
            max_model_len=512,
            scheduler_block_size=math.lcm(*block_sizes),
            hash_block_size=math.gcd(*block_sizes),
            **options,
        )
        self._hasher = modules["kv_cache_utils"].get_request_block_hasher(math.gcd(*block_sizes), _hash)
        self._request = modules["request"].Request
        self.requests: dict[int, Any] = {}
        self._hits: dict[int, tuple[Any, int]] = {}
        self._drafts: dict[int, list[int]] = {}
        self._null = self.manager.block_pool.null_block.block_id

    def _spec(self, group: Group, block_size: int) -> Any:
        sizes = {"block_size": block_size, "num_kv_heads": 1, "head_size": 8 * BLOCK_SIZE // block_size, "dtype": torch.float16}
        if group.window is not None:
            return self._interface.SlidingWindowSpec(**sizes, sliding_window=group.window)
        if group.chunk is not None:
            return self._interface.ChunkedLocalAttentionSpec(**sizes, attention_chunk_size=group.chunk)
        return self._interface.FullAttentionSpec(**sizes)

    def allocate(self, request: int, tokens: Sequence[int], salt: int) -> int:
        if request not in self.requests:
            params = SimpleNamespace(max_tokens=512, extra_args=None, skip_reading_prefix_cache=None)
            self.requests[request] = self._request(
                str(request), list(tokens), params, None, cache_salt=str(salt) if salt else None, block_hasher=self._hasher
            )
        served = self.requests[request]
        served.append_output_token_ids(list(tokens[served.num_tokens :]))
        served.num_computed_tokens = 0
        blocks, found, served.shared_prefix_boundary = self.manager.get_computed_blocks(served)
        self._hits[request] = blocks, found
        return found

    def append(self, request: int, tokens: Sequence[int], drafts: int) -> bool:
        served = self.requests[request]
        blocks, found = self._hits.pop(request, (None, 0))
        certain, self._drafts[request] = list(tokens[: len(tokens) - drafts]), list(tokens[len(tokens) - drafts :])
        end = served.num_computed_tokens + found + len(certain)
        served.append_output_token_ids(certain[len(certain) - max(0, end - served.num_tokens) :])
        if self.manager.allocate_slots(served, len(tokens), found, blocks) is None:
            return False
        served.num_computed_tokens = end + drafts
        return True

    def slots(self, request: int, group: int) -> Slots:
        size, stride = self.block_sizes[group], max(self.block_sizes)
        table = self.manager.get_block_ids(str(request))[group]
        blocks = [None if block == self._null else block * stride for block in table]
        length = min(self.requests[request].num_computed_tokens, len(blocks) * size)
        return [None if (block := blocks[p // size]) is None else block + p % size for p in range(length)]

    def roll_back(self, request: int, count: int) -> None:
        self.requests[request].num_computed_tokens -= count
        del self._drafts[request][-count:]

    def commit(self, request: int) -> None:
        if accepted := self._drafts.pop(request):
            served = self.requests[request]
            served.append_output_token_ids(accepted)
            self.manager.cache_blocks(served, served.num_computed_tokens)

    def free(self, request: int) -> None:
        self.manager.free(self.requests[request])

    def free_slots(self) -> int:
        return self.manager.block_pool.get_num_free_blocks()


WINDOW, CHUNK = Group("window", window=19), Group("chunk", chunk=32)

full = VllmManager
sliding = functools.partial(VllmManager, (WINDOW,))
chunked = functools.partial(VllmManager, (CHUNK,))
hybrid = functools.partial(VllmManager, (Group(), WINDOW, Group("second window", window=19)), (BLOCK_SIZE,) * 3, 22)
"""A full group and two sliding ones, as Gemma 3 has them."""
hybrid_sizes = functools.partial(VllmManager, (Group(), WINDOW), (2 * BLOCK_SIZE, BLOCK_SIZE), 14)
"""A full group of larger blocks than the sliding one."""
hybrid_chunked = functools.partial(VllmManager, (Group(), CHUNK), (BLOCK_SIZE,) * 2, 16)
"""Full and chunked layers, as in Llama 4."""
eagle = functools.partial(VllmManager, (Group(), WINDOW), (BLOCK_SIZE,) * 2, 16, use_eagle=True)
"""A draft model takes the last block of a hit again."""
sparse = functools.partial(VllmManager, (Group(), WINDOW), (BLOCK_SIZE,) * 2, 16, retention=0)
"""Only the windows at the ends of prompts are kept."""
priority = functools.partial(VllmManager, num_blocks=8, by_priority=True)
uncached = functools.partial(VllmManager, (Group(), WINDOW), (BLOCK_SIZE,) * 2, 16, enable_caching=False)
