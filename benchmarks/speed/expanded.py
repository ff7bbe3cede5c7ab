"""Expanded attention of a prefill: our kernel, and PyTorch's on dense tensors, with V padded where it must be as wide as K."""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from attn_contract import Batch, Layer
from attn_optimized import varlen_attention
from attn_optimized.backends.triton_mla.context import expanded_layer
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention

from benchmarks.speed.calls import DTYPE, LOGIT_STD
from benchmarks.speed.latent_cases import ExpandedCase
from benchmarks.speed.participants import OURS, SDPA, Participant, Prepared

SAMPLED_ROWS = 16


@dataclass(frozen=True, eq=False)
class ExpandedCall:
    """Prompts, of which each query sees the keys of its request up to its own."""

    case: ExpandedCase
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    layer: Layer
    batch: Batch


def expanded_call(case: ExpandedCase, device: torch.device, seed: int) -> ExpandedCall:
    """Normal numbers."""
    generator = torch.Generator(device).manual_seed(seed)
    sizes = (case.head_size, case.head_size, case.head_size_v)
    q, k, v = (
        torch.randn((case.num_tokens, case.num_heads, size), generator=generator, device=device).to(DTYPE) for size in sizes
    )
    batch = Batch(
        query_start_loc=torch.tensor([0, *itertools.accumulate(case.query_lens)], dtype=torch.int32, device=device),
        seq_lens=torch.tensor(case.query_lens, dtype=torch.int32, device=device),
        max_query_len=max(case.query_lens),
        max_seq_len=max(case.query_lens),
        num_actual_tokens=case.num_tokens,
        causal=False,
    )
    layer = expanded_layer(case.num_heads, case.head_size, case.head_size_v, case.head_size**-0.5)
    return ExpandedCall(case, q.mul_(LOGIT_STD), k, v, layer, batch)


def ours(call: ExpandedCall) -> Prepared:
    shape = (call.case.num_tokens, call.case.num_heads, call.case.head_size_v)
    out = torch.full(shape, torch.nan, dtype=DTYPE, device=call.q.device)
    run = functools.partial(varlen_attention, call.q, call.k, call.v, call.layer, call.batch, out=out)
    return Prepared(run, lambda _: out)


def sdpa(backend: SDPBackend, call: ExpandedCall) -> Prepared:
    """Dense attention over [R, H, S, D]. cuDNN takes V as it is, and flash attention one that is as wide as K."""
    case, requests = call.case, len(call.case.query_lens)
    width = case.head_size_v if backend is SDPBackend.CUDNN_ATTENTION else case.head_size
    wide = call.q, call.k, pad(call.v, (0, width - case.head_size_v))
    q, k, v = (rows.unflatten(0, (requests, -1)).transpose(1, 2).contiguous() for rows in wide)

    def run() -> torch.Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, k, v, is_causal=True, scale=call.layer.scale)

    return Prepared(run, lambda out: out.transpose(1, 2).flatten(0, 1)[..., : case.head_size_v])


def participants() -> Iterator[Participant]:
    """Ours first, then PyTorch's: cuDNN's on a GPU alone."""

    def joins(case: object) -> bool:
        return isinstance(case, ExpandedCase)

    yield Participant(OURS, ours, joins)
    for name, backend in SDPA.items():
        if torch.cuda.is_available() or backend is not SDPBackend.CUDNN_ATTENTION:
            yield Participant(name, functools.partial(sdpa, backend), joins)


def sampled_rows(call: ExpandedCall) -> list[int]:
    """Rows at equal distances, and the last one, which sees the most keys."""
    case = call.case
    return sorted({*range(0, case.num_tokens, max(1, case.num_tokens // SAMPLED_ROWS)), case.num_tokens - 1})


def expected_rows(call: ExpandedCall, rows: list[int]) -> torch.Tensor:
    """[len(rows), H, head_size_v] float64: attention of these rows of q."""
    starts, found = [0, *itertools.accumulate(call.case.query_lens)], []
    for row in rows:
        first = max(start for start in starts if start <= row)
        keys, values = call.k[first : row + 1].double(), call.v[first : row + 1].double()
        weights = torch.einsum("hd,nhd->hn", call.layer.scale * call.q[row].double(), keys).softmax(-1)
        found.append(torch.einsum("hn,nhd->hd", weights, values))
    return torch.stack(found)
