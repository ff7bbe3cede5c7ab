"""Backends are fuzzed within what they declare, and a declaration that promises too much is found."""

import pytest
from attn_contract import AttentionConfig
from attn_fuzz.cases import tensors
from attn_fuzz.cases.poison import DTYPES
from attn_fuzz.strategies import cases
from attn_fuzz.targets.backends import config_of
from attn_fuzz.targets.reference import REFERENCE_FP32
from hypothesis import HealthCheck, given, settings


@pytest.mark.parametrize("target", ["backend-triton", "backend-rocm-attn"])
def test_a_backend_agrees_within_what_it_declares_and_refuses_the_rest(target, fuzz_apart):
    progress = fuzz_apart(target, examples=50)
    assert progress.failure is None, progress.failure.verdict.message


@pytest.mark.parametrize(
    ("name", "asks"), [("CLAIMS_CHUNKS", "chunked_local"), ("CLAIMS_SINKS", "sinks"), ("CLAIMS_ROPE", "rope")]
)
def test_a_declaration_that_promises_too_much_is_found(name, asks, fuzz_apart):
    progress = fuzz_apart(f"planted_backends:{name}", examples=500)
    assert progress.failure is not None, f"survived {progress.examples} examples"
    assert getattr(progress.failure.case, asks) is not None


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow]
)
@given(case=cases("reference-fp32", REFERENCE_FP32.support("cpu")))
def test_a_case_asks_for_what_its_layer_and_batch_ask_for(case):
    step = tensors.build(case)
    assert config_of(case) == AttentionConfig.of(
        step.layer,
        DTYPES[case.dtype],
        block_size=step.view.block_size if step.view else None,
        batch=step.batch,
        lse=step.lse is not None,
        output_dtype=step.out.dtype if case.output_dtype else None,
        rope=any(write.rotation for write in step.writes),
    )
