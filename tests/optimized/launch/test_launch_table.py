"""The tables of launch parameters have an entry for every call, and each says where it is from."""

import itertools
import json
from typing import get_args

import pytest
from attn_contract import ContractError
from attn_optimized.launch import table
from attn_optimized.launch.table import Entry, Parameters, Phase, architectures, entries, entry_for, table_of

from tests.support.malformed import NO_FILES, make_no_file

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


WITHOUT_SCHEMA = {"entries": [{**ENTRY, "parameters": PARAMETERS}]}
NO_TABLES = {
    "[" * 100_000: "sm90.json: got maximum recursion depth exceeded",
    "{": "sm90.json: got Expecting property name",
    document()[:-1]: "sm90.json: got Expecting ',' delimiter",
    "[]": "sm90.json: got another document, expected schema attn-parity.launch-table/1 and a list of entries",
    json.dumps(WITHOUT_SCHEMA): "sm90.json: got another document",
    json.dumps({**WITHOUT_SCHEMA, "schema": "attn-parity.launch-table/11"}): "sm90.json: got another document",
    json.dumps({"schema": table.SCHEMA, "entries": {}}): "sm90.json: got another document",
    document().replace('"itemsize": 2', '"itemsize": 2, "itemsize": 4'): "sm90.json: got a key twice among phase",
    document(phase="decod"): "sm90.json: entry 0: phase: got 'decod', expected one of decode, wide_decode, mixed",
    document(itemsize="2"): "sm90.json: entry 0: itemsize: got '2', expected an int",
    document(most_block_d=0): "sm90.json: entry 0: most_block_d: got 0, expected an int, at least 1",
    document(quantized=0): "sm90.json: entry 0: quantized: got 0, expected true or false",
    document(source=None): "sm90.json: entry 0: source: got None, expected where the parameters are from",
    document(cache=True): "sm90.json: entry 0: got .*cache",
    document(parameters=None): "sm90.json: entry 0: got .*the fields of Entry and of Parameters",
    document(parameters={**PARAMETERS, "blok_n": 64}): "sm90.json: entry 0: got .*blok_n",
    document(parameters={"block_m": 16, "block_n": 64}): "sm90.json: entry 0: got .*num_warps",
    json.dumps({"schema": table.SCHEMA, "entries": [None]}): "sm90.json: entry 0: got",
}
"""The beginnings of refusals, by the texts of files."""


@pytest.mark.parametrize(("text", "words"), NO_TABLES.items(), ids=NO_TABLES.values())
def test_another_document_is_refused_with_the_place(written, text, words):
    with pytest.raises(ContractError, match=f"^{words}"):
        written(text)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("block_m", 8, "an int, at least 16"),
        ("block_n", 48, "a power of two"),
        ("num_warps", 3, "a power of two"),
        ("num_warps", True, "an int"),
        ("num_stages", 2.0, "an int"),
        ("maxnreg", 8, "an int, at least 16"),
        ("waves_per_eu", 0, "an int, at least 1"),
        ("keys_per_split", 0, "an int, at least 1"),
        ("programs_per_unit", None, "an int"),
        ("uneven_waves", -1, "an int, at least 0"),
    ],
)
def test_parameters_that_no_kernel_can_have(written, name, value, expected):
    with pytest.raises(ContractError, match=rf"^sm90.json: entry 0: parameters\.{name}: got {value}, expected {expected}"):
        written(document(parameters={**PARAMETERS, name: value}))


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
