"""A case says in which order interpreted programs run, and a race is a wrong value."""

import json
from types import SimpleNamespace

import msgspec
import pytest
import torch
from attn_fuzz import report
from attn_fuzz.cases import case_file
from attn_fuzz.cases.case import PROGRAM_ORDERS, SCHEMA, Case
from attn_fuzz.interpreted import program_order
from attn_fuzz.run.processes.executor import Executor
from attn_fuzz.run.shrink import lowered
from attn_fuzz.targets.support import EVERYTHING

from tests.support import processes

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU chooses the order itself")
replace = msgspec.structs.replace


@pytest.fixture
def launch(monkeypatch):
    """The places of the programs of one launch of 24, in the order in which they run."""
    monkeypatch.setattr(program_order, "state", SimpleNamespace(**vars(program_order._State)))
    return lambda: program_order.order(24)


def test_programs_run_in_the_chosen_order(launch):
    in_order = list(range(24))
    assert launch() == in_order
    with program_order.programs("reversed", 0):
        assert launch() == in_order[::-1]
    with program_order.programs("shuffled", 1):
        first, second = launch(), launch()
    with program_order.programs("shuffled", 1):
        assert (launch(), launch()) == (first, second), "the same launches by the same seed"
    with program_order.programs("shuffled", 2):
        assert launch() != first
    assert sorted(first) == sorted(second) == in_order
    assert len({tuple(order) for order in (first, second, in_order, in_order[::-1])}) == 4
    assert launch() == in_order


@pytest.fixture(scope="module")
def race(tmp_path_factory):
    with Executor(
        "planted_race:RACE", "cpu", case_seconds=60, ahead=tmp_path_factory.mktemp("race") / "ahead.json"
    ) as executor:
        yield executor


@pytest.mark.parametrize("order", PROGRAM_ORDERS)
def test_programs_that_run_together_do_not_repair_what_their_neighbours_wrote(race, step_case, order):
    verdict = race.run(replace(step_case, program_order=order))
    assert verdict.kind == "value", verdict.message


def test_the_script_of_a_failure_runs_programs_in_the_order_of_its_case(race, step_case, tmp_path, child_environment):
    case = replace(step_case, program_order="reversed", target="planted_race:RACE")
    _, script = report.write(case, race.run(case), tmp_path, "failure")
    ended = processes.run([script], cwd=tmp_path, env=child_environment)
    assert (ended.returncode, ended.stderr) == (1, "")
    assert ended.stdout.startswith("out["), ended.stdout


def test_a_case_is_shrunk_to_programs_in_order(step_case):
    case = replace(step_case, head_size=16, program_order="shuffled")
    assert replace(case, program_order="in order") in lowered(case, EVERYTHING)


def test_a_stored_case_without_an_order_runs_in_order(step_case):
    stored = json.loads(case_file.dumps(step_case))
    assert stored["schema"] == SCHEMA
    assert "program_order" not in stored
    assert case_file.loads(json.dumps(stored)).program_order == "in order"


@pytest.mark.parametrize("order", PROGRAM_ORDERS)
def test_an_order_is_kept_in_a_case_file(step_case, order):
    case: Case = replace(step_case, program_order=order)
    assert case_file.loads(case_file.dumps(case)) == case
