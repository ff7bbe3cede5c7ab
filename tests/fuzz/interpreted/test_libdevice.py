"""libdevice in interpreted kernels: what is not computed is a limit by name, and exact mode carries what has an element."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from attn_fuzz.errors import LimitError
from attn_fuzz.exact import algebra, call, elements, interpreter
from attn_fuzz.exact.quantities import Quantities
from attn_fuzz.exact.refusal import NotCarriedError
from attn_fuzz.run.case.limits import limit_of
from triton.language.extra import cuda, hip, libdevice

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are interpreted on a CPU only")


@pytest.fixture(autouse=True, scope="module")
def installed():
    interpreter.install()


@triton.jit
def _kernel(x_ptr, y_ptr, FUNCTION: tl.constexpr):
    i = tl.program_id(0) * 16 + tl.arange(0, 16)
    tl.store(y_ptr + i, FUNCTION(tl.load(x_ptr + i)))


def test_a_function_that_is_not_computed_is_a_limit_with_its_name():
    with pytest.raises(triton.runtime.errors.InterpreterError) as raised:
        _kernel[(1,)](torch.ones(16), torch.empty(16), tl.constexpr(libdevice.rcp_rd))
    assert isinstance(raised.value.__cause__, LimitError)
    assert str(limit_of(raised.value)).startswith("rcp_rd of libdevice: its rounding is directed (lifted by compiled code")


LIMITS = {
    "tl.inline_asm_elementwise": lambda x: tl.inline_asm_elementwise("", "=r,r", [x], tl.float32, True, 1),
    "tl.map_elementwise": lambda x: tl.map_elementwise(lambda y: y, x),
    **{f"triton.language.extra.cuda.utils.{name}": getattr(cuda, name) for name in ("globaltimer", "smid", "num_warps")},
    "triton.language.extra.cuda.gdc.gdc_wait": cuda.gdc_wait,
    "triton.language.extra.hip.utils.memrealtime": hip.memrealtime,
}


@pytest.mark.parametrize("name", LIMITS)
def test_a_function_that_asks_for_a_gpu_is_a_limit_with_its_name(name):
    function = LIMITS[name] if name.startswith("tl.") else lambda x: LIMITS[name]()
    with pytest.raises(triton.runtime.errors.InterpreterError) as raised:
        _kernel[(1,)](torch.ones(16), torch.empty(16), tl.constexpr(function))
    assert str(limit_of(raised.value)).startswith(f"{name}: ")


METHODS = ("exp", "exp2", "log", "log2", "sin", "cos", "sqrt", "rsqrt", "erf", "floor", "ceil", "sqrt_rn")


@pytest.mark.parametrize("name", METHODS)
def test_a_method_of_a_block_is_the_function_of_its_name(name):
    """Before Triton 3.9 these methods are no builtins."""
    x, by_method, by_function = torch.linspace(0.1, 3, 16), torch.empty(16), torch.empty(16)
    _kernel[(1,)](x, by_method, tl.constexpr(lambda block: getattr(block, name)()))
    _kernel[(1,)](x, by_function, tl.constexpr(lambda block: getattr(tl, name)(block)))
    assert torch.equal(by_method, by_function)


def followed(function):
    x, y = torch.linspace(-1, 1, 32), torch.empty(32)
    seen = call.Call(Quantities({}), (x, y))
    with call.following(seen):
        _kernel[(2,)](x, y, tl.constexpr(getattr(libdevice, function)))
    return elements.of_floats(x.numpy().astype(np.float64)), seen.memory.shadow_of(y).get(np.arange(32))


@pytest.mark.parametrize(("function", "formula"), [("tanh", algebra.tanh), ("fast_expf", algebra.exp)])
def test_exact_mode_carries_it(function, formula):
    x, y = followed(function)
    assert (y.value == formula(x).value).all()


def test_exact_mode_refuses_what_has_no_element():
    with pytest.raises(triton.runtime.errors.InterpreterError) as raised:
        followed("cospi")
    assert isinstance(raised.value.__cause__, NotCarriedError)
    assert str(raised.value.__cause__) == "cospi of libdevice"
