"""A toy repository of a kernel, broken in its middle: `attn-parity bisect` names the commit, and leaves the checkout alone."""

import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest
from attn_fuzz.cases import case_file
from attn_fuzz.run.revision import Place

from tests.support.json_schemas import check

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")

TARGETS = """
import dataclasses

from attn_fuzz.targets.reference import REFERENCE_FP32
from kernel import attention, early

TARGET = dataclasses.replace(REFERENCE_FP32, name="toy", attention=attention, refuses=False)
EARLY = dataclasses.replace(TARGET, name="toy-early", attention=early)
"""
KERNEL = """
from attn_fuzz.targets.reference import REFERENCE_FP32


def attention(q, k, v, kv_cache, layer, batch, *, out, lse, shift={shift}):
    REFERENCE_FP32.attention(q, k, v, kv_cache, layer, batch, out=out, lse=lse)
    out[: int(batch.query_start_loc[-1])] += shift


def early(*args, **kwargs):
    attention(*args, **kwargs, shift={early})
"""
COMMITS = (
    *("the first kernel", "a comment", "a faster kernel", "it does not import", "early is wrong", "a comment again"),
    *("a wrong shift", "a comment after it", "another comment", "the newest kernel"),
)
BROKEN, EARLY, WRONG = 3, 4, 6


def git(folder: Path, *arguments: str) -> str:
    names = ("-c", "user.name=Toy", "-c", "user.email=toy@example.org")
    ended = subprocess.run(["git", *names, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return ended.stdout.strip()


def kernel(number: int) -> str:
    """The kernel of a commit: all are of one size, so that compiled Python of one could be taken for another's."""
    text = KERNEL.format(shift=int(number >= WRONG), early=int(number >= EARLY)) + f"# {number}\n"
    return text.replace("def early", "def_early") if number == BROKEN else text


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A repository of COMMITS, each tagged with its number. Its checkout is dirty, and its kernel raises there."""
    folder = tmp_path_factory.mktemp("toy") / "repository"
    (folder / "src").mkdir(parents=True)
    git(folder, "init", "--quiet")
    (folder / "src" / "toy_target.py").write_text(TARGETS)
    for number, message in enumerate(COMMITS):
        (folder / "src" / "kernel.py").write_text(kernel(number))
        git(folder, "add", ".")
        git(folder, "commit", "--quiet", "--message", message)
        git(folder, "tag", f"at-{number}")
    git(folder, "checkout", "--quiet", "--orphan", "elsewhere")
    git(folder, "commit", "--quiet", "--message", "not related")
    git(folder, "checkout", "--quiet", "at-9")
    (folder / "src" / "kernel.py").write_text("raise RuntimeError('this is the checkout of the user')\n")
    return folder


@pytest.fixture
def bisect(attn_parity, repository, tmp_path, step_case):
    """Runs `attn-parity bisect` of a case on the toy repository."""

    def run(
        *options: object, target: str = "toy_target:TARGET", good: str = "at-0", bad: str = "at-9", repo: Path = repository
    ):
        case_file.save(tmp_path / "case.json", msgspec.structs.replace(step_case, target=target, head_size=16))
        ends = ("--good", good, "--bad", bad)
        return attn_parity("bisect", "case.json", "--target", target, "--repo", repo, "--path", "src", *ends, *options)

    return run


def state(folder: Path) -> tuple[str, ...]:
    """The state that a bisection must keep: HEAD, the changes of the checkout, all references, and the worktrees."""
    asked = (("rev-parse", "HEAD"), ("diff",), ("status", "--porcelain"), ("for-each-ref",), ("worktree", "list"))
    return tuple(git(folder, *each) for each in asked)


def test_it_names_the_first_bad_commit_and_leaves_the_checkout_alone(bisect, repository, tmp_path):
    before = state(repository)
    run = bisect("--json", "found.json")
    assert run.code == 0, run.err
    assert run.out.splitlines()[-1] == f"first bad commit: {git(repository, 'rev-parse', 'at-6')[:12]} a wrong shift"
    assert state(repository) == before
    found = check("bisect", (tmp_path / "found.json").read_text())
    assert (found["first_bad"]["subject"], found["kind"]) == ("a wrong shift", "value")
    for each in found["tried"]:
        number = COMMITS.index(each["subject"])
        assert each["result"] == ("cannot tell" if number == BROKEN else "fails" if number >= WRONG else "passes")


def test_a_commit_that_does_not_import_may_be_the_first_bad_one(bisect):
    run = bisect(target="toy_target:EARLY", good="at-2", bad="at-4")
    assert run.code == 1
    assert "skip: " in run.out
    assert "it does not load: SyntaxError" in run.out
    _, candidates = run.out.split("the first bad commit is one of these:\n")
    assert [line.split(" ", 3)[-1] for line in candidates.splitlines()] == ["it does not import", "early is wrong"]


@pytest.mark.parametrize(
    ("ends", "told"),
    [
        ({"good": "at-7"}, "--good: {at-7} a comment after it: expected that the case passes there, got value: "),
        ({"bad": "at-5"}, "--bad: {at-5} a comment again: expected that the case fails there, got agree"),
        (
            {"good": "at-3"},
            "--good: {at-3} it does not import: expected that the case passes there, got target toy_target:TARGET: ",
        ),
    ],
)
def test_ends_that_are_not_as_they_should_be_end_it(ends, told, bisect, repository):
    before = state(repository)
    run = bisect(**ends)
    assert run.code == 2
    revision = next(iter(ends.values()))
    told = told.replace(f"{{{revision}}}", git(repository, "rev-parse", revision)[:12])
    assert run.err.splitlines()[-1].startswith(f"attn-parity: {told}")
    assert state(repository) == before


def test_a_target_that_lies_elsewhere_is_said_to(bisect, tmp_path, repository):
    """It is imported, and no commit of the repository can change it."""
    (tmp_path / "elsewhere.py").write_text("from planted import FLASH as TARGET\n")
    run = bisect(target="elsewhere:TARGET")
    assert run.code == 2
    assert "got agree; no imported module lies in the worktree: does --path name its folder?" in run.err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"good": "at-77"}, "--good: got 'at-77', expected a commit of "),
        ({"bad": "--help"}, "--bad: got '--help', expected a commit of "),
        ({"good": "at-9", "bad": "at-0"}, "--good: at-9 is no ancestor of --bad at-0"),
        ({"good": "elsewhere"}, "--good: elsewhere is no ancestor of --bad at-9"),
        ({"bad": "at-0"}, "--good: at-0 is no ancestor of --bad at-0"),
        ({"repo": Path("/")}, "--repo: / is in no checkout of a git repository"),
        ({"repo": Path("missing")}, "--repo: missing is no folder"),
    ],
)
def test_bad_revisions_and_repositories_are_refused_in_one_line(options, told, bisect):
    run = bisect(**options)
    assert (run.code, run.out) == (2, "")
    (line,) = run.err.splitlines()
    assert line.startswith(f"attn-parity: {told}")


def test_a_case_of_another_target_and_a_folder_outside_are_refused(bisect, attn_parity, tmp_path):
    run = bisect("--path", "../src")
    assert run.err.endswith("--path: got ../src, expected a folder of the repository, relative to its root\n")
    run = attn_parity("bisect", "case.json", "--target", "triton", "--good", "a", "--bad", "b")
    assert run.code == 2
    assert "--target: got triton, expected toy_target:TARGET, which case.json is a case of" in run.err
    run = attn_parity("bisect", "case.json", "--good", "a", "--bad", "b")
    assert "its target is a module, which would be imported" in run.err


@pytest.mark.parametrize(
    ("path", "moved"),
    [
        ("/home/me/kernels/src", "/tmp/tree/src"),
        ("/home/me/kernels", "/tmp/tree"),
        ("/home/me/other", "/home/me/other"),
        ("/home/me/kernels/.venv/lib/site-packages", "/home/me/kernels/.venv/lib/site-packages"),
    ],
)
def test_imports_from_the_checkout_come_from_the_worktree(path, moved, monkeypatch):
    monkeypatch.setattr("sys.prefix", "/home/me/kernels/.venv")
    monkeypatch.setenv("ATTN_PARITY_VLLM", path)
    place = Place(checkout=Path("/home/me/kernels"), worktree=Path("/tmp/tree"), folders=(Path("src"),))
    assert place.import_path([path]) == ["/tmp/tree/src", moved]
    assert place.environment()["ATTN_PARITY_VLLM"] == moved
