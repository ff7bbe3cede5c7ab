"""Is the command that a report gives for a run parsed to the run's own options?"""

import dataclasses
import shlex
from pathlib import Path

import pytest
from attn_fuzz.run import shard
from attn_fuzz.run.shard import FuzzPlan
from attn_fuzz.targets import registry
from attn_parity.commands import fuzz
from attn_parity.commands.fuzz.begun import command_again
from attn_parity.commands.fuzz.options import Options
from attn_parity.device import sanitizes


def parsed(words: list[str]) -> Options:
    given = fuzz.command.make_context("fuzz", words).params
    return Options(**{field.name: given[field.name] for field in dataclasses.fields(Options)})


@pytest.mark.parametrize(
    "words",
    ["", "--no-sanitize", "--sanitize --fence", "--case-seconds 7", "--corpus none", "--minutes 2.5", "--keep-going", "--exact",
     "--keep-going --examples 9", "--keep-going --minutes 1 --no-exact", "--profile nightly", "--workers 9"],
)  # fmt: skip
def test_the_command_that_runs_it_again_asks_for_the_same(words):
    options = parsed(["--seed", "5", "--device", "cpu", *shlex.split(words)])
    target = registry.load("triton")
    every = shard.exact_every(target, "cpu") if options.exactly is None else int(options.exactly)
    plan = FuzzPlan(
        target="triton", device="cpu", examples=options.max_examples, seed=5, folder=Path(), exact_every=every,
        case_seconds=options.case_seconds, fenced=options.fenced, sanitize=sanitizes(options.sanitize, target, "cpu"),
    )  # fmt: skip
    program, command, *again = command_again(plan, options, options.workers or 1)
    assert (program, command) == ("attn-parity", "fuzz")
    repeated = parsed(again)
    assert (repeated.max_examples, repeated.max_minutes) == (options.max_examples, options.max_minutes)
    same = {"profile": options.profile, "examples": options.examples, "minutes": options.minutes}
    assert dataclasses.replace(repeated, **same) == options
