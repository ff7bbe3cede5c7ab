"""The ops, and the functions of both sides behind them, give the same bits whatever torch is set to, and refuse vmap."""

from collections.abc import Callable
from typing import Any

import attn_optimized
import attn_reference
import pytest
import torch
from attn_contract import ContractError, ops

from tests.ops.small_calls import CALLS
from tests.support.ambient import DEVICES, states_that_change

OF_MODELS_DTYPE = ("q", "k", "v", "kv_cache", "kv_c", "k_pe", "out_a", "out_b", "outs", "index_cache", "out")
SIDES = {"reference": attn_reference, "optimized": attn_optimized}


def in_dtype(arguments: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The arguments, where tensors of the model's dtype are of another one than float32."""
    names = set(OF_MODELS_DTYPE) - ({"out"} if "index_cache" in arguments else set())
    return {
        name: value.to(dtype) if name in names and isinstance(value, torch.Tensor) and value.dtype == torch.float32 else value
        for name, value in arguments.items()
    }


def call_of(name: str, side: str, arguments: dict[str, Any]) -> Callable[[], list[torch.Tensor]]:
    """A call of a side's function with copies of the tensors; it returns all of them."""
    op = name.split()[0]
    schema = getattr(torch.ops.attn_parity, op).default._schema
    required = [argument.name for argument in schema.arguments if not argument.kwarg_only]
    function = ops.kernel_of(op, SIDES[side])

    def call() -> list[torch.Tensor]:
        own = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in arguments.items()}
        by_place = [own.pop(key) for key in required if key in own]
        function(*by_place, **own)
        return [value for value in (*by_place, *own.values()) if isinstance(value, torch.Tensor)]

    return call


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("device", DEVICES)
def test_no_state_of_torch_changes_a_result(name, side, device):
    if side == "reference" and "batch-invariant" in name:
        pytest.skip("the reference refuses batch_invariant=True")
    if (side, device) == ("optimized", "cpu") and len(DEVICES) > 1:
        pytest.skip("kernels that are compiled for the GPU take no tensors of the CPU")
    torch.manual_seed(0)
    arguments = CALLS[name](torch.device(device))
    dtypes = [torch.float32]
    if "select" not in name and not any(word in name for word in ("float8", "int8", "LATENT")):
        dtypes += [torch.bfloat16, torch.float16]
    changed = {dtype: states_that_change(call_of(name, side, in_dtype(arguments, dtype))) for dtype in dtypes}
    assert {dtype: states for dtype, states in changed.items() if states} == {}


@pytest.mark.parametrize("name", ops.SCHEMAS)
@pytest.mark.parametrize("device", DEVICES)
def test_ops_do_not_depend_on_it_either(name, device):
    """As torch dispatches them."""
    arguments = CALLS[name](torch.device(device))
    op = getattr(torch.ops.attn_parity, name).default

    def call() -> list[torch.Tensor]:
        own = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in arguments.items()}
        op(**own)
        return [value for value in own.values() if isinstance(value, torch.Tensor)]

    assert states_that_change(call) == []


@pytest.mark.parametrize("name", ops.SCHEMAS)
@pytest.mark.parametrize("called", [*SIDES, "op"])
def test_vmap_is_refused(name, called, device):
    if called == "reference" and device.type != "cpu":
        pytest.skip("the reference's kernels are those of CPUs")
    arguments = CALLS[name](device)
    op = getattr(torch.ops.attn_parity, name).default if called == "op" else None
    first = next(key for key, value in arguments.items() if isinstance(value, torch.Tensor))

    def one(tensor: torch.Tensor) -> torch.Tensor:
        given = arguments | {first: tensor}
        call_of(name, called, given)() if op is None else op(**given)
        return tensor

    with pytest.raises(ContractError, match=rf"{first}: got a tensor under torch\.func\.vmap, expected"):
        torch.func.vmap(one)(torch.stack([arguments[first]] * 2))
