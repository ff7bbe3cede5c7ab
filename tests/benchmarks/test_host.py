"""The host's time of a step."""

import itertools

import msgspec
import pytest
import torch
from attn_fuzz.inputs import read_as

from benchmarks.host import command, parts
from benchmarks.host.command import measured
from benchmarks.host.parts import FUNCTIONS, TINY, Parts, joining
from benchmarks.host.results import SCHEMA, HostRun, Times
from benchmarks.participants.loading import Kernels

NOBODY = Kernels(None, None, None, None)
CPU = torch.device("cpu")
DECODES, LATENT = TINY


def test_a_step_builds_once_and_writes_before_it_attends():
    calls = []
    parts = Parts(
        lambda: calls.append("build") or "made", lambda i: calls.append(f"write {i}"), lambda i, m: calls.append((i, m))
    )
    parts.step(2)
    assert calls == ["build", "write 0", (0, "made"), "write 1", (1, "made")]


def test_times_are_of_one_layer_and_the_least_of_all_rounds(monkeypatch):
    monkeypatch.setattr(command, "ROUNDS", 2)
    times = itertools.chain(itertools.repeat(100.0, 4), itertools.repeat(80.0))
    monkeypatch.setattr("benchmarks.measuring.clock.host_us", lambda run, **_: (run(), next(times))[1])
    counts = {"build": 0, "write": 0, "attend": 0}

    def count(name):
        counts[name] += 1

    parts = Parts(lambda: count("build"), lambda _: count("write"), lambda *_: count("attend"))
    found = measured({"ours": parts, "theirs": Parts(None, None, lambda *_: None)}, 4)
    assert found["ours"] == Times(build=80.0, write=20.0, attention=20.0, layer=20.0)
    assert found["theirs"] == Times(attention=20.0, layer=20.0)
    assert counts == {"build": 5, "write": 16, "attend": 16}, "the metadata of the layers are built once more"


@pytest.mark.parametrize(("case", "name"), [(DECODES, "TRITON_ATTN"), (DECODES, FUNCTIONS), (LATENT, "TRITON_MLA")])
def test_participants_write_and_attend(case, name, monkeypatch):
    """This step's tokens are in every layer's cache, and the output is finite."""
    caches = []
    monkeypatch.setattr(parts, "attention_call", _keeping(parts.attention_call, lambda call: caches.append(call.kv_cache)))
    monkeypatch.setattr(
        parts.latent_steps,
        "whole_step",
        _keeping(parts.latent_steps.whole_step, lambda step: caches.append(step.absorbed.kv_cache)),
    )
    of_step = dict(joining(case, 2, CPU, NOBODY))[name]
    assert isinstance(of_step, Parts)
    for cache in caches:
        cache.fill_(0)
    of_step.step(2)
    written = [cache for cache in caches if cache.any()]
    assert len(written) == 2, "one of each layer"
    assert all(cache.isfinite().all() for cache in written)
    assert of_step.attend(1, of_step.build()).isfinite().all()


def _keeping(make, keep):
    def made(*arguments, **options):
        found = make(*arguments, **options)
        keep(found)
        return found

    return made


@pytest.fixture
def one_round(monkeypatch):
    """No test looks at a time."""
    monkeypatch.setattr(command, "ROUNDS", 1)


def test_the_command_writes_what_it_shows(one_round, tmp_path, ended):
    path = tmp_path / "host.json"
    code, printed = ended("host", "--tiny", "--json", path)
    assert code == 0, printed
    run = read_as(path, SCHEMA, HostRun)
    assert not run.of_value
    decodes, latent = run.steps
    assert decodes.name == DECODES.name
    assert None not in msgspec.structs.astuple(decodes.times["TRITON_ATTN"])
    assert "AITER is not installed" in decodes.refused["ROCM_AITER_FA"]
    assert latent.times.keys() >= {"TRITON_MLA"}
    assert "pip install 'attn-parity[aiter]'" in printed, "and not what rich takes for markup"
