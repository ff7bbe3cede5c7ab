"""TRITON_MLA over ranks that are processes: whole steps, through the builder, against the undivided attention."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from attn_contract import AttentionType, ContractError, UnsupportedError
from attn_fuzz.targets.backends.mla import BACKEND_TRITON_MLA
from attn_optimized.backends import BACKENDS
from attn_optimized.context_parallel import Dealing

from tests.optimized.backends import mla_ranks_worker
from tests.optimized.backends.mla_ranks_worker import Case
from tests.optimized.context_parallel.ranks_worker import over_ranks
from tests.support.agreement import assert_within_bound

MIXED = Case(query_lens=[1, 5, 2, 6, 1, 4], seq_lens=[20, 5, 2, 40, 1, 19])
STEPS = {
    "decodes, a prefill and extends": MIXED,
    "cut contexts": replace(MIXED, context_chunk_keys=20),
    "decodes of a few keys": Case(query_lens=[1, 1, 1], seq_lens=[1, 40, 17]),
    "drafts": Case(query_lens=[1, 3, 2], seq_lens=[30, 5, 20], num_speculative_tokens=2),
    "a draft beside prefills": Case(query_lens=[2, 9, 1], seq_lens=[30, 20, 3], num_speculative_tokens=1),
    "prefills without a context": Case(query_lens=[5, 3], seq_lens=[5, 3]),
    "contexts of which some ranks have nothing": Case(query_lens=[4, 6, 3], seq_lens=[5, 8, 3]),
    "requests without a query, or without a key": Case(query_lens=[3, 0, 0, 1], seq_lens=[20, 9, 0, 5]),
    "a step that is not causal": Case(query_lens=[4, 4], seq_lens=[30, 12], causal=False),
    "a float8 cache": replace(MIXED, is_quantized=True, context_chunk_keys=40),
}
DEALINGS = {
    "1 token at a time": {"interleave": 1, "exchange": "reduce_scatter"},
    "16 tokens at a time": {"interleave": 16, "exchange": "all_to_all", "validate": False, "batch_invariant": True},
}


def judge(case: Case, results: list, device_type: str = "cpu") -> None:
    """Hold the results of all ranks to the bound of the undivided attention, and each rank's cache to what it should hold.

    The reference attends to the whole cache, whoever has which key.
    """
    for result in results:
        assert isinstance(result[0], torch.Tensor), result
    outs, lses, are_right = zip(*results, strict=True)
    assert all(are_right), "a rank's cache has not the rank's own tokens alone"
    call = mla_ranks_worker.whole_call(case)
    assert_within_bound(call, torch.cat(outs, dim=1), torch.cat(lses), rounding=BACKEND_TRITON_MLA.rounding(device_type))


@pytest.mark.parametrize("dealing", DEALINGS)
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_is_the_undivided_attention(num_ranks, dealing, tmp_path):
    cases = {name: replace(case, **DEALINGS[dealing]) for name, case in STEPS.items()}
    results = over_ranks(
        num_ranks, tmp_path, {name: partial(mla_ranks_worker.attends, case=case) for name, case in cases.items()}
    )
    for name, case in cases.items():
        judge(case, [result[name] for result in results])


def test_the_rest_of_the_batch_changes_nothing(tmp_path):
    """Parts are merged in the order of ranks, and the chunks of a request are its own."""
    case = replace(STEPS["cut contexts"], exchange="all_to_all", batch_invariant=True)
    count = len(case.query_lens)
    counts = (1, 4, count)
    firsts = {str(one): partial(mla_ranks_worker.attends_to_the_first, case=case, count=one) for one in counts}
    for result in over_ranks(2, tmp_path, firsts):
        out, lse = result[str(count)]
        for one in counts[:-1]:
            own_out, own_lse = result[str(one)]
            assert torch.equal(own_out, out[: len(own_out)])
            assert torch.equal(own_lse, lse[:, : len(own_out)])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs: each rank of NCCL has its own")
@pytest.mark.parametrize("dealing", DEALINGS)
def test_over_nccl_it_is_the_undivided_attention(dealing, tmp_path):
    cases = {name: replace(case, **DEALINGS[dealing]) for name, case in STEPS.items()}
    scenarios = {name: partial(mla_ranks_worker.attends, case=case) for name, case in cases.items()}
    results = over_ranks(2, tmp_path, scenarios, "cuda")
    for name, case in cases.items():
        judge(case, [result[name] for result in results], "cuda")


DECODES, PREFILLS = STEPS["decodes of a few keys"], Case(query_lens=[5, 3], seq_lens=[20, 30])
unlike = partial(partial, mla_ranks_worker.disagrees)


def of_rank_1(error):
    return ["RanksError: attention over ranks: rank 1 refused its call", f"ContractError: {error}"]


def of_both(error):
    return [f"ContractError: {error}, as on rank 0"] * 2


UNLIKE = {
    "an output of a decode": (
        unlike(case=DECODES, changes=mla_ranks_worker.with_output_of_one_head),
        of_rank_1("out: got shape (5, 1, 32), expected shape (5, 3, 32)"),
    ),
    "an output of a prefill": (
        unlike(case=PREFILLS, changes=mla_ranks_worker.with_output_of_one_head),
        of_rank_1("out: got shape (8, 1, 32), expected shape (8, 3, 32)"),
    ),
    "rows of a prefill": (
        unlike(case=PREFILLS, changes=mla_ranks_worker.with_a_row_too_many),
        of_rank_1("kv_c: got shape (9, 32), expected shape (8, 32)"),
    ),
    "metadata of a layer of one process": (
        unlike(case=PREFILLS, changes=mla_ranks_worker.with_metadata_of_one_process),
        of_rank_1("attn_metadata: got MlaMetadata, expected RankMlaMetadata"),
    ),
    "a block that does not exist": (
        unlike(case=DECODES, changes=mla_ranks_worker.with_a_block_that_does_not_exist),
        of_rank_1("block_table[1, 0]: got 999"),
    ),
    "keys of a chunk": (
        unlike(case=PREFILLS, builder={"context_chunk_keys": 7}),
        of_both("context_chunk_keys: got 7 on rank 1, expected 1024"),
    ),
    "the scale of a prefill": (
        unlike(case=PREFILLS, scale=0.5),
        of_both("scale: got 0.5 on rank 1, expected 0.15811388300841897"),
    ),
    "the scale of a decode": (
        unlike(case=DECODES, scale=0.5),
        of_both("scale: got 0.5 on rank 1, expected 0.15811388300841897"),
    ),
    "where the requests of a prefill begin": (
        unlike(case=PREFILLS, of_step=mla_ranks_worker.with_another_cut),
        ["ContractError: query_start_loc_cpu: got values of checksum "] * 2,
    ),
    "the lengths of a prefill": (
        unlike(case=PREFILLS, of_step=mla_ranks_worker.with_a_key_less),
        ["ContractError: seq_lens_cpu: got values of checksum "] * 2,
    ),
    "the lengths of a decode": (
        unlike(case=DECODES, of_step=mla_ranks_worker.with_a_key_less),
        ["ContractError: seq_lens: got values of checksum "] * 2,
    ),
    "the dealing of a decode": (
        unlike(case=DECODES, builder={"dealing": Dealing(num_ranks=3, rank=2)}),
        of_rank_1("attn_metadata.dealing: got rank 2 of 3, expected rank 1 of 2"),
    ),
    "the dealing of a prefill": (
        unlike(case=PREFILLS, builder={"dealing": Dealing(num_ranks=2, rank=1, interleave=2)}),
        of_both("interleave: got 2 on rank 1, expected 1"),
    ),
}


@pytest.mark.parametrize("what", UNLIKE)
def test_a_call_that_is_another_one_on_one_rank_is_refused_on_all(what, unlike_results):
    """Nobody waits for a rank that has refused its call."""
    for result, error in zip(unlike_results, UNLIKE[what][1], strict=True):
        assert str(result[what][0]).startswith(error), result[what]


@pytest.fixture(scope="module")
def unlike_results(tmp_path_factory):
    return over_ranks(2, tmp_path_factory.mktemp("unlike"), {what: scenario for what, (scenario, _) in UNLIKE.items()})


LAYERS = {
    "a sum of the network that is to be invariant": (
        partial(mla_ranks_worker.makes_a_layer, case=DECODES, batch_invariant=True, exchange="reduce_scatter"),
        "UnsupportedError: TRITON_MLA: batch invariance over ranks by reduce_scatter not supported",
    ),
    "an exchange": (
        partial(mla_ranks_worker.makes_a_layer, case=DECODES, exchange="by post"),
        "ContractError: exchange: got 'by post', expected 'reduce_scatter' or 'all_to_all'",
    ),
    "no group": (
        partial(mla_ranks_worker.makes_a_layer, case=DECODES, group=None),
        "ContractError: group: got None, expected a process group",
    ),
    "a timeout in seconds": (
        partial(mla_ranks_worker.makes_a_layer, case=DECODES, timeout=60),
        "ContractError: timeout: got 60, expected a timedelta",
    ),
    "its metadata for a layer of one process": (
        partial(mla_ranks_worker.gives_a_layer_of_one_process_its_metadata, case=PREFILLS),
        "ContractError: attn_metadata: got RankMlaMetadata, expected MlaMetadata",
    ),
}


AFTER_A_RIGHT_CALL = {
    "an output in the memory of the query": (
        partial(mla_ranks_worker.is_wrong_after_a_right_call, changes=mla_ranks_worker.with_output_in_the_query),
        "ContractError: out: got memory that reaches into q's",
    ),
    "a query that needs a gradient": (
        partial(mla_ranks_worker.is_wrong_after_a_right_call, changes=mla_ranks_worker.with_query_that_needs_a_gradient),
        "ContractError: q: got requires_grad=True",
    ),
    "an output of one head": (
        partial(mla_ranks_worker.is_wrong_after_a_right_call, changes=mla_ranks_worker.with_output_of_one_head),
        "ContractError: out: got shape (",
    ),
}


@pytest.mark.parametrize("phase", [DECODES, PREFILLS])
def test_a_call_is_refused_after_a_right_one_of_its_signature(phase, tmp_path):
    """A signature that was right is not checked again; memory and gradients are, without `validate`, too."""
    case = replace(phase, validate=False)
    scenarios = {what: partial(scenario, case=case) for what, (scenario, _) in AFTER_A_RIGHT_CALL.items()}
    (result,) = over_ranks(1, tmp_path, scenarios)
    for what, (_, error) in AFTER_A_RIGHT_CALL.items():
        assert str(result[what][0]).startswith(error), result[what]


def test_a_graph_holds_decodes_and_no_prefill(tmp_path):
    """Its chunks are those of one step."""
    cases = {"decodes": DECODES, "prefills": PREFILLS}
    scenarios = {name: partial(mla_ranks_worker.is_captured, case=case) for name, case in cases.items()}
    (result,) = over_ranks(1, tmp_path, scenarios)
    assert isinstance(result["decodes"][0], torch.Tensor), result["decodes"]
    refusal = "UnsupportedError: TRITON_MLA: a prefill over ranks in a CUDA graph not supported"
    assert result["prefills"][0].startswith(refusal), result["prefills"]


def test_layers_are_refused_by_name(tmp_path):
    (result,) = over_ranks(1, tmp_path, {what: scenario for what, (scenario, _) in LAYERS.items()})
    for what, (_, error) in LAYERS.items():
        assert str(result[what][0]).startswith(error), result[what]


@pytest.mark.parametrize("dealing", [None, 2])
def test_a_builder_without_a_dealing_is_refused(dealing):
    with pytest.raises(ContractError, match=f"dealing: got {dealing}, expected a Dealing"):
        BACKENDS["TRITON_MLA"].over_ranks().builder(AttentionType.DECODER, dealing=dealing)


@pytest.mark.parametrize("name", sorted(BACKENDS.keys() - {"TRITON_MLA"}))
def test_other_backends_have_none_over_ranks(name):
    with pytest.raises(UnsupportedError, match=f"^{name}: a cache that ranks share not supported"):
        BACKENDS[name].over_ranks()
