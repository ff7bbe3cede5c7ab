"""Every kernel compiles for AMD and NVIDIA, on a machine that has neither: the interpreter proves no compiled kernel."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

# its compiler takes more registers for these than 3.9's, which spills none
SPILLS_OF_TRITON_3_6 = {"gfx942": ["rules"], "gfx1201": ["token scales bf16 int8"], "sm90": []}


@pytest.mark.parametrize(
    ("architecture", "shared_memory"), [("gfx942", 64 * 1024), ("gfx1201", 64 * 1024), ("sm90", 227 * 1024)]
)
def test_compiles(architecture, shared_memory):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "attn_optimized.compilation", architecture],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    kernels = json.loads(result.stdout)
    assert len({name.split()[0] for name in kernels}) == 4
    for name, facts in kernels.items():
        assert facts["shared_bytes"] <= shared_memory, name
        assert facts["narrow_products"] == 0, f"{name} multiplies in 32 bits: a large cache overflows its offsets"
        if "float" in name and "rotary" in name:
            assert facts["fused_multiply_adds"] == 0, f"{name} does not round each product of the rotation"
        if "attention" not in name:
            continue
        has_float32_matrix_unit = architecture == "gfx942"
        assert (facts["matrix_instructions"] > 0) == ("fp32" not in name or has_float32_matrix_unit), name
        # RDNA has too few registers for float32, which it multiplies without a matrix unit
        spilling = ["fp32"] if architecture == "gfx1201" else []
        if triton.__version__.startswith("3.6."):
            spilling += SPILLS_OF_TRITON_3_6[architecture]
        if not any(part in name for part in spilling):
            assert facts.get("vgpr_spill_count", 0) == 0, name


def test_what_is_compiled_is_what_the_launcher_would_load():
    """The hash covers the source, the signature, what is known of pointers, and the options."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("launcher_hashes.py")
    result = subprocess.run(
        [sys.executable, "-W", "ignore", script, "gfx942", "gfx1201", "sm90"], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    hashes = json.loads(result.stdout)
    assert len(hashes) == 12
    for name, (launched, compiled) in hashes.items():
        assert compiled == launched, name
    small, large = (hashes[f"gfx942 attention_kernel {num_blocks}"] for num_blocks in (1 << 8, 1 << 16))
    assert small != large, "AMD's buffer instructions reach 2 GiB: what holds more is compiled otherwise"
