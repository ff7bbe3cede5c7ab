"""`python -m tests.commits`: what a commit's message lacks."""

import subprocess

import pytest

from tests.commits import lacking, main


@pytest.mark.parametrize(
    ("subject", "body", "is_merge", "expected"),
    [
        ("docs, size: fewer words", "They were needless.", False, []),
        ("Merge branch 'kernels'", "tests/optimized ran.", True, []),
        ("fewer words", "They were needless.", False, ["no place at the beginning of its subject"]),
        ("docs: " + 70 * "x", "", False, ["76 characters of its subject, expected at most 72", "no body that says why"]),
        ("Merge branch 'kernels'", "\n", True, ["no body that says what ran"]),
    ],
)
def test_each_part_that_a_message_lacks_is_named(subject, body, is_merge, expected):
    assert [*lacking(subject, body, is_merge=is_merge)] == expected


@pytest.fixture
def repository(tmp_path):
    """A repository with a commit on `main` whose message lacks a body, and a function that runs git in it."""
    folder = tmp_path / "repository"
    folder.mkdir()

    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=nobody", "-c", "user.email=nobody@localhost")
        subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)

    git("init", "--initial-branch=main")
    git("commit", "--allow-empty", "-m", "old words")
    return folder, git


def test_only_commits_that_main_has_not_are_checked(repository, capsys):
    folder, git = repository
    assert main(folder) == 0
    git("checkout", "-b", "branch")
    git("commit", "--allow-empty", "-m", "docs: fewer words\n\nThey were needless.")
    assert main(folder) == 0
    git("commit", "--allow-empty", "-m", "new words")
    assert main(folder) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" ")[2] for line in lines] == [
        "new words: no place at the beginning of its subject",
        "new words: no body that says why",
    ]
    git("update-ref", "refs/remotes/origin/main", "HEAD")
    assert main(folder) == 0


def test_nothing_is_asked_where_there_is_no_history(repository, tmp_path, monkeypatch):
    folder, git = repository
    git("checkout", "-b", "branch")
    git("commit", "--allow-empty", "-m", "new words")
    git("clone", "--depth=1", "--no-single-branch", folder.as_uri(), "../shallow")
    inside, outside = folder / "unpacked", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    assert [main(each) for each in (folder, tmp_path / "shallow", inside, outside)] == [1, 0, 0, 0]
    monkeypatch.setenv("PATH", "")
    assert main(folder) == 0
