"""Whether a participant computes the case: a sample of rows against float64, before anything is timed."""

import torch
from attn_contract.layouts import K, V

from benchmarks.speed.calls import DTYPE, Call, gathered

SAMPLED_ROWS = 64
LIMIT = 2 * torch.finfo(DTYPE).eps
"""The largest relative error: half an eps each for the output, the weights, a q that is scaled first, and dequantized keys and
values. Those of a sample of rows are independent, and what is allowed is their worst sum. The fuzzer is the strict judge: this
one sees a forgotten sink, cap or window, a wrong block, or a part of the keys left out."""


def sampled_rows(call: Call) -> list[int]:
    """Rows of q, from as many requests as there is room for: of each its last one, and others at random."""
    case = call.case
    generator = torch.Generator().manual_seed(0)
    requests = torch.randperm(len(case.query_lens), generator=generator)[:SAMPLED_ROWS].tolist()
    rows = []
    for request in requests:
        first, query_len = sum(case.query_lens[:request]), case.query_lens[request]
        queries = torch.randperm(query_len - 1, generator=generator)[: SAMPLED_ROWS // len(requests) - 1]
        rows += [first + query for query in (*queries.tolist(), query_len - 1)]
    return sorted(rows)


def expected_rows(call: Call, rows: list[int]) -> torch.Tensor:
    """[len(rows), H, D] float64: attention of these rows of q."""
    case, expected, first = call.case, [], 0
    for request, query_len in enumerate(case.query_lens):
        queries = [row - first for row in rows if first <= row < first + query_len]
        if queries:
            expected.append(_attended(call, request, first, queries))
        first += query_len
    return torch.cat(expected)


def _attended(call: Call, request: int, first: int, queries: list[int]) -> torch.Tensor:
    case, layer = call.case, call.layer
    ranges = [case.keys(request, query) for query in queries]
    num_keys = max(keys.stop for keys in ranges)
    k, v = (gathered(kv, call, request, num_keys).double() for kv in (K, V))
    if layer.k_scale is not None:
        v_scale = layer.k_scale if layer.v_scale is None else layer.v_scale  # a latent cache has one
        k, v = k * layer.k_scale.double(), v * v_scale.double()
    q = call.q[[first + query for query in queries]].double()
    q = q.unflatten(1, (layer.num_kv_heads, layer.num_heads // layer.num_kv_heads))  # [n, HK, H / HK, D]
    logits = layer.scale * torch.einsum("nhgd,khd->nhgk", q, k)
    if layer.logits_soft_cap:
        logits = layer.logits_soft_cap * torch.tanh(logits / layer.logits_soft_cap)
    for row, keys in zip(logits, ranges, strict=True):
        row[..., : keys.start] = -torch.inf
        row[..., keys.stop :] = -torch.inf
    if layer.selection_unit is not None and call.batch.selected is not None:
        units = torch.arange(num_keys, device=q.device) // layer.selection_unit
        for row, query in zip(logits, queries, strict=True):
            selected = call.batch.selected[:, first + query]
            row.masked_fill_(~torch.stack([torch.isin(units, of_head) for of_head in selected])[:, None], -torch.inf)
    if layer.sinks is not None:
        sinks = layer.sinks.double().view(layer.num_kv_heads, -1, 1).expand(*logits.shape[:-1], 1)
        logits = torch.cat([logits, sinks], dim=-1)
    weights = logits.softmax(dim=-1)[..., :num_keys]
    return torch.einsum("nhgk,khd->nhgd", weights, v).flatten(1, 2)


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Euclidean norm of the error over that of what is expected; infinite where something is not finite."""
    if not bool(got.double().isfinite().all()):
        return float("inf")
    return float((got.double() - expected).norm() / expected.norm())
