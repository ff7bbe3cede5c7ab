"""The parts that all commands share: help, completion, defaults of pyproject.toml, the examples, and the number of workers."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import torch
from attn_fuzz.cases import case_file
from attn_lab.__main__ import lab
from attn_parity import cli, cpus, device
from attn_parity.commands.fuzz.machines import Machines

from tests.support import processes
from tests.support.pages import PAGES, ROOT

PROGRAM = "import sys; sys.argv[0] = 'attn-parity'; from attn_parity import main; main()"


def test_help_lists_every_command_in_a_group(attn_parity):
    text = attn_parity("--help").out
    assert all(text.count(f"\n  {name} ") == 1 for name in cli.words)
    first = text.split("Commands to begin with:")[1].split("\n\n")[0]
    assert re.findall(r"^  (\w+)", first, re.MULTILINE) == ["fuzz", "replay", "explain", "show", "targets", "select", "doctor"]


needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")


@needs_proc
def test_sigterm_interrupts_a_command_that_knows_nothing_of_signals(child_environment, tmp_path):
    """Any command ends with 130, and so does what it started."""
    (tmp_path / "waits.py").write_text(
        "import subprocess, sys, click\n"
        "@click.command('waits')\n"
        "def command():\n"
        "    child = 'import pathlib, time; pathlib.Path(\"running\").touch(); time.sleep(600)'\n"
        "    subprocess.run([sys.executable, '-c', child])\n"
    )
    program = "import attn_parity.commands; attn_parity.cli.words['waits'] = ''; attn_parity.commands.__path__.append('.'); "
    ended = processes.signalled(
        *(["-c", program + "attn_parity.main(['waits'])"], lambda _: (tmp_path / "running").exists(), signal.SIGTERM),
        cwd=tmp_path,
        env=child_environment,
    )
    assert (ended.returncode, ended.stderr) == (130, "\n")


@needs_proc
@pytest.mark.parametrize(
    ("number", "arguments"),
    [
        (4, ["fuzz", "--target", "planted:FLASH", "--examples", "100000", "--workers", "1", "--corpus", "none"]),
        # two workers and multiprocessing's own
        pytest.param(4, ["compile", "--arch", "gfx942", "--workers", "2"], marks=pytest.mark.nightly),
    ],
    ids=["fuzz", "compile"],
)
def test_sigterm_interrupts_a_command_and_the_processes_that_it_started(number, arguments, child_environment, tmp_path):
    program, environment = ["-m", "attn_parity", *arguments], child_environment | {"TRITON_CACHE_DIR": str(tmp_path)}
    ended = processes.signalled(program, lambda found: len(found) >= number, signal.SIGTERM, cwd=tmp_path, env=environment)
    assert ended.returncode == 130, ended.stderr
    assert "interrupted" in ended.stdout


ENDS = """
import os, signal, sys, click, attn_parity
@click.command("ends")
def command():
    {body}
attn_parity.cli.words["ends"] = ""
attn_parity.cli.get_command = lambda context, name: command
attn_parity.main(["ends"])
"""


def ends(body: str, before: str = "", **streams: object) -> subprocess.CompletedProcess[str]:
    """The end of a command with this body, in a new interpreter: Python's own handling of exceptions is asked."""
    program = [sys.executable, "-c", before + ENDS.format(body=body)]
    return subprocess.run(program, text=True, check=False, **{"capture_output": True, **streams})  # pyright: ignore


@pytest.mark.parametrize(
    ("body", "before", "code", "told"),
    [
        (
            "raise ValueError('x')",
            "",
            2,
            "attn-parity: a fault of this tool or of its installation, and no verdict on a kernel",
        ),
        ("raise MemoryError", "", 2, "and no verdict on a kernel: MemoryError"),
        ("import nowhere", "", 2, "ModuleNotFoundError: No module named 'nowhere'"),
        (
            "import torch",
            "import sys; sys.modules['torch'] = None\n",
            2,
            "this needs torch, which is missing: pip install torch",
        ),
        ("pass", "import sys; sys.modules['rich'] = None\n", 2, "and no verdict on a kernel: ModuleNotFoundError"),
        ("return 1", "", 1, ""),
    ],
)
def test_no_exception_of_a_command_ends_with_the_code_of_a_mismatch(body, before, code, told):
    ended = ends(body, before)
    assert ended.returncode == code, ended.stderr
    assert told in ended.stderr


FINDS = """
import sys, importlib.util
class Finder:
    @staticmethod
    def find_spec(name, *_):
        return importlib.util.spec_from_file_location(name, {path!r}) if name == {module!r} else None
sys.meta_path.insert(0, Finder)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["rich.console", "later"], ids=["of the command line", "of a command"])
def test_a_signal_during_imports_ends_with_130(number, module, tmp_path):
    """The first second of a command imports modules."""
    path = tmp_path / f"{module.split('.')[-1]}.py"
    path.write_text(f"import os, time; os.kill(os.getpid(), {number}); time.sleep(20)")
    signals = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    signals += "signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"  # a test before this one may have ignored it
    find = FINDS.format(module=module, path=str(path))
    program = "import attn_parity as a; a.cli.words['x'] = ''; a.cli.module = 'later'; a.main(['x'])"
    ended = subprocess.run([sys.executable, "-c", signals + find + program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (130, "")


@pytest.mark.parametrize(("closed", "code"), [((0, 2), 0), ((1,), 2), ((0, 1, 2), 2)])
def test_a_closed_stream_is_no_file_of_the_run(closed, code, tmp_path):
    """The next file that a process opens would have its number: a pipe between processes, into which a kernel prints."""
    closing = "".join(f"os.close({number}); " for number in closed)
    program = ENDS.format(body=f"open({str(tmp_path / 'number')!r}, 'w').write(str(os.open('/', os.O_RDONLY)))")
    ended = subprocess.run(
        [sys.executable, "-c", f"import os, sys; {closing}os.execv(sys.executable, [sys.executable, '-c', {program!r}])"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == code, ended.stderr
    assert int((tmp_path / "number").read_text()) > 2
    if closed == (1,):
        assert ended.stderr == "attn-parity: stdout: Bad file descriptor\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_completion(shell, attn_parity, monkeypatch):
    monkeypatch.setenv("_ATTN_PARITY_COMPLETE", f"{shell}_source")
    ended = attn_parity()
    assert "attn-parity" in ended.out
    assert ended.code == 0


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["s"], ["show", "select"]),
        (["compile", "--se"], ["--seed"]),
        (["--ver"], ["--version"]),
        (["select", "--dtype", "b"], ["bfloat16"]),
    ],
)
def test_words_are_completed(words, completed, attn_parity, monkeypatch):
    line = " ".join(["attn-parity", *words])
    for name, value in (("_ATTN_PARITY_COMPLETE", "bash_complete"), ("COMP_WORDS", line), ("COMP_CWORD", str(len(words)))):
        monkeypatch.setenv(name, value)
    assert [word.split(",")[1] for word in attn_parity().out.split()] == completed


STARTUP_FILES = re.findall(r"^\| (\w+), `~/(.+?)` \| `(.+)` \|$", PAGES["docs/reference/command-line.md"], re.MULTILINE)


def test_every_shell_has_a_startup_file():
    assert [shell for shell, _, _ in STARTUP_FILES] == ["bash", "zsh", "fish"]


@pytest.mark.nightly
@pytest.mark.parametrize(("shell", "startup", "line"), STARTUP_FILES, ids=[shell for shell, _, _ in STARTUP_FILES])
def test_a_shell_with_the_documented_line_completes_what_is_typed(shell, startup, line, tmp_path):
    """The completions of an interactive shell, by the Tab key."""
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"needs {shell}")
    (tmp_path / startup).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / startup).write_text(line.replace(r"\|", "|") + "\n")
    command = tmp_path / "bin" / "attn-parity"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\n{PROGRAM}\n")
    command.chmod(0o755)
    path = os.pathsep.join((str(command.parent), os.environ["PATH"]))
    child, terminal = pty.fork()
    if child == 0:
        os.execve(program, [shell, "-i"], {"HOME": str(tmp_path), "PATH": path, "TERM": "xterm", "LANG": "C.UTF-8"})
    try:
        os.write(terminal, b'echo rea""dy\n')
        wait_for(b"ready\r\n", terminal)
        os.write(terminal, b"attn-parity compile --se\t")
        wait_for(b"--seed", terminal)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(terminal)


def wait_for(text: bytes, terminal: int) -> None:
    shown, deadline = b"", time.monotonic() + 120
    while text not in shown and time.monotonic() < deadline:
        if select.select([terminal], [], [], 1)[0]:
            shown += os.read(terminal, 65536)
    assert text in shown


@pytest.fixture
def pyproject(tmp_path):
    """Writes pyproject.toml into the folder in which `attn_parity` runs commands."""
    return (tmp_path / "pyproject.toml").write_text


def test_defaults_come_from_pyproject(pyproject, attn_parity):
    pyproject("[tool.attn-parity.select]\nheads = 8\nhead-size = 64\narch = 'gfx942'\nsinks = true\nwindow = [127, 0]\n")
    ended = attn_parity("select", "--aiter", "none")
    assert ended.code == 0
    assert ended.out.startswith("one layer on gfx942")
    assert "sinks" in ended.out
    told = "heads = 8, head-size = 64, arch = 'gfx942', sinks = True, window = [127, 0]"
    assert ended.err.splitlines()[0] == f"defaults of pyproject.toml: {told}"


def test_the_command_line_wins_over_defaults(pyproject, attn_parity):
    pyproject("[tool.attn-parity.select]\nheads = 8\nhead-size = 64\narch = 'gfx942'\n")
    assert attn_parity("select", "--arch", "sm90", "--aiter", "none").out.startswith("one layer on sm90")


def test_another_tools_pyproject_changes_nothing(pyproject, attn_parity):
    pyproject("[tool.ruff]\nline-length = 9\n")
    assert attn_parity("select", "--heads", 8, "--head-size", 64, "--arch", "sm90", "--aiter", "none").err == ""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[tool.attn-parity.fuss]\nseed = 1", "[tool.attn-parity.fuss]: expected one of fuzz, replay, explain, show"),
        ("[tool.attn-parity]\nseed = 1", "[tool.attn-parity]: expected a table for each command"),
        ("tool.attn-parity = 1", "[tool.attn-parity]: expected a table for each command"),
        ("[tool.attn-parity.targets]\ndevise = 'cpu'", "[tool.attn-parity.targets] devise: expected one of device"),
        ("[tool.attn-parity.targets]\ndevice = 'tpu'", "[tool.attn-parity.targets] device: 'tpu' is not one of"),
        ("[tool.attn-parity.targets]\ndevice = ['cpu']", "[tool.attn-parity.targets] device: got ['cpu'], expected a string"),
        ("[tool.attn-parity.targets]\ndevice = true", "[tool.attn-parity.targets] device: got True, expected a string"),
        ("tool = 1", "pyproject.toml: tool: expected a table"),
        ("[[tool]]\nattn-parity = 1", "pyproject.toml: tool: expected a table"),
        ("[tool.attn-parity.targets]\ndevice = nan", "pyproject.toml: "),
        ('[tool.attn-parity.targets]\n"\\u001b[31m" = 1', "[tool.attn-parity.targets] "),
    ],
)
def test_what_is_no_default_is_refused(text, told, pyproject, attn_parity):
    pyproject(text)
    ended = attn_parity("targets")
    assert ended.code == 2
    assert told in ended.err
    assert len(ended.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("heads = 2.5", "heads: '2.5' is not a valid integer."),
        ("sinks = 1", "sinks: got 1, expected true or false"),
        ("window = 5", "window: got 5, expected a list"),
        ("window = [5]", "window: "),
    ],
)
def test_a_value_that_the_option_does_not_take_is_refused(option, told, pyproject, attn_parity):
    pyproject(f"[tool.attn-parity.select]\n{option}\n")
    ended = attn_parity("select", "--heads", 8, "--head-size", 64)
    assert ended.code == 2
    assert ended.err.startswith(f"attn-parity: pyproject.toml: [tool.attn-parity.select] {told}")


def test_only_users_commands_have_defaults(pyproject, attn_parity):
    pyproject("tool.attn-parity = 1\n")
    assert attn_parity("select", "--help").code == 2
    assert attn_parity("matrix", "--help", commands=lab).code == 0


def test_the_examples_are_written_once(attn_parity, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert attn_parity("examples").code == 0
    written = {path.relative_to("examples") for path in Path("examples").rglob("*") if path.is_file()}
    there = {path.relative_to(ROOT / "examples") for path in (ROOT / "examples").rglob("*") if path.is_file()}
    assert written == {path for path in there if "__pycache__" not in path.parts}
    again = attn_parity("examples")
    assert (again.code, again.err.splitlines()) == (
        2,
        ["attn-parity: examples/" + min(map(str, written)) + " exists already, and is not written over"],
    )


def test_an_example_is_not_written_through_a_link(attn_parity, tmp_path):
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "my_target.py").symlink_to(tmp_path / "elsewhere")
    run = attn_parity("examples")
    assert (run.code, run.err) == (2, "attn-parity: examples/my_target.py exists already, and is not written over\n")
    assert [path.name for path in tmp_path.rglob("*")] == ["examples", "my_target.py"]


def group(folder: Path, cpu_max: dict[str, str], own: str) -> float:
    for name, text in cpu_max.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "cpu.max").write_text(text)
    (folder / "cgroup").write_text(own)
    return cpus.quota(folder, folder / "cgroup")


@pytest.mark.parametrize(
    ("cpu_max", "own", "expected"),
    [
        ({"": "150000 100000\n"}, "0::/\n", 1.5),  # a container, which sees its own group as the root
        ({"a": "400000 100000\n", "a/b": "max 100000\n"}, "0::/a/b\n", 4.0),  # a group above has the quota
        ({"a": "max 100000\n"}, "0::/a\n", float("inf")),
        ({"": "200000 100000\n"}, "0::/somewhere/else\n", 2.0),  # the path is of another namespace
        ({"": "200000 100000\n"}, "4:cpu:/v1\n", 2.0),
        ({}, "", float("inf")),
    ],
)
def test_the_quota_of_a_control_group(cpu_max, own, expected, tmp_path):
    assert group(tmp_path, cpu_max, own) == expected


def test_workers_are_the_cpus_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)), raising=False)
    for quota, workers in ((float("inf"), 6), (1.5, 2), (0.1, 1), (64.0, 6)):
        monkeypatch.setattr(cpus, "quota", lambda quota=quota: quota)
        assert cpus.usable_cpus() == workers


def test_workers_on_a_gpu_have_its_memory(monkeypatch):
    monkeypatch.setattr(device, "usable_cpus", lambda: 16)
    for gib, workers in ((140, 16), (16, 8), (1, 1)):
        properties = SimpleNamespace(total_memory=gib << 30)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, properties=properties: properties)
        assert device.default_workers("cuda") == workers
    assert device.default_workers("cpu") == 16


def test_a_run_of_one_shard_has_one_worker(attn_parity, tmp_path):
    drawn = ("--examples", 2, "--seed", 1, "--corpus", "none", "--workers", 8)
    fuzz = attn_parity("fuzz", "--target", "planted:FLASH", *drawn, "--json", "run.json")
    assert fuzz.out.startswith("target planted-flash on CPU, 2 examples, 1 worker, --seed 1\n"), fuzz.err
    assert json.loads((tmp_path / "run.json").read_text())["workers"] == 1
    going = attn_parity("fuzz", "--keep-going", "--target", "planted:FLASH", *drawn, "--json", "run.json")
    assert going.out.startswith("keep going: planted-flash on CPU, 2 examples each, 1 worker, --seed 1\n"), going.err
    assert json.loads((tmp_path / "run.json").read_text())["workers"] == 1


LIMIT = "a function that this tool does not know"


def test_cases_that_this_tool_cannot_run_are_counted_and_fail_nothing(attn_parity, tmp_path):
    drawn = ("--examples", 20, "--seed", 1, "--corpus", "none", "--workers", 1, "--json", "run.json")
    for more in ([], ["--keep-going"]):
        run = attn_parity("fuzz", "--target", "planted:LIMITED", *drawn, *more)
        assert run.code == 3, run.out
        told = json.loads((tmp_path / "run.json").read_text())
        [(limit, count)] = told["limits"].items()
        assert limit == f"{LIMIT} (lifted by compiled code: on a GPU, or as TARGET@gfx942)"
        assert f"{count} of 20 not run, by limits of this tool" in run.out
        assert f"not run: {count} cases: {limit}\nwarning: {1 - count / 20:.0%} of the cases ran; " in run.err
        assert 0 < count < 20
        assert not told["failures"]
        assert not list(tmp_path.glob("attn-parity-runs/*.json"))
        assert "all agree" not in run.out


def test_a_replay_of_a_case_that_this_tool_cannot_run(attn_parity, step_case, tmp_path):
    case_file.save(tmp_path / "case.json", msgspec.structs.replace(step_case, head_size=16))
    for command in ("replay", "show"):
        run = attn_parity(command, "case.json", "--target", "planted:LIMITED")
        assert (run.code, "not run, by a limit of this tool: RuntimeError" in run.out) == (3, True), run.err


@pytest.mark.parametrize(
    ("nodes", "shards", "words"),
    [
        (None, 9, "4 workers"),
        (None, 1, "1 worker"),
        (2, 9, "4 workers on 2 nodes of Ray"),
        (2, 2, "2 workers on 2 nodes of Ray"),
        (2, 1, "1 worker on 1 of 2 nodes of Ray"),
        (1, 9, "4 workers on 1 node of Ray"),
    ],
)
def test_a_run_names_the_workers_that_its_shards_keep_busy(nodes, shards, words):
    found = Machines("cpu", "CPU", {}, 4, nodes, run=None, fixed=None)
    assert found.of_shards(shards).words == words
