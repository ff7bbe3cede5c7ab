"""The serving engine in the fuzz job, `tox run -e nightly -- fuzz`: a sequence of actions for every ten cases of a target
(`--attn-examples`).

A seed comes from the test's name. A failure is told as the shortest sequence of actions that Hypothesis finds.
"""

import zlib

import pytest
import torch
from attn_fuzz.interpreted import interpreter
from attn_fuzz.serving import scheduler
from attn_fuzz.serving.models import MODELS, unavailable

ACTIONS = 30
CASES_PER_SEQUENCE = 10
SHARDS = 2
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("shard", range(SHARDS))
@pytest.mark.parametrize("model", MODELS)
def test_agrees_after_any_actions(model: str, shard: int, request: pytest.FixtureRequest) -> None:
    if reason := unavailable(model, DEVICE):
        pytest.skip(reason)
    if DEVICE == "cpu":
        interpreter.install()
    seed = zlib.crc32(request.node.name.encode())
    sequences = max(1, request.config.option.attn_examples // SHARDS // CASES_PER_SEQUENCE)
    scheduler.play(MODELS[model](DEVICE), DEVICE, seed=seed, sequences=sequences, actions=ACTIONS)
