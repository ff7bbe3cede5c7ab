"""`python -m attn_lab releases`: fixes of others on the releases around them, and scripts of findings by release."""

import itertools
from functools import partial
from types import SimpleNamespace

import msgspec
import pytest
from attn_fuzz.errors import InputError
from attn_fuzz.targets import registry
from attn_lab.findings import reports, scripts
from attn_lab.findings.places import names
from attn_lab.releases import alarms, page, runner
from attn_lab.releases.alarms import Summary
from attn_lab.releases.runner import Fix, Results, Run

from tests.support.mostly_nightly import mostly_nightly

WRONG = "def error(layer, batch):\n    return int(batch.num_requests > 1)\n"
RIGHT = "def error(layer, batch):\n    return 0\n"
PACKAGE, TARGET = "planted_foreign", "planted_repaired:TARGET"
FIX = Fix(PACKAGE, "1.10.0", "faults.py", "wrong", targets=[TARGET])


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Three releases, of which the last two are right. Their order is not that of their names."""
    for release, text in {"1.9.0": WRONG, "1.10.0": RIGHT, "1.10.0.post1": RIGHT}.items():
        folder = tmp_path / "releases" / f"{PACKAGE}-{release}" / PACKAGE
        folder.mkdir(parents=True)
        (folder / "faults.py").write_text(text)
    monkeypatch.setattr(runner, "fixes", lambda: [FIX])
    return tmp_path / "releases"


def test_a_fix_is_what_fails_before_it_and_agrees_after_and_nothing_runs_twice(sources, tmp_path):
    kept, file = Results(releases={PACKAGE: runner.releases(sources, PACKAGE)}), tmp_path / "results.json"
    assert kept.releases[PACKAGE] == ["1.9.0", "1.10.0", "1.10.0.post1"]
    run = partial(runner.run_fixes, sources, kept, file, examples=12, seconds=600, only=[TARGET])
    assert len(list(run())) == 2
    earlier, later = (kept.runs[TARGET][release] for release in ("1.9.0", "1.10.0"))
    assert earlier.examples == later.examples == 12
    assert earlier.failed
    assert not later.failed
    assert page.changed(FIX, TARGET, kept) == sorted(earlier.failed)
    assert runner.stored(file) == kept
    assert not list(run())


def test_two_releases_of_a_package_leave_what_is_known_of_the_others(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "PACKAGES", (PACKAGE, "vllm"))
    kept = Results(releases={PACKAGE: ["1.8.0", "1.10.0", "1.11.0"], "vllm": ["0.33.0"]})
    runner.add_releases(kept, sources)
    assert kept.releases == {PACKAGE: ["1.8.0", "1.9.0", "1.10.0", "1.10.0.post1", "1.11.0"], "vllm": ["0.33.0"]}
    monkeypatch.setattr(runner, "fixes", lambda: [FIX, msgspec.structs.replace(FIX, release="1.11.0")])
    run = runner.run_fixes(sources, kept, tmp_path / "results.json", examples=0, seconds=600, only=[TARGET], extra=[3])
    assert [line.split()[1] for line in run] == ["1.9.0:", "1.10.0:"]  # of 1.11.0 nothing is there
    assert all(each.extra[0] == 3 for each in kept.runs[TARGET].values())


def test_failures_on_a_release_are_read_by_a_person_or_count_as_not_read(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "PACKAGES", (PACKAGE,))
    monkeypatch.setattr(registry, "packages", lambda: {PACKAGE: SimpleNamespace(attributes={TARGET: ""})})
    file, read = tmp_path / "alarms.json", tmp_path / "alarms.toml"
    monkeypatch.setattr(alarms, "READ", read)
    assert len(list(alarms.run_all(sources, 6, 600, (), file, seed=1))) == 3
    kept = runner.stored(file)
    assert kept.seed == 1
    assert {release: bool(run.alarms) for release, run in kept.runs[TARGET].items()} == {
        "1.9.0": True, "1.10.0": False, "1.10.0.post1": False,
    }  # fmt: skip
    found = kept.runs[TARGET]["1.9.0"].alarms
    count, known = len(found), sum(map(len, itertools.chain(*(run.known.values() for run in kept.runs[TARGET].values()))))
    for before, what in (("1.9.0", "not read"), ("1.10.0", "mended")):
        read.write_text(f'[[alarm]]\ntargets = ["{TARGET}"]\nbefore = "{before}"\nwhat = "mended"\nwhy = "as planted"\n')
        assert alarms.summary(kept) == {TARGET: Summary(3, 18, known, 0, {what: count})}
    assert [*alarms.run_after(sources, (TARGET,), file)] == [f"{TARGET} 1.10.0"]
    kept = runner.stored(file)
    found = kept.runs[TARGET]["1.9.0"].alarms
    assert {alarm.after for alarm in found.values()} == {("1.10.0", "agree")}
    assert not [*alarms.run_after(sources, (TARGET,), file)]  # nothing runs twice
    found[min(found)].after = ("1.10.0", "value")
    told = alarms.summary(kept)[TARGET].alarms
    assert told == {"mended": count - 1, "not read": 1}  # what fails there, too, is not mended


def test_an_adapter_that_never_fits_is_no_failing_kernel(sources, tmp_path):
    (sources / f"{PACKAGE}-1.9.0" / PACKAGE / "faults.py").write_text("def error(layer):\n    return 0\n")
    kept = Results(releases={PACKAGE: runner.releases(sources, PACKAGE)})
    [*_] = runner.run_fixes(sources, kept, tmp_path / "results.json", examples=20, seconds=600, only=[TARGET])
    run = kept.runs[TARGET]["1.9.0"]
    assert run.error.startswith("TypeError: error() takes 1 positional argument")
    assert not page.changed(FIX, TARGET, kept)
    assert "does not load: TypeError" in page.page(kept)


@pytest.mark.parametrize(
    ("later", "is_changed"),
    [(Run(examples=3), True), (Run(examples=2), False), (Run(examples=2, extra=[2]), True), (Run(3, failed={2: "nan"}), False)],
)
def test_an_example_that_did_not_run_after_the_fix_shows_nothing(later, is_changed):
    before = Run(examples=3, failed={2: "nan"})
    kept = Results(releases={PACKAGE: ["1.9.0", "1.10.0"]}, runs={TARGET: {"1.9.0": before, "1.10.0": later}})
    assert bool(page.changed(FIX, TARGET, kept)) == is_changed
    assert not page.shown(FIX, kept)  # nobody has looked at it
    assert page.shown(msgspec.structs.replace(FIX, shown_by=(TARGET, 2)), kept) == is_changed


def test_a_fix_is_shown_by_two_runs_of_one_draw():
    runs = {"1.9.0": Run(examples=1, draw="one", failed={0: "nan"}), "1.10.0": Run(examples=1, draw="other")}
    kept = Results(releases={PACKAGE: ["1.9.0", "1.10.0"]}, runs={TARGET: runs})
    assert not page.changed(FIX, TARGET, kept)
    runs["1.10.0"].draw = "one"
    assert page.changed(FIX, TARGET, kept) == [0]


def test_a_finding_is_looked_for_between_releases_that_differ(monkeypatch, tmp_path):
    name = "vllm-window-ahead"
    for minor in range(7):
        (tmp_path / f"vllm-0.{minor}" / "vllm").mkdir(parents=True)

    def run(name, *, sources, seconds):
        return int(4 <= int(sources.name.rpartition(".")[2]) < 7), ""

    monkeypatch.setattr(scripts, "run", run)
    kept = Results(releases={"vllm": [f"0.{minor}" for minor in range(7)]})
    [*_] = runner.run_findings(tmp_path, kept, tmp_path / "results.json", [name])
    assert kept.findings[name] == {"0.6": 1, "0.0": 0, "0.3": 0, "0.4": 1}
    assert page.span(kept.findings[name], kept.releases["vllm"])[:2] == ("0.4", "0.6 (the newest)")


@pytest.mark.parametrize("architecture", mostly_nightly([None, "gfx942"], [None]))
@pytest.mark.parametrize(
    ("script", "seconds", "why"), [("raise KeyError('lost')", None, "lost"), ("while True: ...", 2, "end in 2 s")]
)
def test_a_script_that_does_not_fit_shows_nothing(script, seconds, why, architecture, monkeypatch, tmp_path):
    """An exception ends Python with 1, with which a script says that it shows the finding."""
    monkeypatch.setattr(scripts, "source", lambda name: SimpleNamespace(script=lambda folder: script, stand_ins=lambda: ""))
    code, output = scripts.run("vllm-planted", sources=tmp_path, architecture=architecture, seconds=seconds)
    assert (code, why in output) == (scripts.CANNOT_RUN, True), output


def test_what_was_looked_at_is_what_ran():
    kept, fixes = runner.stored(), runner.fixes()
    assert {fix.package for fix in fixes} == set(runner.PACKAGES)
    for fix in fixes:
        assert set(fix.targets) <= set(registry.names())
        assert fix.release in kept.releases[fix.package]
        assert fix.shown_by is None or page.shown(fix, kept), fix
    assert set(kept.findings) <= {*names()}


def test_releases_are_in_the_order_of_pypi():
    ordered = (
        "0.9.0", "0.10.0.dev1", "0.10.0a1", "0.10.0b1", "0.10.0rc1.dev3", "0.10.0rc1", "0.10.0rc2", "0.10.0",
        "0.10.0.post2.dev18", "0.10.0.post2", "0.10.0.post10", "0.10.1",
    )  # fmt: skip
    assert all(runner.version(one) < runner.version(later) for one, later in itertools.pairwise(ordered))


@pytest.mark.parametrize("read", [runner.fixes, alarms.entries, lambda: reports.load("")], ids=["fixes", "alarms", "report"])
def test_a_wrong_toml_file_is_refused(read, monkeypatch, tmp_path):
    file = tmp_path / "wrong.toml"
    file.write_text("[planted]\nwrong = 1\n")
    monkeypatch.setattr(runner, "FIXES", file)
    monkeypatch.setattr(alarms, "READ", file)
    monkeypatch.setattr(reports, "file_of", lambda *of: file)
    with pytest.raises(InputError, match=r"wrong\.toml: Object "):
        read()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "FILE: got runs.json, which does not exist, expected results of `releases alarms --sources`"),
        ('{"seed": 1', "runs.json: "),
        ('{"runs": {"triton": {"0.1": {"failed": {"first": "nan"}}}}}', "runs.json: Expected `int`, got `str`"),
        ('{"seed": "one"}', "runs.json: Expected `int`, got `str`"),
    ],
)
def test_a_file_without_results_replaces_no_summary(content, message, attn_lab, tmp_path, monkeypatch):
    kept = tmp_path / "releases-alarms.json"
    kept.write_text("{}")
    monkeypatch.setattr(alarms, "RESULTS", kept)
    if content:
        (tmp_path / "runs.json").write_text(content)
    run = attn_lab("releases", "alarms", "runs.json")
    assert (run.code, kept.read_text(), run.err.count("\n")) == (2, "{}", 1)
    assert run.err.startswith(f"python -m attn_lab: {message}")
