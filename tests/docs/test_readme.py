"""The README's first run prints what is shown, and its figures are those of the pages that hold them."""

import re
import tomllib

from attn_lab import results_file
from attn_lab.mutate import page as mutants

from tests.support.pages import PAGES, ROOT, run_command, without_numbers

README = PAGES["README.md"]


def test_the_first_run_is_as_shown(tmp_path):
    """Fewer cases are drawn here, all of which exact mode carries; how many past cases come first must be as shown."""
    shown = re.search(r"attn-parity fuzz --seed 1\n```\n\n```\n(.*?)```", README, flags=re.DOTALL)
    assert shown is not None
    ended = run_command("attn-parity fuzz --seed 1 --examples 30 --workers 2", tmp_path)
    texts = ended.stderr + ended.stdout, re.sub(r" \d+ not carried: [^,]*,", "", shown[1])
    assert ended.returncode == 0, texts
    printed, expected = ([line for line in without_numbers(text) if not line.startswith("not drawn")] for text in texts)
    assert printed[-len(expected) :] == expected
    past = re.search(r"on CPU, (\d+ past cases)", ended.stdout)
    assert past is None or shown[1].count(past[1]) == 2


def test_the_readme_has_the_counts_of_the_zoo():
    zoo = (ROOT / "docs" / "generated" / "zoo.md").read_text()
    (found,) = re.findall(r"\d+ of \d+ found: \d+ classes, \d+ real bugs", README)
    assert f"\n{found};" in zoo


def test_the_readme_has_the_shares_of_found_mutants():
    (results,) = results_file.kept(ROOT / "docs" / "generated" / "mutants.md", mutants.Results, "mutate").values()
    kernels, host = ([row for row in mutants.whole(results).mutants if of(row)] for of in mutants.KERNELS_OR_HOST.values())
    judged = mutants.shares(kernels, "judge, property and sanitizer")
    assert f"find {sum(judged):.0f} of {len(judged)} in kernels and launches" in README
    judged = mutants.shares(host, "tests")
    assert f"find {sum(judged):.0f} of {len(judged)} mutants of other host code" in README


def test_how_many_findings_there_are():
    findings = (ROOT / "docs" / "generated" / "findings.md").read_text()
    packages = {"AITER": "(?:amd-|ROCm/)aiter", "vLLM": "vllm", "SGLang": "sglang", "LMDeploy": "lmdeploy"}
    for name, package in packages.items():
        rows = re.findall(rf" \| {package}(?:'s)? ", findings)
        assert f" {len(rows)} in {name}" in README.replace("\n  ", " ")


def test_every_file_names_the_same_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"{version}\n" in (ROOT / "CHANGELOG.md").read_text()
