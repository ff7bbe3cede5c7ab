"""Names of targets in modes: which there are, and in which order they come."""

import re

import pytest
from attn_amdgcn.program import ARCHITECTURES
from attn_fuzz.targets import modes, registry
from click import unstyle


def test_what_our_targets_declare_they_have():
    names = registry.battery()
    assert len(names) == len({*names})
    for name in names:
        if "@" in name:
            assert registry.load(name).name == name


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
