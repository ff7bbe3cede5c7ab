"""Targets for `attn-parity exhaust`: the reference with faults that need certain small calls."""

import dataclasses
import os
import signal
from pathlib import Path

import torch
from attn_contract import Batch, Layer
from attn_fuzz.errors import LimitError
from attn_fuzz.targets.engine import Engine
from attn_fuzz.targets.reference import REFERENCE_FP32
from attn_fuzz.targets.support import EVERYTHING
from attn_fuzz.targets.target import AttentionFunction, Target

attend = REFERENCE_FP32.attention
SMALL = dataclasses.replace(EVERYTHING, head_sizes=(16,), group_sizes=(1, 2), block_sizes=(1, 2))


def _target(name: str, attention: AttentionFunction, **fields) -> Target:
    fields = {"support": lambda device: SMALL, **fields}
    return dataclasses.replace(REFERENCE_FP32, name=f"small-{name}", description="planted", attention=attention, **fields)


def _window_one_short(q, k, v, kv_cache, layer: Layer, batch, *, out, lse) -> None:
    """vLLM #3385: W and W - 1 mixed up. A window of 0 stays."""
    left, right = layer.window
    attend(q, k, v, kv_cache, dataclasses.replace(layer, window=(left - (left > 0), right)), batch, out=out, lse=lse)


def _only_beside_others(q, k, v, kv_cache, layer, batch: Batch, *, out, lse) -> None:
    """No request is wrong alone: the last of three or more is."""
    attend(q, k, v, kv_cache, layer, batch, out=out, lse=lse)
    if batch.num_requests > 2 and batch.query_start_loc[-1] > 0:
        out[int(batch.query_start_loc[-1]) - 1] = 7


def _blocks_in_a_row(q, k, v, kv_cache, layer, batch: Batch, *, out, lse) -> None:
    """Block i of a request is taken for the first one plus i."""
    if batch.block_table is not None and batch.block_table.shape[1] > 1:
        table = batch.block_table.clone()
        used = batch.seq_lens > 0
        for i in range(1, table.shape[1]):
            table[used, i] = (table[used, 0] + i).clamp(max=kv_cache.shape[0] - 1)
        batch = dataclasses.replace(batch, block_table=table)
    attend(q, k, v, kv_cache, layer, batch, out=out, lse=lse)


def _first_request_is_short(q, k, v, kv_cache, layer, batch: Batch, *, out, lse) -> None:
    """Not equivariant: the first of two requests loses a key."""
    if batch.num_requests == 2:
        seq_lens = batch.seq_lens.clone()
        seq_lens[0] = max(int(seq_lens[0]) - 1, 0)
        batch = dataclasses.replace(batch, seq_lens=seq_lens)
    attend(q, k, v, kv_cache, layer, batch, out=out, lse=lse)


def _noting(q, k, v, kv_cache, layer: Layer, batch: Batch, *, out, lse) -> None:
    """Appends a line for each call, to the file that PLANTED_CALLED names."""
    table = [] if batch.block_table is None else batch.block_table.tolist()
    causal = batch.causal if isinstance(batch.causal, bool) else batch.causal.tolist()
    lengths = batch.query_start_loc.diff().tolist(), batch.seq_lens.tolist()
    line = f"{layer.window} {layer.sinks is not None} {causal} {lengths} {table}"
    with Path(os.environ["PLANTED_CALLED"]).open("a") as called:
        called.write(f"{line}\n")
    attend(q, k, v, kv_cache, layer, batch, out=out, lse=lse)


def _dies_of_four_keys(q, k, v, kv_cache, layer, batch: Batch, *, out, lse) -> None:
    if 4 in batch.seq_lens.tolist():
        os.kill(os.getpid(), signal.SIGSEGV)
    attend(q, k, v, kv_cache, layer, batch, out=out, lse=lse)


def _limited(q, k, v, kv_cache, layer, batch: Batch, *, out, lse) -> None:
    raise LimitError("planted")


def _nudged(q, k, v, kv_cache, layer: Layer, batch: Batch, *, out, lse) -> None:
    """All numbers are a little too large, by less than a bound of float32."""
    attend(q, k, v, kv_cache, layer, batch, out=out, lse=lse)
    out.add_(out * 2.0**-24)


def _through_numpy(q, k, v, kv_cache, layer: Layer, batch: Batch, *, out, lse) -> None:
    attend(q, k, v, kv_cache, layer, batch, out=out, lse=lse)
    out.copy_(torch.from_numpy(out.numpy().copy()))


def _only_beside_an_empty_request(q, k, v, kv_cache, layer, batch: Batch, *, out, lse) -> None:
    """The last row is wrong beside a request without a query. A batch without any query, which it does not serve, raises."""
    lengths = batch.query_start_loc.diff()
    if not lengths.any():
        raise TypeError("a batch without a query")
    attend(q, k, v, kv_cache, layer, batch, out=out, lse=lse)
    if not lengths.all():
        out[int(batch.query_start_loc[-1]) - 1] = 7


RIGHT = _target("right", attend)
LIMITED = _target("limited", _limited)
NUDGED = _target("nudged", _nudged)
THROUGH_NUMPY = _target("through-numpy", _through_numpy)
DIES_OF_FOUR_KEYS = _target("dies-of-four-keys", _dies_of_four_keys)
WINDOW_ONE_SHORT = _target("window-one-short", _window_one_short)
ONLY_BESIDE_OTHERS = _target("only-beside-others", _only_beside_others)
BLOCKS_IN_A_ROW = _target("blocks-in-a-row", _blocks_in_a_row)
FIRST_REQUEST_IS_SHORT = _target("first-request-is-short", _first_request_is_short)
NOTING = _target("noting", _noting)
ONLY_LARGE_BLOCKS = _target(
    "only-large-blocks", attend, support=lambda device: dataclasses.replace(SMALL, block_sizes=(16, 32))
)
ONLY_BESIDE_AN_EMPTY_REQUEST = _target(
    "only-beside-an-empty-request",
    _only_beside_an_empty_request,
    support=lambda device: dataclasses.replace(SMALL, engine=Engine(empty_batches=False)),
)
SERVES_NOTHING = _target(
    "serves-nothing", attend, support=lambda device: dataclasses.replace(SMALL, exclude=lambda case: "everything")
)
WITHOUT_ORACLE = _target("without-oracle", attend, oracle=False)
