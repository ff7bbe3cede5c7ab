"""Keys far behind the beginning of a sequence: a position that is computed in 16 bits, or as a float16, leads astray.

No case has so many keys, because the reference reads all of them. But through a window a query sees few keys, and where they
stand says nothing about them. So a step is attended to twice: behind a block of keys that no query sees, and behind many more.
In batch-invariant calls whole tiles of keys ahead change no bit. The keys that no query sees hold poison.
"""

import dataclasses
import functools
import math
import random
from collections.abc import Callable

import torch
from attn_contract import Batch, KVCacheView, Layer
from attn_fuzz.cases.poison import bits, poison

OFTEN = 1 / 16
"""How many steps are looked at: one takes two calls of attention."""
_BEYOND_INT16, _TILES_BEYOND_INT16 = 1 << 15, 1 << 22
"""Keys that come before: with the latter, tiles of 128 keys are too many for 16 bits, too."""
_WHOLE_TILES = 128
_MOST_BLOCKS = 1 << 19
"""Of all requests, so that a table is quickly made."""


def check(
    attend: Callable[..., object],
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: Layer,
    batch: Batch,
    lse: torch.Tensor | None,
    choose: random.Random,
) -> None:
    """Attend to a step through a window that no query's sequence is shorter than, and to the same keys far away.

    Args:
        attend: takes `kv_cache`, `layer`, `batch`, `out` and `lse`, and is batch-invariant.

    Raises:
        AssertionError: an output or an LSE is another one.
    """
    query_lens = batch.query_start_loc.diff()
    contexts = (batch.seq_lens - query_lens)[query_lens > 0].tolist()
    layout = layer.layout
    assert layout is not None
    # a query before its sequence would come to see keys
    if not contexts or min(contexts) < 0 or layout.has_inline_scales:
        return
    window = choose.choice((min(contexts), choose.randint(0, min(contexts)))), layer.window[1]
    layer = dataclasses.replace(layer, window=window, sink_tokens=0)
    sizes = {"num_kv_heads": layer.num_kv_heads, "head_size": layer.head_size, "head_size_v": layer.head_size_v}
    view = KVCacheView.of(kv_cache, layout, **sizes)
    unit = math.lcm(view.block_size, _WHOLE_TILES, layer.chunked_local or 1)
    before = -(-choose.choice((_BEYOND_INT16, _TILES_BEYOND_INT16)) // unit) * unit
    if before // view.block_size * batch.num_requests > _MOST_BLOCKS:
        before = -(-_BEYOND_INT16 // unit) * unit
    kv_cache, layer = _with_a_poisoned_block(kv_cache, layer)
    attend = functools.partial(attend, kv_cache=kv_cache, layer=layer)
    steps = [_behind(batch, more // view.block_size + 1, view.block_size, view.num_blocks) for more in (0, before)]
    near, far = (_results(attend, q, layer, step, lse) for step in steps)
    rows = int(batch.query_start_loc[-1])
    for name, one, other in zip(("output", "LSE"), near, far, strict=True):
        is_same = torch.equal(bits(one[:rows]), bits(other[:rows]))
        assert is_same, f"another {name} of {batch.num_requests} requests through {window} behind {before} keys"


def _with_a_poisoned_block(kv_cache: torch.Tensor, layer: Layer) -> tuple[torch.Tensor, Layer]:
    """The cache with one block more, and the layer with scales of its tokens."""
    assert layer.layout is not None
    scales = {name: getattr(layer, name) for name in ("k_scale_cache", "v_scale_cache")}
    longer = {name: None if scale is None else _longer(scale, 0) for name, scale in scales.items()}
    return _longer(kv_cache, layer.layout.dims.index("block")), dataclasses.replace(layer, **longer)


def _longer(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    shape = tuple(1 if i == dim else size for i, size in enumerate(tensor.shape))
    block = poison(shape, tensor.dtype, tensor.device)
    return torch.cat([bits(tensor), bits(block)], dim=dim).view(tensor.dtype)


def _results(
    attend: Callable[..., object], q: torch.Tensor, layer: Layer, batch: Batch, lse: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of the output [T, H * Dv] and of the LSE [T, H]."""
    dtype = q.dtype if layer.output_scale is None else torch.float8_e4m3fn
    out = torch.zeros(len(q), layer.num_heads, layer.value_size, device=q.device).to(dtype)
    own_lse = None if lse is None else torch.zeros_like(lse)
    attend(batch=batch, out=out, lse=own_lse)
    return out.flatten(1), torch.zeros(len(q), 1) if own_lse is None else own_lse.T


def _behind(batch: Batch, num_blocks: int, block_size: int, block: int) -> Batch:
    """The step with so many times one block before the keys of each request. Ranges hold the same keys and queries."""
    assert batch.block_table is not None
    ranges, num_keys = batch.bidirectional_ranges, num_blocks * block_size
    if ranges is not None:
        longest = batch.max_seq_len
        ranges = torch.stack([ranges[..., 0].clamp(0, longest), ranges[..., 1].clamp(-1, longest)], dim=-1) + num_keys
    blocks = torch.full_like(batch.block_table[:, :1], block).repeat(1, num_blocks)
    return dataclasses.replace(
        batch,
        seq_lens=batch.seq_lens + num_keys,
        max_seq_len=batch.max_seq_len + num_keys,
        block_table=torch.cat([blocks, batch.block_table], dim=1),
        bidirectional_ranges=ranges,
    )
