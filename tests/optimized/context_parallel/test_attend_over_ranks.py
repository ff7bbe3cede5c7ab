"""Attention over ranks that are processes, against attention over all keys in one."""

from datetime import timedelta
from functools import partial

import attn_reference
import pytest
import torch
from attn_fuzz.targets.ranks.local_calls import TRITON_RANKS
from attn_optimized.context_parallel import attention

from tests.optimized.context_parallel import ranks_worker
from tests.optimized.context_parallel.ranks_worker import over_ranks
from tests.support.agreement import assert_within_bound
from tests.support.calls import with_idle_strides
from tests.support.mostly_nightly import mostly_nightly

needs_two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs: each rank of NCCL has its own")
SCALE = torch.tensor(0.05)
CASES = {
    f"{exchange}, interleave {interleave}, {', '.join(fields) or 'causal'}": partial(
        ranks_worker.attends, kernels="reference", interleave=interleave, exchange=exchange, **fields
    )
    for exchange in ("reduce_scatter", "all_to_all")
    for interleave, fields in (
        (1, {}),
        (4, {"causal": [True, False, True, True, True]}),
        (64, {"sinks": torch.linspace(-1, 1, ranks_worker.H), "logits_soft_cap": 2.0}),
        (3, {"causal": False}),
        (2, {"output_scale": SCALE}),
    )
}


@pytest.mark.parametrize("num_ranks", mostly_nightly([1, 2, 3, 4], [3]))
def test_is_attention_over_all_keys(num_ranks, tmp_path):
    """The parts are rounded to float32 before they are merged, in another order on each number of ranks."""
    results = over_ranks(num_ranks, tmp_path, CASES)
    for name, case in CASES.items():
        fields = {key: value for key, value in case.keywords.items() if key not in ("kernels", "interleave", "exchange")}
        expected, expected_lse = undivided(fields)
        outs, lses = zip(*(result[name] for result in results), strict=True)
        out, lse = torch.cat(outs, dim=1), torch.cat(lses)
        rows = sum(ranks_worker.QUERY_LENS)
        if "output_scale" in fields:
            # a float8 number has 4 significant bits: half a unit of the last one is a 16th of the number
            torch.testing.assert_close(out[:rows].float() * SCALE, expected[:rows], rtol=2**-4, atol=float(SCALE) * 2**-9)
        else:
            torch.testing.assert_close(out[:rows], expected[:rows], rtol=0, atol=2**-19)
        torch.testing.assert_close(lse[:, :rows], expected_lse[:, :rows], rtol=0, atol=2**-19)
        assert not out[rows:].float().any()
        assert (lse[:, rows:] == -torch.inf).all()


def undivided(fields):
    fields = {name: value for name, value in fields.items() if name != "output_scale"}
    call = ranks_worker.whole_call(**fields)
    lse = torch.full((ranks_worker.H, len(call.q)), -torch.inf)
    return attn_reference.paged_attention(*call, lse=lse), lse


@pytest.mark.skipif(torch.cuda.is_available(), reason="ranks of gloo are on the CPU, where kernels are interpreted")
def test_the_triton_kernels_attend_and_merge(tmp_path):
    cases = {
        exchange: partial(ranks_worker.attends, kernels="triton", interleave=2, exchange=exchange)
        for exchange in ("reduce_scatter", "all_to_all")
    }
    results = over_ranks(2, tmp_path, cases)
    expected, expected_lse = undivided({})
    rows = sum(ranks_worker.QUERY_LENS)
    for name in cases:
        outs, lses = zip(*(result[name] for result in results), strict=True)
        torch.testing.assert_close(torch.cat(outs, dim=1)[:rows], expected[:rows], rtol=0, atol=2**-19)
        torch.testing.assert_close(torch.cat(lses)[:, :rows], expected_lse[:, :rows], rtol=0, atol=2**-19)


def test_outputs_and_their_lses_are_one_message(tmp_path):
    """Steps of few keys wait for the network's latency, not for its bytes."""
    for result in over_ranks(2, tmp_path, {"messages": ranks_worker.counts_messages}):
        assert result["messages"] == (torch.tensor(1),)


def test_the_bytes_of_one_element_need_no_stride():
    one = with_idle_strides(torch.tensor(1.5).view(1, 1, 1))
    assert attention._bytes(one).view(torch.float32).tolist() == [1.5]


@needs_two_gpus
@pytest.mark.parametrize("name", CASES)
def test_over_nccl_it_is_attention_over_all_keys(name, nccl_results):
    """The kernels are compiled, and their outputs are compared with the bound of outputs that were merged."""
    fields = {key: value for key, value in CASES[name].keywords.items() if key not in ("kernels", "interleave", "exchange")}
    outs, lses = zip(*(result[name] for result in nccl_results), strict=True)
    assert isinstance(outs[0], torch.Tensor), outs
    call = ranks_worker.whole_call(**fields)
    rows = sum(ranks_worker.QUERY_LENS)
    out, lse = torch.cat(outs, dim=1), torch.cat(lses)
    assert not out[rows:].float().any()
    assert (lse[:, rows:] == -torch.inf).all()
    out[rows:], lse[:, rows:] = torch.nan, torch.nan
    assert_within_bound(call, out, lse, rounding=TRITON_RANKS.rounding("cuda"))


@pytest.fixture(scope="module")
def nccl_results(tmp_path_factory):
    """The results of two ranks in each case. They compile the kernels once."""
    cases = {name: partial(case.func, **case.keywords | {"kernels": "triton"}) for name, case in CASES.items()}
    return over_ranks(2, tmp_path_factory.mktemp("nccl"), cases, "cuda")


REFUSED = "RanksError: attention over ranks: rank 1 refused its call"


def both(error):
    return [f"ContractError: {error}"] * 2


def of_rank_1(error, kind="ContractError"):
    return [REFUSED, f"{kind}: {error}"]


disagrees = partial(partial, ranks_worker.disagrees)
differs = partial(partial, ranks_worker.differs)
wrong = partial(partial, ranks_worker.has_a_wrong_option)
SELECTS = {"selection_unit": 1, "selected": torch.arange(9, dtype=torch.int32)[None, :, None]}
SCENARIOS = [
    (disagrees(interleave=2), both("interleave: got 2 on rank 1, expected 1, as on rank 0")),
    (disagrees(exchange="reduce_scatter"), both("exchange: got reduce_scatter on rank 1, expected all_to_all, as on rank 0")),
    (disagrees(scale=0.5), both("scale: got 0.5 on rank 1, expected 0.25, as on rank 0")),
    (disagrees(logits_soft_cap=0.5), both("logits_soft_cap: got 0.5 on rank 1, expected 0.0, as on rank 0")),
    (disagrees(sinks=torch.zeros(12)), both("sinks: got a tensor on rank 1, expected None, as on rank 0")),
    (differs(change="rows"), both("rows of q: got 18 on rank 1, expected 9, as on rank 0")),
    (differs(change="dtypes"), both("dtype of q: got float16 on rank 1, expected float32, as on rank 0")),
    (differs(change="lengths"), both("seq_lens: got values of checksum ")),
    (differs(change="selected", fields=SELECTS), both("selected: got values of checksum ")),
    (ranks_worker.makes_another_kind_of_call, both("call: got another function's on rank ")),
    (differs(change="cache"), of_rank_1("kv_cache: got torch.float16")),
    (differs(change="gradient"), of_rank_1("q: got requires_grad=True")),
    (differs(change="device"), of_rank_1("q: got meta, expected the device of")),
    (disagrees(exchange="telepathy"), of_rank_1("exchange: got 'telepathy', expected")),
    (disagrees(window=(3, 0)), of_rank_1("attention over ranks: a sliding", "UnsupportedError")),
    # what is checked before the ranks compare their calls, and after
    (wrong(timeout=3), of_rank_1("timeout: got 3, expected a timedelta")),
    (wrong(timeout=timedelta(microseconds=999)), of_rank_1("timeout: got 0:00:00.000999, expected a timedelta from 1 ms")),
    (wrong(timeout=timedelta(0)), of_rank_1("timeout: got 0:00:00, expected a timedelta from 1 ms to 365 days")),
    (wrong(timeout=timedelta.max), of_rank_1("timeout: got 999999999 days, 23:59:59.999999, expected")),
    (wrong(compare=None), of_rank_1("compare: got None, expected a bool")),
    (wrong(out_dtype=torch.float32), of_rank_1("out_dtype: got torch.float32, expected float8_e4m3fn or float8_e4m3fnuz")),
    (wrong(attention=None), of_rank_1("attention: got None, expected a function")),
    (wrong(merge=1), of_rank_1("merge: got 1, expected a function")),
]
"""A call that is wrong on rank 1, and the beginning of the error of each of two ranks."""
each_device = pytest.mark.parametrize("device_type", ["cpu", pytest.param("cuda", marks=needs_two_gpus)])


@each_device
def test_a_call_that_is_wrong_on_one_rank_is_refused_on_all(device_type, tmp_path):
    """One call after the other in the same processes, which so are found in step after each refusal."""
    scenarios = {errors[-1]: scenario for scenario, errors in SCENARIOS}
    results = over_ranks(2, tmp_path, scenarios, device_type)
    for _, errors in SCENARIOS:
        for result, error in zip(results, errors, strict=True):
            assert result[errors[-1]][0].startswith(error), result[errors[-1]]


@each_device
def test_a_rank_that_does_not_come_is_not_waited_for_for_ever(device_type, tmp_path):
    (waits, _) = over_ranks(2, tmp_path, {"call": ranks_worker.does_not_come}, device_type)
    error = "RanksError: attention over ranks: comparing the ranks' calls failed: a rank has died"
    assert waits["call"][0].startswith(error), waits["call"]


def test_a_rank_that_dies_in_the_middle_of_a_step(tmp_path):
    (lives, dies) = over_ranks(2, tmp_path, {"call": ranks_worker.dies_in_the_middle})
    error = "RanksError: attention over ranks: gathering heads or LSEs failed: a rank has died"
    assert lives["call"][0].startswith(error), lives["call"]
    assert dies == {}


@needs_two_gpus
def test_a_rank_of_nccl_that_dies_in_the_middle_of_a_step(tmp_path):
    """Nobody waits in the process itself. So torch ends it when the group's timeout is over, and it has no output."""
    (lives, dies) = over_ranks(2, tmp_path, {"call": ranks_worker.dies_in_the_middle}, "cuda")
    assert not any(isinstance(part, torch.Tensor) for part in lives.get("call", ()))
    assert dies == {}
