"""Every loop of our kernels turns twice in the draws of a small fuzz run, and 0 times where it can."""

import json
from pathlib import Path

import pytest

from tests.fuzz.interpreted.loops import loops
from tests.support import processes

EXAMPLES = 40


@pytest.fixture(scope="module")
def turns() -> dict[str, list[int]]:
    """The numbers of turns by file and line: 0, 1, and 2 for more."""
    result = processes.run(["-m", "interpreted.loops", EXAMPLES], cwd=Path(__file__).parents[1])
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize(("place", "can_be_skipped"), loops().items())
def test_a_loop_turns_twice_and_not_at_all_where_it_can(turns, place, can_be_skipped):
    assert 2 in turns[place], "no case finds what its second turn gets wrong: is a constant of the interpreter too large?"
    assert (0 in turns[place]) == can_be_skipped
