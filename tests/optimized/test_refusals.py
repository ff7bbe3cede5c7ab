"""Refusals and their words, before anything is written."""

import contextlib
import os
import subprocess
import sys

import attn_optimized
import pytest
import torch
from attn_contract import UnsupportedError
from attn_optimized.attention import forget_launches

from tests.optimized.conftest import FUNCTIONS


def test_a_head_too_large_is_refused(paged_call):
    call = paged_call([1], [3], head_size=528)
    out = torch.full_like(call.q, 7)
    with pytest.raises(UnsupportedError, match=r"^attn_optimized: head size 528 not supported: .*; use attn_reference$"):
        attn_optimized.paged_attention(*call, out=out)
    assert (out == 7).all()


@pytest.mark.parametrize(
    ("interpret", "element", "words"),
    [
        ("0", "float32", ["a tensor on cpu not supported", "use attn_reference", "TRITON_INTERPRET=1"]),
        pytest.param(
            "1",
            "bfloat16",
            ["bfloat16 under Triton's interpreter not supported", "attn_fuzz.interpreted.interpreter.install()"],
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_where_no_kernel_can_run(interpret, element, words):
    """Run in another process: this one has decided already how it runs kernels."""
    program = f"""
import attn_optimized, torch
out, lse = torch.zeros(1, 1, 8, dtype=torch.{element}), torch.zeros(1, 1)
try:
    attn_optimized.merge_attn_states(out, lse, out, lse)
except NotImplementedError as error:
    print(error)
"""
    environment = {**os.environ, "TRITON_INTERPRET": interpret}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    for word in words:
        assert word in result.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU needs no interpreter")
@pytest.mark.parametrize("kind", FUNCTIONS)
@pytest.mark.parametrize("is_interpreted", [False, True], ids=["no interpreter", "bfloat16 computed wrongly"])
def test_every_function_refuses_a_cpu_where_its_kernels_cannot_run(is_interpreted, kind, every_call, monkeypatch):
    call = every_call(torch.bfloat16 if is_interpreted else torch.float32)[kind]
    forget_launches()
    if is_interpreted:
        monkeypatch.setattr("attn_optimized.device.interpreter_is_exact", lambda: False)
    else:
        monkeypatch.setattr("attn_optimized.device.INTERPRETED", False)
    # what is not quantized is copied as integers
    copies = is_interpreted and kind in ("write", "latent write")
    with contextlib.nullcontext() if copies else pytest.raises(UnsupportedError):
        call()
