"""The masks of vLLM's FLEX_ATTENTION: which keys FlexAttentionMetadataBuilder and FlexAttentionImpl let each query see.

Lines of v1/attention/backends/flex_attention.py: build 993-1128, forward 1224-1375. Both run unchanged. The flex_attention that
torch compiles for a GPU is replaced by a softmax in float32 over the keys that the block mask and its mask_mod leave. torch's
own eager flex_attention ignores which blocks the mask lists, and compiling for a CPU takes a minute for each shape.

Block 0 is the null block, which no request owns (physical_to_logical_mapping says so): the cache gets one more block before it.
Lines 1147-1172 refuse ALiBi, a soft cap, shared and quantized caches; 74-80 have the dtypes, 137 the blocks, of which 956-960
demand powers of two.
"""

import dataclasses
import functools
import inspect
import logging
import re
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any, Generic, TypeVar

import torch
from attn_contract import AttentionType, Batch, Layer, Layout
from attn_fuzz import foreign
from attn_fuzz.errors import FailedCheckError
from attn_fuzz.findings.vllm import FLEX
from attn_fuzz.foreign.loading import Stubs
from attn_fuzz.targets import engine
from attn_fuzz.targets.packages import VLLM
from attn_fuzz.targets.rows import rows_of
from attn_fuzz.targets.support import Support
from attn_fuzz.targets.target import Target
from attn_fuzz.verdict.rounding import Rounding

FILE = "v1/attention/backends/flex_attention.py"
Q_BLOCK_SIZE = 16
_Metadata = TypeVar("_Metadata")


class _Builder(Generic[_Metadata]):
    pass


def _stubs() -> Stubs:
    kinds = SimpleNamespace(DECODER="decoder", ENCODER_ONLY="encoder_only")
    backend = {
        **dict.fromkeys(("AttentionBackend", "AttentionImpl", "CommonAttentionMetadata"), object),
        "AttentionMetadataBuilder": _Builder,
        "AttentionCGSupport": SimpleNamespace(ALWAYS=0),
        "AttentionType": kinds,
        "MultipleOf": int,
    }
    return {
        "vllm.envs": {"VLLM_BATCH_INVARIANT": False},
        "vllm.config": {"VllmConfig": object, "get_layers_from_vllm_config": None},
        "vllm.config.cache": {"CacheDType": str},
        "vllm.logger": {"init_logger": logging.getLogger},
        "vllm.model_executor.layers.attention": {"Attention": object},
        "vllm.platforms": {"current_platform": None},
        "vllm.utils.math_utils": {"cdiv": lambda a, b: -(-a // b)},
        "vllm.utils.torch_utils": {
            "async_tensor_h2d": lambda tensor, device: tensor.to(device),
            "is_torch_equal_or_newer": lambda version: True,
            "is_quantized_kv_cache": lambda kv_cache_dtype: False,  # before 0.33
        },
        "vllm.v1.attention.backend": backend,
        "vllm.v1.kv_cache_interface": {
            "AttentionSpec": object,
            "EncoderOnlyAttentionSpec": type("EncoderOnlyAttentionSpec", (), {}),
            "KVCacheLayout": SimpleNamespace(LBNHC=0),
            "is_quantized_kv_cache": lambda kv_cache_dtype: kv_cache_dtype.startswith("fp8"),
        },
    }


@functools.cache
def _module() -> ModuleType:
    [module] = foreign.load("vllm", (FILE,), stubs=_stubs())
    module.flex_attention_compiled = _attend  # type: ignore[attr-defined]
    return module


def _attend(query, key, value, score_mod, block_mask, scale, *, enable_gqa, kernel_options, return_aux=None) -> torch.Tensor:
    """Softmax over the keys that are visible: those of listed blocks that mask_mod lets through. All are [1, H, rows, D]."""
    rows, keys = query.shape[2], key.shape[2]
    q_size, kv_size = block_mask.BLOCK_SIZE
    listed = _listed(block_mask, -(-keys // kv_size)).repeat_interleave(q_size, 0).repeat_interleave(kv_size, 1)
    q_index, kv_index = torch.arange(rows)[:, None].expand(rows, keys), torch.arange(keys).expand(rows, keys)
    zero = torch.zeros((), dtype=torch.int32)
    visible = block_mask.mask_mod(zero, zero, q_index, kv_index) & listed[:rows, :keys]
    group = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(group, 1).float() for x in (key, value))
    # row by row: NaN that one row sees would be 0 * NaN for the others
    outs = [
        torch.softmax(query[:, :, [row]].float() @ key[:, :, seen].mT * scale, -1) @ value[:, :, seen]
        for row, seen in enumerate(visible)
    ]
    return torch.cat(outs, 2).to(query.dtype)


def _listed(block_mask, num_blocks: int) -> torch.Tensor:
    """[groups of queries, num_blocks]: whether a group's list has a block.

    `BlockMask.to_dense` has as many columns as the longest list, and the number of a block may be larger.
    """
    counts, lists = block_mask.kv_num_blocks[0, 0], block_mask.kv_indices[0, 0]
    listed = torch.zeros(len(counts), num_blocks, dtype=torch.bool)
    for row, blocks, count in zip(listed, lists, counts.tolist(), strict=True):
        if count and (last := int(blocks[:count].max())) >= num_blocks:
            raise FailedCheckError("value", "a block mask", f"it lists block {last} of {num_blocks}")
        row[blocks[:count].long()] = True
    return listed


def _attention(q, k, v, kv_cache, layer: Layer, batch: Batch, *, out, lse) -> None:
    module, rows = _module(), int(batch.query_start_loc[-1])
    cache = torch.cat([torch.full_like(kv_cache[:1], torch.nan), kv_cache])
    metadata = _build(module, batch, rows, len(cache), kv_cache.shape[2])
    unbound = re.search(r"kv_cache\.unbind\(([01])\)", inspect.getsource(module.FlexAttentionImpl.forward))
    if unbound:  # before 0.26: [NB, 2, BS, HK, D], and before 0.23: [2, NB, BS, HK, D]
        cache = torch.stack(foreign.keys_and_values(cache, layer)).transpose(0, int(unbound[1]))
    else:
        cache = cache.transpose(1, 2).contiguous().transpose(1, 2)
    impl = module.FlexAttentionImpl(
        *(layer.num_heads, layer.head_size, layer.scale, layer.num_kv_heads, None),
        sliding_window=None if layer.window[0] < 0 else layer.window[0] + 1,
        kv_cache_dtype="auto",
    )
    engine_layer = SimpleNamespace(mm_prefix_clamp_sliding_window=layer.ranges_clamped)
    impl.forward(engine_layer, q, k, v, cache, metadata, rows_of(out, layer, rows))


def _build(module: ModuleType, batch: Batch, rows: int, num_blocks: int, block_size: int) -> Any:
    """The metadata that FlexAttentionMetadataBuilder.build makes of a batch."""
    pages = -(-batch.max_seq_len // block_size)
    ints = functools.partial(torch.empty, dtype=torch.int32)
    builder = SimpleNamespace(
        block_size=block_size,
        device="cpu",
        q_block_size=Q_BLOCK_SIZE,
        kv_block_size=block_size,
        direct_build=True,
        rswa_window=None,
        custom_logical_mask_mod=None,
        model_config=SimpleNamespace(max_model_len=pages * block_size),
        kv_cache_spec=SimpleNamespace(block_size=block_size),
        cache_config=SimpleNamespace(num_gpu_blocks=num_blocks),
        vllm_config=SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=batch.num_requests)),
        max_num_query_groups=-(-rows // Q_BLOCK_SIZE),
        max_num_kv_indices=Q_BLOCK_SIZE * pages,
        max_num_rswa_query_groups=1,
        max_num_rswa_kv_indices=1,
        persistent_kv_num_blocks=ints(-(-rows // Q_BLOCK_SIZE)),
        persistent_rswa_kv_num_blocks=ints(1),
        persistent_offset_tensor=ints(batch.num_requests),
        persistent_query_start_loc=ints(batch.num_requests + 1),
        persistent_seq_lens=ints(batch.num_requests),
        persistent_doc_ids=ints(rows),
        **dict.fromkeys(("persistent_physical_to_logical", "persistent_kv_indices", "persistent_rswa_kv_indices")),
        _uses_full_cudagraphs=lambda: False,
    )
    common = SimpleNamespace(
        num_reqs=batch.num_requests,
        num_actual_tokens=rows,
        max_query_len=batch.max_query_len,
        max_seq_len=batch.max_seq_len,
        query_start_loc=batch.query_start_loc,
        query_start_loc_cpu=batch.query_start_loc,
        seq_lens=batch.seq_lens,
        block_table_tensor=_table(batch, pages),
        slot_mapping=None,
        causal=batch.causal,
        rswa_prefix_lens=None,
        mm_req_doc_ranges=_ranges(batch),
        compute_num_computed_tokens=lambda: batch.seq_lens - batch.query_start_loc.diff(),
    )
    return module.FlexAttentionMetadataBuilder.build(builder, 0, common)


def _table(batch: Batch, pages: int) -> torch.Tensor:
    """The block table after the null block. The engine's has columns for the longest sequence that it allows."""
    assert batch.block_table is not None
    return torch.nn.functional.pad(batch.block_table + 1, (0, max(0, pages - batch.block_table.shape[1])))


def _ranges(batch: Batch) -> dict[int, Sequence[tuple[int, int]]] | None:
    """The ranges of each request that has some."""
    if batch.bidirectional_ranges is None:
        return None
    of_requests = {r: [(a, b) for a, b in pairs if a <= b] for r, pairs in enumerate(batch.bidirectional_ranges.tolist())}
    return {r: pairs for r, pairs in of_requests.items() if pairs} or None


def _support(device: str) -> Support:
    return Support(
        attn_types=(AttentionType.DECODER,),
        dtypes=("float32", "float16", "bfloat16"),
        layouts=(Layout.CONTENT_PACKED,),
        rules=("non_causal", "window", "bidirectional_ranges", "ranges_clamped"),
        head_sizes=(32, 64, 80, 96, 128),
        block_sizes=(16, 32, 64),
        engine=dataclasses.replace(engine.VLLM, unowned_rows=(0,)),
        tile_sizes=(16, 32),
        max_tokens=96,
        max_seq_len=256,
    )


def _unavailable(device: str) -> str | None:
    return "it checks masks, on a CPU" if device != "cpu" else VLLM.missing((FILE,))


VLLM_FLEX_MASKS = Target(
    name="vllm-flex-masks",
    description="the keys that vLLM's FLEX_ATTENTION lets each query see, with a softmax over them",
    attention=_attention,
    support=_support,
    rounding=lambda device: Rounding(keys_per_tile=1024, dot_is_chained=False),
    refuses=False,
    unavailable=_unavailable,
    findings=FLEX,
)
