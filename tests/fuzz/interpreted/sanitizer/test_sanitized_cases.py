"""Cases under the sanitizer: our kernels keep to what they may touch, and a fault is a verdict that names tensor and index."""

import dataclasses
import re
from collections.abc import Callable
from unittest import mock

import attn_optimized
import click
import msgspec
import pytest
import torch
from attn_contract import AttentionType, Layout
from attn_contract.memory import extent
from attn_fuzz.cases import case_file
from attn_fuzz.cases.case import Cache, Case, Request, Rope
from attn_fuzz.interpreted import sanitizer
from attn_fuzz.interpreted.together import running
from attn_fuzz.run.case.trial import try_case
from attn_fuzz.run.processes.executor import Executor
from attn_fuzz.targets.reference import REFERENCE_FP32
from attn_fuzz.targets.target import Target
from attn_fuzz.targets.triton import TRITON
from attn_parity.device import sanitizes

from tests.fuzz.interpreted.sanitizer import watched
from tests.support import processes
from tests.support.pages import ROOT

pytestmark = watched.interpreted_only
replace = msgspec.structs.replace


# two requests in blocks of their own, the last block of each not full; a layer beside, and rows that nobody owns
PAGED = Case(
    target="planted",
    num_kv_heads=2,
    requests=(Request(2, 7, (1, 4), True), Request(1, 5, (0, 3), True)),
    cache=Cache(layout=Layout.CONTENT_PACKED, block_size=4, num_blocks=6, num_layers=2),
    unowned_rows=1,
    rows_past=1,
    unwritten=(0,),
    table_padding=1,
    lse=True,
)
DENSE = Case(
    target="planted",
    attn_type=AttentionType.ENCODER,
    requests=(Request(3, 3), Request(2, 2)),
    rows_past=2,
    kv_rows_past=1,
    fused_qkv=True,
)
ROPE = replace(PAGED, rope=Rope(rotary_dim=8))
TOKEN_SCALES = replace(
    PAGED, cache=replace(PAGED.cache, layout=Layout.KV_FIRST_NHD, num_layers=1, dtype="int8", scales="token")
)
INLINE_SCALES = replace(PAGED, cache=replace(PAGED.cache, layout=Layout.CONTENT_PACKED_SCALED, dtype="fp8_e4m3fn"))
X_PACKED = replace(PAGED, cache=replace(PAGED.cache, layout=Layout.X_PACKED, num_layers=1))
SPLIT = replace(
    PAGED,
    requests=(Request(1, 300, tuple(range(19)), True),),
    cache=Cache(layout=Layout.KV_FIRST_NHD, block_size=16, num_blocks=20),
    unwritten=(),
)


@pytest.mark.parametrize("case", [PAGED, DENSE, ROPE, TOKEN_SCALES, INLINE_SCALES, X_PACKED, SPLIT])
def test_our_kernels_keep_to_it(sanitized, monkeypatch, case):
    lanes = []
    check = sanitizer.Watch.check
    monkeypatch.setattr(sanitizer.Watch, "check", lambda self, *access: (check(self, *access), lanes.append(self.lanes)))
    verdict = try_case(case, TRITON, "cpu")
    assert verdict.kind == "agree", verdict.message
    assert max(lanes) > 300
    assert (case is SPLIT) == ("split" in verdict.events)


def handed(**changes: Callable[..., torch.Tensor]) -> Target:
    """Our kernels, called with something else than what they were to be called with."""

    def attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        of_batch = {name: change(getattr(batch, name)) for name, change in changes.items() if hasattr(batch, name)}
        batch = dataclasses.replace(batch, **of_batch)
        tensors = {"k": k, "v": v, "kv_cache": kv_cache, "out": out}
        k, v, kv_cache, out = (changes.get(name, lambda same: same)(tensor) for name, tensor in tensors.items())
        if kv_cache is None:
            attn_optimized.varlen_attention(q, k, v, layer, batch, out=out, lse=lse)
        else:
            attn_optimized.paged_attention(q, kv_cache, layer, batch, out=out, lse=lse)

    def write(k, v, kv_cache, layer, slot_mapping) -> None:
        slot_mapping = changes.get("slots", lambda same: same)(slot_mapping)
        kv_cache = changes.get("written", lambda same: same)(kv_cache)
        attn_optimized.write_kv_cache(k, v, kv_cache, layer, slot_mapping)

    def rotate(q, k, v, positions, cos_sin_cache, kv_cache, layer, slot_mapping, *, is_neox) -> None:
        positions = changes.get("positions", lambda same: same)(positions)
        attn_optimized.rope_and_write_kv_cache(
            q, k, v, positions, cos_sin_cache, kv_cache, layer, slot_mapping, is_neox=is_neox
        )

    return dataclasses.replace(
        TRITON, name="planted", attention=attention, write_kv_cache=write, rope_and_write_kv_cache=rotate
    )


def shifted(elements: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """The same view, so many elements later in its memory."""
    return lambda tensor: tensor.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset() + elements)


def with_entry(r: int, column: int, block: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(table: torch.Tensor) -> torch.Tensor:
        table = table.clone()
        table[r, column] = block
        return table

    return change


FAULTS = {
    "a slot past the sequence": (PAGED, {"seq_lens": lambda lens: lens + 1}, "load .*kv_cache, K of block 3, slot 1, head 0"),
    "a garbage entry": (PAGED, {"seq_lens": lambda lens: lens + 4}, r"load .*block_table\[1, 2\].*entries of blocks that hold"),
    "a garbage block": (
        PAGED,
        {"block_table": with_entry(0, 1, -1)},
        "load .*kv_cache, .*only slots that hold a key of a request may be read",
    ),
    "a wild block": (PAGED, {"block_table": with_entry(0, 1, 2**31 - 1)}, "load .*kv_cache, .*outside of its memory"),
    "an unused block": (PAGED, {"block_table": with_entry(0, 1, 5)}, "load .*kv_cache, K of block 5, slot 0, head 0, dim 0"),
    "another's block": (
        PAGED,
        {"block_table": with_entry(0, 0, 0)},
        "load .*kv_cache, K of block 0, slot 0, .*it belongs to another request than the program's queries",
    ),
    "another layer": (
        PAGED,
        {"kv_cache": lambda cache: shifted(cache.stride(0) * len(cache))(cache)},
        "load .*kv_cache, element .*belongs to no block",
    ),
    "another's token scale": (TOKEN_SCALES, {"block_table": with_entry(0, 0, 0)}, "load .*kv_cache, .*another request"),
    "packed": (X_PACKED, {"seq_lens": lambda lens: lens + 1}, "load .*kv_cache, K of block 3, slot 1, head 0"),
    "an unowned query": (
        PAGED,
        {"query_start_loc": lambda starts: starts + (starts == 3)},
        r"load .*q\[3, 0, 0\].*that a request",
    ),
    "an unowned key": (
        DENSE,
        {"k": lambda k: k[1:], "v": lambda v: v[1:]},
        r"load .*k\[5, 0, 0\].*only rows that a request owns may be read",
    ),
    "another's key": (
        DENSE,
        {"k": lambda k: k[:1].expand_as(k)},
        r"load .*: k\[0, 0, 0\].*it belongs to another request than the program's queries",
    ),
    "another's value": (
        DENSE,
        {"v": lambda v: v[:1].expand_as(v)},
        r"load .*: v\[0, 0, 0\].*it belongs to another request than the program's queries",
    ),
    "an unowned output": (
        PAGED,
        {"out": shifted(2 * (2 * 16 + 8))},
        r"store .*out\[4, 0, 0\].*only rows that a request owns may be written",
    ),
    "around the output": (PAGED, {"out": shifted(32)}, r"store .*past out\[2, 1, 15\]"),
    "the output of another": (PAGED, {"out": shifted(-(2 * 16 + 8))}, r"store .*out\[1, 0, 0\].*it belongs to another request"),
    "a key without a slot": (PAGED, {"slots": lambda slots: slots.clamp(min=0)}, r"load .*k\[0, 0, 0\].*rows that have a slot"),
    "the slot after": (
        PAGED,
        {"slots": lambda slots: slots + (slots >= 0)},
        "store .*kv_cache, K of block 4, slot 3.*slot_mapping",
    ),
    "the layer beside": (
        PAGED,
        {"written": lambda cache: shifted(cache.stride(0) * len(cache))(cache)},
        "store .*kv_cache, element .*belongs to no block",
    ),
    "a row with its scale": (
        INLINE_SCALES,
        {"slots": lambda slots: slots + (slots >= 0)},
        "store .*kv_cache, K of block 4, slot 3",
    ),
    "a token scale": (
        TOKEN_SCALES,
        {"slots": lambda slots: slots + (slots >= 0)},
        r"store .*k_scale_cache\[4, 3, 0\].*slot_mapping",
    ),
    "a row of angles": (ROPE, {"positions": lambda positions: positions + 1}, r"load .*cos_sin_cache.*rows of its positions"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_a_verdict_that_names_it(sanitized, fault):
    case, changes, message = FAULTS[fault]
    assert try_case(case, handed(**changes), "cpu").kind == "sanitizer"
    with mock.patch.object(running, "at_once", 1):  # together, another of the faulty programs may be named first
        verdict = try_case(case, handed(**changes), "cpu")
    assert verdict.kind == "sanitizer", verdict
    assert re.search(message, verdict.message), verdict.message
    assert re.match(r"\w+ at \w+\.py:\d+ in \w+_kernel, program \(\d+, \d+, \d+\): ", verdict.message), verdict.message
    assert "\n" not in verdict.message


def test_attention_that_writes_into_the_cache_is_named(sanitized):
    def attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        attn_optimized.write_kv_cache(k, v, kv_cache, layer, batch.slot_mapping)

    verdict = try_case(PAGED, dataclasses.replace(TRITON, attention=attention), "cpu")
    assert verdict.kind == "sanitizer"
    assert re.search("^store .*kv_cache, K of block 4, slot 2.*nothing of it may be written$", verdict.message)


@pytest.mark.parametrize("case", [PAGED, DENSE, replace(DENSE, fused_qkv=False), ROPE, TOKEN_SCALES])
@pytest.mark.parametrize("name", ["q", "k", "query_start_loc", "seq_lens", "block_table"])
@pytest.mark.parametrize("side", ["before", "after"])
def test_a_write_around_an_input_is_found_without_it(case, name, side):
    def attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        REFERENCE_FP32.attention(q, k, v, kv_cache, layer, batch, out=out, lse=lse)
        tensor = {"q": q, "k": k, **batch.tensors}.get(name)
        if tensor is not None:
            beside = -1 if side == "before" else extent(tensor.shape, tensor.stride())
            tensor.as_strided((1,), (1,), tensor.storage_offset() + beside).fill_(7)

    verdict = try_case(case, dataclasses.replace(REFERENCE_FP32, attention=attention), "cpu")
    if name == "block_table" and case.cache is None:
        assert verdict.kind == "agree"
    else:
        assert verdict.kind in ("guard", "input"), "of a fused tensor, what is around q is k"


@pytest.mark.parametrize("target", ["TARGET", "NULL"])
@pytest.mark.parametrize(("sanitize", "kind"), [(True, "sanitizer"), (False, "crashed")])
def test_a_wild_load_is_a_verdict_and_not_the_end_of_its_process(tmp_path, target, sanitize, kind):
    with Executor(f"planted_wild:{target}", "cpu", 60.0, tmp_path / "ahead.json", sanitize=sanitize) as executor:
        assert executor.run(PAGED).kind == kind


def test_a_case_is_replayed_with_it_and_without(attn_parity, tmp_path):
    (tmp_path / "case.json").write_text(case_file.dumps(PAGED))
    run = attn_parity("replay", "case.json", "--target", "planted_wild:TARGET", "--device", "cpu")
    assert run.code == 1
    assert run.out.startswith("case.json: sanitizer")
    assert "attention_kernel, program (0, 0, 0): kv_cache, " in run.out


def test_a_gpu_cannot_be_sanitized():
    with pytest.raises(click.ClickException, match="only with --device cpu"):
        sanitizes(True, TRITON, "cuda")
    assert not sanitizes(None, TRITON, "cuda")
    assert sanitizes(None, TRITON, "cpu")
    assert not sanitizes(False, TRITON, "cpu")


def test_the_page_s_program_runs_and_its_message_is_one(sanitized, tmp_path):
    page = (ROOT / "docs" / "reference" / "sanitizer.md").read_text()
    program = re.findall(r"```python in_process.py\n(.*?)```", page, flags=re.DOTALL)[0]
    message = re.findall(r"```\n(load .*)\n```", page)[0]
    case, changes, _ = FAULTS["a slot past the sequence"]
    without_line = re.compile(r"py:\d+ ")
    got = try_case(case, handed(**changes), "cpu").message
    assert without_line.sub("", got) == without_line.sub("", message), got
    (tmp_path / "in_process.py").write_text(program.replace('"cuda"', '"cpu"'))
    result = processes.run(["in_process.py", "triton", 2, 3], cwd=tmp_path)  # a seed without bfloat16
    assert result.stdout == "2 cases, 0 failed\n", result.stderr
