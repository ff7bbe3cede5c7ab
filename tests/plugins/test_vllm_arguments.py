"""The declarations of vLLM's backends in `select.vllm_arguments`, and the options that it writes, are vLLM's own."""

import ast
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from attn_contract import AttentionConfig, AttentionType, Multiples, Only
from attn_parity.commands.select.vllm_arguments import VLLM_BACKENDS, vllm_arguments
from attn_parity.model_config.deployed import Engine

pytest.importorskip("vllm", reason="needs vLLM: tox run -e vllm")

import vllm
from attn_optimized.aiter_adapter import recorded
from vllm.v1.attention.backend import AttentionBackend, MultipleOf
from vllm.v1.attention.backends.registry import AttentionBackendEnum

HEAD_SIZES = range(1, 1025)
# AITER's unified backend asks torch for an AMD GPU when it is imported
IMPORTABLE = [name for name in VLLM_BACKENDS if name != "ROCM_AITER_UNIFIED_ATTN"]


@pytest.fixture(params=IMPORTABLE)
def backend(request, monkeypatch) -> tuple[str, type[AttentionBackend]]:
    # MiniMax-M3's package imports the model's code for images, and that torchvision, which its attention does not need
    package = ModuleType("vllm.models.minimax_m3")
    package.__path__ = [str(Path(vllm.__file__).parent / "models" / "minimax_m3")]
    monkeypatch.setitem(sys.modules, package.__name__, package)
    return request.param, AttentionBackendEnum[request.param].get_class()


def test_sizes_and_dtypes_are_vllms(backend):
    name, theirs = backend
    declared = VLLM_BACKENDS[name]
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    assert [dtype in declared.dtypes for dtype in dtypes] == [dtype in theirs.supported_dtypes for dtype in dtypes]
    blocks = theirs.get_supported_kernel_block_sizes()
    block_size = 128 if blocks == [128] else 16
    shape = {"num_heads": 1, "num_kv_heads": 1, "dtype": torch.float16, "block_size": block_size}
    served = [size for size in HEAD_SIZES if not declared.refusals(AttentionConfig(head_size=size, **shape))]
    assert served == list(filter(theirs.supports_head_size, HEAD_SIZES))
    match declared.block_sizes:
        case Only(values=sizes):
            assert list(sizes) == blocks
        case Multiples(of=base):
            assert blocks == [MultipleOf(base)]
        case _:  # ours are the backend's own
            assert blocks == [1, MultipleOf(16)]
    per_token = {f"{kind}_per_token_head" for kind in ("int8", "fp8")} <= set(theirs.supported_kv_cache_dtypes)
    assert ("inline" in declared.scales) == per_token
    assert "fp8" in theirs.supported_kv_cache_dtypes


def test_declarations_agree_with_the_answers_of_vllm(backend, monkeypatch):
    name, theirs = backend
    # it asks torch for an AMD GPU when it is imported
    monkeypatch.setitem(sys.modules, "vllm.platforms.rocm", SimpleNamespace(on_mi3xx=lambda: True))
    declared = VLLM_BACKENDS[name]
    assert {kind for kind in AttentionType if declared.attn_types[kind]} == set(
        filter(theirs.supports_attn_type, AttentionType)
    )
    assert bool(declared.answer("sinks")) == theirs.supports_sink()
    # the backend of two widths inherits the answer, and hands its kernel no ranges
    assert bool(declared.answer("bidirectional_ranges")) == (theirs.supports_mm_prefix() and name != "TRITON_ATTN_DIFFKV")
    assert bool(declared.answer("batch_invariant")) == theirs.supports_batch_invariance()
    assert bool(declared.answer("window")) == theirs.supports_sliding_window()


def test_vllm_has_every_option():
    source = (Path(vllm.__file__).parent / "engine" / "arg_utils.py").read_text()
    options = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    config = AttentionConfig(
        num_heads=8, num_kv_heads=8, head_size=64, dtype=torch.float16, block_size=16, rules={"batch_invariant": True}
    )
    arguments = vllm_arguments(
        {"layer": config},
        Engine(float8="fp8_e4m3fnuz", tensor_parallel=2),
        model="MODEL",
        architecture="gfx942",
        aiter=recorded("2026-08"),
        wanted={},
    )
    assert arguments.line is not None
    variable, *words = arguments.line.split()
    assert hasattr(vllm.envs, variable.removesuffix("=1"))
    assert {word for word in words if word.startswith("--")} <= options
