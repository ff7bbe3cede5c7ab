"""A captured call is the same call again; and a file that is not what was captured is refused before it is used."""

import contextlib
import dataclasses
import hashlib
import random
import re
import tempfile
from pathlib import Path

import attn_reference
import msgspec
import pytest
import safetensors.torch
import torch
from attn_fuzz import Call, CaptureError, capture, report
from attn_fuzz.cases import captures, case_file, tensors
from attn_fuzz.cases.case import Case, CaseError
from attn_fuzz.cases.poison import bits
from attn_fuzz.corpus import database
from attn_fuzz.corpus.database import DatabaseError
from attn_fuzz.run.case.attempt import write
from attn_fuzz.run.case.trial import try_case
from attn_fuzz.run.shrink import lowered
from attn_fuzz.strategies import cases
from attn_fuzz.targets.reference import REFERENCE_FP32
from attn_fuzz.targets.support import EVERYTHING
from attn_fuzz.verdict import oracle
from attn_fuzz.verdict.verdict import Verdict
from hypothesis import given, settings, strategies

from tests.support.small_supports import DENSE, LATENT, SCALED

replace = msgspec.structs.replace
SUPPORT = dataclasses.replace(EVERYTHING, head_sizes=(16, 32), max_tokens=32, max_seq_len=64)


def call_of(case: Case) -> Call:
    step = tensors.build(case)
    for cache_write in step.writes:
        write(cache_write, step, REFERENCE_FP32)
    dense = {} if step.kv_cache is not None else {"k": step.k, "v": step.v}
    return Call(q=step.q, layer=step.layer, batch=step.batch, kv_cache=step.kv_cache, **dense)


@pytest.mark.parametrize("support", [SUPPORT, LATENT, SCALED, DENSE], ids=["any", "latent", "scaled", "dense"])
@settings(max_examples=25, deadline=None, database=None)
@given(strategies.data())
def test_a_captured_call_attends_to_the_same_numbers(support, data):
    call = call_of(data.draw(cases("anything", support, refuses=False)))
    with tempfile.TemporaryDirectory() as folder:
        step = tensors.build(case_file.load(capture(call, Path(folder, "call.json"))))
    assert step.layer.v_head_size == call.layer.v_head_size
    pairs = zip(oracle.requests(call), oracle.requests(step), strict=True)
    for live, again in pairs:
        assert (live.index, live.rows) == (again.index, again.rows)
        assert torch.equal(live.visible, again.visible)
        ours, theirs = attn_reference.attend(live, call.layer), attn_reference.attend(again, step.layer)
        assert torch.equal(ours.out, theirs.out)
        assert torch.equal(ours.lse, theirs.lse)
    if call.layer.output_scale is not None:
        assert step.layer.output_scale == call.layer.output_scale
    assert (call.batch.max_query_len, call.layer.window) == (step.batch.max_query_len, step.layer.window)


@pytest.fixture
def captured(step_case, tmp_path) -> Path:
    return capture(call_of(replace(step_case, values=replace(step_case.values, kind="random"))), tmp_path / "call.json")


def test_it_is_judged_like_any_case(captured):
    case = case_file.load(captured)
    assert try_case(case, REFERENCE_FP32, "cpu").kind == "agree"
    blind = dataclasses.replace(
        REFERENCE_FP32,
        attention=lambda q, k, v, kv_cache, layer, batch, *, out, lse: attn_reference.paged_attention(
            q, kv_cache, dataclasses.replace(layer, window=(0, 0)), batch, out=out, lse=lse
        ),
    )
    assert try_case(case, blind, "cpu").kind == "value"


def test_slots_without_keys_are_not_copied_and_hold_poison_again(captured, step_case):
    assert captures.load(case_file.load(captured))["k"].shape == (10, 1, 8)
    step = tensors.build(case_file.load(captured))
    assert step.raw is not None
    is_poison = step.raw.isnan()
    assert is_poison.sum() == step.raw.numel() - 10 * 2 * 8
    assert len(case_file.load(captured).requests[0].blocks) == 2


def test_blocks_that_a_window_has_left_may_be_one(step_case, tmp_path):
    """vLLM puts its null block there: twice in one request, with numbers of any request."""
    case = replace(
        step_case, window=(1, -1), requests=(replace(step_case.requests[0], query_len=1, seq_len=12, blocks=(2, 0, 1)),)
    )
    call = call_of(case)
    assert call.batch.block_table is not None
    call.batch.block_table[0, :2] = 3
    again = case_file.load(capture(call, tmp_path / "call.json"))
    assert again.requests[0].blocks == (0, 1, 2)
    call.batch.block_table[0, 1:] = 3
    window = dataclasses.replace(call.layer, window=(6, -1))
    with pytest.raises(CaptureError, match="a block twice in one request"):
        capture(dataclasses.replace(call, layer=window), tmp_path / "call.json")


def test_some_requests_are_captured_alone(step_case, tmp_path):
    again = case_file.load(capture(call_of(step_case), tmp_path / "one.json", requests=[1]))
    assert [request.seq_len for request in again.requests] == [3]
    assert again.cache is not None
    assert again.cache.num_blocks == 1
    with pytest.raises(CaptureError, match="2 requests"):
        capture(call_of(step_case), tmp_path / "none.json", requests=[2])


def test_a_call_that_no_case_can_represent_is_refused_by_name(step_case, tmp_path):
    call = call_of(step_case)
    with pytest.raises(CaptureError, match="scale: got 1e\\+18"):
        capture(dataclasses.replace(call, layer=dataclasses.replace(call.layer, scale=1e18)), tmp_path / "call.json")
    with pytest.raises(CaptureError, match="a name that ends in"):
        capture(call, tmp_path / "call")
    assert list(tmp_path.iterdir()) == []


def test_written_elsewhere_its_tensors_come_along(captured, tmp_path):
    case = case_file.load(captured)
    for folder in (tmp_path / "reports", tmp_path):
        path, script = report.write(case, Verdict(kind="agree"), folder, "failure")
        assert torch.equal(tensors.build(case_file.load(path)).q, tensors.build(case).q)
        assert "packed(" in script.read_text()


def test_a_call_that_attends_to_nan_is_no_failure_of_a_kernel(captured):
    held = captures.load(case_file.load(captured))
    held["v"][0] = torch.nan
    other_file(captured, safetensors.torch.save(held))
    with pytest.raises(CaseError, match="NaN or infinity in what a request attends to"):
        try_case(case_file.load(captured), REFERENCE_FP32, "cpu")


def test_it_is_not_shrunk(captured):
    assert list(lowered(case_file.load(captured), SUPPORT)) == []


def changed(path: Path, **values) -> Path:
    content = msgspec.json.decode(path.read_bytes())
    content["values"] |= values
    path.write_bytes(msgspec.json.encode({**content, "values": {k: v for k, v in content["values"].items() if v is not None}}))
    return path


@pytest.mark.parametrize(
    "file", ["../call.safetensors", "/etc/passwd", "a/call.safetensors", "call.pt", "c\\d.safetensors", "\x1b[2J.safetensors"]
)
def test_a_file_elsewhere_or_of_another_kind_is_refused(file, captured):
    with pytest.raises(CaseError, match="expected the plain name of a"):
        case_file.load(changed(captured, file=file))


@pytest.mark.parametrize("values", [{"file": None}, {"sha256": None}, {"kind": "random"}])
def test_a_file_without_its_hash_or_for_drawn_numbers_is_refused(values, captured):
    with pytest.raises(CaseError, match="a captured case has both, and no other one has"):
        case_file.load(changed(captured, **values))


def test_writes_of_a_captured_call_are_refused(captured):
    captured.write_text(captured.read_text().replace(' "writes": false,', ""))
    with pytest.raises(CaseError, match="off in a captured case"):
        case_file.load(captured)


def other_file(path: Path, data: bytes) -> Path:
    """A case whose file holds something else, the hash made right."""
    path.with_suffix(".safetensors").write_bytes(data)
    return changed(path, sha256=hashlib.sha256(data).hexdigest())


def test_another_file_is_refused(captured):
    held = captures.load(case_file.load(captured))
    file = captured.with_suffix(".safetensors")

    def refused(match: str) -> None:
        with pytest.raises(CaseError, match=match):
            tensors.build(case_file.load(captured))

    file.write_bytes(safetensors.torch.save({**held, "q": held["q"] + 1}))
    refused("is not the file that was captured")
    other_file(captured, safetensors.torch.save({**held, "q": held["q"].double()}))
    refused("q is torch.float64")
    other_file(captured, safetensors.torch.save({**held, "q": held["q"][1:].clone()}))
    refused(r"expected torch.float32 \(5, 1, 8\)")
    other_file(captured, safetensors.torch.save({"q": held["q"]}))
    refused("holds q, expected k, q, v")
    other_file(captured, b"PK\x03\x04" * 10)
    refused("is no safetensors file")
    whole = safetensors.torch.save(held)
    size = int.from_bytes(whole[:8], "little")
    twice = whole[8 : 8 + size].rstrip().replace(b'{"', b'{"q":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"', 1)
    other_file(captured, len(twice).to_bytes(8, "little") + twice + whole[8 + size :])
    refused("'q' is there twice")
    with file.open("wb") as sparse:
        sparse.truncate(1 << 40)
    refused(r"larger than \d+ bytes, expected the tensors of the case")
    file.unlink()
    refused("No such file")


def test_bits_of_every_dtype_survive(step_case, tmp_path):
    """NaN payloads too: K that no query sees may hold anything."""
    call = call_of(replace(step_case, dtype="bfloat16", recycled=True, window=(0, 0)))
    again = tensors.build(case_file.load(capture(call, tmp_path / "call.json")))
    assert torch.equal(bits(again.q), bits(call.q))


def test_a_corpus_with_a_damaged_capture_is_an_error_that_names_its_file(captured, attn_parity):
    """Other damages are refused likewise: see `test_another_file_is_refused`."""
    captured.with_suffix(".safetensors").unlink()
    run = attn_parity("fuzz", "--target", "reference-fp32", "--corpus", captured.parent, "--examples", 1, "--workers", 1)
    lines = [line for line in run.err.splitlines() if "a past case cannot be run: values." in line]
    assert (run.code, len(lines)) == (2, 1)
    assert f"{captured.with_suffix('.safetensors')}" in lines[0]
    assert "No such file or directory, expected the tensors of the case" in lines[0]
    assert "Traceback" not in run.err


def test_a_corpus_with_a_capture_of_nan_is_an_error_that_names_its_file(captured, attn_parity):
    held = captures.load(case_file.load(captured))
    other_file(captured, safetensors.torch.save({**held, "k": held["k"] * float("nan")}))
    run = attn_parity("fuzz", "--target", "reference-fp32", "--corpus", captured.parent, "--examples", 1, "--workers", 1)
    assert run.code == 2
    assert f"{captured.with_suffix('.safetensors')}: NaN or infinity in what a request attends to" in run.err
    assert "Traceback" not in run.err


def test_a_database_takes_no_captured_call(captured, tmp_path):
    case, failures = case_file.load(captured), database.connect(str(tmp_path / "failures"))
    with pytest.raises(DatabaseError, match="a database holds no tensors"):
        database.save(failures, b"key", case)
    failures.save(b"key", case_file.dumps(case).encode())
    cases, (reason,) = database.fetch(failures, b"key")
    assert cases == {}
    assert "a captured call" in reason


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="writes to /dev/full")
@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_capture_on_a_full_disk_leaves_no_cut_file(suffix, full_for, step_case, tmp_path):
    full_for(f"call{suffix}")
    with pytest.raises(OSError, match=f"No space left on device: .*call{suffix}"):
        capture(call_of(step_case), tmp_path / "call.json")
    assert not (tmp_path / f"call{suffix}").exists()
    assert not (tmp_path / "call.json").exists()


def test_a_captured_call_of_a_corpus_runs_with_the_sizes_that_it_has(captured, attn_parity):
    run = attn_parity("fuzz", "--target", "reference-fp32", "--corpus", captured.parent, "--examples", 1, "--workers", 1)
    assert run.code == 0, run.err
    assert re.search(r"\b1 past case,", run.out)


def test_a_captured_call_is_replayed_and_shown_with_the_sizes_that_it_has(step_case, tmp_path, attn_parity):
    case = replace(step_case, head_size=24, values=replace(step_case.values, kind="random"))
    assert "head_size 24" in REFERENCE_FP32.support("cpu").not_drawn(case)
    capture(call_of(case), tmp_path / "call.json", target="reference-fp32")
    for command in ("replay", "show"):
        run = attn_parity(command, "call.json")
        assert run.code == 0, run.err
        assert "agree" in run.out


DAMAGES = {
    "cut": lambda data, rng: data[: rng.randrange(len(data))],
    "a byte": lambda data, rng: (
        data[: (at := rng.randrange(len(data)))] + bytes([data[at] ^ rng.randrange(1, 256)]) + data[at + 1 :]
    ),
    "a header of any length": lambda data, rng: rng.randbytes(8) + data[8:],
    "a deep header": lambda data, rng: (len(deep := b"[" * 100_000)).to_bytes(8, "little") + deep,
    "a header that is no JSON": lambda data, rng: data[:8] + data[8:].replace(b'"', b"\xff", 1),
    "offsets beyond the file": lambda data, rng: data.replace(b'"data_offsets":[0,', b'"data_offsets":[9,', 1),
    "another dtype": lambda data, rng: data.replace(b'"F32"', b'"F99"', 1),
    "nothing": lambda data, rng: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_whose_hash_was_made_to_fit_is_refused(damage, captured):
    """Whoever damages the tensors on purpose can write their hash, too. A flipped byte of a number is another number."""
    whole, case = captured.with_suffix(".safetensors").read_bytes(), case_file.load(captured)
    for seed in range(20):
        data = DAMAGES[damage](whole, random.Random(seed))
        captured.with_suffix(".safetensors").write_bytes(data)
        damaged = replace(case, values=replace(case.values, sha256=hashlib.sha256(data).hexdigest()))
        with contextlib.suppress(CaseError) if damage == "a byte" else pytest.raises(CaseError, match="values"):
            tensors.build(damaged)
