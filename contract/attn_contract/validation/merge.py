"""The merge of two attention states."""

import torch

from attn_contract.arguments import check_dense_last
from attn_contract.errors import ContractError
from attn_contract.layer import FLOAT_DTYPES
from attn_contract.validation.shapes import check_lse, given
from attn_contract.validation.tensors import check_tensors


def check_merge_attn_states(
    out_a: torch.Tensor,
    lse_a: torch.Tensor,
    out_b: torch.Tensor,
    lse_b: torch.Tensor,
    out: torch.Tensor | None,
    lse: torch.Tensor | None,
) -> None:
    """Check a merge of two attention states, each an out [T, H, D] and an lse [H, T] float32.

    Elements are merged one by one. So `out` may be `out_a` or `out_b` itself and `lse` may be their LSE, but a written tensor
    must not overlap a read one in any other way.

    Raises:
        ContractError: naming the first argument that is wrong.
    """
    states = {"out_a": out_a, "lse_a": lse_a, "out_b": out_b, "lse_b": lse_b}
    check_tensors(states, given(out=out, lse=lse), in_place={"out": ("out_a", "out_b"), "lse": ("lse_a", "lse_b")})
    if out_a.dim() != 3 or out_a.dtype not in FLOAT_DTYPES or 0 in out_a.shape[1:]:
        raise ContractError(
            "out_a", f"{out_a.dtype} {tuple(out_a.shape)}", "(T, H, D) of float32, float16 or bfloat16, H and D at least 1"
        )
    for name, tensor in given(out_a=out_a, out_b=out_b, out=out).items():
        if tensor.shape != out_a.shape or tensor.dtype != out_a.dtype:
            raise ContractError(
                name, f"{tensor.dtype} {tuple(tensor.shape)}", f"{out_a.dtype} {tuple(out_a.shape)}, as out_a has"
            )
        check_dense_last(name, tensor)
    for name, tensor in given(lse_a=lse_a, lse_b=lse_b, lse=lse).items():
        check_lse(name, tensor, out_a)
