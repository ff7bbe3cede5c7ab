"""Cases that failed once run first: the shipped corpus, one's own, and a database that runs fill; all of it is only data."""

import dataclasses
import json
import shutil
import socket
import subprocess

import msgspec
import pytest
from attn_fuzz.cases import case_file
from attn_fuzz.corpus import database, files
from attn_fuzz.corpus.database import DatabaseError
from attn_fuzz.run import runner
from attn_fuzz.run.shard import FuzzPlan
from attn_fuzz.targets import registry
from attn_fuzz.targets.support import EVERYTHING
from attn_lab.zoo import known_bugs as mutants
from hypothesis.database import InMemoryExampleDatabase

replace = msgspec.structs.replace


@pytest.fixture
def step(step_case):
    return replace(step_case, head_size=16)


def test_the_shipped_corpus_is_run_on_our_kernels():
    """They agree on it: see tests/docs/test_readme.py, whose run begins with these cases."""
    past = files.admitted(files.shipped(), "triton", registry.load("triton").support("cpu")).cases
    assert len(past) >= 70


def test_each_shipped_case_is_named_after_a_mutant():
    assert set(files.load(files.SHIPPED)) <= {path.stem for path in mutants.FOLDER.glob("*.toml")}


def test_a_case_is_run_on_any_target_that_supports_it_once_and_in_a_size_that_it_draws(step):
    cases = {
        "one": step,
        "the same of another target": replace(step, target="other"),
        "wide": replace(step, head_size=40),
        "too wide, and so as wide as allowed": replace(step, head_size=256),
        "beyond": replace(step, sinks="near"),
    }
    support = dataclasses.replace(EVERYTHING, head_sizes=(32, 64), rules=tuple(set(EVERYTHING.rules) - {"sinks"}))
    own = files.admitted(cases, step.target, support)
    sizes = {name: (case.target, case.head_size) for case, name in own.cases.items()}
    assert sizes == {"one": (step.target, 32), "wide": (step.target, 64)}
    assert own.adapted == 2
    assert own.left_out == {"sinks": ["beyond"]}
    assert own.sentence.endswith(", 2 in sizes and forms of this target, 1 left out: 1 for sinks")


def test_a_case_of_another_target_is_told_as_such_and_a_mode_is_the_same_target(step):
    cases = {"other": step, "own": replace(step, target="mine@far", slack=1)}
    own = files.admitted(cases, "mine@gfx942", EVERYTHING)
    assert [*own.cases.values()] == ["other (found on another target, reference-fp32)", "own"]
    assert own.sentence == "past cases: 2 run, 1 of them found on other targets, 0 in sizes and forms of this target"


def test_past_cases_are_run_before_any_is_drawn_and_one_that_fails_is_a_failure_as_any_other(step, fuzz_here):
    passes = replace(step, requests=())
    progress, cases = fuzz_here("planted:ONE_KEY_SHORT", past=(passes, step))
    assert cases[:2] == [passes, step]
    assert (progress.replayed, progress.examples) == (2, 0)
    assert progress.failure.first == step
    assert progress.failure.minimal
    assert progress.failure.case != step


def test_past_cases_are_run_in_shards_that_do_not_depend_on_the_workers(step, tmp_path):
    past = [replace(step, slack=n) for n in range(runner.REPLAYED_CASES + 1)]
    plan = FuzzPlan(target="reference-fp32", device="cpu", examples=9, seed=0, folder=tmp_path)
    plans = runner.replays(plan, past)
    assert [plan.examples for plan in plans] == [0, 0]
    assert [case for plan in plans for case in plan.past] == past
    assert runner.replays(plan, []) == []


def test_a_failure_outlives_its_run(step, attn_parity, tmp_path, monkeypatch):
    """Found by a case of one's own, it is in the database; the next run finds it there, until the kernel is repaired."""
    (tmp_path / "mine").mkdir()
    case_file.save(tmp_path / "mine" / "two-requests.json", step)

    def fuzz(*arguments):
        run = attn_parity(
            *("fuzz", "--target", "planted:ONE_KEY_SHORT", "--examples", 1, "--seed", 1, "--workers", 1),
            *("--database", "failures", "--json", "run.json", *arguments),
        )
        return run, json.loads((tmp_path / "run.json").read_text())

    run, result = fuzz("--corpus", "mine")
    assert run.code == 1
    assert "1 past case, 1 example, 1 worker" in run.out
    past = "corpus case two-requests (found on another target, reference-fp32)"
    assert f"{past} fails" in run.out
    (failure,) = result["failures"]
    assert (failure["past"], failure["found_after"], result["replayed"]) == (past, 0, 1)
    smallest = case_file.load(tmp_path / failure["case_file"])
    entries = [path for path in (tmp_path / "failures").rglob("*") if path.is_file() and path.read_bytes()[:1] == b"{"]
    assert [case_file.load(path) for path in entries] == [smallest], "an entry is a case file"

    (entries[0].parent / "stranger").write_bytes(b"\x80\x04\x95")
    run, result = fuzz("--corpus", "none")
    assert run.code == 1
    assert "skipped: database entry" in run.err
    assert "database case" in run.out
    assert result["replayed"] == 1

    monkeypatch.setenv("PLANTED_REPAIRED", "1")
    run, result = fuzz("--corpus", "none")
    assert run.code == 0
    assert result["replayed"] == 1


def test_failures_are_a_targets_on_one_kind_of_device(step, tmp_path):
    folder = database.connect(str(tmp_path / "new"))
    key = database.key("triton", "CPU")
    database.save(folder, key, step)
    database.save(folder, key, step)
    assert list(database.fetch(folder, key)[0].values()) == [step]
    for other in (database.key("triton", "a GPU"), database.key("triton-varlen", "CPU")):
        assert database.fetch(folder, other) == ({}, [])


def test_a_database_that_keeps_nothing_is_an_error(step):
    class Full(InMemoryExampleDatabase):
        def save(self, key: bytes, value: bytes) -> None:
            """Fail, as on a full disk."""

    with pytest.raises(DatabaseError, match="did not keep"):
        database.save(Full(), b"key", step)


def test_entries_that_are_no_cases_are_skipped_and_named(step):
    store = InMemoryExampleDatabase()
    huge = b'{"schema": "attn-parity.case/2", "target": "t", "num_kv_heads": 1048576, "head_size": 1048576}'
    for entry in (b"", b"{", b"[" * 100_000, b" " * (case_file.MAX_BYTES + 1), huge, case_file.dumps(step).encode()):
        store.save(b"key", entry)
    cases, skipped = database.fetch(store, b"key")
    assert list(cases.values()) == [step]
    assert len(skipped) == 5
    assert all(len(reason) < 300 for reason in skipped)


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="needs redis-server")
def test_a_fleet_shares_a_redis(step, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    options = ("--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", tmp_path)
    with subprocess.Popen(["redis-server", *options], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert any("Ready to accept connections" in line for line in server.stdout)
            one, other = (database.connect(f"redis://127.0.0.1:{port}") for _ in range(2))
            database.save(one, b"key", step)
            assert list(database.fetch(other, b"key")[0].values()) == [step]
        finally:
            server.terminate()


def test_a_corpus_is_written_by_names_that_stay_in_its_folder(step, tmp_path):
    files.write(tmp_path / "corpus", {"../../outside": step})
    (path,) = tmp_path.rglob("*.json")
    assert path.parent == tmp_path / "corpus"
    assert list(files.load(tmp_path / "corpus").values()) == [step]
    shutil.rmtree(path.parent)
