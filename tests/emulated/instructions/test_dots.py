"""Products of matrices that Triton compiled: see dots.py."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from attn_amdgcn import load, prepare
from attn_amdgcn.launch import launch

from tests.emulated import dots, matrices


@pytest.fixture(scope="module")
def assembly() -> dict[str, str]:
    """One process compiles all kernels, in 5 to 10 seconds: the compiler alone knows the layouts without this package."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.emulated.dots"]
    return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def stored(text: str, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The result that a kernel with these tensors as arguments stores into "c"."""
    buffers = {name: tensor.contiguous().view(torch.uint8).numpy().ravel() for name, tensor in tensors.items()}
    arguments = [*((name, 0) for name in buffers), None, None]  # the compiler's scratch memory is not needed
    memory, _ = launch(prepare(load(text)), (1, 1, 1), arguments, buffers, lds_bytes=1 << 16)
    return torch.from_numpy(memory.contents("c").copy()).view(tensors["c"].dtype).view(tensors["c"].shape)


@pytest.mark.parametrize(("architecture", "kind", "rows"), dots.cases())
def test_a_compiled_dot_is_a_product(assembly, architecture, kind, rows):
    text = assembly[f"{architecture} {kind} {rows}"]
    assert re.search(r"v_(mfma|wmma)_", text), "the compiler chose no matrix instruction"
    source, result = dots.KINDS[kind]
    rng, k = np.random.default_rng(rows), dots.k_of(kind)
    a, b = (torch.from_numpy(matrices.drawn(rng, kind, shape)) for shape in ((dots.ROWS, k), (k, dots.COLUMNS)))
    c = torch.zeros(dots.ROWS, dots.COLUMNS, dtype=result)
    assert torch.equal(stored(text, {"a": a.to(source), "b": b.to(source), "c": c}).double(), a @ b)


def test_a_compiled_dot_with_scales_is_a_product(assembly):
    assert "v_mfma_scale_f32" in assembly["scaled"], "the compiler chose no matrix instruction with scales"
    rows, columns, k = dots.SCALED
    generator = torch.Generator().manual_seed(0)
    positive = torch.tensor(matrices.TABLES["fp4"], dtype=torch.float64)
    a = torch.randint(-4, 5, (rows, k), generator=generator).double()
    b = torch.randint(0, 16, (k, columns), generator=generator)
    scales = [torch.randint(124, 131, (size, k // 32), generator=generator) for size in (rows, columns)]
    tensors = {"a": a.to(torch.float8_e4m3fn), "b": (b[0::2] | b[1::2] << 4).to(torch.uint8), "c": torch.zeros(rows, columns)}
    tensors |= {name: scale.to(torch.uint8) for name, scale in zip(("a_scale", "b_scale"), scales, strict=True)}
    found = stored(assembly["scaled"], tensors)
    of_a, of_b = (torch.exp2(scale.double() - 127).repeat_interleave(32, 1) for scale in scales)
    assert torch.equal(found.double(), (a * of_a) @ (torch.cat([positive, -positive])[b] * of_b.T))
