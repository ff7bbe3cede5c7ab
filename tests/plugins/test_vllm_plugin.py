"""vLLM finds the backends, asks them what they can do, and is refused the rest before a model is built."""

import dataclasses
import subprocess
import sys
from importlib.metadata import entry_points
from types import SimpleNamespace

import pytest
import torch
from attn_contract import ContractError, No, Only, UnsupportedError

pytest.importorskip("vllm", reason="needs vLLM: tox run -e vllm")

import attn_vllm
from attn_vllm.parity_reference import ParityReferenceBackend
from attn_vllm.parity_triton import ParityTritonBackend
from vllm.config import AttentionConfig, DeviceConfig, VllmConfig, set_current_vllm_config
from vllm.platforms import current_platform
from vllm.platforms.interface import DeviceCapability
from vllm.v1.attention.backend import AttentionCGSupport, AttentionType, MultipleOf
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.attention.selector import get_attn_backend

BACKENDS = {"PARITY_TRITON": ParityTritonBackend, "PARITY_REFERENCE": ParityReferenceBackend}
SERVED = {
    "head_size": 128,
    "dtype": torch.bfloat16,
    "kv_cache_dtype": "auto",
    "block_size": 16,
    "use_mla": False,
    "has_sink": False,
    "use_sparse": False,
    "use_mm_prefix": False,
    "use_per_head_quant_scales": False,
    "device_capability": DeviceCapability(9, 4),
    "attn_type": AttentionType.DECODER,
}


def both(test):
    return pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)(test)


def test_the_entry_point_registers_both_and_may_be_called_again():
    """vLLM calls it in every process, and in its tests' process more than once."""
    (entry_point,) = (point for point in entry_points(group="vllm.general_plugins") if point.name == "attn_parity")
    register = entry_point.load()
    register()
    register()
    assert {name: AttentionBackendEnum[name].get_class() for name in attn_vllm.BACKENDS} == BACKENDS


def test_the_command_line_knows_their_names():
    """`--attention-backend` sets this field, after vLLM has loaded its plugins."""
    attn_vllm.register()
    assert {name: AttentionConfig(backend=name.lower()).backend.get_class() for name in BACKENDS} == BACKENDS


@pytest.mark.skipif(not current_platform.is_cuda_alike(), reason="on a CPU vLLM's selector takes its own CPU backend")
@both
def test_vllms_selector_takes_what_is_asked_for(backend):
    attn_vllm.register()
    asked = AttentionConfig(backend=backend.get_name())
    with set_current_vllm_config(VllmConfig(device_config=DeviceConfig(device="cuda"), attention_config=asked)):
        assert get_attn_backend(64, torch.float16, "auto", has_sink=True) is backend
        with pytest.raises(ValueError, match="two bits of mantissa"):
            get_attn_backend(64, torch.float16, "fp8_e5m2")


def test_the_package_imports_vllm_only_when_called():
    code = "import sys, attn_vllm; sys.exit('vllm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@both
def test_names_are_those_of_the_registry(backend):
    """vLLM looks a layer's backend up by what get_name says."""
    assert BACKENDS[backend.get_name()] is backend


@both
@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"has_sink": True, "has_sliding_window": True},
        {"use_mm_prefix": True},
        {"use_non_causal": True},
        {"use_per_head_quant_scales": True, "kv_cache_dtype": "fp8"},
        {"head_size": 80, "block_size": 48, "dtype": torch.float32},
        {"block_size": None, "kv_cache_dtype": None},
        *({"attn_type": attn_type} for attn_type in AttentionType),
        *({"kv_cache_dtype": name} for name in ("bfloat16", "fp8_e4m3", "int8_per_token_head", "fp8_per_token_head")),
    ],
    ids=str,
)
def test_served_configurations_have_no_reason(backend, asked):
    assert backend.validate_configuration(**{**SERVED, **asked}) == []


@both
@pytest.mark.parametrize(
    ("asked", "reasons"),
    [
        ({"use_mla": True}, ["MLA not supported"]),
        ({"use_rswa": True}, ["R-SWA not supported"]),
        ({"use_dcp": True}, ["DCP not supported"]),
        ({"dtype": torch.float64}, ["dtype not supported"]),
        ({"kv_cache_dtype": "fp8_e5m2"}, ["kv_cache_dtype not supported", "two bits of mantissa"]),
        ({"kv_cache_dtype": "int4_per_token_head"}, ["kv_cache_dtype not supported", "no layout addresses half a byte"]),
        ({"kv_cache_dtype": "float16"}, ["queries are torch.bfloat16"]),
    ],
    ids=str,
)
def test_a_configuration_is_refused_with_its_reasons(backend, asked, reasons):
    got = backend.validate_configuration(**{**SERVED, **asked})
    assert len(got) == len(reasons)
    assert all(reason in text for reason, text in zip(reasons, got, strict=True))


def test_refusals_follow_the_declarations():
    large = {**SERVED, "head_size": 513}
    assert ParityReferenceBackend.validate_configuration(**large) == []
    head_size, why = ParityTritonBackend.validate_configuration(**large)
    assert head_size == "head_size not supported"
    assert "head size 513" in why
    assert "up to 512" in why
    invariant = {**SERVED, "use_batch_invariant": True}
    assert ParityTritonBackend.validate_configuration(**invariant) == []
    assert ParityReferenceBackend.validate_configuration(**invariant) == ["batch invariance not supported"]


@both
def test_a_type_of_attention_that_the_contract_does_not_know_is_refused(backend):
    assert backend.supports_attn_type("encoder_decoder")
    assert not backend.supports_attn_type("sideways")


@both
def test_any_block_size_and_any_physical_order(backend):
    assert backend.get_supported_kernel_block_sizes() == [MultipleOf(1)]
    assert backend.supported_kv_cache_layouts() is None


@both
@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"kv_cache_dtype": "fp8_e5m2"}, UnsupportedError, "two bits of mantissa"),
        ({"use_alibi_sqrt": True}, UnsupportedError, "ALiBi-sqrt"),
        ({"chunk_lookback": 1}, UnsupportedError, "chunk look-back"),
        ({"attn_type": "sideways"}, UnsupportedError, "attention type sideways"),
        ({"sliding_window": 0}, ContractError, "counts the token itself"),
        ({"sliding_window": 4, "attn_type": "encoder_decoder"}, ContractError, "different sequences"),
        ({"alibi_slopes": [1.0]}, ContractError, "one per query head"),
    ],
    ids=str,
)
def test_a_layer_that_is_refused(backend, arguments, error, words):
    layer = {"num_heads": 4, "head_size": 64, "scale": 0.125, "num_kv_heads": 2, **arguments}
    with pytest.raises(error, match=words):
        backend.get_impl_cls()(**layer)


def test_properties_that_vllm_does_not_ask_for_are_refused_with_all_reasons(monkeypatch):
    """vLLM's selector knows no number of heads; the constructor does."""
    impl = ParityTritonBackend.get_impl_cls()
    impl(num_heads=142, head_size=64, scale=1.0, num_kv_heads=2)
    monkeypatch.setattr(impl, "capabilities", dataclasses.replace(impl.capabilities, group_sizes=Only((1, 2), "planted")))
    with pytest.raises(
        NotImplementedError, match=r"PARITY_TRITON: head size 513 .*; query heads for each KV head: 128 .*planted"
    ):
        impl(num_heads=256, head_size=513, scale=1.0, num_kv_heads=2)


def test_a_declaration_that_says_no_is_heeded(monkeypatch):
    """Soft cap and ALiBi are not in vLLM's questions."""
    impl = ParityTritonBackend.get_impl_cls()
    refused = {"logits_soft_cap": No("planted"), "alibi_slopes": No("planted, too")}
    narrow = dataclasses.replace(impl.capabilities, rules={**impl.capabilities.rules, **refused})
    monkeypatch.setattr(impl, "capabilities", narrow)
    impl(4, 64, 0.125)
    with pytest.raises(NotImplementedError, match=r"a soft cap of the logits .* planted; ALiBi not supported: planted, too"):
        impl(4, 64, 0.125, alibi_slopes=[1.0] * 4, logits_soft_cap=30.0)


@pytest.mark.parametrize(
    ("backend", "prefix_lm", "support"),
    [
        (ParityTritonBackend, False, AttentionCGSupport.ALWAYS),
        (ParityTritonBackend, True, AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE),
        (ParityReferenceBackend, False, AttentionCGSupport.NEVER),
    ],
)
def test_a_graph_may_not_hold_ranges_of_images(backend, prefix_lm, support):
    """The ranges of images would be those of the captured step; the reference waits for the device."""
    config = SimpleNamespace(model_config=SimpleNamespace(is_mm_prefix_lm=prefix_lm))
    assert backend.get_builder_cls().get_cudagraph_support(config, None) is support
