"""The scripts that show findings to their owners: findings/PACKAGE/NAME.py, and what they print."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
from attn_fuzz import foreign, outputs
from attn_fuzz.errors import InputError
from attn_fuzz.findings import repairs
from attn_lab.findings import reports
from attn_lab.findings.issue_text import Source
from attn_lab.findings.places import FOLDER, names, package_of
from attn_lab.pages import PAGES

RESULTS = PAGES / "findings.json"
ARCHITECTURE = "gfx942"
SHOWS, DOES_NOT_SHOW, CANNOT_RUN = 1, 0, 2
_ALONE = """
import runpy, sys, traceback

class Blocked:
    def find_spec(self, name, *rest):
        if name.startswith("attn_"):
            sys.exit(3)

sys.meta_path.insert(0, Blocked())
sys.path[:0] = sys.argv[2:]
try:
    runpy.run_path(sys.argv[1], run_name="__main__")
except Exception:
    traceback.print_exc()
    sys.exit(2)
finally:
    assert not [name for name in sys.modules if name.startswith("attn_")]
"""


class Shown(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The result of a finding's script.

    Attributes:
        interpreted: its output.
        compiled: its output with kernels that were compiled for gfx942 and emulated; None if it launches no kernel, or if
            the finding needs a GPU.
        repaired: its output with the repaired file; None if there is no repair.
        run_on: the GPU on which `findings check` passed, with its Triton; None if there was none.
    """

    interpreted: str
    compiled: str | None
    repaired: str | None = None
    run_on: str | None = None


def source(name: str) -> Source:
    """findings/PACKAGE/NAME.py."""
    return Source(name, package_of(name))


def stored() -> dict[str, Shown]:
    return msgspec.json.decode(RESULTS.read_bytes(), type=dict[str, Shown])


def run(name: str, *, sources: Path | None = None, architecture: str | None = None) -> tuple[int, str]:
    """The exit code and the output of a finding's complete script, in a process of its own.

    The code is CANNOT_RUN where the script raises: it does not fit these sources, and shows nothing.

    Args:
        sources: a folder with other sources of the package.
        architecture: for which the kernels are compiled, to be emulated. None: they are interpreted, in a process that cannot
            import this project.
    """
    text, package = source(name), package_of(name)
    folder = foreign.sources(package) if sources is None else sources / package
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "show.py")
        file.write_text(text.script(folder), encoding="utf-8")
        Path(scratch, "stand_ins.py").write_text(text.stand_ins(), encoding="utf-8")
        others = [scratch, str(folder.parent)]
        how = ["-P", "-m", "attn_fuzz.emulated.script", str(architecture), str(file)]
        if architecture is None:
            how = ["-I", "-c", _ALONE, str(file), *others]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([*others, os.environ.get("PYTHONPATH", "")])}
        command = [sys.executable, "-W", "ignore", *how]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout if done.returncode != CANNOT_RUN else done.stdout + done.stderr


def _shown(name: str) -> Shown:
    compiled = _showing(name, ARCHITECTURE) if reports.is_emulated(name) else None
    return Shown(_showing(name, None), compiled, _repaired(name))


def _showing(name: str, architecture: str | None) -> str:
    code, output = run(name, architecture=architecture)
    if code != SHOWS:
        raise RuntimeError(f"{name}: exit code {code}, expected {SHOWS}\n{output}")
    return output


def _repaired(name: str) -> str | None:
    if not (found := repairs.of_names([name])):
        return None
    with tempfile.TemporaryDirectory() as folder:
        code, output = run(name, sources=repairs.repaired(found, Path(folder)))
    if code != DOES_NOT_SHOW:
        raise RuntimeError(f"{name}, repaired: exit code {code}, expected {DOES_NOT_SHOW}\n{output}")
    return output


def run_all(chosen: Sequence[str]) -> Iterator[str]:
    """Run the scripts of the named findings, or of all, and keep what they print. It needs the findings' packages.

    Yields the name of each finding when its script has run.

    Raises:
        InputError: a finding has no report.
    """
    known = names()
    if unknown := sorted(set(chosen) - set(known)):
        raise InputError(f"NAME: got {', '.join(unknown)}, expected names of findings with a report in {FOLDER}")
    shown = stored()
    for name in chosen or filter(reports.is_in, known):
        shown[name] = _shown(name)
        yield name
    _keep({name: shown[name] for name in known if name in shown})


def ran_on(name: str, gpu: str) -> None:
    """Keep that the script and the test of a finding passed on this GPU."""
    shown = stored()
    _keep(shown | {name: msgspec.structs.replace(shown[name], run_on=gpu)})


def _keep(kept: Mapping[str, Shown]) -> None:
    outputs.write(RESULTS, msgspec.json.format(msgspec.json.encode(kept), indent=1) + b"\n")
