"""Lists of DeepSeek-V4's prefills: what they should be, and what is found in wrong ones."""

import pytest
import torch
from attn_fuzz.errors import FailedCheckError
from attn_fuzz.targets.packages.combined_lists import Prefill, check

NUMBERS = {
    "query_start_loc": [5, 7, 7, 8],  # a part of a step; the second request has no query
    "seq_lens": [9, 4, 3],
    "gather_lens": [4, 2, 1],  # one key less than the window has in the last request
    "positions": [7, 8, 2, 0],  # and a query of no request
    "first_entries": [0, 20, 40],
    "first_keys": [10, 30, 50],
    "chosen": [[1, 0, 9], [0, -1, 9], [7, 7, 7], [7, 7, 7]],
}
TENSORS = {name: torch.tensor(numbers, dtype=torch.int32) for name, numbers in NUMBERS.items()}
STEP = Prefill(**TENSORS, window=2, ratio=4, top_k=2)
RIGHT = [[1, 0, 11, 12], [0, -1, 12, 13], [50], []]
LENGTHS = [4, 4, 1, 0]


def _padded(lists: list[list[int]]) -> torch.Tensor:
    return torch.tensor([[*row, *[-1] * (5 - len(row))] for row in lists])


def test_a_token_of_the_window_is_listed_beside_its_entry():
    """Entry 1 stands for tokens 4 to 7, of which the window of position 7 has 6 and 7."""
    assert list(STEP.lists()) == RIGHT
    check(STEP.lists(), _padded(RIGHT), torch.tensor(LENGTHS), STEP.positions)


def test_the_order_of_a_list_means_nothing():
    check(STEP.lists(), _padded([[12, 0, 1, 11], [-1, 13, 0, 12], *RIGHT[2:]]), torch.tensor(LENGTHS), STEP.positions)


@pytest.mark.parametrize(
    ("row", "list_", "length", "said"),
    [
        (0, [1, 0, 12], 3, "query 0 at position 7 has a list of 3, expected 4"),
        (0, [1, 1, 11, 12], 4, "query 0 at position 7: got [1, 1, 11, 12, -1], expected [1, 0, 11, 12] and then -1"),
        (1, [0, 0, 12, 13], 4, "query 1 at position 8: got [0, 0, 12, 13, -1]"),
        (2, [50, 51], 1, "query 2 at position 2: got [50, 51, -1, -1, -1]"),
        (3, [50], 1, "query 3 at position 0 has a list of 1, expected 0"),
    ],
    ids=["a token left out", "an entry twice", "a slot for -1", "a row after the length", "a query of no request"],
)
def test_a_wrong_list_is_named(row, list_, length, said):
    lists, lengths = [*RIGHT], [*LENGTHS]
    lists[row], lengths[row] = list_, length
    with pytest.raises(FailedCheckError) as raised:
        check(STEP.lists(), _padded(lists), torch.tensor(lengths), STEP.positions)
    assert raised.value.message.startswith(said)
