"""`pytest --attn-target` in somebody's folder: what is collected, what fails and how that is told."""

import re
import subprocess
import sys

import pytest

from tests.support import processes

# a process of tests.support.processes has imported the package of the plugin
OPTIONS = ("-p", "no:cacheprovider", "-W", "ignore:Module already imported so cannot be rewritten")
KERNEL = """
import attn_reference
from attn_contract import AttentionType, Layout
from attn_fuzz.targets import Rounding, Support, Target


def attention(q, k, v, kv_cache, layer, batch, *, out, lse):
    attn_reference.paged_attention(q, kv_cache, layer, batch, out=out, lse=lse)
    out[:1] += 1


TARGET = Target(
    name="wrong",
    description="one row is wrong",
    attention=attention,
    support=lambda device: Support(
        attn_types=(AttentionType.DECODER,),
        dtypes=("float32",),
        layouts=(Layout.BLOCKS_FIRST_NHD, Layout.KV_FIRST_NHD),
        rules=("non_causal", "window", "sinks"),
    ),
    rounding=lambda device: Rounding(keys_per_tile=64),
    refuses=False,
)
"""


@pytest.fixture
def run_pytest(tmp_path, child_environment):
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return processes.run(["-m", "pytest", *OPTIONS, *arguments], cwd=tmp_path, env=child_environment)

    return run


def test_a_folder_without_tests_is_enough(run_pytest, tmp_path):
    (tmp_path / "my_kernel.py").write_text(KERNEL)
    ended = run_pytest("-v", "--attn-target=my_kernel:TARGET", "--attn-target=missing:TARGET", "--attn-examples=20")
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "collected 4 items" in ended.stdout
    assert "my_kernel:TARGET::declarations PASSED" in ended.stdout
    assert "my_kernel:TARGET::cases[0] FAILED" in ended.stdout
    assert "value: out of request 0 at row 0, head 0, dim 0: got " in ended.stdout
    assert "wrong in out: " in ended.stdout
    for item in ("past", "cases-0"):
        name = f"my_kernel-TARGET-0-{item}"
        assert f"case: attn-parity-runs/{name}.json   script: attn-parity-runs/{name}.py" in ended.stdout
        assert f"as it was found: attn-parity-runs/{name}-first.json" in ended.stdout
        assert {path.name for path in (tmp_path / "attn-parity-runs").glob(f"{name}*.json")} >= {
            f"{name}.json",
            f"{name}-first.json",
        }
    assert "target missing:TARGET: it does not load: ModuleNotFoundError: No module named 'missing'" in ended.stdout
    assert "Traceback" not in ended.stdout + ended.stderr


def test_known_findings_are_expected_to_fail_until_they_are_fixed(run_pytest):
    targets = [f"--attn-target=planted_findings:{name}" for name in ("KNOWN", "FIXED", "REFUSING", "NEEDS_GPU")]
    ended = run_pytest(*targets, "-k", "planted-sinks", "-rxs")
    assert re.search(r"1 failed, 1 skipped, \d+ deselected, 1 xfailed", ended.stdout), ended.stdout
    assert "the target refuses its stored case: sinks" in ended.stdout
    assert "XFAIL planted_findings:KNOWN::finding[planted-sinks] - A sink makes the output NaN." in ended.stdout
    assert "its stored case no longer fails so: agree. Fixed?" in ended.stdout


def test_limits_of_this_tool_are_skipped_or_warnings(run_pytest):
    """LIMITED runs decodes alone, and OF_4_BITS nothing."""
    targets = ("--attn-target=planted:LIMITED", "--attn-target=planted_limits:OF_4_BITS")
    ended = run_pytest(*targets, "--attn-examples=20", "-k", "cases or declarations", "-rs")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "2 passed, 1 skipped, 1 deselected, 1 warning" in ended.stdout
    assert "target planted_limits:OF_4_BITS: not run, by a limit of this tool: a cache of 4 bits" in ended.stdout
    assert "PytestWarning: not run: " in ended.stdout


def test_beside_other_tests_and_without_the_option_it_does_nothing(tmp_path, child_environment):
    heavy = "{'torch', 'triton', 'attn_reference', 'attn_contract', 'hypothesis.strategies'}"
    (tmp_path / "test_own.py").write_text(f"import sys\n\n\ndef test_own():\n    assert not {heavy} & set(sys.modules)\n")
    command = [sys.executable, "-m", "pytest", *OPTIONS, "-p", "no:hypothesispytest", "-q"]
    ended = subprocess.run(command, cwd=tmp_path, env=child_environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout
    assert "1 passed" in ended.stdout


def test_mistakes_that_no_case_could_have_shown_are_told_at_the_end(run_pytest):
    ended = run_pytest("-q", "--attn-target=planted:FLASH", "--attn-examples=20", "-k", "cases")
    assert ended.returncode == 0, ended.stdout
    assert re.search(r"^planted:FLASH: not seen: .*never", ended.stdout, re.MULTILINE), ended.stdout


@pytest.mark.parametrize("option", ["--attn-examples=0", "--attn-seed=-1", "--attn-case-seconds=0", "--attn-case-seconds=inf"])
def test_a_number_out_of_range_is_a_usage_error(option, run_pytest):
    ended = run_pytest("--attn-target=reference-fp32", option)
    assert ended.returncode == 4
    assert option.split("=")[0] in ended.stderr


def test_what_is_no_declaration_or_cannot_be_written_is_said_in_a_line(run_pytest, tmp_path):
    (tmp_path / "my_kernel.py").write_text(KERNEL.replace("support=lambda device: Support(", "support=lambda device: dict("))
    (tmp_path / "file").touch()
    ended = run_pytest("--attn-target=my_kernel:TARGET", "--attn-target=reference-fp32", "--attn-report=file/runs")
    failed = re.findall(r"FAILED (\S+)", ended.stdout)
    assert "my_kernel:TARGET::declarations" in failed
    assert {"reference-fp32::past", "reference-fp32::cases[0]", "reference-fp32::cases[1]"} <= set(failed)
    assert "expected a Support and a Rounding" in ended.stdout
    assert "Not a directory: 'file/runs'" in ended.stdout
    assert "site-packages" not in ended.stdout, "no traceback"
    assert "Error" not in ended.stderr


def test_all_names_every_target_that_can_run_here(run_pytest):
    ended = run_pytest("--collect-only", "-q", "--attn-target=all", "--attn-examples=1")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    batteries = {line.split("::")[0] for line in ended.stdout.splitlines() if line.endswith("::declarations")}
    assert {"triton", "triton-over-ranks", "backend-triton-mla", "reference-fp32"} <= batteries
    assert batteries.isdisjoint({"triton@gfx942", "aiter-chunked-prefill"}), "it compiles for another GPU; there is no AITER"
