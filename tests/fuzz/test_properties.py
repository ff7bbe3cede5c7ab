"""A kernel whose outputs are right and contradict each other is found, by one bit; one that keeps its promises agrees."""

from collections.abc import Callable

import msgspec
import pytest
import torch
from attn_contract import AttentionType, Batch, Layout
from attn_fuzz.case import Cache, Case, Request
from attn_fuzz.check import check
from attn_fuzz.properties import batch_composition, chunked_prefill
from attn_fuzz.targets import REFERENCE_FP32, Target

TILE = 4
PROPERTIES = (batch_composition, chunked_prefill(lambda step: TILE))
replace = msgspec.structs.replace

Rows = Callable[[Batch], torch.Tensor]
"""Which rows of a step a fault changes, [T] bool."""


def requests(*lens: tuple[int, int], causal: bool = True) -> tuple[Request, ...]:
    """Requests of (query_len, seq_len), each in blocks of its own: three of four slots."""
    return tuple(
        Request(query_len, seq_len, tuple(range(3 * r, 3 * r + -(-seq_len // 4))), causal)
        for r, (query_len, seq_len) in enumerate(lens)
    )


# small integers, whose sums no order of adding changes: the reference promises nothing about others
STEP = Case(
    target="planted",
    head_size=8,
    requests=requests((2, 7), (10, 12), (0, 0), (1, 3)),
    cache=Cache(layout=Layout.KV_FIRST_NHD, block_size=4, num_blocks=12),
    unowned_rows=1,
    rows_past=1,
    return_lse=True,
)
NON_CAUSAL = replace(STEP, requests=requests((2, 7), (10, 12), causal=False))
PER_REQUEST = replace(STEP, requests=(NON_CAUSAL.requests[0], STEP.requests[1]), per_request_causal=True)
DENSE = Case(
    target="planted",
    attn_type=AttentionType.ENCODER_ONLY,
    head_size=8,
    requests=(Request(3, 3), Request(9, 9)),
    kv_rows_past=2,
    return_lse=True,
)


def planted(rows: Rows, *names: str, attend=REFERENCE_FP32.attention) -> Target:
    """The reference, and then one unit in the last place more in some rows of the named outputs."""

    def attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        attend(q, k, v, kv_cache, layer, batch, out=out, lse=lse)
        outputs = {"out": out, "lse": None if lse is None else lse.T}
        for output in (outputs[name] for name in names):
            output[rows(batch)] = torch.nextafter(output[rows(batch)], torch.tensor(torch.inf))

    return Target(
        name="planted", description="planted", attention=attention, rounding=REFERENCE_FP32.rounding, properties=PROPERTIES
    )


def nowhere(batch: Batch) -> torch.Tensor:
    return torch.arange(0)


def everywhere(batch: Batch) -> torch.Tensor:
    return torch.arange(int(batch.query_start_loc[-1]))


def in_long_batches(batch: Batch) -> torch.Tensor:
    """As if max_seq_len chose how keys are split."""
    return everywhere(batch) if batch.max_seq_len > 7 else nowhere(batch)


def in_company(batch: Batch) -> torch.Tensor:
    return everywhere(batch) if batch.num_requests > 1 else nowhere(batch)


def after_the_first_tile(batch: Batch) -> torch.Tensor:
    """As if what a tile's queries see began at its first row."""
    rows = everywhere(batch)
    first = batch.query_start_loc[torch.searchsorted(batch.query_start_loc, rows, right=True) - 1]
    return rows[rows - first >= TILE]


@pytest.mark.parametrize("output", ["out", "lse"])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (in_long_batches, "request 0 alone: "),
        (in_company, "request 0 alone: "),
        (after_the_first_tile, "rows 6 to 9 of request 1 in a step of their own: "),
    ],
)
def test_outputs_that_differ_by_one_bit_are_found(rows, message, output):
    verdict = check(STEP, planted(rows, output), "cpu")
    assert verdict.kind == "property"
    assert verdict.failed
    assert verdict.message.startswith(message)
    assert f"elements of {output} differ" in verdict.message
    assert verdict.ratio < 1, "within the bound: no oracle could tell"


STEPS = {
    "causal": STEP,
    "non-causal": NON_CAUSAL,
    "causal per request": PER_REQUEST,
    "dense": DENSE,
    "cross-attention": replace(
        NON_CAUSAL, attn_type=AttentionType.ENCODER_DECODER, requests=requests((2, 7), (5, 3), causal=False)
    ),
    "drafts": replace(STEP, qq_bias="tree"),
    "ranges": replace(STEP, requests=tuple(replace(request, ranges=((0, 11),)) for request in STEP.requests)),
    "fewer keys than queries": replace(STEP, requests=requests((10, 1), (6, 5))),
    "masks": replace(STEP, window=(3, 0), sink_tokens=1, chunked_local=5),
    "a quantized cache": replace(STEP, cache=replace(STEP.cache, dtype="fp8_e4m3fn", scales="head")),
    "a float8 output": replace(STEP, output_dtype="fp8_e4m3fn", flat_out=True, return_lse=False),
    "nothing written": replace(STEP, writes=False),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_kernel_that_keeps_its_promises_agrees(name):
    verdict = check(STEPS[name], planted(nowhere), "cpu")
    assert verdict.kind == "agree", verdict.message


@pytest.mark.parametrize("name", ["causal", "non-causal", "causal per request", "dense", "drafts", "ranges", "masks"])
def test_batch_composition_is_asked_of_every_kind_of_step(name):
    assert check(STEPS[name], planted(in_company, "out", "lse"), "cpu").kind == "property"


@pytest.mark.parametrize("name", ["non-causal", "dense", "drafts", "ranges"])
def test_chunks_are_asked_only_of_queries_that_see_no_later_one(name):
    assert check(STEPS[name], planted(after_the_first_tile, "out", "lse"), "cpu").kind == "agree"


def test_chunks_are_asked_of_the_causal_requests_of_a_step():
    verdict = check(PER_REQUEST, planted(after_the_first_tile, "out"), "cpu")
    assert "of request 1 in a step of their own" in verdict.message


def test_the_first_bits_that_differ_are_named():
    verdict = check(STEP, planted(lambda batch: torch.tensor([4] if batch.num_requests > 1 else []).long(), "lse"), "cpu")
    assert verdict.message.startswith("request 1 alone: 1 elements of lse differ, first (0, 2): ")


def test_an_exception_on_a_part_of_the_step_is_the_kernels():
    def raises_alone(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        if batch.num_requests == 1:
            raise RuntimeError("too few")
        REFERENCE_FP32.attention(q, k, v, kv_cache, layer, batch, out=out, lse=lse)

    verdict = check(STEP, planted(nowhere, attend=raises_alone), "cpu")
    assert verdict.kind == "raised"
    assert verdict.message == "on a part of the step: RuntimeError: too few"


def test_a_wrong_output_is_named_before_a_broken_promise():
    def wrong(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        REFERENCE_FP32.attention(q, k, v, kv_cache, layer, batch, out=out, lse=lse)
        out[everywhere(batch)] += batch.num_requests

    assert check(STEP, planted(nowhere, attend=wrong), "cpu").kind == "value"
