"""Peers' modules are run from a folder without the rest of their packages, which nothing is left of."""

import sys

import pytest
import torch

from benchmarks.participants import loading
from benchmarks.participants.loading import FA3_FILE, MissingPeerError, load_aiter, load_compiled, load_vllm

AITER_KERNEL = """
from aiter.ops.triton.utils._triton.arch_info import get_arch
from aiter.ops.triton.utils.device_info import get_num_sms
from .utils.names import NAME

def select_2d_config():
    return {"BLOCK_M": 16, "waves_per_eu": 2}

def select_3d_config():
    return {"TILE_SIZE": 16, "waves_per_eu": 2}, {"num_warps": 1, "waves_per_eu": 2}

def unified_attention():
    return NAME, get_arch(), get_num_sms(), select_2d_config(), select_3d_config()
"""
VLLM_KERNEL = """
import vllm.envs as envs
from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.triton_utils import tl, triton
from vllm.v1.kv_cache_interface import KVQuantMode
import torch

init_logger(__name__).debug_once("loaded")
MAX_3D_QUERY_LEN = 8
def unified_attention():
    return envs.VLLM_BATCH_INVARIANT, torch.finfo(current_platform.fp8_dtype()).max, KVQuantMode.FP8_PER_TENSOR
"""
VLLM_PREFILL = """
from vllm.platforms import current_platform as platform

def _prefer_narrow_kv_tile():
    from vllm.platforms.rocm import on_gfx1x
    return on_gfx1x()

def context_attention_fwd():
    asked = platform.is_cuda_alike(), platform.has_device_capability(80), platform.is_device_capability_family(90)
    return platform.is_rocm(), *asked, _prefer_narrow_kv_tile()
"""


@pytest.fixture
def folder(tmp_path):
    files = {
        "aiter/__init__.py": "raise RuntimeError('no ROCm')",
        "aiter/ops/triton/unified_attention.py": AITER_KERNEL,
        "aiter/ops/triton/utils/names.py": "NAME = 'from the folder'",
        "amd_aiter-0.1.7.dist-info/METADATA": "Metadata-Version: 2.1\nName: amd-aiter\nVersion: 0.1.7\n",
        "vllm/__init__.py": "raise RuntimeError('no CUDA')",
        "vllm/v1/attention/ops/triton_unified_attention.py": VLLM_KERNEL,
        "vllm/v1/attention/ops/triton_prefill_attention.py": VLLM_PREFILL,
        "vllm/v1/attention/ops/triton_decode_attention.py": "def decode_attention_fwd(): ...",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks the GPU")
def test_aiters_module_runs_without_its_package(folder):
    before = sys.modules.copy()
    kernel = load_aiter(folder)
    assert kernel.version == "0.1.7"
    name, architecture, units, config, configs = kernel.unified_attention()
    assert (name, architecture, units) == ("from the folder", "gfx942", 16)
    assert config == {"BLOCK_M": 16}  # waves_per_eu is an option of Triton's compiler for AMD
    assert configs == ({"TILE_SIZE": 16}, {"num_warps": 1})
    assert {name for name in sys.modules if name.startswith("aiter")} == {name for name in before if name.startswith("aiter")}


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks the GPU")
def test_vllms_modules_run_without_its_package(folder):
    kernels = load_vllm(folder)
    assert kernels.version == "of unknown version"
    assert kernels.unified_attention() == (False, 448.0, 1)
    assert kernels.MAX_3D_QUERY_LEN == 8
    assert "vllm.envs" not in sys.modules


@pytest.mark.parametrize(
    ("gpu", "float8_max", "prefill"),
    [
        ("gfx942", 240.0, (True, True, True, True, False)),
        ("gfx1201", 448.0, (True, True, True, False, True)),
        ("sm90", 448.0, (False, True, True, True, False)),
    ],
)
def test_vllms_modules_are_told_which_gpu_is_here(folder, gpu, float8_max, prefill, monkeypatch):
    monkeypatch.setattr(loading, "_gpu", lambda: gpu)
    vllm = load_vllm(folder)
    assert vllm.unified_attention() == (False, float8_max, 1)
    assert vllm.context_attention_fwd() == prefill


def test_what_is_missing_is_named(folder):
    (folder / "vllm/v1/attention/ops/triton_prefill_attention.py").write_text("import vllm.nothing")
    with pytest.raises(MissingPeerError, match=r"vllm does not import: ModuleNotFoundError: vllm\.nothing is "):
        load_vllm(folder)
    (folder / "aiter/ops/triton/unified_attention.py").unlink()
    with pytest.raises(MissingPeerError, match=r"no Triton unified_attention; PyPI's package `aiter` is another one"):
        load_aiter(folder)
    with pytest.raises(MissingPeerError, match=r"--aiter: got .*, expected a folder that holds the package `aiter`"):
        load_aiter(folder / "aiter")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a CPU has not")
def test_a_compiled_peer_is_for_hopper_alone(folder):
    with pytest.raises(MissingPeerError, match=r"_vllm_fa3_C\.abi3\.so is left out: .*for sm90, and this is a CPU"):
        load_compiled(folder, FA3_FILE)
