"""`select` says how a backend's kernels were run."""

import pytest
from attn_fuzz.targets import registry
from attn_optimized.backends import BACKENDS
from attn_parity.backend_runs import NOT_RUN, RUNS


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_said_of_runs_is_what_the_targets_are(backend):
    for run in RUNS[backend]:
        assert (run.how == NOT_RUN) == (not run.target)
        if run.target:
            target = registry.load(run.target)
            # kernels that run as AMD's code alone have the findings of a target with an architecture
            held = target if run.how.endswith("interpreted") else target.compiled_for("gfx942")
            assert tuple(run.findings) == (() if run.target.startswith("backend-") else held.findings)


def test_select_says_how_the_kernels_were_run(attn_parity):
    run = attn_parity("select", "--heads", 8, "--head-size", 64, "--sinks", "--arch", "gfx942", "--aiter", "2026-08")
    told = " ".join(run.out.split("known findings")[1].split())
    assert "AITER's HIP paged_attention_v1 emulated as gfx942" in told
    assert "aiter-pa-assembly-short-tail" in told
