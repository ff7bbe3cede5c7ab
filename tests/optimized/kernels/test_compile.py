"""Every kernel compiles for AMD and NVIDIA, on a machine that has neither: the interpreter proves no compiled kernel."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import triton
from attn_binaries.architectures import ARCHITECTURES
from attn_binaries.build import build
from attn_binaries.compilation import compile_call
from attn_binaries.shipped_calls import CALLS, chosen
from attn_contract import ContractError
from attn_lab.binaries import budgets
from attn_optimized.kernel_call import KernelCall
from triton import knobs


def compiling(script: str, *arguments: str) -> Any:
    """The output of a script beside this file, in a process without Triton's interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", Path(__file__).with_name(script), *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def planted() -> dict[str, dict[str, dict[str, Any]]]:
    return compiling("compile_planted.py", "gfx942", "sm90")


def main_calls(architecture: str) -> dict[str, KernelCall]:
    """The first main launch of each kernel."""
    calls = chosen(architecture, main=True)
    first = {call.launch.kernel.fn.__name__: name for name, call in reversed(calls.items())}
    return {name: calls[name] for name in first.values()}


def test_each_shipped_binary_is_within_its_budget():
    """`tox run -e emulated-main` holds those for gfx942 to theirs, and `tox run -e nightly -- launches` all."""
    shipped = main_calls("sm90")
    assert len({call.launch.kernel.fn.__name__ for call in shipped.values()}) == 9
    jobs = [("sm90", name) for name in shipped]
    done = build(jobs, 1)
    assert not done.errors
    assert list(done.binaries) == jobs
    allowed = budgets.load()
    for (architecture, name), binary in done.binaries.items():
        assert budgets.over(allowed, architecture, name, shipped[name], binary.facts, triton.__version__) == [], name
        is_specialized = "setmaxnreg" in binary.assembly
        assert is_specialized == (binary.name == "warp_specialized_kernel"), f"{name}: Triton says nothing if it does not"


@pytest.mark.nightly
def test_the_compiled_binary_is_the_one_that_the_launcher_would_load():
    """The hash covers the source, the signature, what is known of pointers, and the options."""
    hashes = compiling("launcher_hashes.py", "gfx942", "gfx1201", "sm90")
    assert len(hashes) == 12
    for name, (launched, compiled) in hashes.items():
        assert compiled == launched, name
    small, large = (hashes[f"gfx942 attention_kernel {num_blocks}"] for num_blocks in (1 << 8, 1 << 16))
    assert small != large, "AMD's buffer instructions reach 2 GiB: what holds more is compiled otherwise"


@pytest.mark.nightly
@pytest.mark.parametrize("architecture", ["gfx942", "sm90"])
def test_products_that_lose_bits_are_counted(planted, architecture):
    facts = planted[architecture]
    assert facts["tf32"]["tf32_instructions"] == facts["tf32"]["matrix_instructions"] > 0
    assert facts["ieee"]["tf32_instructions"] == 0
    assert facts["tf32"]["narrow_products"] == 1, "an offset that is multiplied in 32 bits"
    assert facts["excused"]["narrow_products"] == 0, "its line says why it cannot overflow"
    assert facts["rotation"]["fused_multiply_adds"] == 0
    assert facts["fused rotation"]["fused_multiply_adds"] > 0


@pytest.mark.parametrize("architecture", ["gfx942", "sm90"])
def test_registers_and_waves_are_known(planted, architecture):
    dot, rotation = planted[architecture]["ieee"], planted[architecture]["rotation"]
    assert 0 < rotation["vgprs"] < dot["vgprs"] <= 512
    assert rotation["vgpr_spills"] == 0
    assert 0 < dot["lds_bytes"] <= dot["lds_limit"]
    assert 0 < dot["waves"] < rotation["waves"] <= 16
    assert dot["widest_load"] == rotation["widest_load"] == 16


def test_each_launch_has_one_name_and_each_architecture_its_units():
    assert len({shipped.name for shipped in CALLS}) == len(CALLS)
    whole = {architecture: [name for name in chosen(architecture) if "reduction" not in name] for architecture in ARCHITECTURES}
    assert all(names == whole["gfx942"] for names in whole.values()), "only how keys are split differs"
    assert set(chosen("gfx942", main=True)) < set(chosen("gfx942"))
    assert all("D256" in name for name in chosen("gfx942", only="D256"))


@pytest.mark.parametrize("architecture", ["gfx9", "gfx906", "mi300"])
def test_no_architecture_is_guessed(architecture):
    with pytest.raises(ContractError, match=f"architecture: got '{architecture}'"):
        chosen(architecture)
    call = next(iter(chosen("gfx942", only="merge").values()))
    with pytest.raises(ContractError, match=f"architecture: got '{architecture}'"):
        compile_call(call, architecture)


@pytest.mark.skipif(not knobs.runtime.interpret, reason="kernels are compiled in this process")
def test_an_interpreted_kernel_is_not_compiled():
    call: KernelCall = next(iter(chosen("gfx942", only="merge").values()))
    assert all(tensor.is_meta for tensor in call.tensors.values() if tensor is not None)
    with pytest.raises(ContractError, match="without TRITON_INTERPRET"):
        compile_call(call, "gfx942")
