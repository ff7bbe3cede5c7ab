"""Files that are no code object for an AMD GPU."""

import sys

import pytest
from attn_amdgcn import AssemblyError
from attn_amdgcn.code_objects import missing, text_of

pytestmark = pytest.mark.skipif((reason := missing()) is not None, reason=str(reason))


@pytest.mark.parametrize("content", [b"", b"s_endpgm\n", b"\x7fELF" + bytes(60)])
def test_a_file_of_something_else_is_refused_with_its_name(content, tmp_path):
    file = tmp_path / "kernel.co"
    file.write_bytes(content)
    with pytest.raises(AssemblyError, match=r"kernel\.co"):
        text_of(file)


def test_a_program_of_another_machine_is_refused():
    with pytest.raises(AssemblyError, match="its header names none of gfx90a, gfx942, gfx950"):
        text_of(sys.executable)


def test_a_file_that_is_not_there_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        text_of(tmp_path / "none.co")
