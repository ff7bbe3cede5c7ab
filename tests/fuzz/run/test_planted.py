"""A wrong kernel is a failure of the kernel: found, named, made small, written down, and never the end of the fuzzer."""

import dataclasses
import json

import msgspec
import planted
import pytest
from attn_fuzz import report
from attn_fuzz.cases import case_file
from attn_fuzz.cases.case import Rope
from attn_fuzz.run.case.trial import try_case
from attn_fuzz.run.processes.executor import Executor
from attn_fuzz.run.shard import Progress
from attn_fuzz.targets import registry
from attn_fuzz.targets.reference import REFERENCE_FP32
from attn_fuzz.targets.support import Support
from attn_fuzz.targets.target import RopeFunction
from attn_fuzz.verdict.verdict import Verdict, what_failed

from tests.support import processes
from tests.support.mostly_nightly import mostly_nightly

KINDS = {
    "NAN": {"nan"},
    "LSE_IN_BASE_2": {"lse"},
    "UNOWNED_LSE": {"guard"},
    "CHANGES_Q": {"input"},
    "RAISES": {"raised"},
    "LAST_ROW_UNWRITTEN": {"unwritten"},
    "ONE_KEY_SHORT": {"value", "lse"},
    "WRITE_AND_MORE": {"cache"},
    "ROTATES_ONLY_WHAT_IS_WRITTEN": {"rope"},
}
"""One fault of each kind, which is made small and written as a script in a way of its own. That faults are found: the zoo."""


@pytest.fixture(scope="module", params=KINDS)
def fuzzed(request, fuzz_in, tmp_path_factory) -> tuple[str, Progress]:
    """The name of a planted fault, and how its fuzzing ended: once for all tests that ask."""
    # seed 1 begins with larger cases, and takes three times as long
    progress, _ = fuzz_in(tmp_path_factory.mktemp(request.param), f"planted:{request.param}", examples=600, seed=2)
    return request.param, progress


def test_a_planted_fault_is_found_and_made_small(fuzzed):
    name, progress = fuzzed
    failure = progress.failure
    assert failure is not None, f"survived {progress.examples} examples"
    assert failure.first_verdict.kind in KINDS[name]
    assert what_failed(failure.verdict) == what_failed(failure.first_verdict)
    assert failure.minimal
    assert len(failure.case.requests) <= 2
    assert "\n" not in failure.verdict.message


def test_the_script_of_a_failure_fails_until_the_kernel_is_repaired(fuzzed, script_ends, tmp_path, monkeypatch):
    _, progress = fuzzed
    assert progress.failure is not None
    _, script = report.write(progress.failure.case, progress.failure.verdict, tmp_path, "failure")
    assert script_ends(script) == 1
    monkeypatch.setenv("PLANTED_REPAIRED", "1")
    assert script_ends(script) == 0


@pytest.mark.parametrize("seed", mostly_nightly(range(2), [0]))
def test_the_script_of_any_wrong_case_passes_a_kernel_that_only_rounds(
    seed, fuzz_here, script_ends, tmp_path, monkeypatch, capsys
):
    """On cases as they are drawn, in which elements have very different bounds: each is compared with its own."""
    target = registry.load("planted:FLASH_ONE_KEY_SHORT")
    _, drawn = fuzz_here("planted:FLASH", seed=seed, examples=12)
    failing = [(case, verdict) for case in drawn if (verdict := try_case(case, target, "cpu")).failed]
    assert failing
    for case, verdict in failing:
        case = msgspec.structs.replace(case, target="planted:FLASH_ONE_KEY_SHORT")
        _, script = report.write(case, verdict, tmp_path, "failure")
        assert script_ends(script) == 1
        with monkeypatch.context() as repaired:
            repaired.setenv("PLANTED_REPAIRED", "1")
            assert script_ends(script) == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "kinds"), [("ONE_KEY_SHORT", {"value", "lse"}), pytest.param("SEGFAULTS", {"crashed"}, marks=pytest.mark.nightly)]
)
def test_from_the_command_line_to_the_repaired_kernel(name, kinds, attn_parity, tmp_path, child_environment):
    run = attn_parity(
        *("fuzz", "--target", f"planted:{name}", "--examples", 40, "--seed", 1, "--workers", 1, "--json", "run.json"),
        *("--corpus", "none"),
    )
    assert run.code == 1, run.err
    result = json.loads((tmp_path / "run.json").read_text())
    failure = next(each for each in result["failures"] if each["kind"] in kinds)
    assert failure["minimal"]
    assert f"{failure['kind']}: {failure['message']}"[:60] in run.out
    assert case_file.load(tmp_path / failure["case_file"]).target == f"planted:{name}"
    assert not list(tmp_path.rglob("in-flight*"))

    path = failure["case_file"]
    wrong, right = (attn_parity("replay", path, "--target", each) for each in (f"planted:{name}", "reference-fp32"))
    assert (wrong.code, right.code) == (1, 0)
    assert wrong.out.startswith(f"{path}: {failure['kind']}, target {result['target']} on ")
    assert right.out.startswith(f"{path}: agree, target reference-fp32 on ")

    def script(**more: str) -> int:
        return processes.run([failure["script"]], cwd=tmp_path, env=child_environment | more).returncode

    assert script() != 0
    assert script(PLANTED_REPAIRED="1") == 0


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("HANGS", "hung", "no answer in 0.5 s"),
        ("HANGS_EMULATED", "limit", "no answer in 0.5 s"),
        ("SEGFAULTS", "crashed", "SIGSEGV"),
        ("EXITS", "crashed", "code 3"),
    ],
)
def test_a_process_that_dies_or_hangs_is_a_verdict_and_the_next_case_gets_a_new_one(name, kind, message, step_case, tmp_path):
    ahead = tmp_path / "ahead.json"
    harmless = case_file.loads(
        '{"schema": "attn-parity.case/2", "target": "t", "cache": {"layout": "KV_FIRST_NHD", "block_size": 4, "num_blocks": 1}}'
    )
    with Executor(f"planted:{name}", "cpu", 60.0, ahead) as executor:
        assert executor.run(harmless).kind == "agree"
        executor.case_seconds = 0.5
        verdict = executor.run(step_case)
        assert verdict.kind == kind
        assert message in verdict.message
        assert case_file.load(ahead) == step_case
        executor.case_seconds = 60.0
        assert executor.run(harmless).kind == "agree"
    assert not ahead.exists()


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("RAISES_UNPRINTABLY", "raised", "UnprintableError: (its message cannot be printed)"),
        ("RAISES_SURROGATES", "raised", "RuntimeError: ??[31m"),
        ("INTERRUPTS", "raised", "KeyboardInterrupt: "),
        ("OTHER_MEMORY", "unwritten", "out of request 0"),
    ],
)
def test_a_hostile_kernel_is_a_verdict(name, kind, message, step_case, tmp_path):
    with Executor(f"planted:{name}", "cpu", 60.0, tmp_path / "ahead.json") as executor:
        for _ in range(2):
            verdict = executor.run(step_case)
            assert verdict.kind == kind
            assert verdict.message.startswith(message)


@pytest.mark.parametrize("name", ["SETS_STATE", "FORKS"])
def test_changes_that_a_kernel_makes_to_its_process_touch_no_other_case(name, step_case, tmp_path, capfd):
    with Executor(f"planted:{name}", "cpu", 60.0, tmp_path / "ahead.json") as executor:
        assert [executor.run(step_case).kind for _ in range(3)] == ["agree"] * 3
    assert "kernels print" not in capfd.readouterr().out, "standard output is for results"


def test_a_refusal_counts_only_if_nothing_was_touched(fuzz_here):
    progress, _ = fuzz_here("planted:REFUSES_IN_TIME", examples=60)
    assert progress.failure is None
    assert progress.refused > 0
    progress, _ = fuzz_here("planted:REFUSES_TOO_LATE")
    assert progress.failure is not None
    assert progress.failure.verdict.kind in ("input", "rope")  # where q is rotated, a check of its own compares q


def test_cases_that_a_target_excludes_are_drawn_only_if_it_promises_to_refuse_them(fuzz_here):
    progress, cases = fuzz_here("planted:NO_NARROW_SINKS", examples=15)
    assert progress.failure is None
    assert cases
    assert not any(case.narrow_sinks for case in cases)


def test_only_who_promises_to_refuse_is_blamed_for_not_refusing(step_case):
    """A replay may ask a target for what it does not support, and what comes out is wrong all the same."""
    asked = msgspec.structs.replace(step_case, sinks="near")
    for refuses, kind, told in (
        (True, "served", "sinks is beyond its support and must be refused"),
        (False, "value", "sinks is beyond its support: out of request 0"),
    ):
        target = dataclasses.replace(planted.NO_SINKS, support=lambda device: _without("sinks"), refuses=refuses)
        verdict = try_case(asked, target, "cpu")
        assert verdict.kind == kind
        assert verdict.message.startswith(told)


def test_a_case_that_must_be_refused_may_not_be_served_rightly_either(step_case):
    asked = msgspec.structs.replace(step_case, sinks="near")
    right = dataclasses.replace(REFERENCE_FP32, support=lambda device: _without("sinks"))
    assert try_case(asked, right, "cpu").kind == "served"
    assert try_case(asked, dataclasses.replace(right, refuses=False), "cpu").kind == "agree"


def test_a_step_without_requests_may_be_served_whatever_its_flag(step_case):
    """A shrink came to such a step, and was shown as a failure of a target that serves causal steps alone."""
    only_causal = dataclasses.replace(REFERENCE_FP32, support=lambda device: _without("non_causal"))
    asked = {
        "none": msgspec.structs.replace(step_case, requests=()),
        "one": msgspec.structs.replace(step_case, requests=(msgspec.structs.replace(step_case.requests[0], causal=False),)),
    }
    assert {name: try_case(case, only_causal, "cpu").kind for name, case in asked.items()} == {"none": "agree", "one": "served"}
    # a cache that the target does not read is refused without requests, too
    quantized = msgspec.structs.replace(asked["none"].cache, dtype="fp8_e4m3fn", scales="tensor")
    without_float8 = dataclasses.replace(
        only_causal, support=lambda device: dataclasses.replace(planted.SMALL, cache_dtypes=(), scales=())
    )
    assert try_case(msgspec.structs.replace(asked["none"], cache=quantized), without_float8, "cpu").kind == "served"


def test_a_rotation_by_the_reference_is_not_beyond_a_target_that_only_attends(step_case):
    asked = msgspec.structs.replace(step_case, rope=Rope(rotary_dim=4))
    rotates = dataclasses.replace(REFERENCE_FP32, support=lambda device: _without("rope"))
    assert try_case(asked, rotates, "cpu").kind == "served"
    only_attends = dataclasses.replace(rotates, write_kv_cache=None, rope_and_write_kv_cache=None)
    assert try_case(asked, only_attends, "cpu").kind == "agree"


def test_the_scale_of_a_head_that_is_alone_is_that_of_the_tensor(step_case):
    support = dataclasses.replace(planted.SMALL, scales=("tensor",))
    cache = msgspec.structs.replace(step_case.cache, dtype="fp8_e4m3fn", scales="head")
    alone = msgspec.structs.replace(step_case, num_kv_heads=1, cache=cache)
    assert support.beyond(alone) is None
    assert support.beyond(msgspec.structs.replace(alone, num_kv_heads=2)) == "a scale of the cache for each head"


def _without(rule: str) -> Support:
    return dataclasses.replace(planted.SMALL, rules=tuple(name for name in planted.SMALL.rules if name != rule))


def _rotates(count: int) -> RopeFunction:
    """A rotation of the first `count` rows of q, whatever rows have positions. A row without one is rotated to the last one."""

    def rotates(q, k, v, positions, cos_sin_cache, kv_cache, layer, slot_mapping, *, is_neox):
        own = q.clone()
        every = positions.new_full((len(q),), len(cos_sin_cache) - 1)
        every[: len(positions)] = positions
        REFERENCE_FP32.rope_and_write_kv_cache(q, k, v, every, cos_sin_cache, kv_cache, layer, slot_mapping, is_neox=is_neox)
        q[count:] = own[count:]

    return rotates


PADDED = {"unowned_rows": 2, "rows_past": 2}


@pytest.mark.parametrize("all_rows", [False, True])
@pytest.mark.parametrize("fused_qkv", [False, True])
def test_which_rows_of_no_request_are_rotated_is_seen(step_case, all_rows, fused_qkv):
    case = msgspec.structs.replace(step_case, **PADDED, fused_qkv=fused_qkv, rope=Rope(rotary_dim=4, all_rows=all_rows))
    owned, counted, given = case.query_start_loc[-1], case.num_actual_tokens, case.num_rows
    right = given if all_rows else counted

    def verdict(count: int) -> Verdict:
        return try_case(case, dataclasses.replace(REFERENCE_FP32, rope_and_write_kv_cache=_rotates(count)), "cpu")

    assert verdict(right).kind == "agree"
    wrong = [verdict(count) for count in {owned, owned + 1, counted, given} - {right}]
    assert {(one.kind, one.about) for one in wrong} == {("rope", "q")}


def test_a_write_past_the_rows_of_one_tensor_that_is_rotated_in_place_is_seen(step_case):
    """q, k and v are slices of one tensor, and q's part of it is written."""

    def rotates(q, *arguments, is_neox):
        REFERENCE_FP32.rope_and_write_kv_cache(q, *arguments, is_neox=is_neox)
        q.as_strided((1,), (1,), q.storage_offset() + len(q) * q.stride(0))[0] = 0

    case = msgspec.structs.replace(step_case, fused_qkv=True, rope=Rope(rotary_dim=4))
    target = dataclasses.replace(REFERENCE_FP32, rope_and_write_kv_cache=rotates)
    assert try_case(case, target, "cpu").kind == "guard"


def test_a_failure_of_what_a_target_keeps_says_so_and_is_not_explained_by_another_case(attn_parity):
    run = attn_parity("fuzz", "--target", "planted_state:NEVER_FORGETS", "--examples", 40, "--seed", 1, "--corpus", "none")
    assert run.code == 1
    assert "this case agrees in a new process: " in run.out
    assert "Target.forget" in run.out
    assert "wrong in " not in run.out
    assert "explanation" not in run.out
