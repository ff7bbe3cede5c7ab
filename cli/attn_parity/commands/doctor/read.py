"""`attn-parity doctor --read FILE`: a report beside what is expected, and with how many stages to ship each launch."""

import difflib
import json
import statistics
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from attn_contract import ContractError
from attn_fuzz import inputs
from attn_fuzz.errors import InputError
from attn_optimized.launch import table
from attn_optimized.launch.table import Entry
from attn_parity.commands.doctor.full import in_words
from attn_parity.commands.doctor.sections import SCHEMA, Doctor
from attn_parity.commands.doctor.stages import Pair, Variant
from attn_parity.console import plain_table, results


def stages_to_ship(path: Path) -> int:
    """Print the sections of a report, for each launch which variant to ship, and a patch of the table. Returns 0.

    Raises:
        InputError: the file is no report, or no launch in it has two variants.
    """
    report = inputs.read_as(path, SCHEMA, Doctor, inputs.MAX_LARGE_BYTES)
    try:
        sections = report["sections"]
        _print_sections(sections)
        found = {name: section for name, section in sections.items() if "shipped" in section}
        pairs = {name.removeprefix("stages of "): msgspec.convert(section, Pair) for name, section in found.items()}
        if len({pair.architecture for pair in pairs.values()}) != 1:
            raise InputError(f"{path}: no launches of one GPU in two variants, which `doctor --full` times there")
        of_today = table.entries(next(iter(pairs.values())).architecture)
        machine, packages = sections["machine"]["devices"][0]["name"], sections["machine"]["packages"]
        source = f"measured: {machine}, torch {packages['torch']}, Triton {packages['triton']}, {report['time'][:10]}"
    except (KeyError, IndexError, TypeError, msgspec.ValidationError, ContractError) as error:
        raise InputError(f"{path}: {type(error).__name__}: {error}") from None
    _print_pairs(pairs, of_today)
    for line in _patch(pairs.values(), source):
        results.print(line)
    return 0


def _print_sections(sections: Mapping[str, dict[str, Any]]) -> None:
    shown = plain_table("section", "result", "expected")
    for name, section in sections.items():
        if "shipped" not in section:
            shown.add_row(
                name, in_words(section), next((says for kind, says in _EXPECTED.items() if name.startswith(kind)), "-")
            )
    results.print(shown)
    results.print(_REFUTES)


_EXPECTED = {
    "compile": "what `attn-parity compile` counts here",
    "fuzz": "all agree",
    "bytes": "other bytes at most where instructions may round",
    "time": "nothing: no time of AMD's is known",
}
_REFUTES = (
    "`attn-parity replay CASE --target NAME@ARCHITECTURE --device cpu` emulates a failing case, as the Triton at hand compiles "
    "it. If it fails there, too, the kernel or the compiler is wrong. If it agrees with the same Triton, "
    "the GPU or the emulator is."
)


def _print_pairs(pairs: Mapping[str, Pair], of_today: Collection[Entry]) -> None:
    columns = ("stages", "waves", "ms", "others", "waves", "ms", "gain")
    shown = plain_table("launch", *columns, "the others are", "ship", right=(*columns, "ship"))
    for name, pair in pairs.items():
        to_ship = pair.other if pair.verdict == "faster" else pair.shipped
        gain = "-" if pair.gain is None else f"{pair.gain:.3f}"
        shown.add_row(name, *_cells(pair.shipped), *_cells(pair.other), gain, pair.verdict, str(to_ship.num_stages))
    results.print(shown)
    for name, pair in pairs.items():
        if pair.other.why_not:
            results.print(f"{name}: {pair.other.num_stages} are not timed: {pair.other.why_not}")
        if pair.entry not in of_today:
            results.print(f"{name}: today's table has another entry, which stays")


def _cells(variant: Variant) -> tuple[str, str, str]:
    """Stages, waves, and milliseconds with their spread."""
    times = variant.times and f"{variant.times.ms:.4g} ({variant.times.p10:.4g}-{variant.times.p90:.4g})"
    return str(variant.num_stages), "-" if variant.waves is None else f"{variant.waves:g}", times or "-"


def _patch(pairs: Collection[Pair], source: str) -> Iterator[str]:
    """The lines of a patch of the architecture's table, for `git apply --unidiff-zero`; none if nothing is to change."""
    architecture = next(iter(pairs)).architecture
    own = table.table_of(architecture)
    path = table.FOLDER / f"{own}.json"
    before = path.read_text(encoding="utf-8").splitlines()
    after = before.copy()
    for line, entry in enumerate(table.entries(architecture), 1):  # after the line of the schema, a line for each
        if (of_entry := [pair for pair in pairs if pair.is_of(entry)]) and _is_to_change(of_entry):
            after[line] = _with_other_stages(before[line], of_entry, source)
    place = f"optimized/attn_optimized/launch/table/{path.name}"
    if after == before or own == architecture:
        yield from difflib.unified_diff(before, after, f"a/{place}", f"b/{place}", n=0, lineterm="")
    else:
        yield f"{architecture} has no table of its own: these times change nothing in {path.name}, by which it is launched"


def _is_to_change(of_entry: Collection[Pair]) -> bool:
    """True if some launch of an entry is faster with the other stages, and each other launch no slower beyond the spread."""
    verdicts = {pair.verdict for pair in of_entry}
    has_no_slower = verdicts <= {"faster", "within the spread"}
    return "faster" in verdicts and has_no_slower and len({pair.other.num_stages for pair in of_entry}) == 1


def _with_other_stages(line: str, of_entry: Collection[Pair], source: str) -> str:
    fields, pair = json.loads(line.rstrip(",")), next(iter(of_entry))
    gain = statistics.geometric_mean(each.gain for each in of_entry if each.gain is not None)
    fields["parameters"]["num_stages"] = pair.other.num_stages
    stages = f"{gain:.2f} times as fast as with num_stages {pair.shipped.num_stages}"
    fields["source"] = f"{source}, attn-parity doctor --full: {stages}; the other parameters are {fields['source']}"
    return f"  {json.dumps(fields)}{',' * line.endswith(',')}"
