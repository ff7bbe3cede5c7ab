"""The interpreter made right: every bfloat16 and float8 value, against torch, in a process that interprets and nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from attn_fuzz.interpreted import interpreter
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter as triton_interpreter

FLOAT8 = {
    "fp8e4nv": torch.float8_e4m3fn,
    "fp8e4b8": torch.float8_e4m3fnuz,
    "fp8e5": torch.float8_e5m2,
    "fp8e5b16": torch.float8_e5m2fnuz,
}


def test_kernels_compute_as_torch_does():
    script = Path(__file__).with_name("interpreted_kernels.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_all_bfloat16_values_survive_float32():
    bits = np.arange(1 << 16, dtype=np.uint16)
    numbers = interpreter.convert(bits, "bf16", "fp32").view(np.float32)
    back = interpreter.convert(numbers, "fp32", "bf16")
    finite = ~np.isnan(numbers)
    assert (back[finite] == bits[finite]).all()
    assert np.isnan(interpreter.convert(back[~finite], "bf16", "fp32").view(np.float32)).all()


@pytest.mark.parametrize("name", FLOAT8)
def test_all_float8_values_are_decoded(name):
    bits = np.arange(256, dtype=np.uint8)
    expected = torch.from_numpy(bits).view(FLOAT8[name]).float().numpy()
    np.testing.assert_array_equal(interpreter.convert(bits, name, "fp32").view(np.float32), expected)


@pytest.mark.parametrize("name", FLOAT8)
def test_float8_rounds_to_the_nearest_and_saturates(name):
    """Against the nearest of all its values, found by search, for every bfloat16."""
    every = torch.arange(256, dtype=torch.uint8).view(FLOAT8[name]).double()
    finite = every[every.isfinite()].unique()
    numbers = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16).double()
    numbers = numbers[~numbers.isnan()]
    got = torch.from_numpy(interpreter.convert(numbers.float().numpy(), "fp32", name)).view(FLOAT8[name]).double()
    above = torch.searchsorted(finite, numbers.clamp(finite[0], finite[-1])).clamp(max=len(finite) - 1)
    below = (above - 1).clamp(min=0)
    clamped = numbers.clamp(finite[0], finite[-1])
    distance = torch.minimum((finite[above] - clamped).abs(), (finite[below] - clamped).abs())
    torch.testing.assert_close((got - clamped).abs(), distance, rtol=0, atol=0)


def test_a_fused_multiply_add_rounds_once():
    def handle(number):
        return triton_interpreter.TensorHandle(np.array([number], dtype=np.float32), tl.float32)

    fma = interpreter._fma_in_float64(lambda *arguments: pytest.fail("float32 is replaced"))
    x = 1 + 2.0**-12
    assert fma(None, handle(x), handle(x), handle(-(1 + 2.0**-11))).data == [2.0**-24], "rounded twice it is 0"


def test_nan_stays_nan():
    nan = np.array([np.nan], dtype=np.float32)
    for name in ("bf16", *FLOAT8):
        assert np.isnan(interpreter.convert(interpreter.convert(nan, "fp32", name), name, "fp32").view(np.float32)).all(), name


@pytest.mark.parametrize(
    ("holder", "name"), [(triton_interpreter, "_convert_float"), (TritonSemantic, "computation_type_impl")]
)
def test_a_triton_that_moved_its_hooks_is_named(holder, name, monkeypatch):
    monkeypatch.delattr(holder, name)
    with pytest.raises(RuntimeError, match=f"^triton {triton.__version__}: its interpreter has no {name}"):
        interpreter.install()
