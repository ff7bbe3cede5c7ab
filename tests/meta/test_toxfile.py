"""The minutes that `tox run` prints at its end: each command of the environment `checks` is of a step."""

import configparser
import runpy

import pytest

from tests.support.pages import ROOT

TOX = configparser.ConfigParser(interpolation=None)
TOX.read(ROOT / "tox.ini", encoding="utf-8")
MADE_OF = ("types", "docs", "emulated-main", "tests")
TOXFILE = runpy.run_path(str(ROOT / "toxfile.py"))


@pytest.mark.parametrize("name", MADE_OF)
def test_a_command_of_checks_is_of_a_step(name):
    assert f"{{[testenv:{name}]commands}}" in TOX["testenv:checks"]["commands"]
    command = TOX[f"testenv:{name}"]["commands"].split()
    assert TOXFILE["step_of"]("checks", command) in TOXFILE["STEPS"].values()
    assert TOXFILE["step_of"](name, command) == name, "an environment of its own is the step"


def test_checks_has_no_other_command():
    assert TOX["testenv:checks"]["commands"].count("{[testenv:") == len(MADE_OF)
