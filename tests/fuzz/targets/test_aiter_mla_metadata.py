"""Works of AITER's persistent latent decode: each key of each request belongs to one of them, and their parts are merged."""

import itertools

import pytest
import torch
from attn_fuzz.targets.packages.aiter import mla_metadata as aiter_mla_metadata
from attn_fuzz.targets.packages.aiter.mla_metadata import metadata, metadata_of_main


@pytest.mark.parametrize("plan", [metadata, metadata_of_main])
@pytest.mark.parametrize("most_parts", [-1, 1, 3])
@pytest.mark.parametrize(
    ("keys", "queries", "heads", "workgroups"), [([300, 17, 33], 1, 16, 304), ([65, 200], 4, 128, 8), ([40] * 9, 2, 16, 4)]
)
def test_works_have_all_keys_once_and_their_parts_are_merged(keys, queries, heads, workgroups, most_parts, plan):
    qo_indptr = torch.arange(len(keys) + 1, dtype=torch.int32) * queries
    kv_indptr = torch.tensor([0, *itertools.accumulate(keys)], dtype=torch.int32)
    made = plan(qo_indptr, kv_indptr, heads, workgroups, most_parts)
    assert len(made.work_indptr) == workgroups + 1
    assert made.work_indptr[-1] == len(made.work_info_set)
    tiles: dict[tuple[int, int], list[list[int]]] = {}
    for request, place, begin, end, first, last, after, _ in made.work_info_set.tolist():
        assert last + after == kv_indptr[request + 1]
        tiles.setdefault((begin, end), []).append([place, first, last, request])
    merged = dict(zip(map(tuple, made.reduce_final_map.tolist()), itertools.pairwise(made.reduce_indptr.tolist()), strict=True))
    for (begin, end), parts in tiles.items():
        request = parts[0][3]
        hidden = (request + 1) * queries - end  # queries after the tile, which do not see the last keys
        spans = [(first, last) for _, first, last, _ in parts if first < last]
        assert [key for first, last in spans for key in range(first, last)] == [
            *range(kv_indptr[request], kv_indptr[request + 1] - (hidden if heads == 128 else 0))
        ]
        first, last = merged[begin, end]
        places = [place for place, *_ in parts]
        assert made.reduce_partial_map[first:last].tolist() == ([] if places == [-1] else places)


def test_a_part_without_keys_is_a_work():
    """17 keys in parts of 16: the first of 2 queries sees none of the second part."""
    made = metadata(torch.tensor([0, 2]), torch.tensor([0, 17]), 128, 304, -1)
    assert [work[2:6] for work in made.work_info_set.tolist()] == [[0, 1, 0, 16], [1, 2, 0, 16], [0, 1, 16, 16], [1, 2, 16, 17]]


def test_main_leaves_no_part_that_a_query_does_not_see():
    made = metadata_of_main(torch.tensor([0, 2]), torch.tensor([0, 17]), 128, 304, -1)
    assert [work[1:7] for work in made.work_info_set.tolist()] == [[-1, 0, 1, 0, 16, 1], [-1, 1, 2, 0, 17, 0]]


def test_requests_of_many_heads_are_works_of_16_heads_over_the_same_keys():
    made = metadata_of_main(torch.tensor([0, 1, 2]), torch.tensor([0, 9, 20]), 16, 304, -1, factor=2)
    assert [work[2:6] for work in made.work_info_set.tolist()] == [[0, 1, 0, 9], [1, 2, 0, 9], [2, 3, 9, 20], [3, 4, 9, 20]]


def test_parts_are_merged_by_their_sums():
    torch.manual_seed(0)
    logits, values = torch.randn(3, 2, 16, 5), torch.randn(3, 2, 16, 5, 512)  # [parts, queries, H, keys], [..., D]
    partial = (logits.softmax(-1)[..., None] * values).sum(-2).view(6, 1, 16, 512)
    out, lse = torch.zeros(2, 16, 512), torch.zeros(2, 16)
    maps = [torch.tensor(each) for each in ([0, 3], [[0, 2]], [0, 2, 4])]
    aiter_mla_metadata.reduce(partial, logits.logsumexp(-1).view(6, 1, 16, 1), *maps, out, lse)
    together = logits.permute(1, 2, 0, 3).flatten(2)
    expected = (together.softmax(-1)[..., None] * values.permute(1, 2, 0, 3, 4).flatten(2, 3)).sum(-2)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(lse, together.logsumexp(-1))
