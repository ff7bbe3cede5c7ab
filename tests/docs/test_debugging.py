"""The guide to debugging ends with a kernel that is repaired: its case then passes."""

from tests.support.pages import PAGES, commands, run_command, run_program, save_files

GUIDE = PAGES["docs/guide/debugging.md"]


def test_the_repaired_kernel_passes(tmp_path):
    save_files(GUIDE, tmp_path)
    assert run_program(GUIDE, tmp_path).returncode == 0
    (tmp_path / "suspect.py").write_text((tmp_path / "suspect.py").read_text().replace("sinks=None", "sinks=layer.sinks"))
    for command, _ in commands(GUIDE):
        ended = run_command(command.text, tmp_path)
        assert ended.returncode == 0, ended.stdout + ended.stderr
