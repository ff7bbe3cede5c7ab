"""What is refused, in which words, before anything is written."""

import contextlib
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial

import attn_optimized
import pytest
import torch
from attn_contract import ContractError, Layout, UnsupportedError
from attn_optimized.attention import forget_launches


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head_size": 272}, "head size 272 not supported"),
    ],
)
def test_too_large(changes, words, paged_call):
    call = paged_call([1], [3], **changes)
    out = torch.full_like(call.q, 7)
    with pytest.raises(UnsupportedError, match=f"^attn_optimized: {words}: .*; use attn_reference$"):
        attn_optimized.paged_attention(*call, out=out)
    assert (out == 7).all()


def test_values_are_checked_on_demand(paged_call):
    call = paged_call([1], [3])
    table = torch.full_like(call.batch.block_table, 99)
    out = torch.full_like(call.q, 7)
    with pytest.raises(ContractError, match=r"block_table\[0, 0\]: got 99"):
        attn_optimized.paged_attention(
            call.q, call.kv_cache, call.layer, replace(call.batch, block_table=table), out=out, validate=True
        )
    assert (out == 7).all()


def test_every_function_checks_its_arguments(paged_call, varlen_call, device):
    call, dense = paged_call([1], [3]), varlen_call([3])
    with pytest.raises(ContractError, match="q"):
        attn_optimized.paged_attention(call.q[..., :8], *call[1:])
    with pytest.raises(ContractError, match="k"):
        attn_optimized.varlen_attention(dense.q, dense.k[..., :8], *dense[2:])
    with pytest.raises(ContractError, match="slot_mapping"):
        attn_optimized.write_kv_cache(dense.k, dense.v, call.kv_cache, call.layer, torch.zeros(3, device=device), validate=True)
    with pytest.raises(ContractError, match="lse_a"):
        attn_optimized.merge_attn_states(dense.q, torch.zeros(1, 1, device=device), dense.q, torch.zeros(1, 1, device=device))


@pytest.mark.parametrize(
    ("interpret", "element", "words"),
    [
        ("0", "float32", ["a tensor on cpu not supported", "use attn_reference", "TRITON_INTERPRET=1"]),
        ("1", "bfloat16", ["bfloat16 under Triton's interpreter not supported", "attn_fuzz.interpreted.interpreter.install()"]),
    ],
)
def test_where_no_kernel_can_run(interpret, element, words):
    """In another process: this one has decided already how it runs kernels."""
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


@pytest.fixture
def calls_in(paged_call, varlen_call, device):
    """Calls of every function by name, of tensors of a dtype, which the kernels compute with."""

    def build(dtype):
        step, dense = paged_call([3, 1], [20, 9], dtype=dtype), varlen_call([3, 2], dtype=dtype)
        latent = {"layout": Layout.LATENT, "num_kv_heads": 1, "head_size": 48, "head_size_v": 32, "dtype": dtype}
        k, v = torch.zeros(2, 2, 2, 32, dtype=dtype, device=device)
        slots = torch.full((2,), -1, dtype=torch.int64, device=device)
        angles = torch.tensor([[1.0, 0.0]], device=device)
        outs, lses = torch.zeros(2, 3, 2, 16, dtype=dtype, device=device), torch.zeros(2, 2, 3, device=device)
        zeros = slots.new_zeros(2)
        rope = partial(attn_optimized.rope_and_write_kv_cache, step.q[:2], k, v, zeros, angles, *step[1:3], slots)
        return {
            "paged": partial(attn_optimized.paged_attention, *step),
            "plan": partial(attn_optimized.plan_of, step.q, *step[2:]),
            "latent": partial(attn_optimized.paged_attention, *paged_call([2], [9], **latent)),
            "dense": partial(attn_optimized.varlen_attention, *dense),
            "cascade": partial(attn_optimized.cascade_attention, *step, 0),
            "rope": partial(rope, is_neox=True),
            "states": partial(attn_optimized.merge_attn_states, outs[0], lses[0], outs[1], lses[1]),
            "parts": partial(attn_optimized.merge_attn_parts, outs, lses),
            "write": partial(attn_optimized.write_kv_cache, k, v, *step[1:3], slots),
        }

    return build


KINDS = ("paged", "plan", "latent", "dense", "cascade", "rope", "states", "parts", "write")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU needs no interpreter")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_interpreted", [False, True], ids=["no interpreter", "bfloat16 computed wrongly"])
def test_every_function_refuses_a_cpu_where_its_kernels_cannot_run(is_interpreted, kind, calls_in, monkeypatch):
    call = calls_in(torch.bfloat16 if is_interpreted else torch.float32)[kind]
    forget_launches()
    if is_interpreted:
        monkeypatch.setattr("attn_optimized.device.interpreter_is_exact", lambda: False)
    else:
        monkeypatch.setattr("attn_optimized.device._INTERPRETED", False)
    copies = is_interpreted and kind == "write"  # what is not quantized is copied as integers
    with contextlib.nullcontext() if copies else pytest.raises(UnsupportedError):
        call()
