"""The merges of partial results of attention: of two, and of any number."""

from typing import Literal, get_args

import torch

from attn_contract.arguments import check_dense_last, check_dims, check_int, shown
from attn_contract.errors import ContractError
from attn_contract.layer import FLOAT8_DTYPES, FLOAT_DTYPES, check_scale
from attn_contract.validation.shapes import check_lse, given
from attn_contract.validation.tensors import check_tensors

LseBase = Literal["e", "2"]
"""The base of the logarithm of an LSE."""


def check_merge_attn_states(
    out_a: torch.Tensor,
    lse_a: torch.Tensor,
    out_b: torch.Tensor,
    lse_b: torch.Tensor,
    out: torch.Tensor | None,
    lse: torch.Tensor | None,
    prefill_tokens_with_context: int | None = None,
    output_scale: torch.Tensor | None = None,
) -> None:
    """Check a merge of two attention states, each an out [T, H, D] and an lse [H, T] float32.

    Elements are merged one by one. So `out` may be `out_a` or `out_b` itself and `lse` may be their LSE, but a written tensor
    must not overlap a read one in any other way.
    """
    states = {"out_a": out_a, "lse_a": lse_a, "out_b": out_b, "lse_b": lse_b} | given(output_scale=output_scale)
    check_tensors(states, given(out=out, lse=lse), in_place={"out": ("out_a", "out_b"), "lse": ("lse_a", "lse_b")})
    if out_a.dim() != 3 or out_a.dtype not in FLOAT_DTYPES or 0 in out_a.shape[1:]:
        raise ContractError(
            "out_a", f"{out_a.dtype} {tuple(out_a.shape)}", "(T, H, D) of float32, float16 or bfloat16, H and D at least 1"
        )
    check_dense_last("out_a", out_a)
    _check_like("out_b", out_b, out_a, "out_a", out_a.dtype)
    _check_merged(out, out_a, "out_a", output_scale)
    for name, tensor in given(lse_a=lse_a, lse_b=lse_b, lse=lse).items():
        check_lse(name, tensor, out_a)
    if prefill_tokens_with_context is not None:
        check_int("prefill_tokens_with_context", prefill_tokens_with_context, minimum=0)
        if prefill_tokens_with_context > len(out_a):
            raise ContractError("prefill_tokens_with_context", prefill_tokens_with_context, f"at most the {len(out_a)} rows")


def check_merge_attn_parts(
    outs: torch.Tensor,
    lses: torch.Tensor,
    out: torch.Tensor | None,
    lse: torch.Tensor | None,
    lse_base: LseBase = "e",
    output_scale: torch.Tensor | None = None,
) -> None:
    """Check a merge of N attention states: outs [N, T, H, D] and lses [N, H, T] float32. The last stride of outs is 1.

    The written tensors have memory of their own: a part is a slice of `outs`, and what is written to one slice would be read as
    another part by a program that has not come to it yet.
    """
    check_tensors({"outs": outs, "lses": lses} | given(output_scale=output_scale), given(out=out, lse=lse))
    if outs.dim() != 4 or outs.dtype not in FLOAT_DTYPES or 0 in (outs.shape[0], *outs.shape[2:]):
        raise ContractError(
            "outs",
            f"{outs.dtype} {tuple(outs.shape)}",
            "(N, T, H, D) of float32, float16 or bfloat16, N, H and D at least 1",
        )
    check_dense_last("outs", outs)
    check_dims("lses", lses, ("N", "H", "T"))
    expected = (len(outs), outs.shape[2], outs.shape[1])
    if tuple(lses.shape) != expected or lses.dtype != torch.float32:
        raise ContractError("lses", f"{lses.dtype} {tuple(lses.shape)}", f"torch.float32 {expected}: parts, heads, tokens")
    _check_merged(out, outs[0], "a part", output_scale)
    if lse is not None:
        check_lse("lse", lse, outs[0])
    if lse_base not in get_args(LseBase):
        raise ContractError("lse_base", shown(lse_base), " or ".join(map(repr, get_args(LseBase))))


def _check_merged(out: torch.Tensor | None, part: torch.Tensor, name: str, output_scale: torch.Tensor | None) -> None:
    """Check the merged output against a part [T, H, D], called `name` in messages."""
    if output_scale is None:
        if out is not None:
            _check_like("out", out, part, name, part.dtype)
        return
    check_scale("output_scale", output_scale, heads=1)
    if out is None or out.dtype not in FLOAT8_DTYPES:
        expected = "float8_e4m3fn or float8_e4m3fnuz: there is an output_scale"
        raise ContractError("out", None if out is None else out.dtype, f"a tensor of {expected}" if out is None else expected)
    _check_like("out", out, part, name, out.dtype)


def _check_like(name: str, tensor: torch.Tensor, like: torch.Tensor, other: str, dtype: torch.dtype) -> None:
    if tensor.shape != like.shape or tensor.dtype != dtype:
        raise ContractError(name, f"{tensor.dtype} {tuple(tensor.shape)}", f"{dtype} {tuple(like.shape)}, as {other} has")
    check_dense_last(name, tensor)
