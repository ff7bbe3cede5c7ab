"""What is refused, in which words, before anything is written."""

import os
import subprocess
import sys
from dataclasses import replace

import attn_optimized
import pytest
import torch
from attn_contract import ContractError, UnsupportedError


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
