"""`select` says how a backend's kernels were run."""

import re

import pytest
from attn_fuzz.targets import of_architecture, registry
from attn_optimized.backends import BACKENDS
from attn_parity.backend_runs import EMULATED, RUNS


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_said_of_runs_is_what_the_targets_are(backend):
    for run in RUNS[backend]:
        target = registry.load(run.target)
        # kernels that run as AMD's code alone have the findings of a target with an architecture
        held = target if target.compiled_for is None or run.how.endswith("interpreted") else target.compiled_for("gfx942")
        is_ours = run.kernels.startswith("this project's")
        assert tuple(run.findings) == (() if is_ours else held.findings)


@pytest.mark.parametrize(
    "run",
    {run.target + run.how: run for runs in RUNS.values() for run in runs}.values(),
    ids=lambda run: f"{run.target} {run.how}",
)
def test_what_is_said_to_be_emulated_is_emulated(run):
    for architecture in re.findall(r"gfx\w+", run.how):
        reason = registry.load(f"{run.target}@{architecture}").unavailable("cpu")
        assert "has nothing for" not in (reason or "")


def test_kernels_that_are_emulated_are_said_to_be():
    """The one text that names all architectures is a copy. AITER's targets that emulate alone are a backend's kernels."""
    assert re.findall(r"gfx\w+", EMULATED) == list(of_architecture.ARCHITECTURES)
    told = {run.target for runs in RUNS.values() for run in runs}
    assert {"aiter-fmha-v3", "aiter-ck-fmha", "aiter-hip-pa-v1", "aiter-pa-assembly", "aiter-mla-assembly"} <= told


def test_select_says_how_the_kernels_were_run(attn_parity):
    run = attn_parity("select", "--heads", 8, "--head-size", 64, "--sinks", "--arch", "gfx942", "--aiter", "2026-08")
    told = " ".join(run.out.split("known findings")[1].split())
    assert "AITER's HIP paged_attention_v1 emulated as gfx942" in told
    assert "aiter-pa-assembly-short-tail" in told
