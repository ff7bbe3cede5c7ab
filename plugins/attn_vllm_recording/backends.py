"""The meaning of the arguments of vLLM's backends: a record for each implementation of attention. No other is judged.

All backends of vLLM 0.33 are given a layer (the arguments of vLLM's `Attention`), a cache of four dimensions and the metadata
of a step. They differ in five ways that matter here:

    pages           what lies in a block of the cache: K, then V, in each row (CONTENT_PACKED), or pages of AMD's kernels
    new tokens      ROCM_ATTN and ROCM_AITER_FA read the keys of a prompt's new tokens from `key` and `value`, before they are
                    quantized. Other backends read them from the cache.
    window          ROCM_ATTN and ROCM_AITER_FA leave a window open to the right where nothing is causal, the others do not.
    ranges          TRITON_ATTN is given the bidirectional ranges of a request, FLASH_ATTN those of a query.
    parts           kernels of AMD's backends round the outputs of parts of the keys before they merge them.
"""

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from attn_contract import Batch, Layer, Layout
from attn_fuzz import Rounding
from attn_fuzz.verdict.live import UNKNOWN_KERNEL

from attn_vllm_recording.errors import NotJudgedError


@dataclass(frozen=True, kw_only=True)
class Backend:
    """The reading of calls of one implementation of attention.

    Args:
        name: the name of the backend, as `--attention-backend` takes it.
        pages: the layout of the cache's pages, from the implementation; None: as vLLM's `--kv-cache-dtype` says.
        merged_parts: for the metadata of a step, the number of parts whose rounded outputs are merged (see Rounding).
        quantizes_new_tokens: True if the keys of a prompt's new tokens are read from the cache.
        has_symmetric_window: True if a window ends on the right, too, where nothing is causal.
        is_ours: True if float32 products are exact to float32.
    """

    name: str
    pages: Callable[[Any], Layout | None] = lambda impl: None
    merged_parts: Callable[[Any], int] = lambda metadata: 1
    quantizes_new_tokens: bool = True
    has_symmetric_window: bool = True
    is_ours: bool = False

    def rounding(self, metadata: Any, max_seq_len: int) -> Rounding:
        """The rounding of an unknown kernel, with more splits: FlashAttention has up to 128, AMD's kernels one for 256 keys."""
        splits = max(128, -(-max_seq_len // 256))
        parts = self.merged_parts(metadata)
        # beside a float8 q, kernels with float8 dots round weights to float8
        return dataclasses.replace(UNKNOWN_KERNEL, splits=splits, merged_parts=parts, float8_weights=True)


def _rocm_attn_pages(impl: Any) -> Layout:
    return Layout.SHUFFLED if impl._use_interleaved_v_cache else Layout.X_PACKED


def _aiter_fa_pages(impl: Any) -> Layout | None:
    from vllm._aiter_ops import rocm_aiter_ops

    return Layout.SHUFFLED if rocm_aiter_ops.is_shuffle_kv_cache_enabled() else None


def _aiter_unified_pages(impl: Any) -> Layout | None:
    if impl._shuffle_kv_layout:
        raise NotJudgedError("no layout of the contract is the shuffled cache of ROCM_AITER_UNIFIED_ATTN")
    return None


def _aiter_fa_parts(metadata: Any) -> int:
    """The paged kernels store parts in the output's dtype; an extend has one part more than chunks of context."""
    extend = metadata.extend_metadata
    return max(2, extend.chunk_context_metadata.num_chunks + 1 if extend is not None else 0)


_BACKENDS: Final = "vllm.v1.attention.backends"
BACKENDS: Final = {
    f"{_BACKENDS}.triton_attn.TritonAttentionImpl": Backend(name="TRITON_ATTN"),
    f"{_BACKENDS}.flash_attn.FlashAttentionImpl": Backend(name="FLASH_ATTN"),
    f"{_BACKENDS}.rocm_attn.RocmAttentionImpl": Backend(
        name="ROCM_ATTN",
        pages=_rocm_attn_pages,
        merged_parts=lambda metadata: 2,
        quantizes_new_tokens=False,
        has_symmetric_window=False,
    ),
    f"{_BACKENDS}.rocm_aiter_unified_attn.RocmAiterUnifiedAttentionImpl": Backend(
        name="ROCM_AITER_UNIFIED_ATTN", pages=_aiter_unified_pages
    ),
    f"{_BACKENDS}.rocm_aiter_fa.AiterFlashAttentionImpl": Backend(
        name="ROCM_AITER_FA",
        pages=_aiter_fa_pages,
        merged_parts=_aiter_fa_parts,
        quantizes_new_tokens=False,
        has_symmetric_window=False,
    ),
    "attn_vllm.parity_triton.ParityTritonImpl": Backend(name="PARITY_TRITON", is_ours=True),
    "attn_vllm.parity_reference.ParityReferenceImpl": Backend(name="PARITY_REFERENCE", is_ours=True),
}
"""The record of each implementation, by its class. A subclass may compute something else, and is not judged."""

_CROSS = "vllm.model_executor.layers.attention.cross_attention"


def class_of(impl: Any) -> type:
    """The class of an implementation, without the subclass with which vLLM writes the cache of cross-attention."""
    of_impl = type(impl)
    return of_impl.__mro__[1] if of_impl.__module__ == _CROSS else of_impl


def backend_of(impl: Any) -> Backend | None:
    of_impl = class_of(impl)
    return BACKENDS.get(f"{of_impl.__module__}.{of_impl.__qualname__}")


def name_of(impl: Any) -> str:
    """The backend's name, or that of the class if the backend is not listed."""
    backend = backend_of(impl)
    return class_of(impl).__qualname__ if backend is None else backend.name


def batch_of(backend: Backend, metadata: Any, layer: Layer) -> Batch:
    """The step of a backend's metadata, on the tensors' device.

    Raises:
        NotJudgedError: the step asks for what the contract has no word for, or what vLLM's backends do not agree on.
        ContractError: a tensor has another type or shape than the contract's Batch asks for.
    """
    if backend.is_ours:
        return metadata.batch
    if getattr(metadata, "rswa_prefix_lens", None) is not None:
        raise NotJudgedError("R-SWA: its window is counted from a prefix of each request")
    if layer.alibi_slopes is not None and layer.sinks is not None:
        raise NotJudgedError("ALiBi with sinks: vLLM's biases are off by a number for each query, which only a sink shows")
    causal = metadata.causal.bool() if isinstance(metadata.causal, torch.Tensor) else bool(metadata.causal)
    if layer.attn_type.reads_cache and causal is not True:
        if layer.alibi_slopes is not None:
            raise NotJudgedError("ALiBi where nothing is causal: vLLM's backends do not agree on the sign of later keys")
        if layer.window != (-1, -1) and not backend.has_symmetric_window:
            raise NotJudgedError("a window where nothing is causal: vLLM's backends do not agree on its right side")
    return Batch(
        query_start_loc=metadata.query_start_loc,
        seq_lens=metadata.seq_lens,
        max_query_len=metadata.num_actual_tokens,  # ROCM_AITER_FA keeps no tighter bound
        max_seq_len=metadata.max_seq_len,
        num_actual_tokens=metadata.num_actual_tokens,
        causal=causal,
        block_table=metadata.block_table if layer.attn_type.reads_cache else None,
        bidirectional_ranges=_ranges(metadata),
    )


def _ranges(metadata: Any) -> torch.Tensor | None:
    """[R, max_ranges, 2] int32."""
    of_requests = getattr(metadata, "mm_prefix_range_tensor", None)
    of_queries = getattr(metadata, "mm_prefix_query_range_tensor", None)
    if of_queries is None:
        return of_requests
    # a range acts only on its own queries, so those that hold a query of this step are all that act
    starts, queries = metadata.query_start_loc.tolist(), of_queries.tolist()
    found = [
        sorted({(first, last) for first, last in queries[begin:end] if first >= 0}) for begin, end in itertools.pairwise(starts)
    ]
    most = max(map(len, found), default=0)
    if most == 0:
        return None
    padded = [[*ranges, *[(0, -1)] * (most - len(ranges))] for ranges in found]
    return torch.tensor(padded, dtype=torch.int32, device=of_queries.device)
