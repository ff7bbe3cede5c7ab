"""Whether the faults of planted_faults.py can be planted. None is: `tox run -e emulated` plants them, which takes minutes."""

from pathlib import Path

import attn_amdgcn
import pytest

from tests.emulated.planted_faults import HERE, PLANTED, file_of_tests

PACKAGE = Path(attn_amdgcn.__file__).parent


@pytest.mark.parametrize("what", PLANTED)
def test_the_place_of_a_fault_is_there_once(what):
    file, find, instead, family = PLANTED[what]
    source = (PACKAGE / file).read_text(encoding="utf-8")
    assert source.count(find) == 1, f"{find!r} is {source.count(find)} times in {file}"
    compile(source.replace(find, instead), file, "exec")
    assert file_of_tests(family).parent == HERE
    assert file_of_tests(family).exists()


def test_each_module_of_instructions_has_a_fault():
    modules = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.glob("instructions/**/*.py")}
    with_code = {module for module in modules if not module.endswith("__init__.py")}
    assert with_code - {file for file, *_ in PLANTED.values()} == set()
