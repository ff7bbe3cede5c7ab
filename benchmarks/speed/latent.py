"""Latent attention (MLA): the tensors of a case, who computes it, and what some rows of the output must be."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from attn_contract import Batch, Layer, Layout
from attn_optimized import paged_attention, plan_of
from attn_optimized.attention import paged_attention_calls
from attn_optimized.device import architecture_of, compute_units_of
from attn_optimized.launch.table import Parameters
from attn_optimized.launch.tiles import attention_tiles
from attn_optimized.launch.workload import Workload

from benchmarks.speed.calls import DTYPE, FLOAT8, K_SCALE, LOGIT_STD, TABLE_PADDING
from benchmarks.speed.latent_cases import LatentCase
from benchmarks.speed.participants import OURS, VLLM, Participant, Prepared

VLLM_WORK_PER_SPLIT, VLLM_PROGRAMS_PER_UNIT = 512, 2
"""What its backend TRITON_MLA chooses the number of splits by."""
SAMPLED_ROWS = 32


@dataclass(frozen=True, eq=False)
class LatentCall:
    """A step over a latent cache."""

    case: LatentCase
    q: torch.Tensor
    layer: Layer
    batch: Batch
    kv_cache: torch.Tensor

    def new_output(self) -> torch.Tensor:
        shape = (self.case.num_tokens, self.case.num_heads, self.case.latent_size)
        return torch.full(shape, torch.nan, dtype=self.q.dtype, device=self.q.device)


def latent_call(case: LatentCase, device: torch.device, seed: int) -> LatentCall:
    """Normal numbers, and blocks in random order."""
    generator = torch.Generator(device).manual_seed(seed)
    normal = functools.partial(torch.randn, generator=generator, device=device)
    q = normal((case.num_tokens, case.num_heads, case.head_size), dtype=torch.float32).mul_(LOGIT_STD).to(DTYPE)
    blocks = [-(-n // case.block_size) for n in case.seq_lens]
    kv_cache = torch.empty(
        (sum(blocks), case.block_size, case.head_size), dtype=FLOAT8 if case.float8_cache else DTYPE, device=device
    )
    for block in kv_cache.split(256):
        rows = normal(block.shape, dtype=torch.float32)
        block.copy_(rows.div_(K_SCALE) if case.float8_cache else rows)
    table = torch.zeros(len(blocks), max(blocks) + TABLE_PADDING, dtype=torch.int32, device=device)
    order = torch.randperm(sum(blocks), device=device, generator=generator).int()
    for row, part in zip(table, order.split(blocks), strict=True):
        row[: len(part)] = part
    layer = Layer(
        num_heads=case.num_heads,
        num_kv_heads=1,
        head_size=case.head_size,
        head_size_v=case.latent_size,
        scale=case.head_size**-0.5,
        layout=Layout.LATENT,
        kv_cache_dtype=FLOAT8 if case.float8_cache else None,
        k_scale=torch.tensor(K_SCALE, device=device) if case.float8_cache else None,
    )
    batch = Batch(
        query_start_loc=torch.tensor([0, *itertools.accumulate(case.query_lens)], dtype=torch.int32, device=device),
        seq_lens=torch.tensor(case.seq_lens, dtype=torch.int32, device=device),
        max_query_len=max(case.query_lens),
        max_seq_len=max(case.seq_lens),
        num_actual_tokens=case.num_tokens,
        causal=True,
        block_table=table,
    )
    return LatentCall(case, q, layer, batch, kv_cache)


def ours(call: LatentCall) -> Prepared:
    out = call.new_output()
    return Prepared(functools.partial(paged_attention, call.q, call.kv_cache, call.layer, call.batch, out=out), lambda _: out)


def participants(vllm: SimpleNamespace | None, tries: Mapping[str, Sequence[int]]) -> Iterator[Participant]:
    """Ours, ours with each combination of other launch parameters, and vLLM's kernel for steps of one length.

    Args:
        tries: values by the names of the fields of Parameters.
    """

    def joins(case: object) -> bool:
        return isinstance(case, LatentCase)

    yield Participant(OURS, ours, joins)
    for values in itertools.product(*tries.values()) if tries else ():
        changed = dict(zip(tries, values, strict=True))
        name = " ".join(f"{name}={value}" for name, value in changed.items())
        yield Participant(name, functools.partial(ours_with, changed), joins)
    if vllm is not None:
        yield Participant(VLLM, functools.partial(vllm_triton, vllm), lambda case: joins(case) and len({*case.query_lens}) == 1)


def ours_with(changed: Mapping[str, int], call: LatentCall) -> Prepared:
    """With some launch parameters other than those of the table."""
    out, gpu = call.new_output(), (architecture_of(call.q.device, call.q.dtype), compute_units_of(call.q.device))
    today: Parameters = attention_tiles(Workload.of(call.q, call.layer, call.batch), *gpu).parameters
    plan = plan_of(call.q, call.layer, call.batch, parameters=dataclasses.replace(today, **changed))

    def run() -> None:
        for launch in paged_attention_calls(call.q, call.kv_cache, call.layer, call.batch, plan, out=out):
            launch.run(call.q.device)

    return Prepared(run, lambda _: out)


def vllm_triton(module: SimpleNamespace, call: LatentCall) -> Prepared:
    """`decode_attention_fwd` as vLLM's TRITON_MLA calls it: one row for each query token, its own length beside it."""
    case, batch = call.case, call.batch
    out, query_len = call.new_output(), case.query_lens[0]
    num_splits = 1 << (max(1, batch.max_seq_len // VLLM_WORK_PER_SPLIT) - 1).bit_length()
    num_splits = min(num_splits, compute_units_of(call.q.device) * VLLM_PROGRAMS_PER_UNIT)
    block_table = batch.block_table
    assert block_table is not None
    ahead = torch.arange(1 - query_len, 1, device=out.device, dtype=torch.int32)
    one = torch.ones((), device=out.device) if call.layer.k_scale is None else call.layer.k_scale
    arguments: dict[str, Any] = {
        "q": call.q,
        "k_buffer": call.kv_cache.unsqueeze(2),
        "v_buffer": call.kv_cache.unsqueeze(2)[..., : case.latent_size],
        "o": out,
        "lse": torch.empty(out.shape[:2], dtype=out.dtype, device=out.device),
        "req_to_token": block_table.repeat_interleave(query_len, dim=0),
        "b_seq_len": (batch.seq_lens.unsqueeze(1) + ahead).flatten(),
        "attn_logits": torch.empty((*out.shape[:2], num_splits, case.latent_size + 1), dtype=torch.float32, device=out.device),
        "num_kv_splits": num_splits,
        "sm_scale": call.layer.scale,
        "page_size": case.block_size,
        "k_scale": one,
        "v_scale": one,
        "is_mla": True,
    }
    return Prepared(functools.partial(module.decode_attention_fwd, **arguments), lambda _: out)


def sampled_rows(call: LatentCall) -> list[int]:
    """The last row of some requests, and the first of theirs that has several."""
    case = call.case
    starts = [0, *itertools.accumulate(case.query_lens)]
    step = max(1, len(case.query_lens) // (SAMPLED_ROWS // 2))
    return sorted({row for r in range(0, len(case.query_lens), step) for row in (starts[r], starts[r + 1] - 1)})


def expected_rows(call: LatentCall, rows: list[int]) -> torch.Tensor:
    """[len(rows), N, latent_size] float64: attention of these rows of q."""
    case, found, table = call.case, [], call.batch.block_table
    assert table is not None
    starts = [0, *itertools.accumulate(case.query_lens)]
    for row in rows:
        request = next(r for r in range(len(case.query_lens)) if row < starts[r + 1])
        num_keys = case.num_keys(request, row - starts[request])
        blocks = table[request, : -(-num_keys // case.block_size)].long()
        stored = call.kv_cache.view(torch.uint8) if case.float8_cache else call.kv_cache  # not every device indexes float8
        key = stored[blocks].view(call.kv_cache.dtype).flatten(0, 1)[:num_keys].double()
        if call.layer.k_scale is not None:
            key *= call.layer.k_scale.double()
        weights = (call.layer.scale * call.q[row].double() @ key.T).softmax(-1)
        found.append(weights @ key[:, : case.latent_size])
    return torch.stack(found)
