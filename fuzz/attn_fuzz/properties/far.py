"""Keys far after the beginning of a sequence: a position that is computed in 16 bits, or as a float16, leads astray.

No case has so many keys, because the reference reads all of them. But through a window a query sees few keys, and where they
stand says nothing about them. So a step is attended to twice: after a block of keys that no query sees, and after many more.
In batch-invariant calls whole tiles of keys ahead change no bit. The keys that no query sees hold poison.
"""

import dataclasses
import math
from typing import Any

import torch
from attn_contract import AttentionType, Batch
from attn_contract.rules import BLOCKS
from attn_fuzz.cases import axes
from attn_fuzz.cases.poison import bits, poison, storage_of
from attn_fuzz.cases.tensors import Step
from attn_fuzz.properties import rules
from attn_fuzz.properties.relation import CallTarget, Outputs, relation, same_bits, variant

_BEYOND_INT16, _TILES_BEYOND_INT16 = 1 << 15, 1 << 22
"""Keys that come before: with the latter, tiles of 128 keys are too many for 16 bits, too."""
_WHOLE_TILES = 128
_MAX_BLOCKS = 1 << 19
"""Most blocks of all requests, so that a table is quickly made."""
ONE_IN = 8


@relation(
    "far keys",
    says="A window over the same keys and values gives the same output wherever in a sequence it lies.",
    rules=rules.FAR,
    adds=("window",),
    applies="decoders with a context; a few of the steps",
)
def far_keys(step: Step, call_target: CallTarget, one_in: int = ONE_IN) -> str | None:
    """For targets that are batch-invariant, and take every rule of positions.

    Args:
        one_in: one step in this many is checked, chosen by its keys, because a table of that many blocks takes a while.
    """
    batch, layer = step.batch, step.layer
    query_lens = batch.query_start_loc.diff()
    contexts = (batch.seq_lens - query_lens)[query_lens > 0].tolist()
    # a query before its sequence would come to see keys
    if layer.attn_type is not AttentionType.DECODER or not contexts or min(contexts) < 0 or step.view is None:
        return None
    if step.view.layout.has_inline_scales or int(batch.seq_lens.sum()) % one_in:
        return None
    unit = math.lcm(step.view.block_size, _WHOLE_TILES, layer.chunked_local or 1)
    before = -(-_TILES_BEYOND_INT16 // unit) * unit
    if before // step.view.block_size * batch.num_requests > _MAX_BLOCKS:
        before = -(-_BEYOND_INT16 // unit) * unit
    changed = _with_a_poisoned_block(step, (min(contexts), layer.window[1]))
    blocks = (1, 1 + before // step.view.block_size)
    near, far = (variant(step, call_target, **changed, batch=_after_blocks(step, count)) for count in blocks)
    if message := same_bits(Outputs.of(near), Outputs.of(far)):
        return f"through a window of {min(contexts)} keys after {before} keys: {message}"
    return None


def _with_a_poisoned_block(step: Step, window: tuple[int, int]) -> dict[str, Any]:
    """The step's cache and layer with one block more, and the layer with a window that no sequence is shorter than."""
    view, layer = step.view, step.layer
    assert view is not None
    assert step.kv_cache is not None
    longer = _longer(step.kv_cache, view.layout.dims.index("block"))
    scales = {name: _longer(scale, 0) for name, scale in axes.taken(layer, layer, {BLOCKS: slice(None)}).items()}
    return {
        "raw": storage_of(longer),
        "view": layer.view_of(longer),
        "layer": dataclasses.replace(layer, **scales, window=window, sink_tokens=0),
    }


def _longer(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    shape = tuple(1 if i == dim else size for i, size in enumerate(tensor.shape))
    block = poison(shape, tensor.dtype, tensor.device)
    return torch.cat([bits(tensor), bits(block)], dim=dim).view(tensor.dtype)


def _after_blocks(step: Step, num_blocks: int) -> Batch:
    """The batch with one block, repeated, before the keys of each request. Ranges hold the same keys and queries."""
    batch, view = step.batch, step.view
    assert view is not None
    assert batch.block_table is not None
    ranges, num_keys = batch.bidirectional_ranges, num_blocks * view.block_size
    if ranges is not None:
        longest = batch.max_seq_len
        ranges = torch.stack([ranges[..., 0].clamp(0, longest), ranges[..., 1].clamp(-1, longest)], dim=-1) + num_keys
    blocks = torch.full_like(batch.block_table[:, :1], view.num_blocks).repeat(1, num_blocks)
    return dataclasses.replace(
        batch,
        seq_lens=batch.seq_lens + num_keys,
        max_seq_len=batch.max_seq_len + num_keys,
        block_table=torch.cat([blocks, batch.block_table], dim=1),
        bidirectional_ranges=ranges,
    )
