"""Tables of launch parameters with one mistake, as files: whoever reads them must refuse each, and nothing beside them.

A table is a file that a tuning run writes and that anybody may edit. Right tables hold a few entries of one that ships.
"""

import dataclasses
import functools
import io
import json
import random
import zipfile
from typing import Any
from unittest import mock

from attn_fuzz.targets.wrong_arguments import must_raise
from attn_fuzz.targets.wrong_gpus import wrong_parameters

_MOST_BYTES = 1 << 20
_RARE = 0.1
"""How often a table is too long: it takes the time of many others."""
_ARCHITECTURE = "sm90"
_OTHERS = {
    int: (0, -1, 2.0, "2", None, True, [2]),
    bool: (0, 1, "true", None, []),
    str: (None, 1, True, ["decode"]),
    dict: (None, 1, "block_m", []),
}
"""By the type of a value of an entry: values that it cannot have."""


def check(choose: random.Random) -> None:
    """Write a table, and the same with a mistake, and read both.

    Raises:
        AssertionError: the table is not read as it is written, or the mistake is not refused.
        ContractError: the table is refused.
    """
    from attn_optimized.launch import table

    shipped = choose.sample(table.entries(_ARCHITECTURE), k=choose.randint(1, 3))
    document = {"schema": table.SCHEMA, "entries": [_written(entry) for entry in shipped]}
    right = json.dumps(document).encode()
    mistake, wrong = choose.choice((_wrong_text, _wrong_document, _wrong_entry, _wrong_value))(document, choose)
    # as at its first reading in a process
    read = functools.partial(table.entries.__wrapped__, _ARCHITECTURE)
    with mock.patch.object(table, "FOLDER", _folder(right)):
        got = read()
        assert got == tuple(shipped), f"{right} is read as {got}"
        must_raise(lambda: table.table_of("gfx942"), "an architecture without a table, and without one of a GPU like it")
    wrong = wrong if isinstance(wrong, bytes) else json.dumps(wrong).encode()
    with mock.patch.object(table, "FOLDER", _folder(wrong)):
        must_raise(read, f"a table with {mistake}: {wrong[:1000]!r}")


def _folder(table: bytes) -> zipfile.Path:
    """A folder that holds a table of _ARCHITECTURE alone. On a disk it would take longer to remove it than to read it."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as file:
        file.writestr(f"table/{_ARCHITECTURE}.json", table)
    return zipfile.Path(zipfile.ZipFile(memory), "table/")


def _written(entry: Any) -> dict[str, Any]:
    """An entry as its file has it: what is not said has its default."""
    fields = {field.name: getattr(entry, field.name) for field in dataclasses.fields(entry)}
    parameters = {field.name: getattr(entry.parameters, field.name) for field in dataclasses.fields(entry.parameters)}
    return fields | {"parameters": {name: value for name, value in parameters.items() if value is not None}}


def _wrong_text(document: Any, choose: random.Random) -> tuple[str, bytes]:
    """What is wrong with the text of a table, and the text."""
    right = json.dumps(document).encode()
    name = choose.choice(sorted(_names(document)))
    key, place = f'"{name}": '.encode(), choose.randrange(len(right))
    texts = {
        "its end cut off": right[:place],
        "a byte that is no text": right[:place] + b"\xff" + right[place:],
        "more after its end": right + choose.choice((b"{", b"]", b"1")),
        # the last of the two is the right one
        f"{name} twice": right.replace(key, key + b"null, " + key, 1),
    }
    if choose.random() < _RARE:
        return f"more than {_MOST_BYTES} bytes", right + b" " * (_MOST_BYTES + 1 - len(right))
    return choose.choice(list(texts.items()))


def _names(document: Any) -> set[str]:
    """The keys of a document and of all that it holds."""
    if isinstance(document, list):
        return set().union(*map(_names, document))
    return {*document, *set().union(*map(_names, document.values()))} if isinstance(document, dict) else set()


def _wrong_document(document: Any, choose: random.Random) -> tuple[str, Any]:
    """What is wrong around the entries of a table, and the document."""
    schema, entries = document["schema"], document["entries"]
    documents = {
        "no document": choose.choice(([], None, 1, "schema", entries)),
        "no schema": {"entries": entries},
        "no entries": {"schema": schema},
        "another schema": {"schema": choose.choice((None, 1, "", f"{schema}1")), "entries": entries},
        "no list of entries": {"schema": schema, "entries": choose.choice((None, 1, {}, entries[0]))},
    }
    return choose.choice(list(documents.items()))


def _wrong_entry(document: Any, choose: random.Random) -> tuple[str, Any]:
    """What is wrong with one of the entries of a table: a field or a phase is missing or unknown. And the document."""
    entry = choose.choice(document["entries"])
    parameters = entry["parameters"]
    field, needed = choose.choice(list(entry)), choose.choice(("block_m", "block_n", "num_warps", "num_stages"))
    wrong = {
        "an entry that is none": choose.choice((None, 1, "decode", [], {})),
        "a field of no entry": entry | {"block_k": 16},
        "an unknown phase": entry | {"phase": choose.choice(("", "Decode", "decoding"))},
        f"no {field}": {key: value for key, value in entry.items() if key != field},
        "a parameter that there is not": entry | {"parameters": parameters | {"block_k": 16}},
        f"no {needed}": entry | {"parameters": {key: value for key, value in parameters.items() if key != needed}},
    }
    mistake = choose.choice(list(wrong))
    return mistake, _with(document, entry, wrong[mistake])


def _wrong_value(document: Any, choose: random.Random) -> tuple[str, Any]:
    """What is wrong with a value in one of the entries of a table, and the document."""
    entry = choose.choice(document["entries"])
    if choose.random() < 0.5:
        name, value = choose.choice(list(wrong_parameters(choose)))
        other = entry | {"parameters": entry["parameters"] | {name: value}}
    else:
        name = choose.choice(list(entry))
        value = choose.choice(_OTHERS[type(entry[name])])
        other = entry | {name: value}
    return f"{name} {value!r}", _with(document, entry, other)


def _with(document: Any, entry: Any, other: Any) -> Any:
    """A document with another entry in place of one."""
    return document | {"entries": [other if one is entry else one for one in document["entries"]]}
