"""The tensors of a case."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import attn_reference
import torch
from attn_contract import Batch, KVCacheView, Layer
from torch.nn.functional import pad

from benchmarks.steps.cases import Attention, RowOp

DTYPE, FLOAT8 = torch.bfloat16, torch.float8_e4m3fn
DTYPES = {2: DTYPE, 4: torch.float32}
"""The dtype of each itemsize."""
LOGIT_STD = 3.0
"""Standard deviation of the logits of random keys: a softmax over keys that are all alike is a mean, and hides mistakes."""
LOGIT_STD_OF_CAP = 1 / 8
"""The share of a soft cap: the largest logits are then bent."""
K_SCALE, V_SCALE = 0.023, 0.019
TABLE_PADDING = 16
"""Columns past the last block, as engines have them: some kernels look up a whole tile's blocks, and mask then."""


def float8_of(architecture: str) -> torch.dtype:
    """The dtype of a float8 cache."""
    return torch.float8_e4m3fnuz if architecture == "gfx942" else FLOAT8


@dataclass(frozen=True, eq=False)
class Call:
    """A step: over a cache, or over dense k and v."""

    case: Attention
    q: torch.Tensor
    layer: Layer
    batch: Batch
    kv_cache: torch.Tensor | None = None
    k: torch.Tensor | None = None
    v: torch.Tensor | None = None

    @property
    def cache(self) -> torch.Tensor:
        """The cache of a step that reads one."""
        assert self.kv_cache is not None
        return self.kv_cache


def attention_call(
    case: Attention,
    device: torch.device,
    seed: int,
    float8: torch.dtype = FLOAT8,
    cache_bytes: int = 0,
    dtype: torch.dtype | None = None,
) -> Call:
    """The tensors of a case, drawn from a seed. On the device meta they have no values: such a call is only compiled.

    Args:
        float8: the dtype of a float8 cache.
        cache_bytes: the least size of the cache, in bytes; blocks that no request needs come last.
        dtype: the dtype of all but a float8 cache; None: as the case's `itemsize` says.
    """
    generator = None if device.type == "meta" else torch.Generator(device).manual_seed(seed)
    dtype = dtype or DTYPES[case.itemsize]
    q = normal((case.num_tokens, case.num_heads, case.head_size), device, generator, dtype)
    q.mul_(case.logits_soft_cap * LOGIT_STD_OF_CAP if case.logits_soft_cap else LOGIT_STD)
    layer = _layer(case, device, generator, float8)
    blocks = [-(-n // case.block_size) for n in case.seq_lens]
    kv_cache, block_table = None, None
    if reads_cache := case.attn_type.reads_cache:
        block_table = _block_table(case, blocks, device, generator)
        row_bytes = case.head_size * (float8 if case.float8_cache else dtype).itemsize
        enough_blocks = -(-cache_bytes // (2 * case.block_size * case.num_kv_heads * row_bytes))
        num_blocks = max(_num_blocks(case, blocks), enough_blocks)
        kv_cache = random_cache(case, num_blocks, device, generator, dtype, float8)
    starts = [0, *itertools.accumulate(case.query_lens)]
    batch = Batch(
        query_start_loc=torch.tensor(starts, dtype=torch.int32, device=device),
        seq_lens=torch.tensor(case.seq_lens, dtype=torch.int32, device=device),
        max_query_len=max(case.query_lens),
        max_seq_len=max(case.seq_lens),
        num_actual_tokens=case.num_tokens,
        causal=case.causal,
        block_table=block_table,
        selected=_selected(case, case.selection, device, generator) if case.selection else None,
    )
    if reads_cache:
        return Call(case, q, layer, batch, kv_cache=kv_cache)
    k, v = normal((2, case.num_tokens, case.num_kv_heads, case.head_size), device, generator, dtype)
    return Call(case, q, layer, batch, k=k, v=v[..., : case.head_size_v].contiguous())


def _layer(case: Attention, device: torch.device, generator: torch.Generator | None, float8: torch.dtype) -> Layer:
    return Layer(
        num_heads=case.num_heads,
        num_kv_heads=case.num_kv_heads,
        head_size=case.head_size,
        head_size_v=case.head_size_v,
        scale=case.head_size**-0.5,
        attn_type=case.attn_type,
        window=(-1, 0) if case.is_expanded else (-1, -1) if case.window is None else (case.window - 1, case.window - 1),
        chunked_local=case.chunked_local,
        logits_soft_cap=case.logits_soft_cap,
        sinks=_sinks(case, device, generator) if case.sinks else None,
        layout=case.layout if case.attn_type.reads_cache else None,
        selection_unit=case.selection[0] if case.selection else None,
        **_scales(case.float8_cache, device, float8, has_v=not case.is_latent),
    )


def _selected(
    case: Attention, selection: tuple[int, int], device: torch.device, generator: torch.Generator | None
) -> torch.Tensor:
    """[HK, T, W] int32: some of the units up to that of each query, none of them twice, and -1 where it has fewer."""
    unit, width = selection
    rows = []
    for request, query_len in enumerate(case.query_lens):
        last = torch.tensor([case.keys(request, i).stop - 1 for i in range(query_len)], device=device) // unit
        shape = (case.num_kv_heads, query_len, max(case.seq_lens) // unit + 1)
        order = torch.rand(shape, device=device, generator=generator)
        order.masked_fill_(torch.arange(shape[2], device=device) > last[:, None], -1)
        best, units = order.topk(min(width, shape[2]))
        rows.append(pad(torch.where(best < 0, -1, units).int(), (0, width - units.shape[-1]), value=-1))
    return torch.cat(rows, 1)


def random_cache(
    case: Attention | RowOp,
    num_blocks: int,
    device: torch.device,
    generator: torch.Generator | None,
    dtype: torch.dtype = DTYPE,
    float8: torch.dtype = FLOAT8,
) -> torch.Tensor:
    """A cache of normal numbers of a dtype, or of what float8 stores of such."""
    stored = float8 if case.float8_cache else dtype
    view = KVCacheView.dense(
        case.layout,
        num_blocks=num_blocks,
        block_size=case.block_size,
        num_kv_heads=case.num_kv_heads,
        head_size=case.head_size,
        itemsize=stored.itemsize,
        head_size_v=case.head_size_v if isinstance(case, Attention) else None,
    )
    raw = normal((view.end,), device, generator, DTYPE if case.float8_cache else dtype)
    return view.tensor(raw.div_(K_SCALE).to(float8) if case.float8_cache else raw)


def row_layer(case: RowOp, device: torch.device) -> Layer:
    return Layer(
        num_heads=case.num_heads,
        num_kv_heads=case.num_kv_heads,
        head_size=case.head_size,
        scale=case.head_size**-0.5,
        layout=case.layout,
        **_scales(case.float8_cache, device),
    )


def requests_of(call: Call) -> Iterator[attn_reference.Request]:
    """The requests of a step as the reference attends to them, in float64: queries, keys and values, and who sees which."""
    if call.kv_cache is not None:
        return attn_reference.paged_requests(call.q, call.kv_cache, call.layer, call.batch, torch.float64)
    assert call.k is not None
    assert call.v is not None
    return attn_reference.varlen_requests(call.q, call.k, call.v, call.layer, call.batch, torch.float64)


def _num_blocks(case: Attention, blocks: list[int]) -> int:
    """Blocks of the cache for requests with these numbers of blocks. A common prefix is stored once."""
    return sum(blocks) - case.common_prefix_len // case.block_size * (len(blocks) - 1)


def _block_table(case: Attention, blocks: list[int], device: torch.device, generator: torch.Generator | None) -> torch.Tensor:
    """[R, max_blocks + padding] int32: blocks in random order; those of a common prefix are request 0's."""
    shared = case.common_prefix_len // case.block_size
    own = [n - shared for n in blocks]
    order = torch.randperm(_num_blocks(case, blocks), device=device, generator=generator).int()
    table = torch.zeros(len(blocks), max(blocks) + TABLE_PADDING, dtype=torch.int32, device=device)
    table[:, :shared] = order[:shared]
    for row, part in zip(table, order[shared:].split(own), strict=True):
        row[shared : shared + len(part)] = part
    return table


def _sinks(case: Attention, device: torch.device, generator: torch.Generator | None) -> torch.Tensor:
    """Logits as large as those of all visible keys together: a sink that is forgotten doubles the output."""
    all_keys = math.log(len(case.keys(0, case.query_lens[0] - 1))) + LOGIT_STD**2 / 2
    return all_keys + torch.randn(case.num_heads, device=device, generator=generator)


def _scales(float8_cache: bool, device: torch.device, float8: torch.dtype = FLOAT8, *, has_v: bool = True) -> dict:
    if not float8_cache:
        return {}
    scales = {"k_scale": K_SCALE} | ({"v_scale": V_SCALE} if has_v else {})
    return {"kv_cache_dtype": float8, **{name: torch.tensor(scale, device=device) for name, scale in scales.items()}}


def normal(
    shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None, dtype: torch.dtype = DTYPE
) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=device).normal_(generator=generator)
