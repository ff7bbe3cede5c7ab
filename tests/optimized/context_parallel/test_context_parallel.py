"""A rank's part of a step: literal lengths and rows, the reference's formulas, and refusals."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from attn_contract import AttentionType, Batch, ContractError, Layer, Layout, UnsupportedError
from attn_optimized.context_parallel import Dealing, local_layer, local_step, weighted_part
from attn_optimized.context_parallel.dealing import local_lengths
from attn_reference import context_parallel

SIZES = {"num_heads": 2, "num_kv_heads": 1, "head_size": 8, "scale": 1.0}


@pytest.fixture
def step(device):
    """Five requests: a decode, three drafts, no query, more queries than keys, and a row behind them that nobody owns."""

    def ints(*numbers):
        return torch.tensor(numbers, dtype=torch.int32, device=device)

    return Batch(
        query_start_loc=ints(0, 1, 4, 4, 6),
        seq_lens=ints(7, 9, 5, 1),
        max_query_len=3,
        max_seq_len=9,
        num_actual_tokens=7,
        causal=True,
        block_table=ints(0, 1, 2, 3)[:, None],
    )


def lengths_of(step: Batch, **dealing) -> list[int]:
    return local_step(step, Dealing(**dealing)).batch.seq_lens.tolist()


def test_each_query_of_a_causal_step_is_a_request(step):
    """Positions 6; 6, 7, 8; -1, 0: they see 7; 7, 8, 9; 0, 1 keys of the whole sequence."""
    local = local_step(step, Dealing(num_ranks=2, rank=0)).batch
    assert local.seq_lens.tolist() == [4, 4, 4, 5, 0, 1, 0]
    assert local.query_start_loc.tolist() == [0, 1, 2, 3, 4, 5, 6, 6]
    assert local.block_table[:, 0].tolist() == [0, 1, 1, 1, 3, 3, 3]
    assert (local.max_query_len, local.max_seq_len, local.causal) == (1, 5, False)
    assert lengths_of(step, num_ranks=2, rank=1) == [3, 3, 4, 4, 0, 0, 0]
    assert lengths_of(step, num_ranks=2, rank=1, interleave=4) == [3, 3, 4, 4, 0, 0, 0]
    assert lengths_of(step, num_ranks=2, rank=0, interleave=4) == [4, 4, 4, 5, 0, 1, 0]


def test_requests_stay_whole_where_their_queries_see_the_same_keys(step):
    decode = replace(step, query_start_loc=step.query_start_loc.clamp(max=1), max_query_len=1)
    for whole in (replace(step, causal=False), decode):
        local = local_step(whole, Dealing(num_ranks=2, rank=1)).batch
        assert local.seq_lens.tolist() == [3, 4, 2, 0]
        assert local.query_start_loc is whole.query_start_loc
        assert local.causal is False


def test_a_request_that_is_not_causal_sees_all_keys_beside_one_that_is(step):
    causal = torch.tensor([True, False, True, True], device=step.seq_lens.device)
    assert lengths_of(replace(step, causal=causal), num_ranks=2, rank=0) == [4, 5, 5, 5, 0, 1, 0]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("interleave", [1, 2, 7])
def test_lengths_are_those_of_the_reference(num_ranks, interleave, device):
    lengths = torch.arange(60, dtype=torch.int32, device=device)
    for rank in range(num_ranks):
        got = local_lengths(lengths, Dealing(num_ranks=num_ranks, rank=rank, interleave=interleave))
        expected = [context_parallel.local_length(length, rank, num_ranks, interleave) for length in range(60)]
        assert (got.dtype, got.tolist()) == (torch.int32, expected)


def test_a_step_without_requests(step):
    empty = replace(
        step,
        query_start_loc=step.query_start_loc[:1],
        seq_lens=step.seq_lens[:0],
        block_table=step.block_table[:0],
    )
    assert local_step(empty, Dealing(num_ranks=2, rank=1)).batch.num_requests == 0


def test_sinks_are_of_rank_0_and_the_output_is_quantized_after_the_merge(device):
    layer = Layer(**SIZES, layout=Layout.KV_FIRST_NHD, sinks=torch.zeros(2), output_scale=torch.ones(()), logits_soft_cap=3.0)
    first, second = (local_layer(layer, Dealing(num_ranks=2, rank=rank)) for rank in range(2))
    assert first.sinks is layer.sinks
    assert second.sinks is None
    assert first.output_scale is second.output_scale is None
    assert second.logits_soft_cap == 3.0


def test_a_layer_of_a_rank_is_made_once_and_kept_as_long_as_its_layer():
    layer = Layer(**SIZES, layout=Layout.KV_FIRST_NHD, sinks=torch.zeros(2))
    first, second = (local_layer(layer, Dealing(num_ranks=2, rank=rank)) for rank in range(2))
    assert (first.sinks, second.sinks) == (layer.sinks, None)
    assert local_layer(layer, Dealing(num_ranks=2, rank=0)) is first
    kept = weakref.ref(first)
    del layer, first
    gc.collect()
    assert kept() is None


def test_shares_add_up_and_an_empty_rank_adds_nothing(device):
    out = torch.tensor([[[2.0]], [[4.0]], [[torch.nan]]], device=device)[:, None]  # [N, T, H, D] of one number
    lses = torch.tensor([0.0, 0.0, torch.nan], device=device).view(3, 1, 1)
    shares = [weighted_part(part, lses, rank)[0].item() for rank, part in enumerate(out)]
    assert shares == [1.0, 2.0, 0.0]
    nothing = torch.full_like(lses, torch.inf)
    share, lse = weighted_part(out[2], nothing, 0)
    assert (share.item(), lse.item()) == (0.0, -torch.inf)


def test_shares_of_large_logits_add_up(device):
    """Rounded to float32, an LSE of 1000 is off by up to 3e-5, and the weights of all ranks must add up to 1."""
    lses = torch.tensor([1000.0, 1000.3, 999.1], device=device).view(3, 1, 1)
    ones = torch.ones(1, 1, 8, device=device)
    total = sum(weighted_part(ones, lses, rank)[0] for rank in range(3))
    torch.testing.assert_close(total, ones, rtol=0, atol=2**-22)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: weighted_part(torch.zeros(2, 3, 8), torch.zeros(4, 3, 2), 4), "rank: got 4, expected one of 4 ranks, from 0"),
        (lambda: Dealing(num_ranks=2, rank=2), "rank: got 2, expected one of 2 ranks, from 0"),
        (lambda: Dealing(num_ranks=0, rank=0), "num_ranks: got 0, expected an int, at least 1"),
        (lambda: Dealing(num_ranks=2, rank=0, interleave=0), "interleave: got 0, expected an int, at least 1"),
    ],
)
def test_a_rank_is_one_of_the_ranks(make, message):
    """See test_wrong_arguments for what else is refused of these arguments."""
    with pytest.raises(ContractError) as caught:
        make()
    assert str(caught.value).startswith(message)


def of_selection(step: Batch, device, *, unit: int, **dealing) -> list[list[int]]:
    """The units that a rank's step selects, of rows that each select the units 0, none and the last three."""
    selected = torch.tensor([0, -1, 8 // unit, 8 // unit - 1, 8 // unit - 2], dtype=torch.int32, device=device)
    selecting = replace(step, selected=selected.expand(1, 7, 5))
    layer = Layer(**SIZES, layout=Layout.KV_FIRST_NHD, selection_unit=unit)
    return local_step(selecting, Dealing(**dealing)).of_layer(layer).selected[0].tolist()


def test_a_rank_selects_its_own_units_by_their_local_numbers(step, device):
    """Of tokens 0, 8, 7, 6 rank 0 has 0, 8 and 6. Of units of two it has 0, 4 and 2, if two tokens are dealt at a time."""
    decode = replace(step, query_start_loc=step.query_start_loc.clamp(max=1), max_query_len=1)
    assert of_selection(decode, device, unit=1, num_ranks=2, rank=0)[0] == [0, -1, 4, -1, 3]
    assert of_selection(decode, device, unit=1, num_ranks=2, rank=1)[0] == [-1, -1, -1, 3, -1]
    assert of_selection(decode, device, unit=2, num_ranks=2, rank=0, interleave=2)[0] == [0, -1, 2, -1, 1]
    assert of_selection(decode, device, unit=2, num_ranks=2, rank=0, interleave=4)[0] == [0, -1, 2, -1, -1]


def test_a_unit_behind_the_keys_that_a_row_sees_is_none_of_its_request(step, device):
    """Rows see 7, 7, 8, 9, 0, 1 and 0 keys of the whole sequence."""
    rows = of_selection(step, device, unit=1, num_ranks=2, rank=0)
    assert rows == [[0, -1, -1, -1, 3]] * 3 + [[0, -1, 4, -1, 3], [-1] * 5, [0, -1, -1, -1, -1], [-1] * 5]


def test_a_unit_lies_on_one_rank():
    layer = Layer(**SIZES, layout=Layout.KV_FIRST_NHD, selection_unit=4)
    with pytest.raises(ContractError, match=r"^dealing.interleave: got 2, expected a multiple of selection_unit \(4\)"):
        local_layer(layer, Dealing(num_ranks=2, rank=0, interleave=2))


@pytest.mark.parametrize(
    "rule", [{"window": (3, 0)}, {"sink_tokens": 1}, {"chunked_local": 4}, {"alibi_slopes": torch.ones(2)}], ids=str
)
def test_rules_of_positions_are_refused(rule, step):
    with pytest.raises(UnsupportedError, match="attention over ranks"):
        local_layer(Layer(**SIZES, layout=Layout.KV_FIRST_NHD, **rule), Dealing(num_ranks=2, rank=0))
    biased = replace(step, qq_bias=torch.zeros(3, 3))
    with pytest.raises(UnsupportedError, match=r"attention over ranks: .*\(qq_bias\) not supported"):
        local_step(biased, Dealing(num_ranks=2, rank=0))


def test_a_layer_and_a_step_without_a_cache_are_refused(step):
    with pytest.raises(ContractError, match="attn_type: got encoder"):
        local_layer(Layer(**SIZES, attn_type=AttentionType.ENCODER), Dealing(num_ranks=2, rank=0))
    with pytest.raises(ContractError, match="block_table: got None"):
        local_step(replace(step, block_table=None), Dealing(num_ranks=2, rank=0))
