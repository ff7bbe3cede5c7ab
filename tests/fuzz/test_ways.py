"""`attn-parity ways`: each way looks alone, and the page says what a way does not find and why."""

import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
import torch
from attn_fuzz.exhaustive.first import first_failure
from attn_fuzz.report import results_file, ways_page
from attn_fuzz.report.ways_page import Caught, Looked, Results, Row
from attn_fuzz.run import runner
from attn_fuzz.run.runner import Outcome
from attn_fuzz.run.shard import Progress
from attn_fuzz.run.ways import target_of
from attn_fuzz.targets import plans
from attn_fuzz.zoo import mutants
from attn_fuzz.zoo.mutants import MutantError

ZOO = {mutant.name: mutant for mutant in mutants.load_all()}
DRAWN = Looked(seeds=(0,), at_most=5)
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are interpreted on a CPU only")


def results(**found: Caught) -> Results:
    """What the ways made of the mutant vllm-3385."""
    looked = dict.fromkeys(found, DRAWN)
    return Results(looked=looked, mutants=(Row("vllm-3385", found),))  # type: ignore[arg-type]


def test_each_way_finds_what_it_looks_at(attn_parity, tmp_path):
    names = ("keys-of-padding", "seed-43945-write", "vllm-3385")
    ran = attn_parity(
        *("ways", "judge", "property", "sanitizer", "exact", "--examples", 6, "--workers", 2, "--json", "ways.json"),
        *(f"--only={name}" for name in names),
    )
    assert ran.code == 0, ran.out + ran.err
    rows = {row.name: row.ways for row in results_file.load(tmp_path / "ways.json", Results).mutants}
    found = {name: {way for way, caught in rows[name].items() if caught.is_caught} for name in names}
    assert found["keys-of-padding"] == {"sanitizer"}  # an access whose value is masked
    assert found["vllm-3385"] == {"judge", "exact"}  # a window of one key more, in memory that is the request's
    assert found["seed-43945-write"] >= {"judge", "exact"}  # the cache write alone is wrong
    assert {way: rows["vllm-3385"][way].by for way in ("exact", "property")} == {"exact": "exact", "property": None}


def test_each_way_looks_on_a_target_that_lets_it():
    assert target_of("judge", "triton") == "triton"
    assert target_of("property", "triton") == "triton-properties"
    assert target_of("property", "triton-latent") == "triton-latent-invariant"
    assert target_of("property", "triton-invariant") == "triton-invariant"
    assert target_of("property", "backend-triton") is None
    assert target_of("sanitizer", "reference-ranks") is None


def test_a_way_without_a_target_says_so(attn_parity, tmp_path):
    ran = attn_parity("ways", "property", "--only", "vllm-47042", "--json", "ways.json")
    assert ran.code == 0, ran.err
    (row,) = results_file.load(tmp_path / "ways.json", Results).mutants
    assert row.ways["property"] == Caught(found=(None,), note="of target backend-triton-mla no property is promised")


@pytest.mark.parametrize("way", ["judge", "exhaust"])
def test_mutants_of_a_target_that_cannot_run_here_stay_without_a_result(way, attn_parity, tmp_path, monkeypatch):
    """`ways exhaust` under Triton 3.6 ended with an error after seven minutes, and kept nothing."""
    monkeypatch.setattr(plans, "missing_e4m3fnuz", lambda: "too old")
    of_plans = msgspec.structs.replace(ZOO["vllm-3385"], name="of-plans", target="triton-plans")
    monkeypatch.setattr(mutants, "load_all", lambda: [ZOO["vllm-3385"], of_plans])
    names = ("--only", "vllm-3385", "--only", "of-plans")
    ran = attn_parity("ways", way, *names, "--examples", 60, "--workers", 1, "--json", "ways.json")
    assert ran.code == 0, ran.err
    assert "target triton-plans: too old: its mutants do not run" in ran.err
    rows = {row.name: row.ways[way] for row in results_file.load(tmp_path / "ways.json", Results).mutants}
    assert rows["of-plans"] == Caught(note="too old")
    assert rows["vllm-3385"].is_caught


def is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_a_killed_run_leaves_no_proof_behind(tmp_path):
    program = "from attn_parity import main; main()"
    command = [sys.executable, "-c", program, "ways", "proof", "--only", "vllm-53856", "--workers", "1"]
    main = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    children = Path(f"/proc/{main.pid}/task/{main.pid}/children")
    until = time.monotonic() + 120
    while main.poll() is None and len(children.read_text().split()) < 2:  # the one that proves, and multiprocessing's own
        assert time.monotonic() < until
        time.sleep(0.05)
    time.sleep(2)  # it asks for the signal while it starts
    main.kill()
    main.wait()
    until = time.monotonic() + 10
    while is_there(main.pid):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_an_interrupted_run_tells_what_has_ended_and_begins_no_other_way(attn_parity, tmp_path, monkeypatch):
    """It went on with the next way, and ignored further signals."""
    ended = Outcome([Progress(examples=2)], interrupted=True)
    monkeypatch.setattr(runner, "run", lambda plans, workers, **options: ended)
    monkeypatch.setattr("attn_parity.ways._exhausted", lambda *arguments: pytest.fail("another way was begun"))
    run = attn_parity("ways", "judge", "exhaust", "--only", "vllm-3385", "--json", "ways.json")
    assert run.code == 130, run.err
    found = results_file.load(tmp_path / "ways.json", Results)
    assert found.looked.keys() == {"judge"}
    assert [row.ways for row in found.mutants] == [{"judge": Caught()}]


def test_a_scope_ends_at_the_first_failing_launch():
    found = first_failure(ZOO["vllm-3385"], "rules", "cpu", 60.0)
    assert found.kind is not None
    assert 1 < found.launches < 20


def test_a_scope_without_time_is_not_whole():
    found = first_failure(ZOO["keys-of-padding"], "rules", "cpu", 60.0, until=0.0)
    assert (found.launches, found.kind, found.is_whole) == (1, None, False)


def test_earliest_and_cheapest():
    ways = {
        "judge": Caught(found=(3,), seconds=2.0),
        "exact": Caught(found=(3,), seconds=4.0),
        "property": Caught(found=(None,)),
    }
    assert ways_page.earliest(ways) == ["judge", "exact"]
    assert ways_page.cheapest(ways) == "judge"
    proved = {**ways, "proof": Caught(found=(9,), seconds=1.0, by="mask.keys")}
    assert (ways_page.earliest(proved), ways_page.cheapest(proved)) == (["proof"], "proof")


def test_a_reason_is_needed():
    mutant = msgspec.structs.replace(ZOO["vllm-3385"], unseen={"exact": "it rounds"})
    for caught, is_needless in ((Caught(found=(4,)), True), (Caught(found=(None,)), False), (Caught(), False)):
        said = ways_page.needless(results(exact=caught), [mutant])
        assert ["finds it" in line for line in said] == [True] * is_needless


def test_a_miss_without_a_reason_is_on_the_page():
    text = ways_page.text(results(exact=Caught(found=(None,))), [msgspec.structs.replace(ZOO["vllm-3385"], unseen={})])
    assert "1 of 1 not explained" in text
    assert "- `vllm-3385`: not explained" in text


def test_the_reason_is_on_the_page():
    mutant = msgspec.structs.replace(ZOO["vllm-3385"], unseen={"exact": "it rounds"})
    text = ways_page.text(results(exact=Caught(found=(None,)), judge=Caught(found=(2,), seconds=1.5)), [mutant])
    assert "- `vllm-3385`: it rounds" in text
    assert "| `vllm-3385` | window | 2 | – | judge | judge, 1.5 s |" in text
    assert "- `vllm-3385`, judge:" in text  # found by one way alone


@pytest.mark.parametrize(
    ("other", "is_alone"),
    [
        (Caught(found=(None,)), True),
        (Caught(found=(None, 7)), False),  # one of its seeds found it
        (Caught(), False),  # unfinished, or not run
        (Caught(error="it raises"), False),
        (None, False),
    ],
    ids=["a miss", "one seed of two", "no end", "does not run", "not looked"],
)
def test_a_way_finds_alone_what_the_others_have_missed(other, is_alone):
    """A way without a result has missed nothing."""
    ways = {"judge": Caught(found=(2,), seconds=1.0)} | ({} if other is None else {"exhaust": other})
    found = Results(looked={"judge": DRAWN, "exhaust": Looked(scope="ci")}, mutants=(Row("vllm-3385", ways),))
    assert ways_page.finds_alone(found.mutants[0], list(found.looked)) == ("judge" if is_alone else None)
    assert ("judge 1 (1 alone)" in ways_page.summary(found)) == is_alone
    assert ("1 without a result" in ways_page.summary(found)) == (other is None or not other.found)


def test_the_page_says_why_only_that_way():
    mutant = msgspec.structs.replace(ZOO["vllm-3385"], unseen={"exhaust": "It needs two calls."})
    found = results(exact=Caught(found=(2,), seconds=1.5), exhaust=Caught(found=(None,)))
    assert f"- `vllm-3385`, exact: {mutant.what} *exhaust*: It needs two calls." in ways_page.text(found, [mutant])


def test_a_run_without_an_end_does_not_replace_a_result():
    whole, unfinished = results(judge=Caught(found=(2,))), results(judge=Caught())
    assert ways_page.merged([whole, unfinished], ["vllm-3385"]) == whole
    assert ways_page.merged([unfinished, whole], ["vllm-3385"]) == whole


def test_results_of_unlike_settings_do_not_go_together():
    others = Results(looked={"judge": Looked(seeds=(1,), at_most=9)}, mutants=())
    with pytest.raises(MutantError, match="do not go together"):
        ways_page.merged([results(judge=Caught(found=(2,))), others], ["vllm-3385"])


@pytest.mark.parametrize("way", ["exhaust", "proof"])
def test_results_of_several_versions_go_together_where_nothing_is_drawn(way):
    def of(name: str, triton: str) -> Results:
        looked = Looked(scope="ci", versions={"triton": triton})
        return Results(looked={way: looked}, mutants=(Row(name, {way: Caught(found=(None,))}),))

    names = ["vllm-3385", "seed-43817", "alibi-anchor"]
    parts = [of(name, triton) for name, triton in zip(names, ("3.9.0", "3.6.0", "3.9.0"), strict=True)]
    whole = ways_page.merged(parts, names)
    assert whole.looked[way].versions == {"triton": "3.6.0 and 3.9.0"}
    # a mutant that is new makes the results before it a part, whose versions are two
    assert ways_page.merged([whole], [*names, "fla-831"]).looked == whole.looked


def test_results_are_taken_and_checked(attn_parity, tmp_path):
    rows = tuple(Row(name, {"judge": Caught(found=(1,), seconds=1.0)}) for name in ZOO)
    (tmp_path / "run.json").write_bytes(results_file.dumps(Results(looked={"judge": DRAWN}, mutants=rows)))
    written = attn_parity("ways", "--take", "run.json", "--write", "--page", "zoo-ways.md")
    assert written.code == 0, written.out + written.err
    assert attn_parity("ways", "--check", "--page", "zoo-ways.md").code == 0
    page = tmp_path / "zoo-ways.md"
    page.write_text(page.read_text() + "more\n")
    assert attn_parity("ways", "--check", "--page", "zoo-ways.md").code == 1


def test_a_wrong_file_beside_the_page_is_refused_before_anything_runs(attn_parity, tmp_path, monkeypatch):
    monkeypatch.setattr("attn_parity.ways._found", lambda *arguments: pytest.fail("mutants were run"))
    (tmp_path / "zoo-ways.json").write_text('{"schema": "attn-parity.ways/1", "looked": {}, "mutants": [3]}')
    run = attn_parity("ways", "judge", "--write", "--page", "zoo-ways.md")
    assert (run.code, run.out) == (2, "")
    assert run.err.startswith("attn-parity: zoo-ways.json: Expected `object`, got `int`")


def test_an_unknown_mutant_and_a_page_without_results_are_refused(attn_parity):
    assert "nobody" in attn_parity("ways", "judge", "--only", "nobody").err
    assert "zoo-ways.json" in attn_parity("ways", "--check", "--page", "zoo-ways.md").err


@pytest.mark.parametrize("name", ["latent-without-rope", "vllm-39120"], ids=["values narrower than keys", "rows never written"])
def test_exact_mode_sees(name, attn_parity, tmp_path):
    # The first case that fails ends the run. About one of four does: a hundred have one, whatever cases a seed means.
    assert attn_parity("ways", "exact", "--only", name, "--examples", 100, "--workers", 1, "--json", "ways.json").code == 0
    (row,) = results_file.load(tmp_path / "ways.json", Results).mutants
    assert row.ways["exact"].by == "exact"
