"""The README's first run prints what is shown, and its figures are those of the pages that hold them."""

import re
import tomllib

from tests.support.pages import PAGES, ROOT, run_command, without_numbers

README = PAGES["README.md"]
ACCOUNT = ("launched", "at most", "examples in modes", "no example in modes", "declared away", "not seen")
"""The beginnings of lines that fewer cases make longer, and that a pipe has before the others."""


def test_the_first_run_is_as_shown(tmp_path):
    """Fewer cases are drawn here, in no mode, which exact mode carries; how many past cases come first must be as shown."""
    shown = re.search(r"attn-parity fuzz --seed 1\n```\n\n```\n(.*?)```", README, flags=re.DOTALL)
    assert shown is not None
    ended = run_command("attn-parity fuzz --seed 1 --examples 30 --workers 2", tmp_path)
    texts = ended.stderr + ended.stdout, re.sub(r" \d+ not compared exactly: [^,]*,| \d+ refused,", "", shown[1])
    assert ended.returncode == 0, texts
    printed, expected = ([line for line in without_numbers(text) if not line.startswith(ACCOUNT)] for text in texts)
    assert printed[-len(expected) :] == expected
    past = re.search(r"on CPU, (\d+ past cases)", ended.stdout)
    assert past is None or shown[1].count(past[1]) == 2


def test_the_readme_has_the_counts_of_the_zoo():
    zoo = (ROOT / "docs" / "generated" / "zoo.md").read_text()
    (found,) = re.findall(r"\d+ of \d+ found: \d+ classes, \d+ real bugs", README)
    assert f"\n{found};" in zoo


def test_how_many_findings_there_are():
    findings = (ROOT / "docs" / "generated" / "findings.md").read_text()
    packages = {"AITER": "(?:amd-|ROCm/)aiter", "vLLM": "vllm", "SGLang": "sglang", "LMDeploy": "lmdeploy"}
    for name, package in packages.items():
        rows = re.findall(rf" \| {package}(?:'s)? ", findings)
        assert f" {len(rows)} in {name}" in README.replace("\n  ", " ")


def test_the_releases_of_triton_are_those_that_tox_installs():
    *releases, newest = sorted(set(re.findall(r"triton==(\S+)", (ROOT / "tox.ini").read_text())))
    assert f"{', '.join(releases)} and {newest}" in " ".join(README.split())


def test_every_file_names_the_same_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"{version}\n" in (ROOT / "CHANGELOG.md").read_text()
