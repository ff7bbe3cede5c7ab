"""How many kernels an engine meets."""

import random

import pytest
from click.testing import CliRunner

from benchmarks import warm_up
from benchmarks.speed.drawn import Cache
from benchmarks.speed.models import LayerKind, Model
from benchmarks.warm_up import Engine, kernels_met, launches, main

PLAIN = Model(name="plain", num_heads=8, num_kv_heads=2, head_size=64)
MIXED = Model(name="mixed", num_heads=8, num_kv_heads=2, head_size=64, layers=(LayerKind(), LayerKind(window=128, sinks=True)))


def engine(model: Model) -> Engine:
    return Engine(model, 1, Cache(warm_up.LAYOUT, warm_up.BLOCK_SIZE, False))


def test_lengths_make_no_kernels_of_their_own():
    few, later = kernels_met(engine(PLAIN), "sm90", 60, seed=3)
    assert 3 <= few <= later <= 14, "decodes, prompts and mixed batches, whole and split, and reductions"


def test_each_kind_of_layers_is_met():
    assert kernels_met(engine(MIXED), "gfx942", 25, seed=3)[1] > kernels_met(engine(PLAIN), "gfx942", 25, seed=3)[1]


def test_a_kernel_that_is_compiled_for_lengths_is_seen(monkeypatch):
    """The check of the check: a constant that follows the batch."""

    def planted(*arguments):
        for call in launches(*arguments):
            call.launch.constants["LENGTH"] = tuple(call.tensors["query_start_loc_ptr"].shape)
            yield call

    honest = kernels_met(engine(PLAIN), "sm90", 30, seed=3)[1]
    monkeypatch.setattr(warm_up, "launches", planted)
    assert kernels_met(engine(PLAIN), "sm90", 30, seed=3)[1] > 2 * honest


def test_the_same_seed_draws_the_same_steps():
    first, second = (list(launches(engine(MIXED), "sm90", "chunks", random.Random(7))) for _ in range(2))
    assert [call.launch.grid for call in first] == [call.launch.grid for call in second]


def test_the_command_counts_all_models(monkeypatch):
    monkeypatch.setattr(warm_up, "models", lambda: (PLAIN, MIXED))
    done = CliRunner().invoke(main, ["--steps", "20"])
    assert done.exit_code == 0, done.output
    assert done.output.count("mixed / ") == 2 * len(warm_up.ARCHITECTURES_SHOWN)


@pytest.mark.parametrize("arguments", [["--steps", "19"], ["--seed", "-1"]])
def test_bad_options_are_refused(arguments):
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert arguments[0] in done.output
