"""`attn-parity compile`: what the compilers make of every kernel that ships, for GPUs that need not be here."""

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
import torch
from attn_fuzz.binaries import budgets, page
from attn_fuzz.binaries.build import build
from attn_fuzz.binaries.page import Results, Row
from attn_parity.options import (
    PAGES,
    check_page_writable,
    check_writable,
    default_workers,
    json_option,
    notes,
    plain_table,
    progress_bar,
    results,
    sigterm_interrupts,
    workers_option,
    write_json,
)
from attn_parity.versions import version

if TYPE_CHECKING:
    from attn_optimized.compilation import Binary
    from attn_optimized.kernel_call import KernelCall

LAUNCHES = "attn-parity.launches/1"
PAGE = PAGES / "binaries.md"


@click.command("compile")
@click.option("--arch", "architectures", metavar="A,B,...", help="All, if not given.")
@click.option("--only", default="", metavar="TEXT", help="Just launches whose names hold this.")
@click.option("--main", is_flag=True, help="Just those that are compiled on every change.")
@click.option(
    "--save",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write code objects there, and how to launch them.",
)
@click.option("--write", "writes", is_flag=True, help="Write the page and, beside it, the JSON that it is made of.")
@click.option("--check", is_flag=True, help="Compile nothing; exit 1 if the page is not current, or not of these launches.")
@click.option(
    "--page", "path", type=click.Path(dir_okay=False, path_type=Path), default=PAGE, show_default=True, help="The page."
)
@click.option(
    "--budgets", "budget_file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Others than the project's."
)
@workers_option
@json_option
@sigterm_interrupts()
def command(
    architectures: str | None,
    only: str,
    main: bool,
    save: Path | None,
    writes: bool,
    check: bool,
    path: Path,
    budget_file: Path | None,
    workers: int | None,
    json_file: Path | None,
) -> int:
    """Compile every kernel that ships: registers, spills, LDS, matrix instructions; exit 1 when one is over its budget."""
    chosen = chosen_architectures(architectures)
    partly = bool(architectures or only or main)
    if partly and (writes or check):
        raise click.UsageError("--write and --check are about all launches: leave out --arch, --only and --main")
    from attn_optimized import shipped_calls  # imports Triton

    calls = {name: shipped_calls.chosen(name, only=only, main=main) for name in chosen}
    if not any(calls.values()):
        raise click.UsageError(f"--only: no launch is named so: {only}")
    names = {architecture: list(some) for architecture, some in calls.items()}
    if check:
        if writes or save or json_file or budget_file:
            raise click.UsageError("--check compiles and writes nothing: leave out --write, --save, --json and --budgets")
        return _check(path, names)
    check_writable(json_file)
    if writes:
        check_page_writable(path)
    if save is not None:
        save.mkdir(parents=True, exist_ok=True)
    allowed = budgets.load(budget_file)
    triton = version("triton") or ""
    if not allowed.knows(triton):
        notes.print(f"no exception of the budgets is of Triton {triton}: what it spills is over them", soft_wrap=True)
    jobs = [(architecture, name) for architecture, some in calls.items() for name in some]
    with progress_bar(len(jobs)) as show_bar:
        outcome = build(jobs, min(workers or default_workers("cpu"), len(jobs)), lambda done: show_bar(done, 0))
    wrong = [
        f"{architecture} {name}: {sentence}"
        for (architecture, name), binary in outcome.binaries.items()
        for sentence in budgets.over(allowed, architecture, name, calls[architecture][name], binary.facts, triton)
    ]
    errors = [f"{architecture} {name}: does not compile: {error}" for (architecture, name), error in outcome.errors.items()]
    rows = [_row(name, binary) for (_, name), binary in outcome.binaries.items()]
    found = Results(triton, tuple(rows), tuple(wrong), tuple(errors))
    _print(rows, names)
    facts = {job: binary.facts for job, binary in outcome.binaries.items()}
    for line in budgets.unneeded(allowed, facts, {} if partly else names, triton):
        notes.print(f"budgets: {line}", soft_wrap=True)
    for line in (*wrong, *errors):
        results.print(line, soft_wrap=True)
    begun = "interrupted; so far: " if outcome.interrupted else ""
    results.print(f"{begun}{len(rows)} compiled with Triton {triton}, {len(wrong)} over budget, {len(errors)} do not compile")
    if save is not None:
        _save(save, outcome.binaries, calls)
    if json_file:
        write_json(json_file, msgspec.to_builtins(found))
    if outcome.interrupted:
        return 130
    if writes and not errors:
        write_json(path.with_suffix(".json"), msgspec.to_builtins(found))
        path.write_bytes(page.text(found).encode())
        notes.print(f"{path} written")
    return int(bool(wrong or errors))


def chosen_architectures(given: str | None) -> tuple[str, ...]:
    """Those of A,B,...; all for which facts are known if none is given."""
    from attn_optimized.compilation import ARCHITECTURES

    chosen = tuple(dict.fromkeys(given.split(","))) if given else ARCHITECTURES
    if unknown := [name for name in chosen if name not in ARCHITECTURES]:
        raise click.UsageError(f"--arch: got {', '.join(unknown)}, expected some of {', '.join(ARCHITECTURES)}")
    return chosen


def _row(name: str, binary: "Binary") -> Row:
    return Row(binary.architecture, name, binary.name, binary.num_warps, dataclasses.asdict(binary.facts))


def _print(rows: list[Row], names: dict[str, list[str]]) -> None:
    for architecture in names:
        table = plain_table(*page.COLUMNS, right=page.COLUMNS[2:])
        for row in rows:
            if row.architecture == architecture:
                table.add_row(*page.cells(row))
        results.print(f"\n{architecture}", style="bold")
        results.print(table)


def _save(folder: Path, binaries: "dict[tuple[str, str], Binary]", calls: "dict[str, dict[str, KernelCall]]") -> None:
    """Code objects, and launches.json: what hipModuleLaunchKernel or cuLaunchKernel are to be given for each."""
    launches = []
    for (architecture, name), binary in binaries.items():
        file = f"{architecture}-{re.sub('[^A-Za-z0-9]+', '-', name)}.{binary.suffix}"
        (folder / file).write_bytes(binary.code)
        described = {field.name: getattr(binary, field.name) for field in dataclasses.fields(binary)}
        del described["code"], described["attributes"]
        described["arguments"] = _arguments(binary, calls[architecture][name])
        launches.append({"call": name, "file": file, **described, "facts": dataclasses.asdict(binary.facts)})
    write_json(folder / "launches.json", {"schema": LAUNCHES, "launches": launches})
    notes.print(f"{len(launches)} code objects in {folder}, described by launches.json")


def _arguments(binary: "Binary", call: "KernelCall") -> list[dict[str, Any]]:
    """In the kernel's order: name, type and what the code relies on; a number's value, or a tensor's shape and strides."""
    described = []
    for name, kind in binary.arguments.items():
        value = call.arguments.get(name)
        known = {} if value is None else {"value": value}
        if isinstance(value, torch.Tensor):
            known = {"shape": list(value.shape), "strides": list(value.stride())}
        described.append({"name": name, "type": kind, **known, "attributes": binary.attributes.get(name, {})})
    return described


def _check(path: Path, names: dict[str, list[str]]) -> int:
    """Whether a page is what its JSON says, and that is of these launches and within budget."""
    data = path.with_suffix(".json")
    if missing := next((file for file in (path, data) if not file.is_file()), None):
        raise click.ClickException(f"--page: {missing} does not exist; `attn-parity compile --write` writes it")
    found = page.loads(data.read_bytes(), str(data))
    wrong = [*page.differences(found, names), *found.over, *found.errors]
    if path.read_bytes() != page.text(found).encode():
        wrong.append(f"{path} is not what {data} says: run `attn-parity compile --write`")
    for line in wrong:
        results.print(line, soft_wrap=True)
    results.print(f"{len(wrong)} wrong")
    return 1 if wrong else 0
