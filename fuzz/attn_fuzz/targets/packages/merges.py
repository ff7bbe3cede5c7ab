"""merge_attn_states of vLLM's Triton and merge_state of SGLang's: the reference attends to parts of the keys, and they merge.

A part without a key has an output of 0, and no merge writes into a tensor that it reads: so their engines call them
(vllm/v1/attention/backends/flash_attn.py and model_executor/layers/attention/mla_attention.py;
sglang/srt/layers/attention/merge_state.py). SGLang's states are contiguous. In vLLM, an LSE may be the transpose of a backend's
[rows, H] (v1/attention/backends/mla/prefill/trtllm_ragged.py:257), and both outputs may be the first dims of wider ones
(model_executor/layers/attention/sparse_mla_attention.py:1241). Its LSE of a part without a key is -inf or +inf, as
FlashAttention-3 and 2 return it. Its prefix of rows without one is memory that nobody has written (mla_attention.py:3297).
Their suffix is the step itself, and has keys.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from attn_fuzz.findings import sglang
from attn_fuzz.targets.merge import TWO_STATES, MergeFunction, Merges, merge_target
from attn_fuzz.targets.packages.sglang import package as sglang_package
from attn_fuzz.targets.packages.vllm import package as vllm_package
from attn_fuzz.targets.rng import rng_of
from attn_fuzz.targets.target import Target

OF_VLLM, OF_SGLANG = vllm_package.ops("triton_merge_attn_states"), sglang_package.ops("merge_state")
BYTES = {4: torch.int32, 2: torch.int16, 1: torch.uint8}


def _dense(merge: Callable[..., Any]) -> MergeFunction:
    """A merge of tensors [rows, H, D] and [H, rows], made dense, into new ones. Where a part has no key, its output is 0."""

    def merged(out_a, lse_a, out_b, lse_b, *, out, lse, **options) -> None:
        new_out = torch.full(out.shape, torch.nan, dtype=out.dtype, device=out.device)
        new_lse = torch.full(lse_a.shape, torch.nan, device=out.device)
        states = ((out_a, lse_a), (out_b, lse_b))
        held = [torch.where(lse_of.T[..., None].isinf(), 0.0, part) for part, lse_of in states]
        lse_b = _without_infinities(lse_b, options.get("prefill_tokens_with_context"))
        merge(held[0].contiguous(), lse_a.contiguous(), held[1].contiguous(), lse_b.contiguous(), new_out, new_lse, **options)
        out.view(BYTES[out.itemsize]).copy_(new_out.view(BYTES[out.itemsize]))
        if lse is not None:
            lse.copy_(new_lse)

    return merged


def _without_infinities(lse: torch.Tensor, bound: int | None) -> torch.Tensor:
    """The LSE of a suffix, with -inf in place of +inf in the rows without a prefix."""
    is_alone = torch.arange(lse.shape[1], device=lse.device) >= (lse.shape[1] if bound is None else bound)
    return torch.where(is_alone & (lse == torch.inf), -torch.inf, lse)


def _of_vllm() -> MergeFunction:
    [module] = OF_VLLM.load()

    def merge(out_a, lse_a, out_b, lse_b, out, lse, **options) -> None:
        rng = rng_of((out.shape, sorted(options)))
        lse_a, lse_b = (x.T.contiguous().T if rng.random() < 0.5 else x for x in (lse_a, lse_b))
        wider = rng.choice((0, 0, 8))
        out_a, out_b = (torch.nn.functional.pad(x, (0, wider), value=torch.nan)[..., : x.shape[2]] for x in (out_a, out_b))
        module.merge_attn_states(out, out_a, lse_a, out_b, lse_b, output_lse=lse, **options)

    return _dense(merge)


def _of_sglang() -> MergeFunction:
    [module] = OF_SGLANG.load()

    def merge(out_a, lse_a, out_b, lse_b, out, lse) -> None:
        by_row = [x.T.contiguous() for x in (lse_a, lse_b)]
        merged = torch.full_like(by_row[0], torch.nan)
        module.merge_state_triton(out_a, by_row[0], out_b, by_row[1], out, merged)
        lse.copy_(merged.T)

    return _dense(merge)


def _target(name: str, load: Callable[[], MergeFunction], takes: Merges, **fields: Any) -> Target:
    target = merge_target(name, load, takes, refuses=False, **fields)
    output_dtypes = ("fp8_e4m3fn",) if takes.has_output_scale else ()
    return dataclasses.replace(
        target,
        support=lambda device: dataclasses.replace(
            target.support(device), output_dtypes=output_dtypes, max_tokens=32, max_seq_len=64
        ),
    )


VLLM_MERGE_ATTN_STATES = _target(
    "vllm-merge-attn-states",
    _of_vllm,
    Merges(empty_lses=(-torch.inf, torch.inf), has_prefix_bound=True, has_output_scale=True),
    description="the Triton merge_attn_states of vLLM: parts of the keys by the reference, merged",
    **OF_VLLM.fields(),
)
SGLANG_MERGE_STATE = _target(
    "sglang-merge-state",
    _of_sglang,
    TWO_STATES,
    description="the Triton merge_state of SGLang: parts of the keys by the reference, merged",
    **OF_SGLANG.fields(),
    findings=sglang.MERGE,
)
