"""Attention in somebody's running program: every call of tiny models' generate() is judged, one is captured and run again."""

import dataclasses
import shutil
import subprocess
import sys
import warnings

import attn_fuzz
import attn_optimized
import attn_reference
import pytest
import torch
from attn_contract import ContractError
from attn_fuzz.cases import captures, case_file
from attn_fuzz.targets import Rounding
from attn_fuzz.verdict import live

ops = torch.ops.attn_parity
BLOCK_SIZE, LAYOUT = 4, "BLOCKS_FIRST_NHD"
SUSPECT = """
import dataclasses

import attn_reference
from attn_fuzz.targets import Rounding, Target
from attn_fuzz.targets.support import EVERYTHING

right = attn_reference.paged_attention


def paged_attention(q, kv_cache, layer, batch, **options):
    if batch.max_query_len == 1:
        layer = dataclasses.replace(layer, sinks=None)
    return right(q, kv_cache, layer, batch, **options)


TARGET = Target(
    name="suspect",
    description="loses the sinks where each request has one query",
    attention=lambda q, k, v, kv_cache, layer, batch, *, out, lse: paged_attention(q, kv_cache, layer, batch, out=out, lse=lse),
    support=lambda device: EVERYTHING,
    rounding=lambda device: Rounding(keys_per_tile=1024),
)
"""


def int32(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def attention(module, query, key, value, attention_mask, scaling, sliding_window=None, s_aux=None, **_):
    """Arguments of transformers, [B, heads, tokens, D]: paged, one request per row, but for an encoder's own tokens."""
    requests, num_kv_heads, seq_len, head_size = key.shape
    query_len = query.shape[2]
    is_encoder = getattr(module, "is_decoder", True) is False
    is_cross = not is_encoder and not module.is_causal
    q, k, v = (x.transpose(1, 2).flatten(0, 1).contiguous() for x in (query, key, value))
    out = torch.empty_like(q)
    step = {
        "query_start_loc": int32([r * query_len for r in range(requests + 1)]),
        "seq_lens": int32([seq_len] * requests),
        "max_query_len": query_len,
        "max_seq_len": seq_len,
        "num_actual_tokens": requests * query_len,
    }
    if is_encoder:
        ops.varlen_attention(q, k, v, scale=scaling, attn_type="encoder", **step, out=out, lse=None)
        return out.unflatten(0, (requests, query_len)), None
    blocks = torch.arange(requests * -(-seq_len // BLOCK_SIZE)).view(requests, -1)
    kv_cache = torch.full((blocks.numel(), 2, BLOCK_SIZE, num_kv_heads, head_size), torch.nan)
    slots = blocks.repeat_interleave(BLOCK_SIZE, 1) * BLOCK_SIZE + torch.arange(blocks.shape[1] * BLOCK_SIZE) % BLOCK_SIZE
    ops.write_kv_cache(k, v, kv_cache, LAYOUT, slots[:, :seq_len].reshape(-1).clone())
    ops.paged_attention(
        q, kv_cache, LAYOUT, num_kv_heads, scaling, "encoder_decoder" if is_cross else "decoder", **step,
        block_table=blocks.int(), causal=not is_cross, causal_per_request=None, out=out, lse=None, sinks=s_aux,
        window=[-1 if sliding_window is None else sliding_window - 1, -1],
    )  # fmt: skip
    return out.unflatten(0, (requests, query_len)), None


@pytest.fixture
def transformers():
    module = pytest.importorskip("transformers")
    module.AttentionInterface.register("paged_here", attention)
    return module


SMALL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}


@pytest.fixture
def gpt_oss(transformers):
    torch.manual_seed(0)
    config = transformers.GptOssConfig(
        num_hidden_layers=2,
        hidden_size=32,
        intermediate_size=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=2,
        num_experts_per_tok=1,
        vocab_size=64,
        sliding_window=4,
        attn_implementation="eager",
        experts_implementation="eager",
        **SMALL,
    )
    model = transformers.GptOssForCausalLM(config).eval()
    for layer in model.model.layers:
        layer.self_attn.sinks.data.normal_()
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            projection.weight.data.mul_(20)  # a random model's attention is a mean: no rule would show
    model.set_attn_implementation("paged_here")
    return model


@torch.no_grad()
def tokens(model) -> list:
    prompt = torch.arange(2, 9)[None].repeat(2, 1)
    prompt[1] += 20
    mask = torch.ones_like(prompt)
    return model.generate(prompt, attention_mask=mask, max_new_tokens=8, min_new_tokens=8, do_sample=False).tolist()


@pytest.mark.nightly
def test_every_call_of_gpt_oss_is_right(gpt_oss, tmp_path, attn_parity):
    """Sinks in every layer, a window in every other; one call is captured and agrees on the command line."""
    with attn_fuzz.recording(tmp_path / "calls", captures="all", limit=1) as recording:
        paged = tokens(gpt_oss)
    assert (recording.calls, recording.judged, recording.wrong) == (16, 16, 0)
    assert 0 < recording.ratio < 1
    assert recording.statistical_ratio < 1
    assert [(found.function, found.error) for found in recording.found] == [("attn_reference.paged_attention", None)]
    gpt_oss.set_attn_implementation("eager")
    assert tokens(gpt_oss) == paged
    ended = attn_parity("replay", recording.found[0].case, "--target", "triton")
    assert ended.code == 0, ended.out + ended.err
    assert "agree" in ended.out


def test_a_bug_in_a_models_attention_is_found_captured_and_replayed(gpt_oss, tmp_path, attn_parity, monkeypatch):
    (tmp_path / "suspect.py").write_text(SUSPECT)
    monkeypatch.syspath_prepend(tmp_path)
    import suspect  # pyright: ignore[reportMissingImports]

    monkeypatch.setattr(attn_reference, "paged_attention", suspect.paged_attention)
    with attn_fuzz.recording(tmp_path / "calls", limit=2) as recording:
        tokens(gpt_oss)
    monkeypatch.undo()
    sys.modules.pop("suspect")
    assert recording.calls == 16
    assert recording.wrong >= 10, "in a call or two the sinks weigh nothing"
    assert all(found.index >= 2 for found in recording.found), "the prefill of both layers is right"
    judgement = recording.found[0].judgement
    assert judgement is not None
    assert [worst.request for worst in judgement.differences] == [0, 1]
    with pytest.raises(attn_fuzz.DisagreementError, match=r"out of request 0 at row 0[^\n]*\nout of request 1 at row 1"):
        judgement.raise_for_differences()
    case = recording.found[0].case
    monkeypatch.chdir(tmp_path)
    wrong, right = attn_parity("replay", case, "--target", "suspect:TARGET"), attn_parity("replay", case)
    assert (wrong.code, right.code) == (1, 0), wrong.err + right.err
    assert "value" in wrong.out


@pytest.fixture
def call() -> attn_fuzz.Call:
    from attn_contract import Batch, Layer, Layout

    torch.manual_seed(0)
    layer = Layer(num_heads=4, num_kv_heads=2, head_size=16, scale=0.25, layout=Layout.BLOCKS_FIRST_NHD)
    batch = Batch(
        query_start_loc=int32([0, 3, 4]),
        seq_lens=int32([11, 9]),
        max_query_len=3,
        max_seq_len=11,
        num_actual_tokens=4,
        causal=True,
        block_table=int32([[5, 2, 7], [0, 3, 6]]),
    )
    return attn_fuzz.Call(q=torch.randn(4, 4, 16), layer=layer, batch=batch, kv_cache=torch.randn(8, 2, 4, 2, 16))


def answer(call: attn_fuzz.Call, **changes) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse = torch.zeros_like(call.q), torch.zeros(4, 4)
    layer = dataclasses.replace(call.layer, **changes)
    attn_reference.paged_attention(call.q, call.kv_cache, layer, call.batch, out=out, lse=lse)
    return out, lse


def test_check_agrees_with_what_is_right_and_names_what_is_not(call):
    out, lse = answer(call)
    judgement = attn_fuzz.check(call, out.flatten(1), lse)
    judgement.raise_for_differences()
    assert (judgement.agrees, judgement.message) == (True, "")
    lse[2, 3] += 1e-3
    judgement = attn_fuzz.check(call, out, lse)
    assert (judgement.kind, len(judgement.differences)) == ("lse", 1)
    assert judgement.message.startswith("lse of request 1 at row 3, head 2: got ")
    assert attn_fuzz.check(call, out).agrees
    assert not attn_fuzz.check(call, *answer(call, window=(5, -1))).agrees


def test_check_allows_more_to_a_kernel_of_which_less_is_known(call):
    """An error that no kernel of one tile and one split makes, and one of many splits might."""
    call.q.zero_()
    out, lse = answer(call)
    strict = attn_fuzz.Rounding(keys_per_tile=16)
    wrong = lse + 0.9 * 2 * 64 * 2**-24
    with pytest.warns(RuntimeWarning, match=r"check: the outputs agree, but an error is .* times the statistical bound"):
        judgement = attn_fuzz.check(call, out, wrong)
    assert judgement.agrees
    assert judgement.statistical_ratio is not None
    assert judgement.statistical_ratio > 1 > judgement.ratio
    assert not attn_fuzz.check(call, out, wrong, rounding=strict).agrees


def test_a_recording_warns_of_its_first_call_beyond_the_statistical_bound(call, tmp_path):
    call.q.zero_()
    out, lse = answer(call)
    with attn_fuzz.recording(tmp_path) as recording:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            recording.see(call, out, lse)
        with pytest.warns(RuntimeWarning, match=r"recording: call 1 \(mine\): the outputs agree, but"):
            recording.see(call, out, lse + 0.9 * 2 * 64 * 2**-24, function="mine")
    assert (recording.judged, recording.wrong, recording.unlikely) == (2, 0, 1)


def test_check_refuses_what_it_can_say_nothing_about(call):
    out, lse = answer(call)
    with pytest.raises(ContractError, match=r"out: got shape \(3, 4, 16\)"):
        attn_fuzz.check(call, out[:3])
    with pytest.raises(ContractError, match="lse"):
        attn_fuzz.check(call, out, lse.T[:3])
    for no_output in (
        None,
        out.numpy(),
        out.double(),
        out.half(),
        out.to(torch.float8_e4m3fn),
        out.to("meta"),
        out.to_sparse(),
    ):
        with pytest.raises(ContractError, match=r"^out: got .*, expected "):
            attn_fuzz.check(call, no_output)
    for no_lse in (1.0, lse.double(), lse.to("meta")):
        with pytest.raises(ContractError, match=r"^lse: got .*, expected "):
            attn_fuzz.check(call, out, no_lse)
    for no_query in (None, call.q.flatten(1), call.q[0, 0, 0]):
        with pytest.raises(ContractError, match=r"^q: got .*, expected "):
            dataclasses.replace(call, q=no_query)
    call.q[3, 0, 0] = torch.nan
    with pytest.raises(ContractError, match="NaN or infinity in what request 1 attends to"):
        attn_fuzz.check(call, out)
    with pytest.raises(ContractError, match="kv_cache"):
        dataclasses.replace(call, kv_cache=None)


def test_a_recording_sees_every_so_manieth_call_of_a_kernel_of_ones_own(call, tmp_path):
    right, wrong = answer(call)[0], answer(call, window=(5, -1))[0]
    with attn_fuzz.recording(tmp_path, every=2) as recording:
        for out in (right, wrong, wrong, right):
            recording.see(call, out, function="mine")
    assert (recording.calls, recording.judged, recording.wrong) == (4, 2, 1)
    assert [(found.index, found.function) for found in recording.found] == [(2, "mine")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["call-2.json", "call-2.safetensors"]
    with pytest.raises(ValueError, match="every=0"), attn_fuzz.recording(tmp_path, every=0):
        pass


def test_a_recording_leaves_no_trace_and_does_not_end_the_program_that_it_watches(call, tmp_path):
    functions = [
        (module, name) for module in (attn_reference, attn_optimized) for name in ("paged_attention", "varlen_attention")
    ]
    before = [getattr(*function) for function in functions]
    call.q[0, 0, 0] = torch.nan
    none = "NO CALL WAS JUDGED: 1 could not be, the first because of: "
    with attn_fuzz.recording(tmp_path, most=0):
        assert all(getattr(*function) is not own for function, own in zip(functions, before, strict=True))
    with pytest.warns(UserWarning, match=f"{none}q, k, v: got NaN"), attn_fuzz.recording(tmp_path) as recording:
        answer(call)
    assert [getattr(*function) for function in functions] == before
    assert [found.error is not None and "NaN or infinity" in found.error for found in recording.found] == [True]
    assert recording.wrong == 0
    call.q[0, 0, 0] = 0.0
    (tmp_path / "folder").mkdir()
    with attn_fuzz.recording(tmp_path / "folder" / "calls") as recording:
        shutil.rmtree(tmp_path / "folder")
        (tmp_path / "folder").touch()
        recording.see(call, torch.ones_like(call.q))
    assert recording.wrong == 1
    assert [found.case for found in recording.found] == [None]
    assert "Not a directory" in (recording.found[0].error or "")
    with pytest.warns(UserWarning, match=f"{none}out: got"), attn_fuzz.recording(tmp_path) as recording:
        recording.see(call, torch.ones_like(call.q).double())
    assert recording.found[0].error == "out: got torch.float64, expected torch.float32"
    assert (recording.judged, recording.not_judged) == (0, {"out: got torch.float64, expected torch.float32": 1})


def test_a_recording_that_sees_no_call_says_so(tmp_path):
    nothing = "NO CALL WAS JUDGED: attn_reference and attn_optimized were not called"
    with pytest.warns(UserWarning, match=nothing) as caught, attn_fuzz.recording(tmp_path):
        pass
    assert [warning.filename for warning in caught] == [__file__]


def test_a_recording_keeps_the_files_of_earlier_ones(call, tmp_path):
    """Each case replays with its own tensors, whoever recorded into the folder before, and a name half taken is not taken."""
    (tmp_path / "call-0-2.json").write_text("mine")
    (tmp_path / "call-0-3.safetensors").write_text("mine")
    recorded = []
    for scale in (1.0, 2.0):
        with attn_fuzz.recording(tmp_path) as recording:
            recording.see(call, torch.full_like(call.q, 100.0))
        recorded.append((recording.found[0].case, (call.q * 1).clone()))
        call.q.mul_(scale + 1)
    assert [case.name for case, _ in recorded] == ["call-0.json", "call-0-4.json"]
    for case, q in recorded:
        assert torch.equal(captures.load(case_file.load(case))["q"], q)
    assert (tmp_path / "call-0-2.json").read_text() == (tmp_path / "call-0-3.safetensors").read_text() == "mine"


def test_a_call_that_no_case_can_hold_leaves_no_file(call, tmp_path, monkeypatch):
    def refuse(call, path, **options):
        path.with_suffix(".safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(live, "capture", refuse)
    with attn_fuzz.recording(tmp_path) as recording:
        recording.see(call, torch.full_like(call.q, 100.0))
    assert "No space left" in (recording.found[0].error or "")
    assert not [*tmp_path.iterdir()]


def test_calls_that_cannot_be_judged_leave_room_for_wrong_ones(call, tmp_path):
    """A server may make calls of both kinds for weeks: what is kept of each is bounded."""
    with attn_fuzz.recording(tmp_path, limit=1, most=2) as recording:
        for number in range(40):
            recording.pass_over(f"reason {number}")
        for out in (torch.ones_like(call.q).double(), torch.ones_like(call.q).double(), *[torch.ones_like(call.q)] * 3):
            recording.see(call, out)
    assert (recording.calls, recording.judged, recording.wrong) == (5, 2, 2)
    assert [(found.index, found.judgement is None) for found in recording.found] == [(0, True), (2, False)]
    assert len(recording.not_judged) == 33
    assert sum(recording.not_judged.values()) == 42
    assert recording.not_judged["other reasons"] == 10
    with pytest.raises(ValueError, match="most=-1"), attn_fuzz.recording(tmp_path, most=-1):
        pass


def test_importing_the_package_imports_nothing_else():
    """The command line starts fast, and bugs are put back into kernels before those are imported."""
    code = (
        "import sys, attn_fuzz; print([n for n in ('torch', 'triton', 'attn_optimized', 'attn_reference') if n in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"
    assert set(attn_fuzz.__all__) == {name for name in attn_fuzz.__all__ if getattr(attn_fuzz, name)}
    with pytest.raises(AttributeError, match="no attribute 'chek'"):
        _ = attn_fuzz.chek


@pytest.mark.parametrize("folder", ["/etc/passwd", "/etc/passwd/calls", "/proc/self/status/calls"])
def test_a_recording_into_no_folder_is_refused_before_the_calls(folder):
    with pytest.raises(ValueError, match=f"got folder='{folder}', expected a folder"), attn_fuzz.recording(folder):
        pass


@pytest.mark.parametrize("value", [float("nan"), 1.5, 0, True, "16", None])
@pytest.mark.parametrize("name", ["keys_per_tile", "splits", "merged_parts"])
def test_a_rounding_that_is_no_number_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}, expected an int of at least 1"):
        Rounding(**{"keys_per_tile": 16, name: value})


@pytest.mark.parametrize("value", [float("nan"), 1.5, -1, True, "16", None])
def test_a_number_of_narrow_sums_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match="narrow_sums, expected an int of at least 0"):
        Rounding(keys_per_tile=16, narrow_sums=value)


def test_a_verdict_of_somebody_else_is_counted(tmp_path):
    recording = attn_fuzz.Recording(tmp_path, limit=1)
    for wrong in (None, "unit 3 is selected twice", "unit 4 is selected twice"):
        recording.is_due()
        recording.note(wrong, function="an index layer")
    assert (recording.calls, recording.judged, recording.wrong) == (3, 3, 2)
    assert [(found.index, found.function, found.wrong, found.case) for found in recording.found] == [
        (1, "an index layer", "unit 3 is selected twice", None)
    ]


def test_a_judgement_of_a_live_call_keeps_no_keys(call):
    """A recording keeps judgements: what they hold, a server holds."""
    assert attn_fuzz.check(call, attn_reference.paged_attention(call.q, call.kv_cache, call.layer, call.batch)).compared == ()
