"""AITER's assembly behind this project's host code: which file a call takes, and what the files compute."""

import dataclasses
import re

import pytest
import torch
from attn_fuzz.emulated import code_objects
from attn_fuzz.interpreted.sanitizer import Violation
from attn_fuzz.targets.packages.aiter import assembly as aiter_assembly
from attn_fuzz.targets.packages.aiter import mla_assembly as aiter_mla_assembly
from attn_fuzz.targets.packages.aiter.assembly import NoKernelError

BF16 = torch.bfloat16
MLA = "attn_fuzz.targets.packages.aiter.mla_assembly"
pytestmark = pytest.mark.skipif(
    (reason := aiter_mla_assembly.AITER_MLA_ASSEMBLY.compiled_for("gfx942").unavailable("cpu")) is not None, reason=str(reason)
)


@pytest.mark.parametrize(
    ("dtype", "heads", "queries", "file"),
    [
        ("bf16", 128, 3, "mla_dec_stage1_bf16_a16w16_subQ128_mqa128"),
        ("bf16", 16, 1, "mla_dec_stage1_bf16_a16w16_subQ16_mqa16"),
        ("bf16", 16, 4, "mla_a16w16_qh16_m16x4_n16x1_coex0_mask1"),
        ("bf16", 16, 5, "mla_a16w16_qh16_m32x4_n16x1_coex0_mask1"),
        ("fp8", 16, 2, "mla_a8w8_qh16_qseqlen2_gqaratio16"),
        ("fp8", 16, 3, "mla_a8w8_qh16_qseqlen4_gqaratio16"),
        ("fp8", 128, 4, "mla_a8w8_qh128_m32x4_n16x2_msk1"),
        ("fp8", 16, 5, None),
        ("bf16", 32, 1, None),
    ],
)
def test_a_decode_takes_the_file_that_host_code_names(dtype, heads, queries, file):
    if aiter_mla_assembly.table("gfx942"):
        pytest.skip("main's host code has a table")
    if file is None:
        with pytest.raises(NoKernelError, match=f"{heads} heads, {queries} queries"):
            aiter_mla_assembly.choices("gfx942", dtype, dtype, heads, queries)
        return
    [choice] = aiter_mla_assembly.choices("gfx942", dtype, dtype, heads, queries)
    assert choice.file == f"{file}.co"
    assert (aiter_assembly.files() / "gfx942" / "mla" / choice.file).is_file()
    host_code = (aiter_assembly.files().parent / "csrc" / "py_itfs_cu" / "asm_mla.cu").read_text()
    assert re.search(rf'"{choice.kernel}",\s*"/mla/{file}.co"', host_code)


@pytest.mark.parametrize(
    ("architecture", "dtype", "heads", "queries", "persistent", "files"),
    [
        ("gfx942", "bf16", 32, 2, False, ["MLA_A16W16_1TG_4W_32mx1_16nx1_Coex0_Msk1_QH16"]),
        ("gfx942", "bf16", 64, 1, False, None),
        ("gfx942", "fp8", 16, 3, False, ["mla_a8w8_qh64_qseqlen4_gqaratio16"]),
        ("gfx942", "fp8", 64, 1, True, ["mla_a8w8_qh64_qseqlen1_gqaratio64_v3_ps"]),
        ("gfx942", "bf16", 8, 1, True, None),
        ("gfx950", "bf16", 64, 1, False, ["mla_a16w16_qh64_qseqlen1_gqaratio64_v3"]),
        ("gfx950", "bf16", 8, 2, False, ["mla_a16w16_qh8_qseqlen2_gqaratio8", "mla_a16w16_qh8_qseqlen2_gqaratio8_causal"]),
    ],
)
def test_a_decode_of_main_takes_what_its_table_has(architecture, dtype, heads, queries, persistent, files, monkeypatch):
    rows = [
        {"qType": q, "kvType": q, "Gqa": str(each), "ps": ps, "qSeqLen": at, "prefill": "0", "causal": "1", "lse": "0"}
        | {"knl_name": f"_ZN5aiter{len(file)}{file}E", "co_name": f"{file}.co"}
        for q, each, ps, at, file in (
            ("bf16", 32, "0", "0", "MLA_A16W16_1TG_4W_32mx1_16nx1_Coex0_Msk1_QH16"),
            ("fp8", 16, "0", "4", "mla_a8w8_qh64_qseqlen4_gqaratio16"),
            ("fp8", 64, "1", "1", "mla_a8w8_qh64_qseqlen1_gqaratio64_v3_ps"),
            ("bf16", 8, "1", "2", "mla_dec_stage1_bf16_a16w16_subQ16_mqa16_ps"),
        )
    ]
    of_gfx950 = [
        {**rows[0], "cprr": "0", "Gqa": heads, "qSeqLen": at, "co_name": f"{file}.co"}
        for heads, at, file in (
            ("64", "1", "mla_a16w16_qh64_qseqlen1_gqaratio64_v3"),
            ("8", "2", "mla_a16w16_qh8_qseqlen2_gqaratio8"),
            ("8", "2", "mla_a16w16_qh8_qseqlen2_gqaratio8_causal"),
        )
    ]
    monkeypatch.setattr(aiter_mla_assembly, "table", {"gfx942": rows, "gfx950": of_gfx950}.__getitem__)
    if files is None:
        with pytest.raises(NoKernelError, match=f"{heads} heads, {queries} queries"):
            aiter_mla_assembly.choices(architecture, dtype, dtype, heads, queries, persistent=persistent)
        return
    found = aiter_mla_assembly.choices(architecture, dtype, dtype, heads, queries, persistent=persistent)
    assert [each.file for each in found] == [f"{file}.co" for file in files]


@pytest.mark.parametrize(
    ("target", "examples"), [("AITER_MLA_ASSEMBLY", 8), ("AITER_MLA_PREFILL_ASSEMBLY", 4), ("AITER_MLA_PERSISTENT", 4)]
)
def test_latent_attention_agrees_but_for_what_is_known(target, examples, attn_parity):
    run = attn_parity(
        "fuzz", "--target", f"{MLA}:{target}@gfx942", "--examples", examples, "--seed", 3,
        "--workers", 1, "--device", "cpu", "--corpus", "none",
    )  # fmt: skip
    assert run.code == 0, run.out + run.err


@pytest.mark.parametrize(("heads", "requests"), [(1, 1), (8, 1), (16, 1), (32, 2), (48, 3)])
def test_main_plans_many_heads_as_more_requests(heads, requests, monkeypatch):
    """A past case of another target may have fewer heads than any file serves: it is left out, and no error."""
    monkeypatch.setattr(aiter_mla_assembly, "table", lambda architecture: [{}])
    assert aiter_mla_assembly.folds("gfx942", "bf16", "bf16", heads, 1) == requests


def attend_to_40_keys() -> None:
    q, cache = torch.zeros(2, 16, 576, dtype=BF16), torch.zeros(40, 1, 576, dtype=BF16)
    layer = dataclasses.make_dataclass("Layer", ["head_size", "num_heads", "v_head_size", "scale", "kv_cache_dtype"])
    batch = dataclasses.make_dataclass("Batch", ["query_start_loc", "seq_lens", "num_requests", "block_table"])
    numbers = [torch.tensor(each, dtype=torch.int32) for each in ([0, 2], [40])]
    table = torch.arange(40, dtype=torch.int32)[None]
    out = torch.zeros(2, 16, 512, dtype=BF16)
    attend = aiter_mla_assembly.AITER_MLA_ASSEMBLY.compiled_for("gfx942").attention
    attend(q, None, None, cache, layer(576, 16, 512, 0.1, None), batch(*numbers, 1, table), out=out, lse=None)


def test_known_hazards_are_those_of_a_file_s_contents(tmp_path, monkeypatch):
    name = "gfx942/mla/mla_a16w16_qh16_m16x4_n16x1_coex0_mask1.co"
    assert aiter_assembly.known_hazards(name)
    other = tmp_path / name
    other.parent.mkdir(parents=True)
    other.write_bytes((aiter_assembly.files() / name).read_bytes() + b"0")
    monkeypatch.setattr(aiter_assembly, "files", lambda: tmp_path)
    assert not aiter_assembly.known_hazards(name)


def test_a_hazard_that_is_not_known_is_a_failure(monkeypatch):
    monkeypatch.setattr(aiter_assembly, "known_hazards", lambda name: ())
    with pytest.raises(Violation, match=r"m16x4.* line \d+ .* loads v11, and no wait stands before"):
        attend_to_40_keys()


def test_a_register_is_used_before_the_wait_for_its_load(monkeypatch):
    """The wait for 19 loads stands after 19 loads: it leaves the first one of them under way."""
    recorded = []
    run = code_objects.run

    def keep(code, arguments, grid, schedules, hazards):
        run(code, arguments, grid, [dataclasses.replace(schedules[0], races=True)], hazards)
        recorded.append(hazards)

    monkeypatch.setattr(code_objects, "run", keep)
    attend_to_40_keys()
    [hazards] = recorded
    assert {fault.instruction.split()[0] for fault in hazards.values()} == {"v_mul_u32_u24_dpp"}
    assert all("loads v11, and no wait stands before its use" in fault.what for fault in hazards.values())
