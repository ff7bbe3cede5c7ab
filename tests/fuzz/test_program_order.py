"""A case says in which order interpreted programs run, and a race that order hides is a wrong value in another."""

import itertools
import json
from types import SimpleNamespace

import msgspec
import pytest
import torch
from attn_fuzz import report
from attn_fuzz.cases import case_file
from attn_fuzz.cases.case import PROGRAM_ORDERS, SCHEMA, Case
from attn_fuzz.interpreted import program_order
from attn_fuzz.run.executor import Executor
from attn_fuzz.run.shrink import lowered
from attn_fuzz.targets.target import EVERYTHING

from tests import processes

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU chooses the order itself")
replace = msgspec.structs.replace
GRID = (3, 2, 4)


class Builder:
    """As much of Triton's InterpreterBuilder as knows of programs."""

    def set_grid_dim(self, *sizes):
        self.grid_dim = sizes

    def set_grid_idx(self, *place):
        self.grid_idx = place

    def launch(self):
        """The programs of one launch, in the order in which they run."""
        self.set_grid_dim(*GRID)
        found = []
        for place in itertools.product(*map(range, GRID)):
            self.set_grid_idx(*place)
            found.append(self.grid_idx)
        return found


@pytest.fixture
def launch(monkeypatch):
    builder = type("Installed", (Builder,), {})
    monkeypatch.setattr(program_order, "_state", SimpleNamespace(**vars(program_order._State)))
    program_order.install(builder)
    return builder().launch


def test_programs_run_in_the_chosen_order(launch):
    in_order = list(itertools.product(*map(range, GRID)))
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
    with Executor("planted_race:RACE", "cpu", limit=60, ahead=tmp_path_factory.mktemp("race") / "ahead.json") as executor:
        yield executor


@pytest.mark.parametrize(("order", "kind"), [("in order", "agree"), ("reversed", "value"), ("shuffled", "value")])
def test_a_row_that_its_neighbour_repairs_is_wrong_in_another_order(race, step_case, order, kind):
    verdict = race.run(replace(step_case, program_order=order))
    assert verdict.kind == kind, verdict.message


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
