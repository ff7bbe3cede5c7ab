"""Is a launch compiled with another option, and is it told what disagrees? Does the page say so?"""

import msgspec
import pytest
from attn_fuzz.emulated import emulation
from attn_optimized.kernel_call import KernelCall
from attn_parity.binaries.shipped_calls import chosen

from benchmarks.emulation import options, page
from benchmarks.emulation.options import Trial

AGREES = Trial("3.9.0", "gfx942", "decode", "num_stages=1", "agree", 0.5)


def with_other(**fields: object) -> Trial:
    return msgspec.structs.replace(AGREES, **fields)


def test_each_family_gets_its_options_and_a_call_gets_each_value():
    jobs = options._jobs(["gfx942", "gfx1201"])
    assert len(jobs) == len(set(jobs))
    of_decode = {
        name: {option for one, call, option in jobs if (one, call) == (name, "decode")} for name in ("gfx942", "gfx1201")
    }
    assert of_decode["gfx942"] - of_decode["gfx1201"] == {"kpack=2", "matrix_instr_nonkdim=16", "matrix_instr_nonkdim=32"}
    assert of_decode["gfx1201"] - of_decode["gfx942"] == {"wgp_cu_mode=cu"}
    assert "num_stages=4" in of_decode["gfx942"]


def test_calls_ship():
    assert set(options.CALLS) <= set(chosen("gfx942"))


@pytest.mark.parametrize(("option", "value"), [("num_stages=3", 3), ("wgp_cu_mode=cu", "cu")])
def test_an_option_takes_the_place_of_the_launchs_own(option, value):
    call = chosen("gfx942")["decode"]
    other = options._with_option(call, option)
    name = option.partition("=")[0]
    assert other.launch.options == call.launch.options | {name: value}
    assert other.launch.constants == call.launch.constants


def test_the_same_code_is_told_and_what_disagrees_too(monkeypatch):
    assert options.tried("gfx942", "merge, fp32", "num_stages=4").verdict == "same code"
    emulate = emulation.emulate

    def off_by_a_little(call: KernelCall, *arguments, **named) -> None:
        emulate(call, *arguments, **named)
        out = call.tensors["out_ptr"]
        assert out is not None
        out.mul_(1.001)

    monkeypatch.setattr(emulation, "emulate", off_by_a_little)
    wrong = options.tried("gfx942", "merge, fp32", "waves_per_eu=2")
    assert wrong.verdict == "value"
    assert wrong.error > 1
    assert wrong.why


def test_the_page_counts_what_differs_and_names_what_disagrees():
    trials = [
        AGREES,
        with_other(call="prefill", error=0.75),
        with_other(call="decode, split", verdict="same code"),
        with_other(triton="3.6.0", call="prefill", option="wgp_cu_mode=cu", verdict="no such option"),
        with_other(architecture="gfx950", verdict="value", error=3.0, why="out of request 0 at row 1"),
    ]
    lines = options.text(trials).splitlines()
    words = " ".join(lines)
    assert (
        "**2 of 3 trials whose code differs from the code that ships agree.** In 1 trials the code is the same, and in 1"
        in words
    )
    assert "compiled with Triton 3.6.0 and 3.9.0 for values of options" in words
    assert "| `wgp_cu_mode=cu` | no such option |  |" in lines
    assert "| `num_stages=1` | 2 of 2, 0.75 | 0 of 1 |" in lines
    assert "- gfx950 decode, `num_stages=1`: value: out of request 0 at row 1" in lines


def test_trials_of_two_tritons_are_kept_beside_each_other(tmp_path):
    path = tmp_path / "options.json"
    wrong = with_other(verdict="value")
    options._save([wrong, with_other(triton="3.6.0")], [AGREES], path)
    assert page.of_lines(path, options.Trial) == [with_other(triton="3.6.0"), AGREES]
