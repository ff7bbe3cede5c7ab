"""The tables of launch parameters have an entry for every call, and each says where it is from."""

import itertools
import json
from typing import Any, get_args
from unittest import mock

import pytest
from attn_contract import ContractError
from attn_optimized.launch import table
from attn_optimized.launch.table import Entry, Parameters, Phase, architectures, entries, entry_for, table_of
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.malformed import NO_FILES, make_no_file

ARCHITECTURES = ("sm80", "sm90", "sm100", "gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201", "gfx1250", "gfx1301")
PHASES = get_args(Phase)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_call_has_parameters(architecture):
    for phase, itemsize, quantized in itertools.product(PHASES, (2, 4), (False, True)):
        for block_d in (16, 32, 64, 128, 256, 512):
            call = {"phase": phase, "itemsize": itemsize, "block_d": block_d, "quantized": quantized}
            chosen = entry_for(architecture, **call).parameters
            assert min(chosen.block_m, chosen.block_n) >= 16
            assert chosen.maxnreg is None or architecture.startswith("sm"), "AMD's compiler has no such option"
            assert chosen.waves_per_eu is None or architecture.startswith("gfx"), "NVIDIA's has no such option"


@pytest.mark.parametrize("architecture", ["sm90", "gfx942", "gfx950", "gfx1201"])
def test_an_entry_says_where_it_is_from(architecture):
    sources = {entry.source for entry in entries(architecture)}
    assert all(source.startswith(("measured: ", "derived: ")) for source in sources)
    others = "NVIDIA" if architecture.startswith("gfx") else "AMD"
    assert not any(source.startswith("measured: ") and others in source for source in sources)


def test_similar_chips_share_a_table():
    assert entries("gfx942") != entries("gfx1201")
    for architecture, similar in (("gfx90a", "gfx942"), ("gfx1250", "gfx1201")):
        if table_of(architecture) != architecture:
            assert entries(architecture) == entries(similar)


def test_the_first_entry_that_fits_counts():
    decode = [entry for entry in entries("sm90") if entry.phase == "decode" and entry.itemsize == 2 and not entry.quantized]
    sizes = [entry.most_block_d for entry in decode]
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == 512
    call = {"phase": "decode", "itemsize": 2, "quantized": False}
    for entry in decode:
        assert entry_for("sm90", **call, block_d=entry.most_block_d).parameters == entry.parameters


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("block_m", 8, "an int, at least 16"),
        ("block_n", 48, "a power of two"),
        ("num_warps", 3, "a power of two"),
        ("maxnreg", 8, "an int, at least 16"),
    ],
)
def test_parameters_that_no_kernel_can_have(name, value, expected):
    good = {"block_m": 16, "block_n": 16, "num_warps": 4, "num_stages": 1}
    with pytest.raises(ContractError, match=rf"parameters\.{name}: got .*{value}.*, expected {expected}"):
        Parameters(**(good | {name: value}))


def test_every_architecture_that_is_known_has_a_table():
    assert {"sm90", "gfx942", "gfx950"} <= {*architectures()}
    for architecture in architectures():
        assert entries(architecture)
        assert table_of(architecture) in architectures()


ENTRY = {"phase": "decode", "itemsize": 2, "most_block_d": 64, "quantized": False, "source": "derived: for this test"}
PARAMETERS = {"block_m": 16, "block_n": 64, "num_warps": 4, "num_stages": 2}


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Entries of sm90, of a file with the given text."""
    monkeypatch.setattr(table, "FOLDER", tmp_path)

    def read(text: str):
        (tmp_path / "sm90.json").write_text(text)
        entries.cache_clear()
        return entries("sm90")

    yield read
    entries.cache_clear()


def document(**changed) -> str:
    return json.dumps({"schema": table.SCHEMA, "entries": [{**ENTRY, "parameters": PARAMETERS, **changed}]})


def test_a_table_is_read(written):
    assert written(document()) == (Entry(**ENTRY, parameters=Parameters(**PARAMETERS)),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "sm90.json: got maximum recursion depth exceeded"),
        ("{", "sm90.json: got Expecting property name"),
        ("[]", "sm90.json: got another document, expected schema attn-parity.launch-table/1 and a list of entries"),
        (document().replace('"itemsize": 2', '"itemsize": 2, "itemsize": 4'), "sm90.json: got a key twice among phase"),
        (document(phase="decod"), "sm90.json: entry 0: phase: got 'decod', expected one of decode, wide_decode, mixed"),
        (document(itemsize="2"), "sm90.json: entry 0: itemsize: got '2', expected an int"),
        (document(parameters={**PARAMETERS, "block_n": 48}), "sm90.json: entry 0: parameters.block_n: got 48"),
        (document(parameters={**PARAMETERS, "blok_n": 64}), "sm90.json: entry 0: got .*blok_n"),
        (json.dumps({"schema": table.SCHEMA, "entries": [None]}), "sm90.json: entry 0: got"),
    ],
)
def test_another_document_is_refused_with_the_place(written, text, words):
    with pytest.raises(ContractError, match=f"^{words}"):
        written(text)


OTHERS = {
    int: (0, -1, 2.0, "2", None, True, [2]),
    bool: (0, 1, "true", None, []),
    str: (None, 1, True, ["decode"]),
    dict: (None, 1, "block_m", []),
}
"""By the type of a value of an entry: values that it cannot have."""


def written_entry(entry: Entry) -> dict[str, Any]:
    """An entry as its file has it: what is not said has its default."""
    parameters = {name: value for name, value in vars(entry.parameters).items() if value is not None}
    return {**vars(entry), "parameters": parameters}


shipped = st.lists(st.sampled_from(entries("sm90")), min_size=1, max_size=3, unique_by=id)


@st.composite
def mistakes(draw: st.DrawFn, document: dict[str, Any]) -> str:
    """The text of a document with one mistake in it: in its text, in a key, or in a value."""
    entry = draw(st.sampled_from(document["entries"]))
    owner = draw(st.sampled_from((document, entry, entry["parameters"])))
    key = draw(st.sampled_from(sorted(owner)))
    kind = draw(st.sampled_from(("cut off", "twice", "unknown", "missing", "other")))
    right = json.dumps(document)
    if kind == "cut off":
        return right[: draw(st.integers(0, len(right) - 1))]
    if kind == "twice":  # the last of the two is the right one
        return right.replace(f'"{key}": ', f'"{key}": null, "{key}": ', 1)
    if kind == "unknown" and owner is not document:
        owner["block_k"] = 16
    elif kind == "missing" and (owner is not entry["parameters"] or key in ("block_m", "block_n", "num_warps", "num_stages")):
        del owner[key]
    elif owner is document:
        owner[key] = draw(st.sampled_from((None, 1, {}, "attn-parity.launch-table/11")))
    else:
        optional = key in ("maxnreg", "waves_per_eu")
        owner[key] = draw(st.sampled_from([value for value in OTHERS[type(owner[key])] if value is not None or not optional]))
        if key == "uneven_waves" and owner[key] == 0:  # 0 is one
            owner[key] = -1
    return json.dumps(document)


@settings(max_examples=200)
@given(table_entries=shipped, data=st.data())
def test_a_table_with_a_mistake_is_refused(table_entries, data):
    document = {"schema": table.SCHEMA, "entries": [written_entry(entry) for entry in table_entries]}
    with mock.patch.object(table, "_bytes", return_value=json.dumps(document).encode()):
        assert entries.__wrapped__("sm90") == tuple(table_entries)
    text = data.draw(mistakes(document), "text")
    with mock.patch.object(table, "_bytes", return_value=text.encode()), pytest.raises(ContractError):
        entries.__wrapped__("sm90")


def test_a_table_without_an_entry_that_fits_is_refused_with_the_call(written):
    written(json.dumps({"schema": table.SCHEMA, "entries": []}))
    words = "sm90.json: got no such entry, expected one of decode for elements of 2 bytes and head size 64, quantized False"
    with pytest.raises(ContractError, match=f"^{words}$"):
        table.entry_for("sm90", phase="decode", itemsize=2, block_d=64, quantized=False)


@pytest.mark.parametrize("kind", NO_FILES)
def test_a_table_that_is_no_file_or_has_no_end_is_refused_at_once(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(table, "FOLDER", tmp_path)
    make_no_file(tmp_path / "sm90.json", kind)
    entries.cache_clear()
    words = r"sm90\.json: got more than 1048576 bytes" if kind == "huge" else "architecture: got 'sm90', expected one that has"
    with pytest.raises(ContractError, match=f"^{words}"):
        entries.__wrapped__("sm90")
