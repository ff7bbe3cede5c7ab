"""Checks of values in tensors. Each check copies the values to the host, which waits for the device."""

from collections.abc import Mapping

import torch

from attn_contract.batch import Batch
from attn_contract.errors import ContractError
from attn_contract.indexer import IndexCacheView, Indexer
from attn_contract.kv_cache_view import KVCacheView
from attn_contract.layer import SCALES, SMALLEST_NORMAL, Layer

MAX_LOGIT = 2.0**126
"""The largest finite sink or bias. A softmax in base 2 multiplies logits by log2(e), and float32 ends at 2^128: beyond
it, an infinity would stand for a finite logit. -inf, and not a very negative number, is what hides a key."""
MAX_VALUE = 2.0**100
"""The largest product of a request's number of keys and magnitude of V. A softmax that divides by the sum of weights at the end
adds up that much before, and more if its weights are above 1: float32 ends at 2^128."""


def check_lengths(batch: Batch, names: tuple[str, str] = ("query_start_loc", "seq_lens")) -> torch.Tensor:
    """Check query_start_loc and seq_lens against each other and against the bounds of the batch.

    Args:
        names: the caller's names of query_start_loc and seq_lens, for messages.

    Returns:
        [R] int64 on the host: the number of query tokens of each request.

    Raises:
        ContractError: query_start_loc does not start at 0, falls, or goes beyond num_actual_tokens; a length is negative or
            larger than max_query_len or max_seq_len says.
    """
    start_name, seq_name = names
    starts = batch.query_start_loc.cpu().long()  # differences of int32 may wrap
    if starts[0] != 0:
        raise ContractError(f"{start_name}[0]", int(starts[0]), "0")
    query_lens = starts.diff()
    if len(falls := (query_lens < 0).nonzero()):
        r = int(falls[0])
        raise ContractError(
            f"{start_name}[{r + 1}]", int(starts[r + 1]), f"at least {int(starts[r])}: a prefix sum does not fall"
        )
    if starts[-1] > batch.num_actual_tokens:
        raise ContractError(f"{start_name}[-1]", int(starts[-1]), f"at most num_actual_tokens ({batch.num_actual_tokens})")
    if len(long := (query_lens > batch.max_query_len).nonzero()):
        r = int(long[0])
        raise ContractError("max_query_len", batch.max_query_len, f"at least {int(query_lens[r])}, request {r}'s query length")
    seq_lens = batch.seq_lens.cpu()
    _refuse_first(seq_name, seq_lens, seq_lens < 0, "at least 0")
    if len(long := (seq_lens > batch.max_seq_len).nonzero()):
        r = int(long[0])
        raise ContractError("max_seq_len", batch.max_seq_len, f"at least {int(seq_lens[r])}, request {r}'s length")
    return query_lens


def check_keys_are_own(batch: Batch, query_lens: torch.Tensor) -> None:
    """Check that each request has as many keys as queries, as an encoder's does. `query_lens`: [R] int64 on the host."""
    different = (batch.seq_lens.cpu() != query_lens).nonzero()
    if len(different):
        r = int(different[0])
        expected = f"{int(query_lens[r])}, the request's query length: its keys are its own tokens"
        raise ContractError(f"seq_lens[{r}]", int(batch.seq_lens[r]), expected)


def check_block_table(block_table: torch.Tensor, num_keys: torch.Tensor, view: KVCacheView | IndexCacheView) -> None:
    """Check that block_table [R, max_blocks] has a block of the cache for each of num_keys [R]. Later entries are garbage."""
    table, num_keys = block_table.cpu(), num_keys.cpu().long()
    capacity = table.shape[1] * view.block_size
    expected = f"at most {capacity} keys: block_table has {table.shape[1]} columns of {view.block_size} slots"
    _refuse_first("seq_lens", num_keys, num_keys > capacity, expected)
    blocks_used = (num_keys + view.block_size - 1) // view.block_size
    used = torch.arange(table.shape[1], device=table.device) < blocks_used[:, None]
    check_blocks(table, used, view)


def check_blocks(block_table: torch.Tensor, used: torch.Tensor, view: KVCacheView | IndexCacheView) -> None:
    """Check that those entries of a block table on the host which are used name blocks of the cache."""
    wrong = used & ((block_table < 0) | (block_table >= view.num_blocks))
    _refuse_first("block_table", block_table, wrong, f"a block of the cache, 0 to {view.num_blocks - 1}")


def check_slots(slot_mapping: torch.Tensor, view: KVCacheView | IndexCacheView) -> None:
    """Check that slot_mapping [S] holds -1 or slots of the cache, and no slot twice: the order of two writes is undefined."""
    slots = slot_mapping.cpu()
    expected = f"-1 (write nothing) or a slot of the cache, 0 to {view.num_slots - 1}"
    _refuse_first("slot_mapping", slots, (slots < -1) | (slots >= view.num_slots), expected)
    written = slots[slots >= 0].sort().values
    if len(twice := (written.diff() == 0).nonzero()):
        raise ContractError("slot_mapping", f"slot {int(written[twice[0]])} twice", "every slot at most once")


def check_selected(layer: Layer, batch: Batch) -> None:
    """Check that each row of a request selects units that have a key of the request, and no unit twice."""
    if batch.selected is None or layer.selection_unit is None:
        return
    selected, starts = batch.selected.cpu().long(), batch.query_start_loc.cpu().long()
    rows = int(starts[-1])
    units = -(-layer.num_keys(batch.seq_lens.cpu().long()) // layer.selection_unit)
    of_row = units.repeat_interleave(starts.diff())[None, :, None]
    own = selected[:, :rows]
    if len(wrong := (own >= of_row).nonzero()):
        h, t, i = wrong[0].tolist()
        expected = f"negative (no unit), or a unit of the request, 0 to {int(of_row[0, t, 0]) - 1}"
        raise ContractError(f"selected[{h}, {t}, {i}]", int(own[h, t, i]), expected)
    ordered = own.sort(-1).values
    if len(twice := ((ordered.diff(dim=-1) == 0) & (ordered[..., 1:] >= 0)).nonzero()):
        h, t, i = twice[0].tolist()
        raise ContractError(f"selected[{h}, {t}]", f"unit {int(ordered[h, t, i])} twice", "each unit at most once")


def check_seen_logits(logits: torch.Tensor, indexer: Indexer, batch: Batch, query_lens: torch.Tensor) -> None:
    """Check that the logits [HS, T, units] of the units that a row sees are no NaN. `query_lens`: [R] int64 on the host."""
    rows = int(query_lens.sum())
    # a row's distance to the end of its request, and with it the number of its first tokens
    ends = batch.query_start_loc[1:].cpu().long().repeat_interleave(query_lens)
    seq_lens = batch.seq_lens.cpu().long().repeat_interleave(query_lens)
    tokens = (seq_lens - (ends - 1 - torch.arange(rows, device="cpu"))).clamp(min=0) // indexer.key_unit * indexer.key_unit
    is_seen = torch.arange(logits.shape[2], device="cpu") < -(-tokens // indexer.selection_unit)[:, None]
    own = logits[:, :rows].cpu()
    _refuse_first("logits", own, own.isnan() & is_seen, "a number: the row sees the unit")


def check_positions(positions: torch.Tensor, num_rows: int) -> None:
    """Check that every position has a row of cos_sin_cache."""
    at = positions.cpu()
    _refuse_first("positions", at, (at < 0) | (at >= num_rows), f"a row of cos_sin_cache, 0 to {num_rows - 1}")


def check_logit_values(layer: Layer, batch: Batch) -> None:
    """Check alibi_slopes, sinks and qq_bias: finite numbers, sinks and biases up to MAX_LOGIT, or -inf, which hides."""
    check_layer_logits(layer)
    if batch.qq_bias is not None:
        bias = batch.qq_bias.cpu()
        expected = f"a number of at most {MAX_LOGIT:.2g} in magnitude, or -inf (hidden)"
        _refuse_first("qq_bias", bias, _no_logit(bias), expected)


def check_layer_logits(layer: Layer) -> None:
    """Check a layer's alibi_slopes and sinks: finite numbers, sinks up to MAX_LOGIT, or -inf, which is no sink."""
    if layer.alibi_slopes is not None:
        slopes = layer.alibi_slopes.cpu()
        _refuse_first("alibi_slopes", slopes, ~slopes.isfinite(), "a finite number")
    if layer.sinks is not None:
        sinks = layer.sinks.float().cpu()
        expected = f"a logit of at most {MAX_LOGIT:.2g} in magnitude, or -inf (no sink)"
        _refuse_first("sinks", sinks, _no_logit(sinks), expected)


def check_scale_values(tensors: Mapping[str, torch.Tensor]) -> None:
    """Check the SCALES that `tensors` has: positive normal numbers, to divide by."""
    for name in SCALES:
        if name in tensors:
            scale = tensors[name].flatten().cpu()
            wrong = ~scale.isfinite() | (scale < SMALLEST_NORMAL)
            _refuse_first(name, scale, wrong, "a finite number of at least 2^-126")


def _no_logit(values: torch.Tensor) -> torch.Tensor:
    """True where a value is neither -inf nor at most MAX_LOGIT in magnitude, as NaN is not."""
    return ~((values.abs() <= MAX_LOGIT) | (values == -torch.inf))


def _refuse_first(name: str, values: torch.Tensor, wrong: torch.Tensor, expected: str) -> None:
    """Raise ContractError for the first element, by its place, where `wrong` is True."""
    if len(places := wrong.nonzero()):
        place = places[0].tolist()
        raise ContractError(f"{name}{place}", values[tuple(place)].item(), expected)
