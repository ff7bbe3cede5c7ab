"""Commands that time kernels check their options before they begin; and how they write their files."""

import os
from pathlib import Path

import click
import pytest

from benchmarks.speed import results
from benchmarks.speed.machine import Rates
from benchmarks.timed import check_options


@pytest.mark.parametrize("name", ["a" * 252 + ".json", "a" * 245 + ".json", "none/run.json", "."])
def test_a_file_that_cannot_be_written_is_refused(tmp_path, name):
    with pytest.raises(click.UsageError, match="--json: "):
        check_options(1.0, tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
def test_a_folder_in_which_nobody_can_write_is_refused():
    with pytest.raises(click.UsageError, match=r"--json: /proc/x\.json cannot be written"):
        check_options(1.0, Path("/proc/x.json"))


def test_a_check_leaves_a_file_as_it_is(tmp_path):
    path = tmp_path / "run.json"
    path.write_text("old")
    check_options(1.0, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_links_and_devices_stay_what_they_are(tmp_path):
    device, link, path = tmp_path / "device", tmp_path / "link", tmp_path / "run.json"
    device.symlink_to(os.devnull)
    link.symlink_to(path)
    for each in (device, link):
        check_options(1.0, each)
        results.write(Rates(read=1.0, copy=1.0, matmul=1.0, launch=1.0), each)
        assert each.is_symlink()
    assert Path(os.devnull).is_char_device()
    assert path.read_text().startswith("{")
