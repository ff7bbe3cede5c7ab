"""The backends whose layers attend to what an indexer selected, as targets: ROCM_AITER_MLA_SPARSE and MINIMAX_M3_SPARSE.

The metadata of a step has no selection. As an indexer does, the target writes a case's selection into a buffer before each
call. The kernels must not follow anything else in the buffer: rows after the step's, and elements between rows. All layers
share it.
"""

import dataclasses
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from attn_contract import AttentionType, Batch, Layer, Layout
from attn_fuzz.targets.backends.layers import BackendLayers, backend_target, installed, named
from attn_fuzz.targets.engine import Engine
from attn_fuzz.targets.support import LatentSizes, Support
from attn_fuzz.targets.triton import TRITON, TRITON_LATENT

BLOCK = 128
"""The tokens of a block that MiniMax-M3's indexer selects (vLLM 0.33)."""
_INVALID = 1 << 30
_MAX_TOKENS = 2048
_PAST_ROWS = 3


@dataclass(frozen=True, eq=False)
class SparseLayers(BackendLayers):
    """A backend, the layers that were made of it, and the buffers that they read.

    Args:
        multiple: the selected ids of a row of a buffer are a multiple of it.
        by_head: True if each KV head has a selection of its own.
    """

    multiple: int = 1
    by_head: bool = False
    _buffers: dict[Hashable, torch.Tensor] = field(init=False, repr=False, default_factory=dict)

    def attention(self, q, k, v, kv_cache, layer, batch, *, out, lse, **mode: Any) -> None:
        buffer = self._indexed(layer, batch, q.device)
        super().attention(q, k, v, kv_cache, layer, batch, out=out, lse=lse, topk_indices_buffer=buffer, **mode)

    def forget(self) -> None:
        super().forget()
        self._buffers.clear()

    def _arguments(self, layer: Layer, rows: torch.Tensor, kv_cache, *mode: Any, topk_indices_buffer=None, **options) -> Any:
        arguments, kv_cache = super()._arguments(layer, rows, kv_cache, *mode, **options)
        if topk_indices_buffer is None:  # a call that reads none
            topk_indices_buffer = self._buffer(layer, 1, 0, rows.device)
        return {**arguments, "topk_indices_buffer": topk_indices_buffer}, kv_cache

    def _indexed(self, layer: Layer, batch: Batch, device: torch.device) -> torch.Tensor:
        """The buffer that a step's layers read, with the step's selection in it."""
        selected = batch.selected
        if selected is None:
            return self._buffer(layer, 1, 0, device)
        _, rows, width = selected.shape
        buffer = self._buffer(layer, width, rows, device)
        buffer[..., :rows, :width] = selected if self.by_head else selected[0]
        buffer[..., :rows, width:] = -1
        buffer[..., rows:, :] = _INVALID
        return buffer

    def _buffer(self, layer: Layer, width: int, rows: int, device: torch.device) -> torch.Tensor:
        k = -(-max(width, 1) // self.multiple) * self.multiple
        heads = (layer.num_kv_heads,) if self.by_head else ()
        shape = (*heads, max(rows, _MAX_TOKENS), k + _PAST_ROWS)
        if (shape, device) not in self._buffers:
            self._buffers[shape, device] = torch.full(shape, _INVALID, dtype=torch.int32, device=device)[..., :k]
        return self._buffers[shape, device]


@dataclass(frozen=True, eq=False)
class SparseMlaLayers(SparseLayers):
    """A backend whose cache is latent."""

    def attention(self, q, k, v, kv_cache, layer, batch, *, out, lse, **mode: Any) -> None:
        buffer = self._indexed(layer, batch, q.device)
        impl, own_cache = self._impl(layer, q, kv_cache, topk_indices_buffer=buffer, **mode)
        metadata = self._metadata(batch, layer.attn_type)
        rows = metadata.decode.rows
        lse_rows = None if lse is None else lse[:, rows]
        impl.forward_mqa(q[rows], own_cache, metadata, output=out[rows], lse=lse_rows)

    def write_latent_cache(self, kv_c, k_pe, kv_cache, layer, slot_mapping) -> None:
        impl, own_cache = self._impl(layer, kv_c, kv_cache)
        impl.do_kv_cache_update(kv_c, k_pe, own_cache, slot_mapping)


def rocm_aiter_mla_sparse(device: str) -> Support:
    """The support of vLLM 0.33's backend of this name."""
    drawn = TRITON_LATENT.support(device)
    widths = ((32, 16), (16, 8), (8, 0), (24, 8), (40, 17), (512, 64))
    return dataclasses.replace(
        drawn,
        attn_types=(AttentionType.DECODER,),
        dtypes=("bfloat16", "float16"),
        layouts=(Layout.LATENT,),
        rules=("selection_unit", "head_size_v", "sinks"),
        required_rules=("selection_unit",),
        latent=LatentSizes(widths=widths if device == "cpu" else widths[-1:], block_sizes=(16, 1, 64, 80)),
        refused_sizes={"widths": ((528, 16), (496, 144)), "block_sizes": (8, 24)},
        cache_dtypes=("fp8_e4m3fn", "fp8_e4m3fnuz"),
        scales=("tensor",),
        output_dtypes=(),
        engine=Engine(selection_units=(1,)),
    )


def minimax_m3_sparse(device: str) -> Support:
    """The support of vLLM 0.33's backend of this name."""
    return dataclasses.replace(
        TRITON.support(device),
        attn_types=(AttentionType.DECODER,),
        dtypes=("bfloat16", "float16"),
        layouts=(Layout.CONTENT_PACKED,),
        rules=("selection_unit",),
        required_rules=("selection_unit",),
        head_sizes=(128,),
        block_sizes=(BLOCK,),
        refused_sizes={"head_sizes": (64, 144), "block_sizes": (16, 64)},
        tile_sizes=(BLOCK,),
        cache_dtypes=("fp8_e4m3fn", "fp8_e4m3fnuz"),
        scales=("tensor",),
        output_dtypes=(),
        engine=Engine(selection_units=(BLOCK,)),
    )


_MLA = SparseMlaLayers(named("ROCM_AITER_MLA_SPARSE"), installed, multiple=128)
_BLOCKS = SparseLayers(named("MINIMAX_M3_SPARSE"), installed, by_head=True)

BACKEND_ROCM_AITER_MLA_SPARSE = backend_target(
    "backend-rocm-aiter-mla-sparse",
    _MLA,
    description="the backend ROCM_AITER_MLA_SPARSE: layers of latent attention to selected tokens, every row absorbed",
    support=rocm_aiter_mla_sparse,
    write_kv_cache=None,
    rope_and_write_kv_cache=None,
    write_latent_cache=_MLA.write_latent_cache,
    modules=TRITON.modules,
    planned=TRITON.planned,
)
BACKEND_MINIMAX_M3_SPARSE = backend_target(
    "backend-minimax-m3-sparse",
    _BLOCKS,
    description="the backend MINIMAX_M3_SPARSE: whole layers over selected blocks of 128 tokens",
    support=minimax_m3_sparse,
    modules=TRITON.modules,
    planned=TRITON.planned,
)
