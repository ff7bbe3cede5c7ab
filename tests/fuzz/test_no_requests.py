"""Steps without a request: what goes wrong in them alone is found."""

from attn_fuzz.zoo.mutants import Mutant
from attn_fuzz.zoo.patches import Patch


def test_a_rank_that_fails_in_a_step_without_a_request_is_found(fuzz_apart):
    place = "attn_optimized.context_parallel.dealing.local_step"
    patch = Patch(place, "not batch.num_requests", "False")
    fault = Mutant(name="fault", patches=(patch,), raises="")
    progress = fuzz_apart("triton-ranks", examples=150, mutant=fault, on_failure="stop")
    assert progress.failure is not None, f"survived {progress.examples} examples"
