"""A picture shows the case: the keys that each query sees, the owners of blocks, places in memory, and wrong elements."""

import dataclasses
import re

import msgspec
import pytest
import torch
from attn_contract import AttentionType, Layout, PhysicalOrder
from attn_fuzz.cases import case_file, tensors
from attn_fuzz.cases.case import Cache, Case, Request
from attn_fuzz.report import pictures, terminal
from attn_fuzz.report.grid import Picture, Room
from attn_fuzz.run.case.trial import try_case
from planted import FLASH, NAN
from rich.console import Console

from tests.support import pages

replace = msgspec.structs.replace
ROOM = Room(rows=32, columns=96)


def letters(picture: Picture) -> list[str]:
    return ["".join(cell.text for cell in row) for row in picture.cells]


def drawn(case: Case, title: str, verdict=None, room: Room = ROOM) -> Picture:
    return next(picture for picture in pictures.draw(case, verdict, room) if picture.title.startswith(title))


def mask(case: Case) -> list[str]:
    return letters(drawn(case, "request 0"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["######c.", "#######."]),
        ({"window": (2, -1)}, ["www###c.", "wwww###."]),
        ({"window": (2, -1), "sink_tokens": 1}, ["sww###c.", "swww###."]),
        ({"chunked_local": 4}, ["kkkk##c.", "kkkk###."]),
    ],
)
def test_a_mask_names_the_rule_that_hides_a_key(step_case, changes, expected):
    assert mask(replace(step_case, **changes)) == expected


def test_a_mask_without_causality(step_case):
    requests = tuple(replace(request, causal=False) for request in step_case.requests)
    assert mask(replace(step_case, requests=requests)) == ["#######.", "#######."]


def test_a_mask_shows_what_a_range_opens(step_case):
    request = replace(step_case.requests[0], bidirectional_ranges=((5, 6),))
    assert mask(replace(step_case, requests=(request,), window=(2, -1))) == ["www###r.", "wwww###."]


def test_a_mask_shows_what_a_tree_of_drafts_hides(step_case):
    request = Request(query_len=7, seq_len=7, blocks=(2, 0), causal=True)
    case = replace(step_case, requests=(request,), qq_bias="tree")
    rows = mask(case)
    assert rows[0] == "#cccccc."
    assert any("t" in row for row in rows)
    assert all(row[i] == "#" for i, row in enumerate(rows))


def test_masks_agree_with_the_reference(step_case):
    """Everything that is not a letter of visibility is hidden, and nothing else."""
    case = replace(step_case, window=(1, 0), sink_tokens=2)
    step = tensors.build(case)
    for request, picture in zip(
        pictures.oracle.requests(step), list(pictures.visible_keys(case, step, None, ROOM)), strict=True
    ):
        shown = [[letter in "#sr" for letter in row[: request.visible.shape[1]]] for row in letters(picture)]
        assert shown == request.visible.tolist()


def test_a_large_mask_is_sampled(step_case):
    request = Request(query_len=200, seq_len=1000, blocks=tuple(range(250)), causal=True)
    case = replace(step_case, requests=(request,), cache=replace(step_case.cache, num_blocks=256))
    picture = drawn(case, "request 0", room=Room(rows=10, columns=50))
    rows = letters(picture)
    assert len(rows) == 10
    assert {len(row) for row in rows} == {50}
    assert rows[0].startswith("#" * 40)
    assert rows[0].endswith("c")
    assert "%" in rows[0]
    assert picture.note == "a cell is up to 20 x 20 elements"


def test_a_sampled_mask_ends_with_its_keys(step_case):
    """A cell that held both the last keys and slots past them looked like keys that every query sees in part."""
    request = Request(query_len=200, seq_len=1001, blocks=tuple(range(251)), causal=False)
    case = replace(step_case, requests=(request,), cache=replace(step_case.cache, num_blocks=256))
    assert letters(drawn(case, "request 0", room=Room(rows=10, columns=50))) == ["#" * 49 + "."] * 10


def test_a_cell_of_keys_that_two_rules_hide_is_hidden_by_the_commoner(step_case):
    request = Request(query_len=1, seq_len=64, blocks=tuple(range(16)), causal=True)
    case = replace(step_case, requests=(request,), window=(12, -1), chunked_local=8)
    case = replace(case, cache=replace(step_case.cache, num_blocks=16))
    picture = drawn(case, "request 0", room=Room(rows=1, columns=8))
    assert letters(picture) == ["wwwwwwk#"]
    assert picture.cells[0][6].title == "p 63, key 48 to 55: 5 chunk, 3 window"


def test_a_flag_whose_name_does_not_tell_is_explained_where_it_is_printed(step_case, attn_parity, tmp_path):
    (tmp_path / "case.json").write_text(case_file.dumps(replace(step_case, recycled=True, flat_out=True)))
    printed = " ".join(attn_parity("show", "case.json", "--no-run", "--html", "page.html").out.split())
    said = "recycled=True (keys that no query sees are poisoned) flat_out=True"
    assert said in printed
    assert said in " ".join((tmp_path / "page.html").read_text().split())


def test_a_mask_that_memory_could_not_hold_is_left_out(step_case, attn_parity, tmp_path):
    many = Request(query_len=1 << 17, seq_len=1 << 17, blocks=tuple(range(1 << 15)))
    case = replace(step_case, requests=(many,), cache=replace(step_case.cache, block_size=4, num_blocks=1 << 15), unwritten=())
    (tmp_path / "case.json").write_text(case_file.dumps(case))
    run = attn_parity("show", "case.json", "--no-run", "--html", "page.html")
    assert run.code == 0, run.err
    assert "request 0: mask, 131072 x 131072 (queries x keys)\nnot drawn: more than 16777216 pairs" in run.out
    assert "not drawn" in (tmp_path / "page.html").read_text()


def test_the_block_table_has_its_garbage(step_case):
    table = drawn(replace(step_case, table_padding=1), "block table")
    assert [[cell.text for cell in row] for row in table.cells] == [["2", "0", "(4)"], ["3", "(max)", "(4)"]]
    assert [[cell.kind for cell in row] for row in table.cells] == [
        ["owner-0", "owner-0", "garbage"],
        ["owner-1", *["garbage"] * 2],
    ]


def test_every_block_has_its_owners_and_what_its_slots_hold(step_case):
    first, second = step_case.requests
    sharing = replace(second, seq_len=7, blocks=(2, 3))
    cache = replace(step_case.cache, num_blocks=7, neighbour=Layout.BLOCKS_FIRST_NHD, layout=Layout.BLOCKS_FIRST_NHD)
    picture = drawn(replace(step_case, requests=(first, sharing), cache=cache), "blocks")
    assert dict(zip(picture.row_names, letters(picture), strict=True)) == {
        "block 0: request 0": "bWW.",
        "block 1: no request": "nnnn",
        "block 2: requests 0, 1": "bbbb",
        "block 3: request 1": "WWW.",
        "block 4: no request": "nnnn",
        "block 5: no request": "....",
        "block 6: no request": "....",
    }


def test_keys_outside_a_window_and_keys_of_earlier_requests_have_letters_of_their_own(step_case):
    case = replace(step_case, window=(1, -1), recycled=True)
    assert letters(drawn(case, "blocks"))[2] == "xxxx"
    assert letters(drawn(replace(case, finite_slots=True), "blocks"))[1] == ",,,,"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "|| 0K 0V 1K 1V 2K 2V 3K 3V ||"),
        ({"planes": True}, "|| 0K 1K 2K 3K 0V 1V 2V 3V ||"),
        ({"padding": 3}, "|| 0K 0V pad 1K 1V pad 2K 2V pad 3K 3V pad ||"),
        ({"layout": Layout.CONTENT_PACKED, "num_layers": 2, "layer": 1, "block_size": 1}, "|| L0 L0 0K 0V 1K 1V ||"),
        ({"layout": Layout.CONTENT_PACKED, "num_layers": 2, "order": PhysicalOrder.BLHNC}, "|| 0K 0V L1 L1 1K 1V L1 L1 ||"),
    ],
)
def test_memory_is_drawn_in_its_order(changes, expected):
    cache = {"layout": Layout.BLOCKS_FIRST_NHD, "block_size": 1, "num_blocks": 4, **changes}
    if "num_layers" in changes:
        cache["num_blocks"] = 2
    case = Case(target="t", requests=(Request(1, 1, blocks=(1,)),), cache=Cache(**cache))
    line = " ".join(cell.text for row in drawn(case, "allocation").cells for cell in row)
    assert _without_doubles(line) == _without_doubles(expected)
    owners = {cell.text: cell.kind for row in drawn(case, "allocation").cells for cell in row}
    assert (owners["0K"], owners["1K"]) == ("free", "owner-0")


def _without_doubles(line: str) -> str:
    """Cells of other layers as one."""
    return re.sub(r"(L\d)( \1)+", r"\1", line)


def test_errors_are_drawn_by_head_and_row(step_case):
    case = replace(step_case, group_size=2, unowned_rows=2)
    bad = letters(drawn(case, "out", verdict=try_case(case, NAN, "cpu")))
    assert len(bad) == 2
    assert "N" in "".join(bad)
    assert all(row.endswith("--") for row in bad)
    good = drawn(case, "out", verdict=try_case(case, FLASH, "cpu"))
    assert letters(good) == ["00000--"] * 2
    assert good.ticks == {0: "r0", 2: "r1"}


def test_an_error_at_its_bound_is_told_from_one_beyond_it(step_case):
    edges = pictures.ratios.BROKEN
    picture = pictures.error_over_bound(replace(step_case, requests=()), "out", bytes([0, edges - 1, edges]), ROOM)
    assert letters(picture) == ["09!"]


@pytest.mark.parametrize(
    "case",
    [
        Case(target="planted:FLASH", attn_type=AttentionType.ENCODER, requests=(Request(3, 3), Request(0, 0))),
        Case(target="planted:FLASH", attn_type=AttentionType.ENCODER_ONLY),
        Case(target="planted:FLASH", cache=Cache(layout=Layout.X_PACKED, block_size=4, num_blocks=2)),
        Case(
            target="planted:FLASH", requests=(Request(2, 0),), cache=Cache(layout=Layout.SHUFFLED, block_size=4, num_blocks=1)
        ),
    ],
    ids=["dense", "dense, no requests", "no requests", "no keys"],
)
def test_every_case_can_be_drawn(case):
    found = pictures.draw(case, try_case(case, FLASH, "cpu"), ROOM)
    console = Console(width=100)
    with console.capture() as captured:
        console.print(terminal.render(found))
    assert all(picture.title in captured.get() for picture in found)
    assert any(picture.title == "block table" for picture in found) == (case.cache is not None)


def test_the_command_draws_a_failing_case_and_exits_1(attn_parity, step_case, tmp_path):
    (tmp_path / "case.json").write_text(case_file.dumps(replace(step_case, head_size=16)))
    run = attn_parity("show", "case.json", "--target", "planted:NAN", "--html", "page.html")
    assert run.code == 1
    assert "nan: out of request" in run.out
    assert "N not finite" in run.out
    assert re.search(r"p=5 +######c\.\n", run.out)
    assert "\x1b" not in run.out, "colour is for terminals"
    assert "<svg" in (tmp_path / "page.html").read_text()


def test_show_prints_the_picture_of_the_guide(attn_parity, tmp_path):
    guide = pages.PAGES["docs/guide/reports.md"]
    pages.save_files(guide, tmp_path)
    run = attn_parity("show", "case.json", "--target", "my_kernel:TARGET")
    (shown,) = (block.text for block in pages.blocks(guide) if block.is_output)
    assert pages.lines(run.out) == pages.lines(shown)


def test_without_a_run_no_target_is_needed(attn_parity, step_case, tmp_path):
    (tmp_path / "case.json").write_text(case_file.dumps(replace(step_case, target="not-installed")))
    run = attn_parity("show", "case.json", "--no-run")
    assert run.code == 0
    assert "error / bound" not in run.out
    assert "block 3: request 1" in run.out


@pytest.mark.parametrize(("qq_bias", "kind"), [(None, "other"), ("random", "tree")])
def test_a_key_that_no_known_rule_hides_is_not_blamed_on_drafts(step_case, qq_bias, kind):
    """Keys are hidden as by a rule that was added later."""
    step = tensors.build(replace(step_case, qq_bias=qq_bias))
    part = next(part for part in pictures.oracle.requests(step) if part.visible.any())
    hidden = dataclasses.replace(part, visible=torch.zeros_like(part.visible))
    kinds = pictures.kinds_of(hidden, step, causal=False)
    assert pictures.KINDS.index(kind) in kinds
