"""Whatever a command is given that it cannot use: one line that says what was wrong, exit 2, and nothing left behind."""

import json
import os
import shlex
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from attn_contract import AttentionType, Layout
from attn_fuzz.cases import case_file, contradictions
from attn_fuzz.cases.case import Cache, CaseError, Request
from attn_fuzz.cases.case_file import MAX_BYTES
from attn_fuzz.corpus import database
from attn_fuzz.run.processes.executor import Executor
from attn_lab.__main__ import lab
from hypothesis.database import InMemoryExampleDatabase

from tests.support import processes

NOTE = "no GPU in use: Triton interprets the kernels on the CPU"

MUTANT = """
name = "planted"
origin = "planted"
class = "mask"
what = "planted"
trigger = "planted"
target = "reference-fp32"

[[patch]]
in = "attn_reference.masks.is_causal"
find = "j <= p"
replace = "j < p"
"""


@pytest.fixture
def refused(attn_parity, tmp_path):
    """Asserts that a command is refused, with `names` in its one line."""

    def run(*arguments: object, names: str) -> None:
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        ended = attn_parity(*arguments, **({"commands": lab} if arguments[0] == "zoo" else {}))
        lines = [line for line in ended.err.splitlines() if line and line != NOTE]
        assert ended.code == 2
        assert len(lines) == 1, ended.err
        assert lines[0].startswith("attn-parity: ")
        assert names in lines[0]
        assert "Traceback" not in ended.err
        after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
        assert after == before

    return run


LINES = Path(__file__).with_name("refusals.txt").read_text(encoding="utf-8").splitlines()[1:]


@pytest.mark.parametrize(("command", "names"), [line.split(" -> ") for line in LINES], ids=LINES)
def test_a_command_is_refused(command, names, refused, step_case, tmp_path):
    for folder in ("folder", "empty"):
        (tmp_path / folder).mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a_file").write_text("")
    (tmp_path / "broken.py").write_text("TARGET = (")
    (tmp_path / "quits.py").write_text("import sys\nsys.exit(0)")
    (tmp_path / "case.json").write_text(case_file.dumps(replace(step_case, head_size=16)))
    (tmp_path / "config.json").write_text((Path(__file__).parent / "configs" / "llama-3.1-8b.json").read_text())
    refused(*shlex.split(command), names=names)


@pytest.mark.parametrize(
    ("corpus", "names"),
    [
        ("missing", "missing"),
        ("empty", "0 cases"),
        ("cut", "cut/case.json"),
        ("terabyte", "terabyte/case.json: case: its tensors would hold more"),
        ("pipe", "pipe/case.json: not a file"),
    ],
)
def test_fuzz_refuses_a_corpus(corpus, names, refused, step_case, tmp_path):
    for folder in ("empty", "cut", "terabyte", "pipe"):
        (tmp_path / folder).mkdir()
    (tmp_path / "cut" / "case.json").write_text("{")
    fields = json.loads(case_file.dumps(step_case)) | {"head_size": 1 << 20, "num_kv_heads": 1 << 20}
    (tmp_path / "terabyte" / "case.json").write_text(json.dumps(fields))
    os.mkfifo(tmp_path / "pipe" / "case.json")
    refused("fuzz", "--target", "reference-fp32", "--examples", 1, "--corpus", corpus, names=names)


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("a_file", "a_file is not a folder"),
        ("a_file/inside", "a_file"),
        ("pipe", "pipe/key/entry"),
        ("huge", "huge/key/entry"),
        ("redis://127.0.0.1:1", "Redis does not answer"),
        ("redis://[", "Redis does not answer"),
        ("redis://host:port", "Redis does not answer"),
        ("http://x", "got http://x, expected a folder, or an address of redis:// or rediss://"),
    ],
)
def test_fuzz_refuses_a_database(where, names, refused, tmp_path):
    (tmp_path / "a_file").write_text("")
    for folder in ("pipe", "huge"):
        (tmp_path / folder / "key").mkdir(parents=True)
    os.mkfifo(tmp_path / "pipe" / "key" / "entry")
    with (tmp_path / "huge" / "key" / "entry").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    refused("fuzz", "--target", "reference-fp32", "--examples", 1, "--database", where, names=names)
    assert not (tmp_path / "http:").exists()


def test_a_database_of_more_than_fits_into_memory_is_refused(monkeypatch):
    monkeypatch.setattr(database, "MAX_TOTAL_BYTES", 100)
    entries = InMemoryExampleDatabase()
    for number in range(3):
        entries.save(b"key", bytes([number]) * 40)
    with pytest.raises(database.DatabaseError, match="of 100 bytes in all"):
        database.fetch(entries, b"key")


def test_a_redis_without_its_client_is_refused(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "redis", None)
    arguments = ("--target", "reference-fp32", "--examples", 1, "--database", "redis://127.0.0.1")
    refused("fuzz", *arguments, names="pip install 'attn-parity[redis]'")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", [["fuzz"], ["replay", "case.json"]], ids=" ".join)
def test_a_gpu_that_is_not_there_is_refused(command, refused, step_case, tmp_path):
    (tmp_path / "case.json").write_text(case_file.dumps(step_case))
    refused(*command, "--device", "cuda", names="no GPU")


LARGE = 1 << 20


def edits():
    yield "another version", {"schema": "attn-parity.case/99"}, "attn-parity.case/99"
    yield "no schema", {"schema": None}, "schema"
    yield "an unknown field", {"num_kv_head": 1}, "num_kv_head"
    yield "a count below 0", {"slack": -1}, "slack"
    yield "a number for a list", {"requests": 3}, "requests"
    yield "a window of one", {"window": [1]}, "window"
    yield "a window below -1", {"window": [-2, 0]}, "window"
    yield "no target", {"target": None}, "target"
    yield "an unknown target", {"target": "nobody"}, "nobody"
    yield "an unknown dtype", {"dtype": "float8"}, "dtype"
    yield "a size beyond the target", {"head_size": 24}, "head_size 24"
    yield "a huge count", {"rows_past": 1 << 40}, "rows_past"
    yield "huge tensors", {"num_kv_heads": 1 << 20, "group_size": 1}, "elements"
    yield "a scale past the numbers", {"scale": 1e300}, "scale"
    yield "a seed below 0", {"values": {"seed": -1}}, "seed"
    block = {"cache": {"layout": "KV_FIRST_NHD", "block_size": LARGE, "num_blocks": 1}}
    requests = {"requests": [{"query_len": 1, "seq_len": LARGE, "blocks": [0]}] * 50}
    yield "a slot written twice of a million", {"attn_type": "encoder_decoder", "head_size": 1, **block, **requests}, "slot"


@pytest.mark.parametrize(("changes", "names"), [edit[1:] for edit in edits()], ids=[edit[0] for edit in edits()])
def test_replay_refuses_a_case_edited_into_nonsense(changes, names, refused, step_case, tmp_path):
    fields = json.loads(case_file.dumps(step_case)) | {"head_size": 16} | changes
    (tmp_path / "case.json").write_text(json.dumps(fields))
    refused("replay", "case.json", names=names)


replace = msgspec.structs.replace
ONE_REQUEST = {"query_len": 1, "seq_len": 1, "blocks": [0], "causal": True}


def cache(**fields):
    return {"cache": {"layout": "CONTENT_PACKED", "block_size": 4, "num_blocks": 4, **fields}}


def greedy():
    """Cases that would take all memory by one field, or by two that multiply."""
    for name in ("head_size", "num_kv_heads", "group_size", "rows_past", "kv_rows_past", "unowned_rows"):
        yield name, {"head_size": 128, "num_kv_heads": 4, name: LARGE}
    yield "the guards of one row", {"head_size": 30, "group_size": LARGE, "requests": [ONE_REQUEST]}
    yield "block_size", cache(block_size=LARGE, num_blocks=8) | {"requests": []}
    yield "num_blocks", cache(block_size=16, num_blocks=LARGE)
    yield "padding of every head and layer", cache(padding=LARGE, num_layers=64) | {"num_kv_heads": 8}
    yield "table_padding", {"table_padding": LARGE, "requests": [{"query_len": 0, "seq_len": 0}] * 200}
    yield "slack of a tree", {"slack": LARGE, "qq_bias": "tree"}
    yield "requests", {"requests": [{"query_len": 0, "seq_len": 0}] * 100_000}
    yield "ranges", {"requests": [ONE_REQUEST | {"ranges": [[0, 1]] * 1_000_000}]}
    yield (
        "angles",
        cache(block_size=LARGE)
        | {
            "head_size": 128,
            "rope": {"rotary_dim": 128},
            "requests": [ONE_REQUEST | {"seq_len": LARGE}],
        },
    )
    yield "num_layers", cache(num_layers=LARGE)
    yield "numbers past 64 bits", {"slack": 10**400}
    yield "the name of a target", {"target": "t" * LARGE}
    yield "an unknown field", {"x" * LARGE: 1}
    yield "a field that controls terminals", {"\x1b[2J": 1}
    yield "a schema", {"schema": "s" * LARGE}


@pytest.mark.parametrize("command", ["replay", "show"])
def test_no_case_decides_what_is_imported(command, step_case, tmp_path, attn_parity):
    (tmp_path / "evil.py").write_text("open('done', 'w')\n")
    (tmp_path / "case.json").write_text(case_file.dumps(replace(step_case, target="evil:TARGET", head_size=16)))
    run = attn_parity(command, "case.json")
    assert run.code == 2
    assert "if you trust it, --target evil:TARGET" in run.err
    assert not (tmp_path / "done").exists()
    assert attn_parity(command, "case.json", "--target", "reference-fp32").code == 0


@pytest.mark.parametrize("cache", ["paged", "dense"])
def test_scores_that_would_take_all_memory_are_refused_where_the_reference_is_asked(cache, step_case, tmp_path, attn_parity):
    dense = replace(step_case, attn_type=AttentionType.ENCODER, cache=None, requests=(Request(LARGE, LARGE),), num_kv_heads=1)
    long = Cache(layout=Layout.KV_FIRST_NHD, block_size=32, num_blocks=1 << 14)
    blocks = tuple(range(long.num_blocks))
    paged = replace(step_case, cache=long, requests=(Request(8192, 32 << 14, blocks, causal=True),), num_kv_heads=1)
    case = replace({"paged": paged, "dense": dense}[cache], head_size=16, group_size=1)
    contradictions.check(case)
    (tmp_path / "case.json").write_text(case_file.dumps(case))
    run = attn_parity("replay", "case.json", "--target", "reference-fp32")
    assert run.code == 2
    assert "scores at once" in run.err
    assert run.err.count("\n") <= 2


@pytest.mark.parametrize("changes", [changes for _, changes in greedy()], ids=[name for name, _ in greedy()])
def test_a_case_that_asks_for_too_much_is_refused_in_a_line(changes, step_case):
    fields = json.loads(case_file.dumps(step_case)) | changes
    text = json.dumps({name: value for name, value in fields.items() if value is not None})
    with pytest.raises(CaseError) as refusal:
        case_file.loads(text)
    assert len(str(refusal.value)) < 300
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize(
    ("contents", "names"),
    [
        (b"", "case.json"),
        (b"[]", "schema"),
        (b"\xff\xfe\x00", "case.json"),
        (b"[" * 100_000, "case.json"),
        (b'{"schema": "attn-parity.case/2", "target": "t", "scale": NaN}', "case.json"),
        (b'{"schema": "attn-parity.case/2", "target": "t", "scale": 1e999}', "case.json"),
    ],
    ids=["empty", "a list", "no UTF-8", "deep", "NaN", "1e999"],
)
def test_replay_refuses_what_is_no_case(contents, names, refused, tmp_path):
    (tmp_path / "case.json").write_bytes(contents)
    refused("replay", "case.json", names=names)


def test_a_field_that_a_case_has_twice_is_named(refused, step_case, tmp_path):
    text = case_file.dumps(step_case)
    assert text.count('"seq_len": 7') == 1
    (tmp_path / "case.json").write_text(text.replace('"seq_len": 7', '"seq_len": 7, "\\u0073eq_len": 7'))
    refused("replay", "case.json", names="'seq_len' is there twice")


def test_an_exclude_that_raises_is_named_and_controls_no_terminal(attn_parity, tmp_path):
    (tmp_path / "excludes.py").write_text(
        "import dataclasses\nfrom planted import FLASH, SMALL\n"
        "def exclude(case):\n    raise ValueError('\\x1b[2J')\n"
        "TARGET = dataclasses.replace(FLASH, support=lambda device: dataclasses.replace(SMALL, exclude=exclude))\n"
    )
    for corpus in ((), ("--corpus", "none")):
        run = attn_parity("fuzz", "--target", "excludes:TARGET", "--examples", 1, "--workers", 1, *corpus)
        assert run.code == 2
        assert "Support.exclude raises ValueError: ?[2J" in run.err
        assert "\x1b" not in run.out + run.err
        assert "Traceback" not in run.err


def test_the_name_of_a_corpus_file_controls_no_terminal_and_no_page(attn_parity, step_case, tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "\x1b[31mred.json").write_text(case_file.dumps(step_case))
    run = attn_parity(
        *("fuzz", "--target", "planted:NAN", "--corpus", "corpus", "--examples", 1, "--seed", 1, "--workers", 1),
        *("--report", "runs"),
    )
    assert run.code == 1
    assert "corpus case ?[31mred (found on another target, reference-fp32) fails" in run.out
    (page,) = (tmp_path / "runs").glob("*.html")
    assert "\x1b" not in run.out + run.err + page.read_text()


def test_the_name_of_a_missing_file_controls_no_terminal(refused):
    refused("replay", "\x1b[31mred.json", names="?[31mred.json: No such file")


def test_replay_runs_nothing_when_one_of_its_files_is_bad(refused, attn_parity, step_case, tmp_path, monkeypatch):
    monkeypatch.setattr(Executor, "run", None)
    (tmp_path / "good.json").write_text(case_file.dumps(step_case).replace('"head_size": 8', '"head_size": 16'))
    refused("replay", "good.json", "missing.json", names="missing.json")


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ('name = "planted"', "name = planted", "planted.toml"),
        ('what = "planted"', "", "what"),
        ('what = "planted"', "what = 3", "what"),
        ('what = "planted"', 'what = "planted"\nwhy = "planted"', "why"),
        ('class = "mask"', 'class = "masque"', "masque"),
        ('find = "j <= p"', 'find = "j >= p"', "0 times, expected once: 'j >= p'; nearest is line"),
        ('find = "j <= p"', 'find = ""', "find"),
        ("attn_reference.masks.is_causal", "", "in"),
        (MUTANT[MUTANT.index("[[patch]]") :], "", "patch"),
        (MUTANT[MUTANT.index("[[patch]]") :], "patch = []", "[[patch]]"),
        ("reference-fp32", "nobody", "nobody"),
    ],
    ids=[
        "no TOML",
        "a field missing",
        "a field of another type",
        "an unknown field",
        "a class that there is none of",
        "find stands nowhere",
        "an empty find",
        "no place",
        "no patch",
        "empty patches",
        "unknown target",
    ],
)
def test_zoo_refuses_a_mutant(old, new, names, refused, tmp_path):
    assert old in MUTANT
    folder = tmp_path / "bugs"
    folder.mkdir()
    (folder / "planted.toml").write_text(MUTANT.replace(old, new))
    refused("zoo", "run", "--dir", "bugs", "--examples", 1, names=names)


def test_zoo_refuses_names_and_folders_that_hold_nothing(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bugs").mkdir()
    (tmp_path / "bugs" / "planted.toml").write_bytes(b"\xff")
    refused("zoo", "run", "--only", "nobody", names="nobody")
    refused("zoo", "run", "--dir", "empty", names="empty")
    refused("zoo", "run", "--dir", "missing", names="missing")
    refused("zoo", "run", "--dir", "bugs/planted.toml", names="planted.toml")
    refused("zoo", "run", "--dir", "bugs", names="planted.toml")
    (tmp_path / "bugs" / "planted.toml").write_bytes(b"#" * (1 << 20) + b"#")
    refused("zoo", "run", "--dir", "bugs", names="planted.toml: larger than 1048576 bytes")
    refused("zoo", "run", "--examples", 0, names="--examples")
    refused("zoo", "page", names="docs/generated/zoo.json")
    refused("zoo", "run", "--write", names="docs/generated")
    refused("zoo", "run", "--json", "missing/zoo.json", names="missing")


def test_a_process_of_its_own_says_the_same(tmp_path, child_environment):
    command = ["-c", "from attn_parity import main; main()", "replay", "missing.json"]
    ended = processes.run(command, cwd=tmp_path, env=child_environment)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    assert "missing.json" in ended.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
