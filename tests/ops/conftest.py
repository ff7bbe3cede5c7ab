"""Each small call of an op, on each device that there is."""

import pytest
import torch

from tests.ops.small_calls import CALLS, Call

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=needs_gpu)])
def device(request) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(params=CALLS)
def call(request, device) -> Call:
    if device.type == "cpu" and "batch-invariant" in request.param:
        pytest.skip("the reference refuses batch_invariant=True")
    torch.manual_seed(0)
    arguments = CALLS[request.param](device)
    return Call(getattr(torch.ops.attn_parity, request.param.split()[0]).default, arguments)
