"""Faults planted in the emulator, at least one in each module of instructions: the family's own tests find each of them.

Each fault runs in a process of its own, on a copy of the package: families register their functions when they are imported.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import attn_amdgcn
import pytest

HERE, PACKAGE = Path(__file__).parent, Path(attn_amdgcn.__file__).parent
PLANTED = {
    "a wrong sign in fma": ("fused", "b.astype(F64), c.astype(F64)", "b.astype(F64), -c.astype(F64)", "float_arithmetic"),
    "another lane in DPP": ("dpp", "(place + value) % ROW", "(place + value + 1) % ROW", "dpp"),
    "another operand by index": (
        "indexing",
        "instruction.operands[len(meaning.results)].of",
        "instruction.operands[-1].of",
        "indexing",
    ),
    "a row mask forgotten": ("dpp", "(rows >> number // ROW & 1)", "(15 >> number // ROW & 1)", "dpp"),
    "a buffer's bound off by one": (
        "buffer_memory",
        "fits = offset <= within.length - form.size",
        "fits = offset <= within.length - form.size + 1",
        "global_memory",
    ),
    "a pair of registers swapped": (
        "../operands",
        "both[..., 0], both[..., 1] = low, high",
        "both[..., 0], both[..., 1] = high, low",
        "bits",
    ),
    "rows of MFMA's result exchanged": (
        "matrix/layouts",
        "4 * (four % (rows // 4)) + element % 4",
        "4 * (four % (rows // 4)) + (element ^ 1) % 4",
        "matrix",
    ),
    "rows of WMMA's result exchanged": ("matrix/layouts", "2 * element + lane // 16", "2 * element + 1 - lane // 16", "matrix"),
    "a wait that waits for everything": ("../waits", "if id(each) not in over)", "if False)", "waits"),
    "a wait that never blocks": ("../waits", "for counters, most in found:", "for counters, most in ():", "waits"),
    "another lane in ds_bpermute": (
        "cross_lane",
        "(address + offset >> np.uint32(2))",
        "(address + offset >> np.uint32(3))",
        "cross_lane",
    ),
    "the wrong bits kept by SDWA": ("sdwa", "waves.vector[row] & ~mask", "waves.vector[row] & mask", "sdwa"),
    "another bias of float8": (
        "float8",
        "of.mantissa, of.bias, special",
        "of.mantissa, of.bias - 1, special",
        "float8",
    ),
    "ties of bfloat16 away from even": ("convert", "rounded &= np.uint32(1)", "rounded |= np.uint32(1)", "convert"),
    "a comparison that is true for a NaN": (
        "compare",
        '"ge": np.greater_equal,\n    "o"',
        '"ge": lambda a, b: ~(a < b),\n    "o"',
        "compare",
    ),
    "a shift by more than 31": ("../operands", '"u5": Kind(32, np.uint32, 31)', '"u5": Kind(32, np.uint32, 63)', "bits"),
    "a field of one bit less": (
        "bits",
        "a >> first & (U32(1) << count) - U32(1)",
        "a >> first & (U32(1) << count >> U32(1)) - U32(1)",
        "bits",
    ),
    "a carry that is forgotten": ("scalar", "(a < b) | (partial < borrow)", "a < b", "scalar"),
    "a quotient without its sign": ("division", "np.abs(quotient)) * sign", "np.abs(quotient))", "division"),
    "the other half by default in packed arithmetic": (
        "packed",
        "(high[i] if high else 1)",
        "(high[i] if high else 0)",
        "packed",
    ),
    "the second offset of LDS in bytes": ("lds", "* form.size * _PAIRS[name]", "* form.size ** (1 - i) * _PAIRS[name]", "lds"),
    "a byte beyond the scratch of a lane": (
        "scratch",
        "address + form.size > waves.shared.scratch_bytes",
        "address + form.size > waves.shared.scratch_bytes + 4",
        "global_memory",
    ),
    "a byte beyond a buffer": ("../memory", "end <= self._ends[which]", "end <= self._ends[which] + 4", "global_memory"),
    "a race of a reader unseen": ("../lds_races", "if (others := (readers != 0)", "if (others := (readers < 0)", "lds_races"),
    "a race of two workgroups unseen": (
        "../global_races",
        "(_groups(before) != _groups(waves))",
        "(before < 0)",
        "global_races",
    ),
    "an angle in half turns": ("transcendental", "np.sin(2 * np.pi", "np.sin(np.pi", "transcendental"),
    "a minimum that takes the NaN": (
        "extremes",
        "np.where(np.isnan(a) & np.isnan(b), quiet(a), result)",
        "np.where(np.isnan(a) | np.isnan(b), quiet(a), result)",
        "extremes",
    ),
    "a branch on the other condition": (
        "control",
        '"s_cbranch_scc0": lambda waves: ~waves.scc',
        '"s_cbranch_scc0": lambda waves: waves.scc',
        "run",
    ),
    "lanes that are off and written all the same": (
        "../operands",
        "where=on, casting='unsafe'",
        "where=True, casting='unsafe'",
        "integer_arithmetic",
    ),
    "a comparison that is false for a NaN": (
        "compare",
        '"nlt": lambda a, b: ~(a < b)',
        '"nlt": lambda a, b: a >= b',
        "scalar_float",
    ),
    "a sum without its summand": (
        "scalar_float",
        "(first, second, target)",
        "(first, second, first)",
        "scalar_float",
    ),
    "the lowest bits of a scalar address": ("scalar_memory", "& -aligned", "& -1", "global_memory"),
    "the other choice": ("moves", "np.where(mask, b, a)", "np.where(mask, a, b)", "bits"),
    "the lower halves twice in dot2": ("dot", "in (_low, _high):\n        total", "in (_low, _low):\n        total", "dot2"),
    "another distance of lanes in LDS": (
        "to_lds",
        "distance = 4 if form.size == 4 else 16",
        "distance = form.size",
        "lds_loads",
    ),
    "a tensor's last row that is beyond it": ("tensor_dma", "coordinate < shape[i]", "coordinate < shape[i] - 1", "tensor_dma"),
    "a load into LDS that a wait for others covers": (
        "../lds_loads",
        "self._begun[where] - most",
        "self._begun[where]",
        "lds_loads",
    ),
    "an infinity that becomes the largest number": (
        "modes",
        "np.where(np.isinf(found) & finite,",
        "np.where(np.isinf(found),",
        "modes",
    ),
    "a difference the other way": ("float_arithmetic", "lambda a, b: b - a", "lambda a, b: a - b", "float_arithmetic"),
    "an offset without its sign": (
        "global_memory",
        "dtype = np.int32 if newest else np.uint32",
        "dtype = np.uint32",
        "global_memory",
    ),
    "a carry of the first of two sums": (
        "integer_arithmetic",
        "(partial < a) | (total < partial)",
        "partial < a",
        "integer_arithmetic",
    ),
    "a byte without its sign": ("formats", ".view(np.int32) >> np.int32(shift)", " >> np.uint32(shift)", "global_memory"),
    "a magnitude that keeps its sign": ("forms", '"({} & {})", bits, ~sign', '"({} | {})", bits, sign', "float_arithmetic"),
    "another bias of four bits": ("matrix/elements", "small_floats(2, 1, 1)", "small_floats(2, 1, 2)", "matrix"),
    "a matrix's integer that wraps at its end": (
        "matrix/product",
        "np.clip(_wrapped_sum(c, product), limits.min, limits.max)",
        "_wrapped_sum(c, product)",
        "matrix_modifiers",
    ),
    "another byte of scales": ("matrix/mfma", "8 * (low + 2 * high)", "8 * (high + 2 * low)", "matrix"),
    "a register that is written before it is read": (
        "../dependences",
        "self.written & later.touched or self.touched & later.written",
        "self.written & later.touched",
        "groups",
    ),
    "an instruction that does not depend on EXEC": ("../dependences", '["exec", "m0"]', '["m0"]', "groups"),
    "loads and stores in any order": ("../dependences", "(instruction, kernel) | _MEMORY", "(instruction, kernel)", "groups"),
    "a run that needs its own results": ("../dependences", "self.written & later.touched & ~_MEMORY", "0", "groups"),
    "halves of lanes that differ unseen": (
        "matrix/wmma",
        "registers[..., :16] != registers[..., 16:]",
        "registers[..., :16] != registers[..., :16]",
        "matrix_modifiers",
    ),
}
"""By what is wrong: the module, from `instructions` on, a piece of it, what stands there instead, and the tests that see it."""


def file_of(module: str) -> Path:
    """In the package."""
    return Path(os.path.normpath(f"instructions/{module}.py"))


def file_of_tests(family: str) -> Path:
    """The file that tests a family."""
    (found,) = HERE.rglob(f"test_{family}.py")
    return found


@pytest.mark.parametrize("what", PLANTED)
def test_the_place_of_a_fault_is_there_once(what):
    module, find, instead, family = PLANTED[what]
    source = (PACKAGE / file_of(module)).read_text(encoding="utf-8")
    assert source.count(find) == 1, f"{find!r} is {source.count(find)} times in {module}"
    compile(source.replace(find, instead), module, "exec")
    assert file_of_tests(family).exists()


def test_each_module_of_instructions_has_a_fault():
    modules = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.glob("instructions/**/*.py")}
    with_code = {module for module in modules if not module.endswith("__init__.py")}
    assert with_code - {file_of(module).as_posix() for module, *_ in PLANTED.values()} == set()


@pytest.mark.nightly
@pytest.mark.parametrize("what", PLANTED)
def test_a_fault_of_the_emulator_is_found(what, tmp_path):
    module, find, instead, family = PLANTED[what]
    shutil.copytree(PACKAGE, tmp_path / "attn_amdgcn", ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / "attn_amdgcn" / file_of(module)
    path.write_text(path.read_text(encoding="utf-8").replace(find, instead), encoding="utf-8")
    tests = file_of_tests(family)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", str(tests)]
    folders = os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": folders}, capture_output=True, text=True, check=False)
    assert done.returncode == 1, f"{what}: {tests.name} says nothing:\n{done.stdout[-2000:]}"
    assert "failed" in done.stdout.splitlines()[-1], done.stdout[-2000:]
