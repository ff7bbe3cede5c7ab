"""The wheel made of the source distribution holds the packages, whole, and nothing else."""

import email
import re
import subprocess
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.pages import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Iterator[zipfile.ZipFile]:
    """Made as `tox run -e release` makes it: of what the source distribution holds."""
    folder = tmp_path_factory.mktemp("release")
    backend = pytest.importorskip("hatchling.build")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(ROOT)
        with tarfile.open(folder / backend.build_sdist(str(folder))) as packed:
            packed.extractall(folder, filter="data")
        [unpacked] = folder.glob("attn_parity-*/")
        patched.chdir(unpacked)
        with zipfile.ZipFile(folder / backend.build_wheel(str(folder))) as opened:
            yield opened


def test_the_wheel_has_all_files_of_the_packages_and_nothing_else(wheel):
    target = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    places = {Path(package): Path(package).name for package in target["packages"]} | {
        Path(folder): place for folder, place in target["force-include"].items()
    }
    listed = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True)
    expected = {
        Path(place, path.relative_to(folder)).as_posix()
        for path in map(Path, listed.splitlines())
        for folder, place in places.items()
        if folder in path.parents
    }
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == expected
    # laboratory, benchmarks and tests have names of their own, which importing from a wheel must not find
    assert not {"attn_lab", "benchmarks", "tests", "findings"} & {name.partition("/")[0] for name in held}


def test_the_readme_of_an_index_has_no_link_to_a_page_that_is_not_there(wheel):
    [name] = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(wheel.read(name))
    described = metadata.get_payload()
    assert metadata["Version"] == PROJECT["project"]["version"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert [link for link in re.findall(r"\]\(([^)\s]+)\)", described) if "://" not in link] == []
    assert "All pages (docs/README.md)" in described
