"""Names of targets in modes: which there are, and in which order they come."""

import re

import attn_optimized
import pytest
import torch
from attn_amdgcn.program import ARCHITECTURES
from attn_fuzz.targets import modes, registry
from attn_fuzz.targets.triton import MODE_OF_FORMAT
from attn_optimized.device import architecture_of
from click import unstyle

from tests.support.calls import paged_call, random_tokens


def test_our_targets_have_the_modes_that_they_declare():
    names = registry.battery()
    assert len(names) == len({*names})
    for name in names:
        if "@" in name:
            assert registry.load(name).name == name


COMPOSED = [name for name in registry.battery() if name.count("@") == 2]


@pytest.mark.parametrize("name", COMPOSED)
def test_another_mode_keeps_the_format(name):
    target, of_format = registry.load(name), registry.load(name.rpartition("@")[0])
    assert target.support("cpu").layouts == of_format.support("cpu").layouts
    assert target.support("cpu").cache_dtypes == of_format.support("cpu").cache_dtypes


@pytest.mark.parametrize("mode", ["returned", "properties", "far"])
def test_another_mode_after_prompts_runs_as_on_an_h200(mode, monkeypatch):
    architectures = []

    def attend(q, *call, **options):
        architectures.append(architecture_of(q.device, q.dtype))
        return torch.zeros_like(q)

    monkeypatch.setattr(attn_optimized, "paged_attention", attend)
    q, kv_cache, layer, batch = paged_call(random_tokens([5], [20]))
    registry.load(f"triton@prompts@{mode}").attention(q, None, None, kv_cache, layer, batch, out=torch.empty_like(q), lse=None)
    assert architectures == ["sm90"]


def test_the_battery_has_other_modes_of_formats_alone():
    """A mode such as prompts, which changes how kernels run, may have other modes of its own."""
    assert {name.split("@")[1] for name in COMPOSED} == {*MODE_OF_FORMAT.values(), "latent"}


@pytest.mark.parametrize("mode", ["invariant", "planned", "gfx942"])
def test_prompts_refuse_modes_that_plan_otherwise(mode):
    with pytest.raises(registry.UnknownTargetError, match=r"attention kernel's|planned for an H200"):
        registry.load(f"triton@prompts@{mode}")


def test_at_most_25_entry_points_are_ours():
    assert len(registry.ours()) <= 25


def test_a_package_that_is_not_here_is_listed_by_name(attn_parity, monkeypatch):
    monkeypatch.setattr(registry.Package, "missing", lambda self: "nowhere")
    monkeypatch.setattr(registry, "load", lambda name, load=registry.load: pytest.fail(name) if "vllm" in name else load(name))
    lines = unstyle(attn_parity("targets", "--device", "cpu").out).splitlines()
    assert lines[1].startswith("triton "), "the default comes first"
    assert "vllm: not here: nowhere" in lines
    assert any("vllm-dcp-all-to-all, " in line for line in lines)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("triton-latent", "@e8m0 +the shipping Triton kernels: latent caches of layout LATENT_E8M0,"),
        ("triton-merge", "@far +no: a share of its merges is called so already"),
        ("reference-fp32", r"@planned +no: reference-fp32 does not say how its host code plans for another GPU"),
        ("triton@far", "what +.* tensors that reach beyond"),
        ("triton@properties", "property +repetition: .* Compared bit *\\s* by bit; asked of all"),
    ],
)
def test_a_target_is_told_in_full(name, told, attn_parity, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    assert re.search(told, attn_parity("targets", name, "--device", "cpu").out)


@pytest.mark.parametrize("mode", modes.MODES)
def test_a_mode_that_a_target_has_not_is_refused_with_a_sentence(mode):
    told = modes.descriptions(registry.load("triton-merge"), registry.entry("triton-merge").value)[mode]
    assert told == modes.MODES[mode] or re.match("no: .* ", told)


def test_the_architectures_are_those_of_the_emulator():
    """They are written out where importing the emulator would ask for an extra."""
    assert modes.ARCHITECTURES == ARCHITECTURES
