"""The guide "fuzz your own kernel" shows the example as it is, and finds the planted bug, by the command and by pytest."""

import inspect
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from attn_contract import RULES, AttentionType, Batch, Layer
from attn_contract.layer import QUANTIZED_DTYPES
from attn_contract.rules import axes_of
from attn_fuzz.targets.target import AttentionFunction

from tests.support.mostly_nightly import mostly_nightly
from tests.support.pages import PAGES, ROOT, blocks, run_command, without_numbers

BLOCKS = blocks(PAGES["docs/guide/fuzz-your-kernel.md"])
(ADAPTER,) = (block.text for block in BLOCKS if block.file == "my_target.py")
(DIFF,) = (block.text for block in BLOCKS if block.language == "diff")
FUZZ, PYTEST, COMPILED, FENCED, FAR, _MANAGER = (block.text for block in BLOCKS if block.is_command)
_RIGHT, FOUND, _OF_MANAGER = (block.text for block in BLOCKS if block.is_output)


@pytest.fixture
def planted(tmp_path) -> Path:
    """A copy of the examples with the bug of the page."""
    folder = Path(shutil.copytree(ROOT / "examples", tmp_path / "mine", ignore=shutil.ignore_patterns("__pycache__")))
    kernel = folder / "my_unified_attention.py"
    old, new = (line[2:].strip() for line in DIFF.splitlines())
    source = kernel.read_text()
    assert source.count(old) == 1
    kernel.write_text(source.replace(old, new))
    return folder


def test_the_adapter_on_the_page_is_the_one_in_the_examples():
    adapter = (ROOT / "examples" / "my_target.py").read_text()
    assert adapter == ADAPTER
    assert len(adapter.splitlines()) <= 40


SHAPES = ("separate_tensors", "decode_only", "prefill_only", "dense_varlen", "compiled_function")


@pytest.mark.parametrize("name", mostly_nightly(SHAPES, ("compiled_function",)))
def test_an_adapter_for_each_shape_of_kernel(name, tmp_path):
    """It agrees, all that its engine sends is drawn, and it finds a scale that is ignored."""
    folder = Path(shutil.copytree(ROOT / "examples", tmp_path / "mine", ignore=shutil.ignore_patterns("__pycache__")))
    adapter = folder / f"{name}.py"
    source = adapter.read_text()
    assert len(source.splitlines()) < 40
    assert f"`{name}.py`" in PAGES["docs/guide/fuzz-your-kernel.md"]
    if name == "compiled_function":
        compile_library(folder)
    command = f"attn-parity fuzz --target {name}:TARGET --examples 30 --seed 1 --workers 1 --corpus none"
    ended = run_command(command, folder)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "all agree" in ended.stdout
    assert not re.search(r"not drawn: .* features", ended.stderr), "an Engine that says more than it sends"
    assert source.count("layer.scale") == 1
    adapter.write_text(source.replace("layer.scale", "0.25"))
    ended = run_command(command, folder)
    assert (ended.returncode, "value: out of request" in ended.stdout) == (1, True), ended.stdout + ended.stderr


def compile_library(folder: Path) -> None:
    """attention.cu for the device at hand."""
    on_gpu = torch.cuda.is_available()
    compiler = shutil.which("nvcc" if on_gpu else "g++")
    if compiler is None:
        pytest.skip("no compiler of attention.cu")
    options = ["-Xcompiler", "-fPIC"] if on_gpu else ["-fPIC", "-x", "c++"]
    subprocess.run(
        [compiler, "-O2", "-shared", *options, "attention.cu", "-o", "libmy_attention.so"], cwd=folder, check=True, timeout=120
    )


def test_the_planted_bug_is_found(planted):
    ended = run_command(FUZZ, planted)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    found, told = without_numbers(ended.stdout), without_numbers(FOUND)
    assert {told[0], *told[-2:]} <= set(found), "which case is the smallest may change with what is drawn"
    assert "window=" in ended.stdout


def test_the_last_axis_may_be_named_from_the_end(tmp_path):
    folder = Path(shutil.copytree(ROOT / "examples", tmp_path / "mine", ignore=shutil.ignore_patterns("__pycache__")))
    kernel = folder / "my_unified_attention.py"
    assert kernel.read_text().count("axis=1") == 2
    kernel.write_text(kernel.read_text().replace("axis=1", "axis=-1"))
    ended = run_command("attn-parity fuzz --target my_target:TARGET --examples 20 --seed 1 --corpus none", folder)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "all agree" in ended.stdout


@pytest.mark.nightly
def test_pytest_finds_it_too(planted):
    ended = run_command(PYTEST, planted)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "my_target:TARGET::cases[0]" in ended.stdout
    assert "window=" in ended.stdout


def test_it_reads_nothing_past_its_tensors():
    ended = run_command(FENCED, ROOT / "examples")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "all agree" in ended.stdout
    assert "16 fenced" in ended.stdout


@pytest.mark.nightly
def test_its_rows_are_multiplied_by_strides_in_32_bits():
    ended = run_command(FAR, ROOT / "examples")
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "--target my_target:TARGET@far" in ended.stdout


def test_it_runs_compiled_for_amd():
    """Fewer examples than on the page: `nightly` runs the page's command."""
    assert COMPILED.count("--examples 16") == 1
    ended = run_command(COMPILED.replace("--examples 16", "--examples 2"), ROOT / "examples")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "all agree" in ended.stdout


@pytest.mark.nightly
def test_it_runs_compiled_for_amd_and_the_bug_is_found_there(planted):
    ended = run_command(COMPILED, ROOT / "examples")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "16 examples" in ended.stdout
    assert "all agree" in ended.stdout
    ended = run_command(COMPILED, planted)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "window=" in ended.stdout


def test_each_argument_is_in_a_table_with_the_dims_of_its_tensors_and_each_rule_among_the_rules():
    page = PAGES["docs/guide/fuzz-your-kernel.md"].split("### What the function gets")[1].split("**`Support`**")[0]
    fields, rules = (_rows(table) for table in page.split("\n\nThese fields are rules"))
    arguments = {*inspect.signature(AttentionFunction.__call__).parameters} - {"self", "layer", "batch"}
    axes_of_own = {
        f"{kind.__name__.lower()}.{name}": axes_of(kind).get(name)
        for kind in (Layer, Batch)
        for name in kind.__dataclass_fields__
    }
    of_rules = {f"{rule.holder.lower()}.{name}" for name, rule in RULES.items() if rule.holder != "call"}
    assert (rules.keys(), fields.keys()) == (of_rules, (arguments | axes_of_own.keys()) - of_rules)
    for name, axes in axes_of_own.items():
        dims = [len(shape.split(", ")) for shape in re.findall(r"\[([^\]]+)\]", (fields | rules)[name])]
        assert not axes or max(dims) == len(axes), name
    assert all(f"{each.name}`" in fields["layer.attn_type"] for each in AttentionType)
    assert all(f"`{each}`" in fields["layer.kv_cache_dtype"] for each in QUANTIZED_DTYPES)


def _rows(table: str) -> dict[str, str]:
    """The second cell of each row, by each name of the first."""
    rows = re.findall(r"^\| (`.*`) \| (.*) \|$", table, flags=re.MULTILINE)
    return {name: cell for names, cell in rows for name in re.findall(r"`([\w.]+)`", names)}
