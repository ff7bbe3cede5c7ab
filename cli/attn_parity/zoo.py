"""`attn-parity zoo`: put known bugs back, one at a time, and look for them."""

import tempfile
from pathlib import Path

import click
import msgspec
from attn_fuzz.corpus import files
from attn_fuzz.run import engine, runner
from attn_fuzz.run.engine import Plan
from attn_fuzz.run.executor import ExecutorError
from attn_fuzz.targets import registry
from attn_fuzz.zoo import mutants, page
from attn_fuzz.zoo.mutants import Mutant, MutantError
from attn_fuzz.zoo.page import Results, Row
from attn_parity.options import (
    PAGES,
    Positive,
    Seed,
    check_page_writable,
    check_writable,
    default_workers,
    device_name,
    device_option,
    json_option,
    limit_option,
    notes,
    plain_table,
    progress_bar,
    results,
    sanitize_option,
    sanitizes,
    use_device,
    workers_option,
    write_json,
)

EXAMPLES = 500
PAGE = PAGES / "zoo.md"


@click.command("zoo")
@click.option("--only", multiple=True, metavar="NAME", help="Just this mutant; may be given more than once.")
@click.option("--dir", "folder", type=click.Path(file_okay=False, path_type=Path), help="Mutants of your own, *.toml.")
@click.option("--examples", type=Positive, default=EXAMPLES, show_default=True, help="Per mutant and seed at most.")
@click.option("--seed", type=Seed, default=0, show_default=True, help="The first one.")
@click.option("--seeds", type=click.IntRange(1, 100), default=1, show_default=True, help="So many, one after the other.")
@click.option("--shrink/--no-shrink", "shrinks", default=True, help="Look for the smallest case of the first seed.")
@click.option("--write", "writes", is_flag=True, help="Write the page and, beside it, the JSON that it is made of.")
@click.option("--check", is_flag=True, help="Run nothing; exit 1 if the page is not current, or not of these mutants.")
@click.option(
    "--page", "path", type=click.Path(dir_okay=False, path_type=Path), default=PAGE, show_default=True, help="The page."
)
@click.option(
    "--corpus", type=click.Path(file_okay=False, path_type=Path), help="Write what each mutant shrank to there, NAME.json."
)
@workers_option
@limit_option
@device_option
@sanitize_option
@json_option
def command(
    only: tuple[str, ...],
    folder: Path | None,
    examples: int,
    seed: int,
    seeds: int,
    shrinks: bool,
    writes: bool,
    check: bool,
    path: Path,
    corpus: Path | None,
    workers: int | None,
    limit: float,
    device: str,
    sanitize: bool | None,
    json_file: Path | None,
) -> int:
    """Put real bugs back, one at a time, and see whether the fuzzer finds each; exit 1 when one survives."""
    residents = _chosen(mutants.load_all(folder) if folder else mutants.load_all(), only)
    if check:
        return _check(path, residents)
    check_writable(json_file)
    if writes:
        if not path.suffix:
            raise click.UsageError(f"--page: got {path}, expected a name such as {PAGE}: its JSON is to lie beside it")
        check_page_writable(path)
    device = use_device(device)
    running = [mutant for mutant in residents if device != "cpu" or not mutant.needs_gpu]
    checked = {mutant.name: sanitizes(sanitize, registry.usable(mutant.target, device), device) for mutant in running}
    numbers = range(seed, seed + seeds)
    with tempfile.TemporaryDirectory() as scratch, progress_bar(len(running) * seeds) as show_bar:
        plans = [
            Plan(
                target=mutant.target,
                device=device,
                examples=examples,
                seed=number,
                folder=Path(scratch),
                limit=limit,
                mutant=mutant,
                sanitize=checked[mutant.name],
                shrinks=shrinks and number == seed,
            )
            for mutant in running
            for number in numbers
        ]
        done = [engine.Progress() for _ in plans]

        def show(index: int, progress: engine.Progress) -> None:
            done[index] = progress
            show_bar(sum(p.failure is not None for p in done), sum(p.examples + p.shrinking for p in done))

        outcome = runner.run(plans, workers or default_workers(device), stop_at_failure=False, report=show)
    runs = {mutant.name: outcome.progress[i * seeds : (i + 1) * seeds] for i, mutant in enumerate(running)}
    rows = [page.row(mutant, runs.get(mutant.name, [])) for mutant in residents]
    _print(rows)
    if corpus:
        first = {name: progress[0].failure for name, progress in runs.items()}
        files.write(corpus, {name: failure.case for name, failure in first.items() if failure and failure.minimal})
    found = page.results(device_name(device), numbers, examples, rows)
    if json_file:
        write_json(json_file, msgspec.to_builtins(found))
    if outcome.error:
        raise ExecutorError(outcome.error)
    if writes and not outcome.interrupted:
        write_json(path.with_suffix(".json"), msgspec.to_builtins(found))
        path.write_bytes(page.text(found).encode())
        notes.print(f"{path} written")
    return 130 if outcome.interrupted else int(any(row.survived for row in rows))


def _chosen(residents: list[Mutant], only: tuple[str, ...]) -> list[Mutant]:
    names = [mutant.name for mutant in residents]
    if unknown := sorted(set(only) - set(names)):
        raise MutantError(f"--only: got {', '.join(unknown)}, expected some of {', '.join(names)}")
    return [mutant for mutant in residents if not only or mutant.name in only]


def _print(rows: list[Row]) -> None:
    sizes = ("requests", "queries", "keys")
    table = plain_table("mutant", "class", "origin", "examples", "seconds", "by", *sizes, right=("examples", "seconds", *sizes))
    for row in rows:
        counts = ["" if number is None else f"{number:g}" for number in (row.examples, row.seconds)]
        size = map(str, row.size or ())
        table.add_row(row.name, row.kind, page.real_bug(row.origin) or "own", *counts, page.by(row), *size)
    results.print(table)
    results.print(page.summary(rows), soft_wrap=True)


def _check(path: Path, residents: list[Mutant]) -> int:
    """Whether a page is what its JSON says, and that is of these mutants."""
    data = path.with_suffix(".json")
    if missing := next((file for file in (path, data) if not file.is_file()), None):
        raise click.ClickException(f"--page: {missing} does not exist; `attn-parity zoo --write` writes it")
    found: Results = page.loads(data.read_bytes(), str(data))
    wrong = page.differences(found, residents)
    if path.read_bytes() != page.text(found).encode():
        wrong.append(f"{path} is not what {data} says: run `attn-parity zoo --seeds 3 --write`")
    for line in wrong:
        results.print(line, soft_wrap=True)
    results.print(f"{len(wrong)} wrong")
    return 1 if wrong else 0
