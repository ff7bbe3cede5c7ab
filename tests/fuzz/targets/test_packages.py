"""Targets of other kernels: they declare without their packages, and each of their findings replays where these are."""

import dataclasses
import itertools
import json
import re
import runpy

import attn_reference
import msgspec
import pytest
import torch
import triton
from attn_contract import AttentionType, Layer, Layout
from attn_fuzz.cases import case_file
from attn_fuzz.cases.case import Cache, Case, Request, Values
from attn_fuzz.run import shard
from attn_fuzz.run.case.trial import COMPARED, try_case
from attn_fuzz.run.processes.executor import Executor
from attn_fuzz.run.shard import FuzzPlan
from attn_fuzz.targets import Target, registry
from attn_fuzz.targets.packages.aiter import package as aiter_package
from attn_fuzz.targets.packages.lmdeploy import package as lmdeploy_package
from attn_fuzz.targets.packages.vllm import flex as vllm_flex
from attn_fuzz.targets.packages.vllm import write as vllm_write
from attn_lab.findings.places import SHARED
from torch.nn.attention.flex_attention import BlockMask
from triton.runtime.interpreter import InterpreterBuilder

from tests.support.pages import PAGES, ROOT, blocks

FOREIGN = [
    name
    for package in registry.packages().values()
    for name, attribute in package.attributes.items()
    if not re.search(r"\.aiter\.(unified|backends):", attribute)  # called by the adapter: test_aiter_target.py
]
TARGETS = {name: registry.load(name) for name in FOREIGN}
CAPPED = [
    name
    for name, target in TARGETS.items()
    # the message of an all-to-all packs the bits of computed numbers, which exact mode does not follow
    if "logits_soft_cap" in target.support("cpu").rules and not name.endswith("-dcp-all-to-all")
]
(EXAMPLE,) = (block for block in blocks(PAGES["docs/guide/foreign-kernels.md"]) if block.file)


@pytest.mark.parametrize("package", registry.packages().values(), ids=lambda package: package.name)
def test_the_installed_version_is_that_of_the_targets(package):
    name, version = package.requirement.split("==")
    text = "".join((ROOT / file).read_text(encoding="utf-8") for file in ("tox.ini", "pyproject.toml"))
    assert set(re.findall(rf"\b{name}==([\w.]+)", text)) == {version}


def needs(target: Target) -> None:
    if reason := target.unavailable("cpu"):
        pytest.skip(reason)


@pytest.mark.parametrize("name", FOREIGN)
def test_where_a_package_is_missing_the_target_says_what_to_install(name, monkeypatch, tmp_path, attn_parity):
    monkeypatch.setattr("importlib.util.find_spec", _finds_no(("vllm", "sglang", "aiter", "lmdeploy")))
    for package in ("VLLM", "SGLANG", "AITER", "LMDEPLOY"):
        monkeypatch.delenv(f"ATTN_PARITY_{package}", raising=False)
    run = attn_parity("fuzz", "--target", name, "--examples", 1, "--device", "cpu")
    assert run.code == 2
    needs_main = name.startswith(("aiter-gluon", "aiter-decode-sparse", "aiter-prefill-sparse", "aiter-combined-lists"))
    needed = "a checkout of github.com/ROCm/aiter" if needs_main else "pip install --no-deps "
    assert needed in run.err


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.oracle])
def test_a_gpu_adds_each_dot_to_the_sums_so_far(name):
    by_the_reference = ("vllm-reshape-and-cache", "vllm-flex-masks", "merge", "-dcp-")
    attends = not any(each in name for each in by_the_reference)
    assert TARGETS[name].rounding("cuda").dot_is_chained == attends


@pytest.mark.parametrize("name", ["aiter-extend-attention", "aiter-mha-varlen", "aiter-mla-decode", "aiter-mla-decode-rope"])
@pytest.mark.parametrize(("hip", "refused"), [(None, True), ("7.2", False)])
def test_launches_with_options_for_rocm_are_refused_on_an_nvidia_gpu(name, hip, refused, monkeypatch):
    """Triton's compiler for NVIDIA ends with "Keyword argument waves_per_eu was specified but unrecognised"."""
    monkeypatch.setattr(torch.version, "hip", hip)
    assert ("waves_per_eu" in (TARGETS[name].unavailable("cuda") or "")) == refused


def _finds_no(packages):
    import importlib.util

    find_spec = importlib.util.find_spec
    return lambda name, *rest: None if name in packages else find_spec(name, *rest)


@pytest.mark.parametrize(("name", "got"), [("vllm-unified-attention", "0.09822887"), ("vllm-encoder-attention", "3.85132")])
def test_operands_cut_to_tf32_are_of_a_finding_that_needs_a_gpu(name, got, monkeypatch):
    """An H100 gave 0.0982288718 and 3.85132027 in these cases. Exponentials differ in the last digit."""
    target = TARGETS[name]
    needs(target)
    [finding] = (finding for finding in target.findings if finding.needs_gpu)
    case = case_file.load(finding.path)
    if name == "vllm-encoder-attention":
        requests = (Request(query_len=2, seq_len=2),)
        case = msgspec.structs.replace(case, target=name, attn_type=AttentionType.ENCODER, requests=requests, cache=None)
    assert try_case(case, target, "cpu").kind == "agree"
    monkeypatch.setattr(InterpreterBuilder, "create_dot", InterpreterBuilder.create_dot)
    monkeypatch.syspath_prepend(SHARED)
    runpy.run_path(str(SHARED / "tf32.py"))
    verdict = try_case(case, target, "cpu")
    assert f"got {got}" in verdict.message
    assert finding.explains(case, verdict)
    assert finding not in target.findings_on("cpu")
    assert finding in target.findings_on("cuda")


def test_a_stray_write_of_an_earlier_call_is_of_its_finding(tmp_path):
    """Found by a hunt: in the call before, the request without a query has half of its one key, which is none."""
    target = TARGETS["aiter-mha-varlen"]
    needs(target)
    requests = tuple(Request(query_len=1 - i, seq_len=1, blocks=(i,), causal=True) for i in range(2))
    cache = Cache(layout=Layout.KV_FIRST_NHD, block_size=1, num_blocks=2)
    case = Case(
        target=target.name,
        head_size=32,
        scale=1.0,
        requests=requests,
        cache=cache,
        earlier=("contents",),
        program_order="in order",
        values=Values("exact"),
    )
    with Executor(case.target, "cpu", 120.0, tmp_path / "ahead.json") as executor:
        verdict = executor.run(case)
    assert verdict.kind == "sanitizer", verdict
    assert target.findings[0].explains(case, verdict)


def test_of_heads_without_a_sink_among_others_a_hidden_tile_is_of_its_finding(tmp_path):
    """Found by a seed: every other head has a sink of minus infinity. The last query sees nothing of the first tile of keys."""
    target = registry.load("aiter-unified-attention")
    needs(target)
    case = Case(
        target=target.name,
        dtype="float16",
        num_kv_heads=2,
        head_size=64,
        scale=1.0,
        window=(0, -1),
        sinks="some",
        requests=(Request(query_len=3, seq_len=130, blocks=(0, 1, 2, 3, 4), causal=True),),
        cache=Cache(layout=Layout.BLOCKS_FIRST_NHD, block_size=32, num_blocks=5),
        program_order="in order",
        values=Values("one_hot"),
    )
    with Executor(case.target, "cpu", 120.0, tmp_path / "ahead.json") as executor:
        verdict = executor.run(case)
    assert verdict.kind == "value", verdict
    assert {difference.head for difference in verdict.differences} == {1}
    assert [finding.name for finding in target.findings if finding.explains(case, verdict)] == ["aiter-hidden-tile"]


def test_the_number_of_a_block_may_exceed_the_columns_of_a_list_of_blocks():
    """A list has columns for 16 blocks of each page of the longest request, and a cache has any number of blocks."""
    last = torch.full((1, 1, 1, 1), 17, dtype=torch.int32)
    options = {"BLOCK_SIZE": (16, 16), "mask_mod": lambda b, h, q, kv: kv >= 280, "compute_q_blocks": False}
    mask = BlockMask.from_kv_blocks(torch.ones_like(last[0]), last, **options)
    q, k, v = torch.zeros(1, 2, 1, 4), torch.zeros(1, 1, 288, 4), torch.arange(288.0)[:, None].expand(1, 1, 288, 4)
    out = vllm_flex._attend(q, k, v, None, mask, 1.0, enable_gqa=True, kernel_options={}, return_aux=None)
    assert torch.equal(out, torch.full((1, 2, 1, 4), 283.5))


TRITON = tuple(int(part) for part in triton.__version__.split(".")[:2])
EXCHANGES = ("reduce-scatter", "all-to-all")
TWENTY = ("--examples", 20, "--seed", 5, "--workers", 1)
"""After the past cases, which have sizes and forms that few examples meet."""
COMPILED = [name for name, target in TARGETS.items() if target.modules]


def test_all_that_launch_kernels_name_their_modules_but_those_that_vllm_launches_from_several_ranks():
    are_no_triton = {name for name, target in TARGETS.items() if target.compiled_for}
    from_ranks = {"vllm-flex-masks", "vllm-dcp-reduce-scatter", "vllm-dcp-all-to-all"}
    # the emulator knows no mode of gfx942's conversion to float8, nor a function as an argument, and torch computes the others
    not_compiled = {
        "sglang-verify-tree",
        "vllm-indexer",
        "vllm-index-decode",
        "vllm-paged-mqa-logits-torch",
        "vllm-mqa-logits-torch",
    }
    assert {*FOREIGN} - {*COMPILED} - are_no_triton == from_ranks | not_compiled


@pytest.mark.parametrize("name", COMPILED)
def test_they_agree_compiled_for_amd(name, attn_parity):
    needs(TARGETS[name])
    run = attn_parity("fuzz", "--target", f"{name}@gfx942", "--examples", 4, "--seed", 5, "--workers", 1, "--corpus", "none")
    assert run.code == 0, run.out + run.err


@pytest.mark.parametrize("name", FOREIGN)
def test_they_agree_beyond_what_is_known(name, attn_parity):
    needs(TARGETS[name])
    run = attn_parity("fuzz", "--target", name, *TWENTY)
    assert run.code == 0, run.out


@pytest.mark.parametrize("name", CAPPED)
def test_a_soft_cap_is_carried_in_exact_mode(name, tmp_path):
    """Each package computes tanh by a function of its own, which exact mode knows by its name."""
    needs(TARGETS[name])
    cases = shard.drawn(FuzzPlan(target=name, device="cpu", examples=40, seed=1, folder=tmp_path))
    with Executor(name, "cpu", 120.0, tmp_path / "ahead.json", exactly=True) as executor:
        verdicts = (executor.run(shard.dense(case)) for case in cases if case.logits_soft_cap and case.has_work)
        followed = next(verdict for verdict in verdicts if verdict.kind in ("agree", "exact"))
    assert followed.events[-1] == COMPARED


@pytest.mark.parametrize("name", [*(name for name in FOREIGN if TARGETS[name].findings), "aiter-unified-attention"])
def test_known_findings_hide_no_other_failure(name, attn_parity, tmp_path):
    """Each case that a finding explains agrees on repaired sources: it failed because of findings alone."""
    needs(registry.load(name))
    run = attn_parity("fuzz", "--target", name, *TWENTY, "--json", "run.json")
    assert run.code == 0, run.out
    assert json.loads((tmp_path / "run.json").read_text())["known_by_predicate"] == {}


def test_a_release_before_float8_caches_declares_none(tmp_path, monkeypatch):
    file = tmp_path / "lmdeploy" / lmdeploy_package.KERNELS / "fill_kv_cache.py"
    file.parent.mkdir(parents=True)
    file.write_text("def fill_kv_cache(): pass")
    monkeypatch.setenv("ATTN_PARITY_LMDEPLOY", str(tmp_path))
    lmdeploy_package.serves_float8.cache_clear()
    support = registry.load("lmdeploy-decode").support("cpu")
    assert support.cache_dtypes == support.scales == ()
    lmdeploy_package.serves_float8.cache_clear()


def test_pod_attention_imports_nowhere():
    needs(TARGETS["aiter-paged-decode"])
    with pytest.raises(ImportError, match="cannot import name 'read_realtime' from 'aiter"):
        aiter_package.ops("pod_attention").load()


@pytest.mark.skipif(TRITON < (3, 9), reason="an older Triton has block pointers, and its interpreter would wait forever")
def test_lean_attention_of_blocks_makes_pointers_that_triton_does_not_have():
    """One head of 16 queries and 32 keys, whose two tiles two programs share."""
    needs(TARGETS["aiter-paged-decode"])
    [module] = aiter_package.ops("lean_atten_paged").load()
    q, k = torch.ones(1, 16, 16, dtype=torch.float16), torch.ones(1, 32, 16, dtype=torch.float16)
    maxima, sums, outputs, locks = torch.zeros(2, 16), torch.zeros(2, 16), torch.zeros(2, 16, 16), torch.zeros(2).int()
    tables, blocks = torch.arange(2, dtype=torch.int32), torch.tensor([2], dtype=torch.int32)
    with pytest.raises(Exception, match="Block pointers have been removed"):
        module.persistent_lean_attention_paged(q, k, k, tables, maxima, sums, outputs, locks, blocks, 2, 16, 16, 1, 1.0, 1, 1)


def test_the_complete_target_of_the_guide_runs(attn_parity, tmp_path):
    needs(TARGETS["vllm-unified-attention"])
    assert len(EXAMPLE.text.splitlines()) <= 60
    (tmp_path / EXAMPLE.file).write_text(EXAMPLE.text)
    run = attn_parity("fuzz", "--target", "vllm_target:TARGET", *TWENTY)
    assert run.code == 0, run.out + run.err


class _Sibling:
    """Stands for vLLM's module: it writes the contract's numbers and scales with errors."""

    def __init__(self, layer: Layer, kv_cache: torch.Tensor, steps: int, factor: float) -> None:
        self.layer, self.kv_cache, self.steps, self.factor = layer, kv_cache, steps, factor

    def triton_reshape_and_cache_flash_per_token_head_quant(self, k, v, k_cache, v_cache, k_scales, v_scales, slots, **mode):
        attn_reference.write_kv_cache(k, v, self.kv_cache, self.layer, slots)
        k_cache[0, 0, 0, 0] -= self.steps
        v_scales[0, 0, 0] *= self.factor


@pytest.mark.parametrize(
    ("steps", "factor", "kind"), [(0, 1.0, "agree"), (1, 1.0, "cache"), (0, 1 + 2.0**-23, "agree"), (0, 1.01, "cache")]
)
def test_a_row_with_scales_is_off_at_ties_alone(steps, factor, kind, monkeypatch):
    """A kernel that multiplies by 1 / scale may store either neighbour of a tie, and scales that are off by roundings."""
    target = TARGETS["vllm-reshape-and-cache"]
    write_kv_cache = target.write_kv_cache
    assert write_kv_cache is not None

    def write(k, v, kv_cache, layer, slot_mapping):
        sibling = _Sibling(layer, kv_cache, steps, factor)
        monkeypatch.setattr(vllm_write, "module_for", lambda device: sibling)
        write_kv_cache(k, v, kv_cache, layer, slot_mapping)

    case = Case(
        target=target.name,
        head_size=32,
        requests=(Request(query_len=1, seq_len=1, blocks=(0,), causal=True),),
        cache=Cache(layout=Layout.CONTENT_PACKED_SCALED, block_size=16, num_blocks=1, dtype="int8"),
        dense_out=True,
        values=Values("random"),
    )
    verdict = try_case(case, dataclasses.replace(target, write_kv_cache=write, unavailable=lambda device: None), "cpu")
    assert verdict.kind == kind, verdict.message


class _Dividing:
    """Stands for vLLM's module: its quotients are off by some units in the last place, and its numbers by some steps."""

    def __init__(self, units: int, steps: int) -> None:
        self.units, self.steps = units, steps

    def triton_reshape_and_cache_flash(self, k, v, k_cache, v_cache, slots, dtype, k_scale, v_scale):
        for rows, cache, scale in ((k, k_cache, k_scale), (v, v_cache, v_scale)):
            quotient = (rows[: len(slots)] / scale).double() * (1 + self.units * 2.0**-23)
            numbers = attn_reference.quantize(quotient, torch.ones_like(scale), cache.dtype).view(torch.uint8)
            numbers[:, 0, 1] += self.steps  # of which none is a tie
            cache.view(torch.uint8)[slots // cache.shape[1], slots % cache.shape[1]] = numbers


WITH_TIES = Case(
    target="vllm-reshape-and-cache",
    group_size=2,
    head_size=32,
    dtype="float32",
    requests=(Request(query_len=2, seq_len=2, blocks=(0,)),),
    cache=Cache(
        layout=Layout.CONTENT_PACKED,
        block_size=16,
        num_blocks=3,
        dtype="fp8_e4m3fn",
        scales="tensor",
        neighbour=Layout.CONTENT_PACKED,
    ),
    ordinary_writes=True,
    dense_out=True,
    values=Values("one_hot"),
)
"""Many quotients of K are ties. A hunt on an H100 found that it stores 29 of them as the other neighbour."""


@pytest.mark.parametrize(
    ("on_gpu", "units", "steps", "kind"),
    [
        (True, 0, 0, "agree"),
        (True, 1, 0, "agree"),
        (True, 2, 0, "agree"),
        (True, 2000, 0, "cache"),  # some numbers are so far from a tie
        (True, 0, 1, "cache"),
        (False, 0, 0, "agree"),
        (False, 1, 0, "cache"),  # an interpreted quotient is right
    ],
)
def test_a_gpu_may_store_either_neighbour_of_a_tie(on_gpu, units, steps, kind, monkeypatch):
    target = TARGETS[WITH_TIES.target]
    module = _Dividing(units, steps)
    monkeypatch.setattr(vllm_write, "module_for", lambda device: module)
    if on_gpu:
        on_cuda = vllm_write.division_error(torch.device("cuda"))
        monkeypatch.setattr(vllm_write, "division_error", lambda device: on_cuda)
    verdict = try_case(WITH_TIES, dataclasses.replace(target, unavailable=lambda device: None), "cpu")
    assert verdict.kind == kind, verdict.message


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_a_row_with_its_own_scale_holds_the_neighbours_of_a_tie_and_no_other_number(dtype):
    row = torch.linspace(-3, 3, 64)[None]
    scale = attn_reference.row_scales(row, dtype)
    stored = attn_reference.quantize(row, scale, dtype)
    assert vllm_write._is_near(row, stored, scale[:, 0] * (1 + 2.0**-23))
    cut_off = (row / scale).trunc().to(dtype) if dtype is torch.int8 else stored.view(torch.uint8).add(1).view(dtype)
    assert not vllm_write._is_near(row, cut_off, scale[:, 0])


@pytest.mark.parametrize(
    ("name", "output_dtype"),
    [
        *itertools.product(("triton-merge", "triton-merge-parts", "vllm-merge-attn-states"), (None, "fp8_e4m3fn")),
        *itertools.product((f"{package}-dcp-{each}" for package in ("vllm", "sglang") for each in EXCHANGES), (None,)),
    ],
)
def test_parts_of_float8_queries_are_not_float8(name, output_dtype):
    """Found by a run on vLLM's files: parts that the target itself had rounded to 3 bits."""
    needs(target := registry.load(name))
    case = Case(
        target=name,
        dtype="float32",
        num_kv_heads=4,
        scale=1.0,
        q_scale="tensor",
        output_dtype=output_dtype,
        requests=(Request(query_len=9, seq_len=24, blocks=(0, 1), causal=True),),
        cache=Cache(layout=Layout.BLOCKS_FIRST_NHD, block_size=16, num_blocks=2, dtype="fp8_e4m3fn", scales="tensor"),
        program_order="in order",
    )
    verdict = try_case(case, target, "cpu")
    assert verdict.kind == "agree", verdict


def test_a_rank_whose_token_is_no_key_yet_is_not_masked():
    """Found by a run: one token, of two that make a key. A kernel that masks by lengths gets them in tokens."""
    needs(target := registry.load("vllm-dcp-all-to-all"))
    case = Case(
        target=target.name,
        scale=1.0,
        key_unit=2,
        selected="some",
        requests=(Request(query_len=1, seq_len=1, causal=True),),
        cache=Cache(layout=Layout.BLOCKS_FIRST_NHD, block_size=1, num_blocks=1),
        program_order="in order",
        values=Values("exact"),
    )
    assert try_case(case, target, "cpu").kind == "agree"
