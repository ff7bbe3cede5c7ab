"""AITER's fmha_v3_fwd: which file a call gets and its launch, and the files themselves where AITER's wheel is installed."""

import contextlib
import itertools

import msgspec
import numpy as np
import pytest
import torch
from attn_contract import AttentionType, Batch, Layer, Layout
from attn_fuzz.cases import case_file
from attn_fuzz.cases.case import Cache, Case, Request, Values
from attn_fuzz.findings.aiter.fmha_assembly import FMHA_ASSEMBLY
from attn_fuzz.run.case.trial import try_case
from attn_fuzz.targets.packages.aiter import assembly as aiter_assembly
from attn_fuzz.targets.packages.aiter import fmha_assembly as fmha

LAYER = Layer(num_heads=6, num_kv_heads=2, head_size=128, scale=0.25, attn_type=AttentionType.ENCODER_ONLY)
TARGETS = {
    True: (fmha.AITER_FMHA_V3, fmha.AITER_FMHA_V3_RTZ),
    False: (fmha.AITER_FMHA_V3_BATCH, fmha.AITER_FMHA_V3_BATCH_RTZ),
}


def batch_of(query_lens: list[int], seq_lens: list[int], *, causal: bool = True) -> Batch:
    starts = torch.tensor([0, *itertools.accumulate(query_lens)], dtype=torch.int32)
    return Batch(
        query_start_loc=starts,
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
        block_table=None,
        slot_mapping=None,
        max_query_len=max(query_lens),
        max_seq_len=max(seq_lens),
        num_actual_tokens=int(starts[-1]),
        causal=causal,
    )


def launches(function, batch: Batch, lse: bool = True) -> list[aiter_assembly.AssemblyLaunch]:
    """The launches of a call with q, k and v in rows of one tensor."""
    rows = batch.num_actual_tokens
    qkv = torch.zeros(rows, 10, 128, dtype=torch.bfloat16)
    out = torch.zeros(rows, 6, 128, dtype=torch.bfloat16)
    of_rows = torch.zeros(6, rows) if lse else None
    q, k, v = qkv[:, :6], qkv[:, 6:8], qkv[:, 8:]
    return list(function("gfx942", q, k, v, None, LAYER, batch, out, of_rows, conversions=("rtna",)))


@pytest.mark.parametrize(
    ("query_lens", "causal", "mask", "grid"),
    [
        ([300, 3, 0], True, "_causal", (6, 3, 1)),
        ([520, 3], True, "_causal", (6, 2, 2)),
        ([520, 3], False, "", (6, 2, 3)),
        ([1, 1], True, "", (6, 2, 1)),
    ],
)
def test_a_call_of_unlike_lengths(query_lens, causal, mask, grid):
    batch = batch_of(query_lens, query_lens, causal=causal)
    (launch,) = launches(fmha._group, batch)
    folder, _, file = launch.file.removeprefix("fmha_v3_fwd/").partition("/")
    assert folder in ("MI300", "MI308")
    assert file == f"fwd_hd128_bf16{mask}_rtna_group.co"
    assert launch.kernel == f"_ZN5aiter{30 + len(mask)}fmha_fwd_hd128_bf16{mask}_rtna_groupE"
    assert launch.grid == grid
    numbers = {offset: value for offset, value in launch.arguments.items() if not isinstance(value, torch.Tensor)}
    row, head = 10 * 256, 256
    of_q = {80: 0.25, 96: max(query_lens), 112: row, 128: 256 * row, 144: head, 160: 0, 176: 3}
    of_k = {192: row, 208: head, 224: 0, 240: 3 if mask else 5, 256: 1, 272: sum(query_lens), 288: 128, 304: 128, 320: 6}
    of_v_and_out = {336: row, 352: head, 368: 0, 384: 6 * 256, 400: 256, 416: 0, 464: 4 * sum(query_lens)}
    assert numbers == of_q | of_k | of_v_and_out


def test_requests_of_equal_lengths_in_a_row_are_one_launch():
    batch = batch_of([40, 40, 7, 1, 1, 0, 40], [40, 40, 7, 1, 1, 0, 40])
    first, second, third, last = launches(fmha._batches, batch)
    assert [each.grid for each in (first, second, last)] == [(1, 6, 2), (1, 6, 1), (1, 6, 1)]
    assert (first.arguments[160], first.arguments[272], first.arguments[464]) == (40 * 2560, 40, 160)
    assert "_causal" in first.file
    assert third.grid == (1, 2, 2), "heads of a group are queries where each request has one"
    assert "_causal" not in third.file
    assert {first.arguments[432], first.arguments[496]} == {None}


def test_a_call_without_keys_launches_nothing():
    assert launches(fmha._group, batch_of([2, 3], [0, 0], causal=False)) == []


@pytest.mark.parametrize("tensor", ["q", "k"])
def test_rows_beyond_32_bits_are_refused(tensor):
    short, far = (torch.empty(rows, 1, 128, dtype=torch.bfloat16, device="meta") for rows in (40, (1 << 24) + 1))
    rows = {name: far if name == tensor else short for name in ("q", "k", "v", "out")}
    starts = torch.zeros(2, dtype=torch.int32)
    file = "MI300/fwd_hd128_bf16_rtna_group.co"
    with pytest.raises(NotImplementedError, match="aiter#1957"):
        fmha._launch(file, *rows.values(), None, 1.0, max_query_len=40, starts=(starts, starts))


def needs_files() -> None:
    if reason := fmha.AITER_FMHA_V3.compiled_for("gfx942").unavailable("cpu"):  # pyright: ignore[reportOptionalCall]
        pytest.skip(reason)


FILES = [
    *(
        ("gfx942", f"{folder}/fwd_hd128_bf16{mask}_{conversion}{group}.co")
        for folder in fmha.FOLDERS
        for mask in ("", "_causal")
        for conversion in (*fmha.TO_NEAREST, *fmha.TO_ZERO)
        for group in ("", "_group")
    ),
    *(("gfx950", f"fwd_hd128_bf16{mask}{group}.co") for mask in ("", "_causal") for group in ("", "_group")),
]


@pytest.mark.parametrize(("architecture", "file"), FILES)
def test_each_file_that_is_chosen_agrees(architecture, file, monkeypatch):
    needs_files()
    mask, is_group = "causal" in file, "group" in file
    monkeypatch.setattr(fmha, "file_of", lambda *call, **how: file)
    blocks = ((2, 0, 1), (3,)) if mask else ((), ())
    lengths = zip((33, 2), blocks, strict=True)
    requests = tuple(Request(query_len=n, seq_len=n, blocks=at, causal=mask) for n, at in lengths)
    cache = Cache(layout=Layout.KV_FIRST_NHD, block_size=16, num_blocks=4) if mask else None
    case = Case(
        target="aiter-fmha-v3", values=Values(kind="normal", seed=1), dtype="bfloat16", head_size=128, num_kv_heads=2,
        attn_type=AttentionType.DECODER if mask else AttentionType.ENCODER, cache=cache, group_size=2, scale=128**-0.5,
        requests=requests, lse=True,
    )  # fmt: skip
    target = TARGETS[is_group]["rtz" in file].compiled_for(architecture)  # pyright: ignore[reportOptionalCall]
    verdict = try_case(case, target, "cpu")
    assert verdict.kind == "agree", verdict.message
    assert file in verdict.events


def test_a_request_without_keys_is_right_where_the_files_count_at_least_a_tile_of_keys(monkeypatch):
    """One instruction of the file made another: the closed form of aiter-fmha-no-keys, which AITER #1442 repairs."""
    needs_files()
    from attn_amdgcn import code_objects
    from attn_fuzz.emulated import code_objects as running

    def text_of(file, kernel):
        text = code_objects.text_of(file, kernel)
        assert text.count("s_mov_b32 s38, s7 ") == 1
        return text.replace("s_mov_b32 s38, s7 ", "s_max_i32 s38, s7, 32 ")

    running._ready.cache_clear()
    monkeypatch.setattr(running, "text_of", text_of)
    case = msgspec.structs.replace(case_file.load(FMHA_ASSEMBLY[0].path), lse=True)
    assert try_case(case, fmha.AITER_FMHA_V3.compiled_for("gfx942"), "cpu").kind == "agree"  # pyright: ignore[reportArgumentType, reportOptionalCall]
    running._ready.cache_clear()


@pytest.mark.parametrize("tensor", ["q", "k"])
@pytest.mark.parametrize(("first_byte", "is_found"), [((1 << 32) - (1 << 20), True), (1 << 32, False)])
def test_the_first_row_of_a_request_is_found_below_2_to_the_32_bytes_alone(tensor, first_byte, is_found):
    """The pointer lies `first_byte` before a small buffer, so that the rows of the only request are the buffer's."""
    needs_files()
    from attn_amdgcn import EmulationFault, code_objects, launch, load, prepare

    file = aiter_assembly.files() / "gfx942/fmha_v3_fwd/MI300/fwd_hd128_bf16_rtna_group.co"
    rows = torch.zeros(40, 1, 128, dtype=torch.bfloat16)
    starts = {name: torch.tensor([0, 40]) + (first_byte // 256 if name == tensor else 0) for name in ("q", "k")}
    one = fmha._launch(
        file.name, rows, rows, rows, rows, None, 1.0, max_query_len=40, starts=(starts["q"].int(), starts["k"].int())
    )
    before = {"q": ("out", "q"), "k": ("k", "v")}[tensor]
    places = {0: "out", 16: "q", 32: "k", 48: "v", 432: "q starts", 448: "k starts", 480: "q starts", 496: "k starts"}
    pointers = {offset: (name, -first_byte if name in before else 0) for offset, name in places.items()}
    program = prepare(load(code_objects.text_of(file)))
    arguments = [(one.arguments | pointers).get(each.offset, 0) for each in program.kernel.arguments]
    buffers = {name: np.zeros(40 * 256, np.uint8) for name in ("out", "q", "k", "v")}
    buffers |= {f"{name} starts": each.int().numpy().view(np.uint8) for name, each in starts.items()}
    with contextlib.nullcontext() if is_found else pytest.raises(EmulationFault, match="at byte -429"):
        launch(program, (1, 1, 1), arguments, buffers)


def test_keys_of_192_have_files_and_tiles_of_their_own():
    rows = {"q": torch.zeros(300, 6, 192), "k": torch.zeros(300, 2, 192), "v": torch.zeros(300, 2, 128)}
    batch = batch_of([300], [300])
    file = fmha.file_of("gfx950", batch, 192, is_group=True, conversions=("rtna",))
    launch = fmha._launch(
        file, *(each.bfloat16() for each in rows.values()), torch.zeros(300, 6, 128).bfloat16(), None, 1.0,
        max_query_len=300, starts=(batch.query_start_loc, batch.query_start_loc),
    )  # fmt: skip
    assert launch.kernel == "_ZN5aiter38fmha_fwd_hd192_hd128_bf16_causal_groupE"
    assert launch.grid == (6, 1, 2)  # 3 tiles of 128 queries, two for a workgroup
    assert [launch.arguments[16 * place] for place in (8, 18, 19)] == [128 * 6 * 192 * 2, 192, 128]
