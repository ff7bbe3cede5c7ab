"""The file that the kernels' launches read, taken apart into one entry for each class of calls, and put together again."""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attn_fuzz import outputs
from attn_optimized.launch import table as launch_table
from attn_optimized.launch.table import Entry, Parameters

from benchmarks.tune.classes import CLASSES, CallClass

ALWAYS_WRITTEN = ("block_m", "block_n", "num_warps", "num_stages", "keys_per_split", "programs_per_unit")


def entry_of(architecture: str, call_class: CallClass) -> Entry:
    """Today's entry of a class; of an architecture without a table of its own, the similar one's, which its source names."""
    found = next(entry for entry in launch_table.entries(architecture) if call_class.holds(entry))
    return dataclasses.replace(_taken_over(architecture, found), most_block_d=call_class.most_block_d)


def updated(architecture: str, found: dict[CallClass, Entry]) -> list[Entry]:
    """An architecture's whole table with some classes' entries replaced. Those that no class is of, of latent caches, stay."""
    others = [entry for entry in launch_table.entries(architecture) if not any(each.holds(entry) for each in CLASSES)]
    whole = merged([found.get(call_class) or entry_of(architecture, call_class) for call_class in CLASSES])
    return whole + [_taken_over(architecture, entry) for entry in others]


def _taken_over(architecture: str, entry: Entry) -> Entry:
    """An entry of the table that an architecture is launched by, as one of the architecture's own."""
    table = launch_table.table_of(architecture)
    if table == architecture:
        return entry
    return dataclasses.replace(entry, source=f"derived: as on {table}, where it is {entry.source}")


def merged(entries: Sequence[Entry]) -> list[Entry]:
    """One entry where neighbouring head sizes want the same parameters for the same reason."""
    whole: list[Entry] = []
    for _, group in itertools.groupby(entries, key=lambda entry: (entry.phase, entry.itemsize, entry.quantized)):
        sizes = sorted(group, key=lambda entry: entry.most_block_d)
        for _, alike in itertools.groupby(sizes, key=lambda entry: (entry.parameters, entry.source)):
            whole.append(list(alike)[-1])
    return whole


def text(entries: Sequence[Entry]) -> str:
    """A table's file: a line for each entry."""
    lines = ",\n".join(f"  {json.dumps(_fields(entry))}" for entry in entries)
    return f'{{"schema": "{launch_table.SCHEMA}", "entries": [\n{lines}\n]}}\n'


def write(architecture: str, found: dict[CallClass, Entry]) -> Path:
    """Write an architecture's table, whole or not at all, and have the launches of this process read it."""
    path = launch_table.FOLDER / f"{architecture}.json"
    outputs.write(path, text(updated(architecture, found)))
    launch_table.entries.cache_clear()
    return path


def _fields(entry: Entry) -> dict[str, Any]:
    parameters = {
        field.name: value
        for field in dataclasses.fields(Parameters)
        if (value := getattr(entry.parameters, field.name)) != field.default or field.name in ALWAYS_WRITTEN
    }
    fields = ("phase", "itemsize", "most_block_d", "quantized")
    return {**{name: getattr(entry, name) for name in fields}, "parameters": parameters, "source": entry.source}
