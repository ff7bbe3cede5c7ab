"""A command of `python -m benchmarks` in this process."""

import pytest
from attn_parity import main

from benchmarks.__main__ import cli


@pytest.fixture
def ended(capsys):
    """A function that runs a command and returns its exit code and all that it has printed, as one line."""

    def run(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            main([*map(str, arguments)], commands=cli, name="python -m benchmarks")
        return int(end.value.code or 0), " ".join("".join(capsys.readouterr()).split())

    return run
