"""Steps without a request, and steps without a key: what goes wrong in them alone is found."""

import pytest
import torch
from attn_contract import Batch
from attn_fuzz.targets import no_keys
from attn_fuzz.zoo.mutants import Mutant
from attn_fuzz.zoo.patches import Patch


def test_a_rank_that_fails_in_a_step_without_a_request_is_found(fuzz_apart):
    place = "attn_optimized.context_parallel.dealing.local_step"
    patch = Patch(place, "not batch.num_requests", "False")
    fault = Mutant(name="fault", patches=(patch,), raises="")
    progress = fuzz_apart("triton-ranks", examples=150, mutant=fault, on_failure="stop")
    assert progress.failure is not None, f"survived {progress.examples} examples"


@pytest.mark.parametrize(
    ("row", "number", "message"),
    [
        (None, 0.0, None),
        (2, 1.0, "expected an output of 0"),
        (0, torch.nan, "expected an output of 0"),
        (3, 0.0, "a row that no request owns was written"),
    ],
)
def test_a_wrong_row_of_a_step_without_a_key_is_noticed(row, number, message):
    batch = Batch(
        query_start_loc=torch.tensor([0, 3], dtype=torch.int32),
        seq_lens=torch.tensor([5], dtype=torch.int32),
        max_query_len=3,
        max_seq_len=5,
        num_actual_tokens=4,
        causal=True,
        block_table=torch.zeros(1, 2, dtype=torch.int32),
    )

    def attend(batch: Batch, out: torch.Tensor) -> None:
        assert batch.block_table is not None
        assert (batch.seq_lens.tolist(), tuple(batch.block_table.shape)) == ([0], (1, 0))
        out[:3] = 0.0
        if row is not None:
            out[row] = number

    if message is None:
        no_keys.check(attend, batch, torch.empty(4, 2, 8))
    else:
        with pytest.raises(AssertionError, match=message):
            no_keys.check(attend, batch, torch.empty(4, 2, 8))
