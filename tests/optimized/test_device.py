"""Choices by a GPU's properties, with the properties that torch gives on GPUs which are not here."""

from types import SimpleNamespace

import pytest
import torch
from attn_contract import ContractError, UnsupportedError
from attn_fuzz.emulated.compilation import gpu_target
from attn_optimized import device
from attn_optimized.launch.splits import splits_of
from attn_optimized.launch.table import entry_for
from attn_optimized.launch.tiles import attention_tiles
from attn_optimized.launch.workload import Workload

CUDA = torch.device("cuda")
# gcnArchName, compute units and lanes of a wave, as torch.cuda.get_device_properties has them under ROCm
MI250X = SimpleNamespace(gcnArchName="gfx90a:sramecc+:xnack-", multi_processor_count=110, warp_size=64)
MI300X = SimpleNamespace(gcnArchName="gfx942:sramecc+:xnack-", multi_processor_count=304, warp_size=64)
MI355X = SimpleNamespace(gcnArchName="gfx950:sramecc+:xnack-", multi_processor_count=256, warp_size=64)
RX_9070_XT = SimpleNamespace(gcnArchName="gfx1201", multi_processor_count=32, warp_size=32)
AMD = {"gfx90a": MI250X, "gfx942": MI300X, "gfx950": MI355X, "gfx1201": RX_9070_XT}

LLAMA = {"itemsize": 2, "quantized": False, "head_size": 128, "num_heads": 32, "num_kv_heads": 8}


@pytest.fixture
def on(monkeypatch):
    """Makes torch say that a GPU is here."""

    def give(properties, hip="7.0"):
        monkeypatch.setattr(device, "INTERPRETED", False)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda which: properties)

    return give


@pytest.mark.parametrize("architecture", AMD)
def test_an_amd_gpu_is_known_by_its_architecture_without_its_features(on, architecture):
    on(AMD[architecture])
    assert device.architecture_of(CUDA, torch.bfloat16) == architecture
    assert device.compute_units_of(CUDA) == AMD[architecture].multi_processor_count


def test_an_nvidia_gpu_is_known_by_its_compute_capability(on):
    on(SimpleNamespace(major=9, minor=0, multi_processor_count=132), hip=None)
    assert device.architecture_of(CUDA, torch.bfloat16) == "sm90"


def test_compiled_kernels_refuse_tensors_on_a_cpu(on):
    on(MI300X)
    with pytest.raises(UnsupportedError, match="TRITON_INTERPRET=1"):
        device.architecture_of(torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("architecture", AMD)
def test_code_is_compiled_for_the_wave_size_that_the_gpu_has(architecture):
    target = gpu_target(architecture)
    assert (target.backend, target.arch, target.warp_size) == ("hip", architecture, AMD[architecture].warp_size)


@pytest.mark.parametrize("name", ["gfx", "gfx9", "gfx942:xnack-", "mi300", ""])
def test_no_architecture_is_guessed(name):
    with pytest.raises(ContractError, match="architecture"):
        gpu_target(name)


@pytest.mark.parametrize("architecture", AMD)
def test_tiles_follow_the_wave_size(architecture):
    """RDNA: fewer rows for each wave, since one of 32 lanes has half the registers. gfx950 alone loads straight to LDS."""
    workload = Workload(**LLAMA, num_tokens=512, num_requests=1, max_query_len=512, max_seq_len=512)
    tiles = attention_tiles(workload, architecture, compute_units=64)
    assert tiles.block_m // tiles.parameters.num_warps == AMD[architecture].warp_size // 2
    assert tiles.parameters.num_stages == (2 if architecture == "gfx950" else 1)


def test_one_long_request_fills_each_gpu(on):
    for architecture, properties in AMD.items():
        on(properties)
        units = device.compute_units_of(CUDA)
        parameters = entry_for(architecture, phase="decode", itemsize=2, block_d=128, quantized=False).parameters
        workload = Workload(**LLAMA, num_tokens=1, num_requests=1, max_query_len=1, max_seq_len=131072)
        at_once = parameters.programs_per_unit * units
        call = {"num_programs": 8, "groups": 8, "queries": 4, "one_tile_per_request": True, "max_keys": 131072}
        splits = splits_of(workload, **call, at_once=at_once, compute_units=units, most_programs=8, parameters=parameters)
        assert 8 * splits.most >= min(2 * units, 8 * 64), architecture
        assert splits.most == splits.balanced, "a request by itself is as long as all are"
