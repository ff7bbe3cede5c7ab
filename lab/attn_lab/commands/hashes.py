"""Compares the binaries of two commits, by hashes of the assembly of every launch that ships.

    python -m attn_lab hashes before.json                            # in a worktree of the older commit
    python -m attn_lab hashes after.json --compare before.json       # here

A refactoring of a kernel proves with it that nothing has changed. Left out of a hash is what no GPU reads:
`attn_binaries.assembly` says what. The order of the parameters is not left out: it is where the kernel finds them.

AMD's compiler is not deterministic: when the same source is compiled again, about one launch in a hundred comes out with other
registers, or with operands the other way round. A launch that differs is compiled again, several times and past Triton's cache,
and counts as changed if no time gives the earlier binary. The older commit may have been the odd one, too: before a change is
believed, the launches that are left are hashed again there, with an empty TRITON_CACHE_DIR.
"""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from attn_binaries.build import in_processes
from attn_fuzz import inputs, outputs
from attn_fuzz.errors import InputError
from attn_parity.console import progress_bar, results
from attn_parity.files import check_writable
from attn_parity.launches import architectures_option, chosen_calls, main_option, only_option
from attn_parity.options import cpu_workers_option
from attn_parity.versions import version

if TYPE_CHECKING:  # Triton decides on its first import whether kernels are interpreted
    from attn_optimized.kernel_call import KernelCall

SCHEMA = "attn-parity.hashes/1"
TRIES = 4
"""The compilations of a launch that differs. A binary that comes up half of the time is missed by 1 in 16 such searches."""
FACTS = ("vgprs", "agprs", "sgprs", "vgpr_spills", "sgpr_spills", "lds_bytes", "waves")


@click.command("hashes")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--compare",
    "before",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Compare with this file of an earlier commit; exit 1 if a launch differs.",
)
@architectures_option
@only_option
@main_option
@cpu_workers_option
def command(file: Path, before: Path | None, architectures: str | None, only: str, main: bool, workers: int) -> int:
    """Compile the launches that ship, and write hashes of their assembly to FILE."""
    check_writable(file, "FILE")
    earlier = None if before is None else _earlier(before)
    calls = chosen_calls(architectures, only=only, main=main)
    jobs = [(architecture, name) for architecture, some in calls.items() for name in some]
    with progress_bar(len(jobs)) as show_bar:
        found, interrupted = in_processes(_hashed, jobs, min(workers, len(jobs)), lambda found: show_bar(len(found)))
    result = {"schema": SCHEMA, "triton": version("triton"), "launches": _by_architecture(found)}
    outputs.write(file, json.dumps(result, indent=1) + "\n")
    failed = [(*job, outcome) for job, outcome in found.items() if isinstance(outcome, str)]
    for architecture, name, error in failed:
        results.print(f"{architecture} {name}: does not compile: {error}")
    results.print(f"{len(found) - len(failed)} compiled with Triton {result['triton']}, {len(failed)} do not compile")
    if interrupted:
        return 130
    if earlier is None:
        return int(bool(failed))
    differ = differences(earlier, result, set(jobs))
    again = {launch for launch in differ if comes_again(launch, earlier)}
    for launch, line in differ.items():
        results.print(f"{line}{'; the same when compiled again' if launch in again else ''}")
    results.print(f"{len(jobs)} launches compared with {before}, {len(differ) - len(again)} differ")
    return int(len(differ) > len(again))


def described(call: "KernelCall", architecture: str) -> tuple[dict[str, Any], str]:
    """The facts of a launch that are kept, and the assembly that its hash is of.

    Its grid and the values of its numbers, in the kernel's order, are kept too: a refactoring of a launch changes neither.
    """
    from attn_binaries.assembly import without_debug
    from attn_binaries.compilation import compiled
    from attn_binaries.facts import facts_of

    binary, _ = compiled(call, architecture)
    text = without_debug(binary.asm.get("amdgcn") or binary.asm["ptx"], binary.metadata.name)
    facts, numbers = facts_of(binary, architecture), call.launch.numbers
    kept = {
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "num_warps": binary.metadata.num_warps,
        **{name: getattr(facts, name) for name in FACTS},
        "grid": list(call.launch.grid),
        "numbers": [numbers[name] for name in call.launch.kernel.arg_names if name in numbers],
    }
    return kept, text


def _earlier(file: Path) -> dict[str, Any]:
    """The hashes of an earlier commit.

    Raises:
        InputError: it is no such file, or another Triton compiled the launches.
    """
    earlier = inputs.read_record(file, SCHEMA, inputs.MAX_LARGE_BYTES)
    if earlier.get("triton") != version("triton"):
        raise InputError(f"{file}: triton: got {earlier.get('triton')!r}, expected {version('triton')!r}, which compiles here")
    return earlier


def differences(before: dict[str, Any], after: dict[str, Any], jobs: set[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """The launches that differ, each by architecture and name, and the differences in words."""
    found = {}
    for architecture, name in sorted(jobs):
        old, new = (result["launches"].get(architecture, {}).get(name) for result in (before, after))
        if old is None and new is None:
            continue  # it compiles with neither
        if old is None or new is None:
            found[architecture, name] = f"{architecture} {name}: not compiled {'before' if old is None else 'after'}"
        elif changed := [key for key in new if old.get(key) != new[key]]:
            words = "; ".join(_change(key, old.get(key), new[key]) for key in changed)
            found[architecture, name] = f"{architecture} {name}: {words}"
    return found


def comes_again(launch: tuple[str, str], earlier: dict[str, Any]) -> bool:
    """True if a launch that differs is as it was before in one of TRIES more compilations, each in a process of its own."""
    architecture, name = launch
    with tempfile.TemporaryDirectory() as folder:
        caches = [(architecture, name, Path(folder, str(number))) for number in range(TRIES)]
        found, _ = in_processes(_hashed_anew, caches, TRIES)
    return earlier["launches"].get(architecture, {}).get(name) in found.values()


def _hashed_anew(architecture: str, name: str, cache: Path) -> dict[str, Any]:
    os.environ["TRITON_CACHE_DIR"] = str(cache)
    return _hashed(architecture, name)


def _change(key: str, old: Any, new: Any) -> str:
    if key == "sha256":
        return f"assembly {old[:12]}, now {new[:12]}"
    if key == "numbers" and len(old) == len(new):
        places = [place for place, (one, other) in enumerate(zip(old, new, strict=True)) if one != other]
        return f"numbers {', '.join(f'[{place}] {old[place]}, now {new[place]}' for place in places)}"
    return f"{key} {old}, now {new}"


def _hashed(architecture: str, name: str) -> dict[str, Any]:
    from attn_binaries.shipped_calls import all_of

    kept, _ = described(all_of(architecture)[name], architecture)
    return kept


def _by_architecture(found: dict[tuple[Any, ...], Any]) -> dict[str, dict[str, Any]]:
    launches: dict[str, dict[str, Any]] = {}
    for (architecture, name), outcome in sorted(found.items(), key=lambda item: item[0]):
        if not isinstance(outcome, str):
            launches.setdefault(architecture, {})[name] = outcome
    return launches
