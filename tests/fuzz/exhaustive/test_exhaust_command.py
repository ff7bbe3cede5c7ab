"""`attn-parity exhaust`: what it finds, how it goes on, and what it refuses."""

import dataclasses
import errno
import json
import os
import resource
import signal
from collections import Counter
from pathlib import Path

import msgspec
import pytest
import torch
from attn_fuzz.cases import case_file
from attn_fuzz.cases.dimensions import Setting
from attn_fuzz.exhaustive import ledger, run, scope
from attn_fuzz.exhaustive.scope import Choice, Part, Scope

from tests.support.mostly_nightly import mostly_nightly

WINDOW = Choice("window", tuple(Setting({"window": (edge, -1)}, {}) for edge in (0, 2)))
ALONE = Part(
    what="one request",
    num_requests=1,
    query_lens=(1, 2),
    seq_lens=(0, 1, 3, 4),
    block_sizes=(2,),
    choices=(WINDOW, Choice("sinks", (Setting({"sinks": "near"}, {}),))),
    pairs=True,
    packed=True,
)
PAIR = Part(what="two requests", num_requests=2, query_lens=(1,), seq_lens=(1, 2), block_sizes=(2,), choices=())
NUM_CALLS = 6 * 8 + 4


@pytest.fixture(autouse=True)
def tiny(monkeypatch) -> None:
    """The scope ci is a tiny one."""
    monkeypatch.setitem(scope.SCOPES, "ci", Scope(name="ci", what="for tests", parts=(ALONE, PAIR)))


@pytest.fixture
def called(tmp_path, monkeypatch):
    """The calls that planted_small:NOTING has got, one line each."""
    path = tmp_path / "called"
    monkeypatch.setenv("PLANTED_CALLED", str(path))
    return lambda: Counter(path.read_text().splitlines()) if path.exists() else Counter()


def exhaust(attn_parity, target: str, *options: object):
    return attn_parity("exhaust", "--target", f"planted_small:{target}", "--workers", 1, "--device", "cpu", *options)


def test_nothing_is_claimed_where_a_launch_cannot_be_run(attn_parity):
    ended = exhaust(attn_parity, "LIMITED")
    assert ended.code == 3
    assert "not run, by a limit of this tool: planted_small:LIMITED, launch 0: planted" in ended.err
    assert "agree" not in ended.out


def test_a_whole_scope_without_failures_ends_in_its_claim(attn_parity, tmp_path):
    ended = exhaust(attn_parity, "RIGHT", "--json", "run.json")
    assert ended.code == 0, ended.out + ended.err
    claim = f"all {NUM_CALLS} calls of scope ci of target small-right agree with the reference, within the judge's bound"
    assert claim in ended.out
    written = json.loads((tmp_path / "run.json").read_text())
    assert (written["calls"], written["ended_calls"], written["failures"]) == (NUM_CALLS, NUM_CALLS, [])
    assert not list((tmp_path / "attn-parity-runs").iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are interpreted on a CPU only")
def test_the_claim_names_calls_that_are_exact(attn_parity, tmp_path):
    ended = exhaust(attn_parity, "RIGHT", "--exact", "--json", "run.json")
    assert ended.code == 0, ended.out + ended.err
    assert f"{NUM_CALLS} of them are the formula's in exact arithmetic, in every element" in ended.out
    assert json.loads((tmp_path / "run.json").read_text())["compared_exactly"] == NUM_CALLS


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are interpreted on a CPU only")
def test_a_fault_below_the_bound_is_found_in_exact_arithmetic(attn_parity, tmp_path):
    assert exhaust(attn_parity, "NUDGED").code == 0
    ended = exhaust(attn_parity, "NUDGED", "--exact")
    assert ended.code == 1
    (path,) = (tmp_path / "attn-parity-runs").glob("small-*.json")
    assert f"attn-parity replay {path.relative_to(tmp_path)} --target planted_small:NUDGED --exact" in ended.out


def test_calls_that_exact_mode_does_not_carry_are_named(attn_parity):
    ended = exhaust(attn_parity, "THROUGH_NUMPY", "--exact")
    assert ended.code == 2
    assert "not carried" in ended.out
    assert "no call of scope ci of target small-through-numpy was compared exactly" in ended.err


def test_a_count_runs_nothing(attn_parity, tmp_path, called):
    ended = exhaust(attn_parity, "NOTING", "--count", "--json", "count.json")
    assert ended.code == 0
    assert f"scope ci has {NUM_CALLS} calls on target small-noting" in ended.out
    assert not called()
    assert sum(part["calls"] for part in json.loads((tmp_path / "count.json").read_text())["parts"]) == NUM_CALLS


def test_an_edge_of_a_window_is_found_with_its_smallest_call(attn_parity, tmp_path):
    ended = exhaust(attn_parity, "WINDOW_ONE_SHORT")
    assert ended.code == 1
    (path,) = (tmp_path / "attn-parity-runs").glob("small-*.json")
    case = case_file.load(path)
    (request,) = case.requests
    assert (request.query_len, request.seq_len, case.window) == (1, 3, (2, -1))
    assert set(case.rules) == {"window"}
    again = attn_parity("replay", path, "--target", case.target)
    assert again.code == 1
    assert "value" in again.out


def test_blocks_that_are_taken_to_follow_each_other_are_found(attn_parity, tmp_path):
    ended = exhaust(attn_parity, "BLOCKS_IN_A_ROW")
    assert ended.code == 1
    (path,) = (tmp_path / "attn-parity-runs").glob("small-*.json")
    assert [request.seq_len for request in case_file.load(path).requests] == [3]


def test_a_failure_that_no_call_shows_alone_is_the_smallest_batch(attn_parity, tmp_path):
    ended = exhaust(attn_parity, "ONLY_BESIDE_OTHERS")
    assert ended.code == 1
    assert "no call of a packed launch fails alone: the smallest batch that fails has 3" in ended.out
    (path,) = (tmp_path / "attn-parity-runs").glob("small-*.json")
    assert len(case_file.load(path).requests) == 3
    assert attn_parity("replay", path, "--target", "planted_small:ONLY_BESIDE_OTHERS").code == 1


def test_no_part_of_a_launch_that_is_not_served_is_its_smallest_case(attn_parity, tmp_path, monkeypatch):
    """A request without a query, alone, ended vLLM's ROCM_ATTN in a TypeError, which was shown in place of a wrong number."""
    pair = dataclasses.replace(PAIR, query_lens=(0, 1))
    monkeypatch.setitem(scope.SCOPES, "ci", Scope(name="ci", what="for tests", parts=(pair,)))
    ended = exhaust(attn_parity, "ONLY_BESIDE_AN_EMPTY_REQUEST")
    assert ended.code == 1
    assert "TypeError" not in ended.out
    (path,) = (tmp_path / "attn-parity-runs").glob("small-*.json")
    assert [bool(request.query_len) for request in case_file.load(path).requests] in ([False, True], [True, False])


def test_a_failing_run_goes_on_behind_its_failure(attn_parity):
    first = exhaust(attn_parity, "WINDOW_ONE_SHORT")
    assert "1 of 5 launches fail so far" in first.out
    second = exhaust(attn_parity, "WINDOW_ONE_SHORT", "--failures", 100)
    assert second.code == 1
    assert "4 of 16 launches fail" in second.out  # the window of 2 alone and with sinks; one query, and two


def interrupting(monkeypatch, after: int) -> None:
    """Send SIGTERM, which is taken as Ctrl-C is, when so many launches have their verdict."""
    right, told = run.run, []

    def interrupted(plan, launches, tell) -> None:
        def told_of(result) -> None:
            tell(result)
            told.append(result)
            if len(told) == after:
                os.kill(os.getpid(), signal.SIGTERM)  # SIGINT is ignored where pytest runs in the background

        right(plan, launches, told_of)

    monkeypatch.setattr(run, "run", interrupted)


def test_an_interrupted_run_goes_on_and_runs_each_call_once(attn_parity, called, monkeypatch):
    with monkeypatch.context() as patched:
        interrupting(patched, after=5)
        ended = exhaust(attn_parity, "NOTING")
    assert ended.code == 130, ended.out + ended.err
    assert "the same command goes on" in ended.out
    before = called()
    assert 5 <= before.total() < 16
    ended = exhaust(attn_parity, "NOTING")
    assert ended.code == 0
    assert f"all {NUM_CALLS} calls" in ended.out
    assert f"{before.total()} launches have ended before" in ended.out
    assert called().total() == 16
    assert set(called().values()) == {1}


def test_shards_run_each_launch_once(attn_parity, called):
    total = 0
    for k in (1, 2, 3):
        ended = exhaust(attn_parity, "NOTING", "--shard", f"{k}/3")
        assert ended.code == 0
        assert f"calls of shard {k}/3 of scope ci of target small-noting agree" in ended.out
        total += int(ended.out.split("all ")[1].split(" calls")[0])
    assert total == NUM_CALLS
    assert called().total() == 16
    assert set(called().values()) == {1}


def test_a_ledger_of_another_run_is_begun_again(attn_parity, tmp_path, called):
    exhaust(attn_parity, "WINDOW_ONE_SHORT")
    (book,) = (tmp_path / "attn-parity-runs").glob("*.jsonl")
    first, *rest = book.read_text().splitlines()
    book.write_text("\n".join([first.replace('"sanitize":false', '"sanitize":true'), *rest]) + "\n")
    again = exhaust(attn_parity, "WINDOW_ONE_SHORT")
    assert "have ended before" not in again.out


def test_half_a_line_of_a_killed_run_is_dropped_and_said(attn_parity, tmp_path):
    exhaust(attn_parity, "WINDOW_ONE_SHORT")
    (book,) = (tmp_path / "attn-parity-runs").glob("*.jsonl")
    complete = len(book.read_text().splitlines()) - 1
    book.write_text(book.read_text() + '{"launch":7,"ca')
    again = exhaust(attn_parity, "WINDOW_ONE_SHORT", "--failures", 100)
    assert f"{complete} launches have ended before" in again.out
    assert "half a line of a killed run is dropped" in again.err
    assert "of 16 launches fail;" in again.out


BEGINNINGS = (b"", b'{"schema":"attn-parity.exh', b'{"schema":"attn-parity.exhaust-ledger/1","ta')


@pytest.mark.parametrize("content", mostly_nightly(BEGINNINGS, (b"",)))
def test_a_ledger_that_a_killed_run_has_hardly_begun_is_begun_again(attn_parity, tmp_path, content):
    folder = tmp_path / "attn-parity-runs"
    folder.mkdir()
    (folder / "exhaust-small-right-ci.jsonl").write_bytes(content)
    assert exhaust(attn_parity, "RIGHT").code == 0


@pytest.fixture
def long_ledger(attn_parity, tmp_path) -> Path:
    """The ledger of a run that goes on, of more than 8 KiB."""
    exhaust(attn_parity, "WINDOW_ONE_SHORT")
    (book,) = (tmp_path / "attn-parity-runs").glob("*.jsonl")
    book.write_text(book.read_text() + "".join(f'{{"launch":{n},"calls":1}}\n' for n in range(1000, 1400)))
    return book


def test_a_ledger_that_may_not_grow_keeps_what_it_has(attn_parity, long_ledger):
    before = long_ledger.read_bytes()
    of_process = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, of_process[1]))
    try:
        ended = exhaust(attn_parity, "WINDOW_ONE_SHORT", "--failures", 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, of_process)
    assert long_ledger.read_bytes() == before
    assert ended.err.splitlines()[-1].endswith(f"{os.strerror(errno.EFBIG)}: '{long_ledger.relative_to(Path.cwd())}'")
    assert ended.code == 1, "the first run has found a failure"


def test_of_two_runs_in_one_folder_one_writes_the_ledger(attn_parity, long_ledger):
    before = long_ledger.read_bytes()
    with ledger.opened(long_ledger, msgspec.json.decode(before.splitlines()[0], type=ledger.RunOf)):
        ended = exhaust(attn_parity, "WINDOW_ONE_SHORT")
    assert ended.code == 2
    assert f"{long_ledger.relative_to(Path.cwd())}: another run writes it" in ended.err
    assert long_ledger.read_bytes() == before


def test_a_file_that_is_no_ledger_is_not_overwritten(attn_parity, tmp_path):
    folder = tmp_path / "attn-parity-runs"
    folder.mkdir()
    book = folder / "exhaust-small-right-ci.jsonl"
    book.write_text("notes of mine\n")
    ended = exhaust(attn_parity, "RIGHT")
    assert ended.code == 2
    assert "got b'notes of mine' as its first line" in ended.err
    assert book.read_text() == "notes of mine\n"


def test_a_target_of_larger_blocks_gets_its_own(attn_parity):
    ended = exhaust(attn_parity, "ONLY_LARGE_BLOCKS", "--count")
    assert ended.code == 0
    assert " 16 " in ended.out


def test_a_kernel_that_kills_its_process_is_found(attn_parity, tmp_path):
    ended = exhaust(attn_parity, "DIES_OF_FOUR_KEYS")
    assert ended.code == 1
    (path,) = (tmp_path / "attn-parity-runs").glob("small-*.json")
    assert [request.seq_len for request in case_file.load(path).requests] == [4]
