"""Regions of the rules of a call, and of the arguments of attention and of cache writes."""

from collections.abc import Callable

import torch
from attn_contract.layer import FLOAT_DTYPES
from attn_fuzz.cases.case import Case
from attn_fuzz.cases.poison import LEFTOVER
from attn_fuzz.cases.regions.batch import BATCH
from attn_fuzz.cases.regions.region import Predicate, Region, idle_stride, illegal, legal, not_drawn, of_rotation, of_tensor
from attn_fuzz.cases.tensors import Step

CALL: dict[str, tuple[Region, ...]] = {
    "non_causal": legal(on=lambda case, step: case.non_causal),
    "per_request_causal": legal(on=lambda case, step: case.per_request_causal),
    "lse": legal(on=lambda case, step: case.lse, off=lambda case, step: not case.lse),
    "rope": legal(on=lambda case, step: case.rope, off=lambda case, step: case.writes and not case.rope),
    "kv_sharing": legal(on=lambda case, step: case.cache is not None and not case.writes),
    "batch_invariant": (not_drawn("on", "a target's own: `triton@invariant` asks for it in every case"),),
    "over_ranks": (not_drawn("on", "a target's own: `triton-over-ranks` and others deal every case to ranks"),),
}


def _is_hidden_nan(case: Case, step: Step) -> bool:
    return case.cache is not None and case.recycled and any(0 <= case.window[0] < r.context_len for r in case.requests)


def _aligned(tensor: torch.Tensor) -> bool:
    steps = (tensor.data_ptr() // tensor.element_size(), *tensor.stride()[:-1])
    return all(step * tensor.element_size() % 16 == 0 for step in steps)


def _of_latent_write(holds: Callable[[torch.Tensor, torch.Tensor], object]) -> Predicate:
    """Whether the kv_c and k_pe of the step's write to a latent cache have a property."""
    return lambda case, step: case.has_latent_cache and any(holds(*write.latent_parts) for write in step.writes[:1])


_SEEN = "the contract says that the K and V of a key that some query of the request sees are finite"
ARGUMENTS: dict[str, tuple[Region, ...]] = {
    "q": (
        *legal(contiguous=of_tensor("q", lambda q: q.is_contiguous()), a_slice_of_one_tensor=lambda case, step: case.fused_qkv),
        Region("not aligned to 16 bytes", of_tensor("q", lambda q: not _aligned(q))),
        idle_stride("q"),
        *(Region(str(dtype), of_tensor("q", lambda q, dtype=dtype: q.dtype is dtype)) for dtype in FLOAT_DTYPES),
        Region("NaN in rows of no request", lambda case, step: case.rope is None and (case.unowned_rows or case.rows_past)),
        Region(
            "numbers in rows of no request that are rotated",
            of_rotation("positions", lambda positions, case: len(positions) > case.query_start_loc[-1]),
        ),
        Region(
            "numbers in rows behind those that are rotated",
            of_rotation("positions", lambda positions, case: len(positions) < case.num_rows),
        ),
        illegal("NaN, infinity in rows of a request", "the contract says nothing of the output: q is finite"),
    ),
    "k": (
        Region("none", lambda case, step: step.k is None),
        Region("contiguous", of_tensor("k", lambda k: k.is_contiguous())),
        idle_stride("k"),
        Region("infinities that a quantized cache saturates", lambda case, step: case.saturated),
        Region(
            "NaN, infinities and zeros that are written", lambda case, step: len(step.writes) > 1 and not case.ordinary_writes
        ),
        illegal("NaN, infinity in a key that is seen", _SEEN),
    ),
    "v": (
        Region(
            "strides unlike k's",
            lambda case, step: step.v is not None and step.k is not None and step.v.stride() != step.k.stride(),
        ),
        idle_stride("v"),
        illegal("NaN, infinity in a value that is seen", _SEEN),
    ),
    "kv_c": (
        Region("a slice of rows with k_pe", _of_latent_write(lambda kv_c, k_pe: kv_c.stride(0) == k_pe.stride(0))),
        Region("strides unlike k_pe's", _of_latent_write(lambda kv_c, k_pe: kv_c.stride(0) != k_pe.stride(0))),
        illegal("NaN, infinity in a key that is seen", _SEEN),
    ),
    "k_pe": (
        Region("no column", _of_latent_write(lambda kv_c, k_pe: not k_pe.shape[1])),
        Region("wider than kv_c", _of_latent_write(lambda kv_c, k_pe: k_pe.shape[1] > kv_c.shape[1])),
        illegal("NaN, infinity in a key that is seen", _SEEN),
    ),
    "kv_cache": (
        Region("NaN in slots without a key", lambda case, step: case.cache is not None and not case.finite_slots),
        Region("NaN in keys that no query sees", _is_hidden_nan),
        Region(
            "one element in a dimension of any stride",
            lambda case, step: case.unlike_strides and step.kv_cache is not None and 1 in step.kv_cache.shape,
        ),
        not_drawn(f"{LEFTOVER} in slots without a key", "NaN shows more; targets that ask for finite slots draw it"),
        illegal("NaN, infinity in a key or value that is seen", _SEEN),
    ),
    "out": (
        Region("[T, H, D]", lambda case, step: not case.flat_out),
        Region("[T, H * D]", lambda case, step: case.flat_out),
        Region("contiguous", of_tensor("out", lambda out: out.is_contiguous())),
        Region("rows longer than its own", of_tensor("out", lambda out: not out.is_contiguous())),
        idle_stride("out"),
        Region("float8", of_tensor("out", lambda out: out.element_size() == 1)),
        not_drawn("none", "targets' own: `triton@returned` and `triton-cascade@returned` call without it in every case"),
        not_drawn("beyond 2^31 elements", "a target's own: the rows of `triton@far` lie so far apart"),
    ),
    "lse": (
        Region("none", lambda case, step: step.lse is None),
        Region("rows longer than its own", of_tensor("lse", lambda lse: not lse.is_contiguous())),
        idle_stride("lse"),
        not_drawn(
            "contiguous", "its rows lie between guards; its stride is an argument of the kernels, which no path asks for"
        ),
    ),
    "layer": (not_drawn("its fields", "they have regions of their own"),),
    "batch": (not_drawn("its fields", "they have regions of their own"),),
    "values": (not_drawn("false", "a target's own: its calls in another mode, and layers of backends"),),
    "slot_mapping": BATCH["slot_mapping"][1:3],
    "positions": (
        Region("of the rows that count", of_rotation("positions", lambda at, case: len(at) == case.num_actual_tokens)),
        Region("of all rows", of_rotation("positions", lambda at, case: len(at) > case.num_actual_tokens)),
        illegal("beyond cos_sin_cache", "`validation.values` refuses it"),
    ),
    "cos_sin_cache": (
        Region("float32", of_rotation("cos_sin_cache", lambda table, case: table.dtype is torch.float32)),
        Region("of q's dtype", of_rotation("cos_sin_cache", lambda table, case: table.dtype is not torch.float32)),
        Region("of all dims", of_rotation("cos_sin_cache", lambda table, case: table.shape[1] == case.head_size)),
        Region("of some dims", of_rotation("cos_sin_cache", lambda table, case: table.shape[1] < case.head_size)),
    ),
    "is_neox": (
        Region("true", of_rotation("is_neox", lambda is_neox, case: is_neox)),
        Region("false", of_rotation("is_neox", lambda is_neox, case: not is_neox)),
    ),
}
