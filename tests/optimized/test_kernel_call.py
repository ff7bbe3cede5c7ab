"""A launch as data is the launch that happens, and making one needs no device: its tensors may be on meta."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import attn_optimized
import attn_reference
import pytest
import torch
from attn_binaries import facts
from attn_contract import AttentionType, Batch, ContractError, Layer, Layout, MiscompiledError, UnsupportedError
from attn_contract.signatures import tensor_signature
from attn_optimized import attention, miscompiled, signature_cache
from attn_optimized.attention import paged_attention_calls, varlen_attention_calls
from attn_optimized.cascade import cascade_attention_calls
from attn_optimized.device import architecture_of, compute_units_of
from attn_optimized.kernel_call import KernelCall, Launch
from attn_optimized.kv_cache import rope_and_write_kv_cache_call, write_kv_cache_call
from attn_optimized.latent_cache import write_latent_cache_call
from attn_optimized.launch.table import entry_for
from attn_optimized.merge import merge_attn_parts_call, merge_attn_states_call
from hypothesis import given, settings
from hypothesis import strategies as st
from triton import JITFunction

from tests.emulated.kernels import POINTER, kernel_text
from tests.optimized.conftest import launches
from tests.support.calls import HEAD_SCALES, with_idle_strides

NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE, NUM_ROWS = 4, 2, 32, 7
RULES = {"window": (40, -1), "sink_tokens": 3, "sinks": [0.5, 1.0, -1.0, 0.0], "alibi_slopes": torch.rand(4), "causal": [True]}
FLOAT8 = {"kv_cache_dtype": torch.float8_e4m3fn, **HEAD_SCALES, "output_scale": torch.tensor([0.125])}
INLINE = {"kv_cache_dtype": torch.int8, "layout": Layout.CONTENT_PACKED_SCALED}
PAGED = {
    "prefill": {"query_lens": [20, 3], "seq_lens": [40, 9]},
    "split": {"query_lens": [1], "seq_lens": [900], "num_kv_heads": 1},
    "rules": {"query_lens": [5], "seq_lens": [90], **RULES},
    "draft tree": {"query_lens": [3], "seq_lens": [70], "qq_bias": torch.eye(16).log()},
    "float8, float8 out": {"query_lens": [5], "seq_lens": [60], **FLOAT8},
    "inline scales": {"query_lens": [5], "seq_lens": [60], **INLINE},
    "no request": {"query_lens": [], "seq_lens": []},
}
"""Arguments of `paged_call`, by a name for the call."""


def on_meta(value: Any) -> Any:
    """A call's arguments without their memory."""
    if isinstance(value, torch.Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    tensors = getattr(value, "tensors", {})
    return replace(value, **{name: on_meta(tensor) for name, tensor in tensors.items()}) if tensors else value


def described(call: KernelCall) -> tuple[Any, ...]:
    """All of a call, its tensors as (dtype, shape, strides)."""
    tensors = {name: tensor_signature(tensor) for name, tensor in call.tensors.items()}
    launch = call.launch
    return launch.kernel, launch.grid, launch.constants, launch.options, launch.numbers, tensors


def outputs(q: torch.Tensor, layer: Layer) -> dict[str, torch.Tensor]:
    dtype = q.dtype if layer.output_scale is None else torch.float8_e4m3fn
    return {
        "out": torch.full(q.shape, torch.nan, device=q.device).to(dtype),
        "lse": torch.full((q.shape[1], len(q)), torch.nan, device=q.device),
    }


def rows(device: torch.device, num_heads: int = NUM_KV_HEADS) -> torch.Tensor:
    return torch.randn(NUM_ROWS, num_heads, HEAD_SIZE, device=device)


Made = tuple[Callable[..., Any], tuple[Any, ...], dict[str, torch.Tensor]]
"""A function that makes calls, its arguments, and the outputs by name."""
KINDS = ("paged", "flat out", "varlen", "write", "rope", "latent", "merge", "merge parts")


def made_of(kind: str, device: torch.device, *, sizes: tuple[int, int, int, int], dtype: torch.dtype) -> Made:
    """A call of a kind, of one request, with so many rows, query heads, KV heads and blocks of 16 slots."""
    count, heads, kv_heads, blocks = sizes

    def of(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, HEAD_SIZE, device=device).to(dtype)

    layer = Layer(num_heads=heads, num_kv_heads=kv_heads, head_size=HEAD_SIZE, scale=0.5, layout=Layout.KV_FIRST_HND)
    slots, lses = torch.arange(count, device=device), torch.randn(2, heads, count, device=device)
    ints = {"query_start_loc": [0, count], "seq_lens": [count], "block_table": [[*range(blocks)]]}
    step = {name: torch.tensor(values, dtype=torch.int32, device=device) for name, values in ints.items()}
    batch = Batch(**step, max_query_len=count, max_seq_len=count, num_actual_tokens=count, causal=True)
    q, k, v, out = of(count, heads), of(count, kv_heads), of(count, kv_heads), of(count, heads)
    cache = of(2, blocks, kv_heads, 16)
    match kind:
        case "paged" | "flat out":
            out = out if kind == "paged" else out.flatten(1)
            return paged_attention_calls, (q, cache, layer, batch, attn_optimized.plan_of(q, layer, batch)), {"out": out}
        case "varlen":
            layer = replace(layer, attn_type=AttentionType.ENCODER, layout=None)
            batch = replace(batch, block_table=None, causal=False)
            return varlen_attention_calls, (q, k, v, layer, batch, attn_optimized.plan_of(q, layer, batch)), {"out": out}
        case "write":
            return write_kv_cache_call, (k, v, cache, layer, slots), {}
        case "rope":
            arguments = (q, k, v, torch.zeros_like(slots), of(count), cache, layer, slots)
            return partial(rope_and_write_kv_cache_call, is_neox=True), arguments, {}
        case "latent":
            layer, cache = replace(layer, num_kv_heads=1, head_size_v=24, layout=Layout.LATENT), of(blocks, 16)
            return write_latent_cache_call, (q[:, 0, :24], q[:, 0, 24:], cache, layer, slots), {}
        case "merge":
            return merge_attn_states_call, (q, lses[0], of(count, heads), lses[1]), {"out": out}
    parts = min(heads, 2)
    return merge_attn_parts_call, (of(parts, count, heads), lses[:parts]), {"out": out}


@pytest.fixture(params=[*PAGED, "cascade", *KINDS])
def make(request, paged_call, device) -> Made:
    if request.param in KINDS:
        return made_of(request.param, device, sizes=(NUM_ROWS, NUM_HEADS, NUM_KV_HEADS, 2), dtype=torch.float32)
    if request.param == "cascade":
        arguments = paged_call([2, 3], [40, 50])
        return cascade_attention_calls, (*arguments, 16), outputs(arguments.q, arguments.layer)
    arguments = paged_call(**PAGED[request.param])
    plan = attn_optimized.plan_of(arguments.q, arguments.layer, arguments.batch)
    return paged_attention_calls, (*arguments, plan), outputs(arguments.q, arguments.layer)


@pytest.fixture(params=KINDS)
def make_of_one(request, device) -> Made:
    """As `make`, of one row, one head, one block and one part."""
    return made_of(request.param, device, sizes=(1, 1, 1, 1), dtype=torch.float16)


def calls(made: Any) -> list[KernelCall]:
    return [made] if isinstance(made, KernelCall) else list(made)


def test_a_call_names_what_its_kernel_takes(make):
    function, arguments, out = make
    for call in calls(function(*arguments, **out)):
        launch = call.launch
        assert sorted([*call.tensors, *launch.numbers, *launch.constants]) == sorted(launch.kernel.arg_names)
        names = launch.kernel.arg_names
        assert launch.tensor_names == tuple(names[: len(call.tensors)]), "it takes tensors first"
        assert set(names[len(call.tensors) :][: len(launch.numbers)]) == set(launch.numbers), "then numbers, then constants"


def test_meta_tensors_make_the_call_that_real_ones_make(make, device):
    function, arguments, out = make
    architecture = architecture_of(device, torch.float32)
    # a plan says what an attention is launched on
    gpu: dict[str, Any] = {"architecture": architecture}
    if function is cascade_attention_calls:
        gpu["compute_units"] = compute_units_of(device)
    elif function in (paged_attention_calls, varlen_attention_calls):
        gpu = {}
    real = calls(function(*arguments, **out))
    meta = calls(function(*map(on_meta, arguments), **{name: on_meta(tensor) for name, tensor in out.items()}, **gpu))
    assert [described(call) for call in meta] == [described(call) for call in real]
    assert all(tensor.is_meta for call in meta for tensor in call.tensors.values() if tensor is not None)


def compiled_for(call: KernelCall) -> tuple[Any, ...]:
    """All that Triton compiles a launch for: its numbers count by their width."""
    there = {name: tensor for name, tensor in call.tensors.items() if tensor is not None}
    tensors = {name: (tensor.dtype, tensor.data_ptr() % 16) for name, tensor in there.items()}
    widths = {name: isinstance(number, int) and number.bit_length() > 31 for name, number in call.launch.numbers.items()}
    return call.launch.kernel, call.launch.constants, call.launch.options, widths, tensors


def units(call: KernelCall) -> set[int]:
    """The units that strides of a launch count in: fields of a kind, or constants."""
    constants = {name: value for name, value in call.launch.constants.items() if name != "KIND"}
    kind = vars(call.launch.constants["KIND"]) if "KIND" in call.launch.constants else {}
    of_keys = ("selection_unit", "key_unit")
    return {value for name, value in (kind | constants).items() if name.lower().endswith("unit") and name not in of_keys}


def test_no_stride_of_one_element_gives_another_kernel(make_of_one, device):
    """A kernel loads single elements of tensors whose strides are no multiples of 16 bytes."""
    function, arguments, out = make_of_one

    def run(changed: Callable[[torch.Tensor], torch.Tensor]) -> tuple[list[Any], list[torch.Tensor]]:
        """The signatures for which launches are compiled, and all tensors that they got."""
        values = [changed(value.clone()) if isinstance(value, torch.Tensor) else value for value in arguments]
        outputs = {name: changed(tensor.clone()) for name, tensor in out.items()}
        made = calls(function(*values, **outputs))
        for call in made:
            call.run(device)
        assert 1 not in set().union(*map(units, made))
        tensors = [value for value in (*values, *outputs.values()) if isinstance(value, torch.Tensor)]
        return list(map(compiled_for, made)), tensors

    dense, idle = run(lambda tensor: tensor), run(lambda tensor: with_idle_strides(tensor))
    assert idle[0] == dense[0]
    torch.testing.assert_close(idle[1], dense[1], rtol=0, atol=0)


def test_making_calls_writes_nothing_and_launching_them_is_the_function(paged_call, device):
    call = paged_call(**PAGED["split"])
    out, expected = outputs(call.q, call.layer), outputs(call.q, call.layer)
    plan = attn_optimized.plan_of(call.q, call.layer, call.batch)
    made = list(paged_attention_calls(*call, plan, **out))
    assert len(made) == (2 if plan.splits > 1 else 1), "keys that are split are reduced"
    assert plan.splits > 1 or device.type == "cuda", "a GPU's table keeps these few keys whole"
    assert all(tensor.isnan().all() for tensor in out.values())
    attn_optimized.paged_attention(*call, **expected)
    for launch in made:
        launch.run(device)
    for name, tensor in out.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0, equal_nan=True)


def test_a_call_is_launched_by_name_whatever_the_order(device):
    a, b, lse = rows(device), rows(device), torch.randn(NUM_KV_HEADS, NUM_ROWS, device=device)
    out, expected = torch.empty_like(a), attn_optimized.merge_attn_states(a, lse, b, lse)
    call = merge_attn_states_call(a, lse, b, lse, out=out)
    call._replace(tensors=dict(reversed(call.tensors.items()))).run(device)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    with pytest.raises(KeyError, match="lse_b_ptr"):
        call._replace(tensors={name: tensor for name, tensor in call.tensors.items() if name != "lse_b_ptr"}).run(device)


def test_a_grid_without_programs_launches_nothing(device):
    a, lse = rows(device), torch.zeros(NUM_KV_HEADS, NUM_ROWS, device=device)
    out = torch.full_like(a, torch.nan)
    call = merge_attn_states_call(a, lse, a, lse, out=out)
    call._replace(launch=replace(call.launch, grid=(0,))).run(device)
    assert out.isnan().all()
    call.run(device)
    torch.testing.assert_close(out, a)


def test_calls_of_one_signature_share_a_launch_but_no_tensors(paged_call):
    """The second call is launched as the first one was, on its own values, lengths and addresses."""
    first = paged_call([1, 2], [40, 50], sinks=[0.5] * NUM_HEADS)
    second = paged_call([2, 1], [45, 61], sinks=[3.0] * NUM_HEADS)
    assert first.layer.signature == second.layer.signature
    assert first.batch.signature == second.batch.signature
    assert first.q.data_ptr() != second.q.data_ptr()
    for call in (first, second, first):
        owned = slice(3)
        expected = attn_reference.paged_attention(*call)
        torch.testing.assert_close(attn_optimized.paged_attention(*call)[owned], expected[owned])


def test_signatures_that_are_long_unused_are_forgotten(paged_call, monkeypatch):
    attention.forget_launches()
    monkeypatch.setattr(signature_cache, "MAX_SIGNATURES", 2)
    made = [paged_call([1], [length]) for length in (10, 100, 200)]
    for call in made:
        attn_optimized.paged_attention(*call)
    assert len(attention._LAUNCHES) == 2
    expected = attn_reference.paged_attention(*made[0])
    torch.testing.assert_close(attn_optimized.paged_attention(*made[0])[:1], expected[:1])


def test_a_compiled_kernel_is_launched_again_only_on_tensors_that_it_fits(device):
    """It may load 16 bytes at once from a tensor that is aligned so, and not from one that is not."""
    if device.type != "cuda":
        pytest.skip("nothing is compiled without a GPU")
    a, b, lse = rows(device), rows(device), torch.randn(NUM_KV_HEADS, NUM_ROWS, device=device)
    shifted = torch.empty(a.numel() + 1, device=device)[1:].view(a.shape).copy_(a)
    call = merge_attn_states_call(a, lse, b, lse, out=torch.empty_like(a))
    expected = attn_optimized.merge_attn_states(a, lse, b, lse)
    for first in (a, a, shifted, a):
        call.tensors["out_ptr"].fill_(torch.nan)
        call._replace(tensors={**call.tensors, "out_a_ptr": first}).run(device)
        torch.testing.assert_close(call.tensors["out_ptr"], expected, rtol=0, atol=0)
    assert list(call.launch._compiled) == [device.index]


class Gpus:
    """GPUs that are not here: one of them is the current one, and each launch is noted."""

    def __init__(self) -> None:
        self.current = 0
        self.launched: list[tuple[Any, ...]] = []

    @contextmanager
    def device(self, gpu: torch.device) -> Iterator[None]:
        before, self.current = self.current, int(gpu.index)
        yield
        self.current = before

    def kernel(self, of: Any) -> Any:
        """A kernel that is compiled as Triton does: for one GPU, and for what is None and what is aligned to 16 bytes.

        `kernel[grid](*arguments, **options)` launches, and gives what was compiled. `compiled[grid](*pointers)` launches that.
        """
        unspecialized = getattr(of, "do_not_specialize_on_alignment", ())

        def form(pointers: Sequence[Any]) -> Any:
            named = dict(zip(of.arg_names, pointers, strict=True))
            there = [name for name in named if name.endswith("_ptr") and name not in unspecialized]
            missing = [name for name, pointer in named.items() if pointer is None]
            return self.current, missing, [name for name in there if not (named[name] or 0) % 16]

        def launch(grid: tuple[int, ...], pointers: Sequence[Any], options: dict[str, Any] | None) -> None:
            self.launched.append((self.current, (*grid, 1, 1)[:3], [*pointers], options))

        class Compiled:
            def __init__(self, made_for: Any) -> None:
                self.made_for = made_for

            def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
                def run(*pointers: Any) -> None:
                    assert form(pointers) == self.made_for, "it was compiled for other arguments"
                    launch(grid, pointers, None)

                return run

        class Kernel(JITFunction):
            arg_names = of.arg_names
            do_not_specialize_on_alignment = unspecialized

            def __init__(self) -> None:
                pass

            def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Compiled]:
                def run(*arguments: Any, **options: Any) -> Compiled:
                    pointers = [one.data_ptr() if isinstance(one, torch.Tensor) else one for one in arguments]
                    launch(grid, pointers, options)
                    return Compiled(form(pointers))

                return run

        return Kernel()


LAUNCHES = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 1), st.sampled_from(("aligned", "shifted", "empty"))), max_size=5
)
"""The GPU of a call, the current one, and the place of the first tensor. One without an element has the address 0."""


@settings(max_examples=100)
@given(launches=LAUNCHES, quantized=st.booleans())
def test_each_launch_on_a_gpu_is_the_call(launches, quantized):
    a, lse = torch.zeros(3, 2, 16), torch.zeros(2, 3)
    scale = {"output_scale": torch.ones(1)} if quantized else {}
    out = torch.empty_like(a, dtype=torch.float8_e4m3fn) if quantized else torch.empty_like(a)
    gpus, call = Gpus(), merge_attn_states_call(a, lse, a, lse, out=out, architecture="sm90", **scale)
    call = call._replace(launch=replace(call.launch, kernel=gpus.kernel(call.launch.kernel)))
    placed = {"aligned": a, "shifted": torch.zeros(a.numel() + 1)[1:], "empty": a[:0]}
    with patch.multiple(torch.cuda, current_device=lambda: gpus.current, device=gpus.device):
        for gpu, gpus.current, place in launches:
            moved = call._replace(tensors=call.tensors | {"out_a_ptr": placed[place]})
            gpus.launched.clear()
            moved.run(torch.device("cuda", gpu))
            values = moved.tensors | call.launch.numbers
            assert moved.arguments == values
            values |= call.launch.constants
            values = [values[name] for name in call.launch.kernel.arg_names]
            pointers = [value.data_ptr() if isinstance(value, torch.Tensor) else value for value in values]
            ((on, grid, given_pointers, options),) = gpus.launched
            assert (on, grid, given_pointers) == (gpu, (*call.launch.grid, 1, 1)[:3], pointers)
            assert options in (None, call.launch.options)


def test_a_call_is_made_for_the_gpu_that_is_named(paged_call):
    """The rows of a tile are the architecture's, the splits the compute units'."""
    call = paged_call([1], [100_000], dtype=torch.float16, num_heads=8, num_kv_heads=1, head_size=64)
    out = {name: on_meta(tensor) for name, tensor in outputs(call.q, call.layer).items()}
    arguments = [on_meta(argument) for argument in call]

    def attention_calls(architecture: str, compute_units: int) -> list[KernelCall]:
        q, _, layer, batch = arguments
        plan = attn_optimized.plan_of(q, layer, batch, architecture=architecture, compute_units=compute_units)
        return list(paged_attention_calls(*arguments, plan, **out))

    (one, _), (many, _) = attention_calls("gfx942", 2), attention_calls("gfx942", 8)
    assert 1 < one.launch.grid[2] < many.launch.grid[2]
    q, _, layer, batch = arguments
    for architecture in ("sm90", "gfx942", "gfx1201"):
        one, reduction = attention_calls(architecture, 64)
        plan = attn_optimized.plan_of(q, layer, batch, architecture=architecture, compute_units=64)
        assert one.launch.constants["KIND"].block_n == plan.tiles.block_n
        assert one.launch.options == plan.tiles.options
        assert one.launch.grid == (*plan.grid, plan.splits)
        assert reduction.launch.numbers["num_parts"] == plan.splits


@pytest.mark.parametrize(
    ("rule", "phase"),
    [
        ({}, "short"),
        ({"chunked_local": 64}, "rules"),
        ({"window": (31, 31), "sink_tokens": 4}, "rules"),
        ({"alibi_slopes": torch.ones(2)}, "rules"),
        ({"window": (31, 31)}, "window"),
        ({"sink_tokens": 4}, "short"),
    ],
    ids=str,
)
def test_keys_that_are_compared_one_by_one_have_tiles_of_their_own(rule, phase, paged_call):
    """Sink tokens without a window leave nothing out."""
    call = paged_call([200], [300], dtype=torch.bfloat16, num_heads=2, num_kv_heads=2, head_size=64, **rule)
    for architecture in ("sm90", "gfx942", "gfx1201"):
        plan = attn_optimized.plan_of(call.q, call.layer, call.batch, architecture=architecture, compute_units=64)
        expected = entry_for(architecture, phase=phase, itemsize=2, block_d=64, quantized=False).parameters
        assert plan.tiles.parameters == expected


GPU = {"architecture": "gfx942", "compute_units": 304}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"architecture": "gfx942"}, "compute_units: got None"),
        ({"compute_units": 304}, "architecture: got None"),
        (GPU | {"compute_units": 0}, "compute_units: got 0"),
        (GPU | {"compute_units": "304"}, "compute_units: got '304'"),
        (GPU | {"architecture": "zz"}, "architecture: got 'zz'"),
        (GPU | {"parameters": {"block_m": 16}}, "parameters: got "),
    ],
)
def test_a_plan_is_for_a_gpu_that_can_be(given, message, paged_call):
    call = paged_call([1], [5])
    with pytest.raises(ContractError, match=f"^{message}"):
        attn_optimized.plan_of(call.q, call.layer, call.batch, **given)


class Compiled:
    """A kernel of a GPU of AMD, as Triton's launcher shows it."""

    arg_names = ("q_ptr",)

    def __init__(self, assembly: str) -> None:
        self.asm, self.launches = {"amdgcn": assembly}, 0
        self.metadata = SimpleNamespace(target=SimpleNamespace(arch="gfx942"))

    def warmup(self, *arguments: Any, **options: Any) -> "Compiled":
        return self

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **options: Any) -> None:
            self.launches += 1

        return launch


LOST = (
    *("s_load_dwordx4 s[8:11], s[0:1], 0x0", "s_mov_b64 s[4:5], s[8:9]", ".LBB0_1:", "s_load_dword s3, s[4:5], 0x0"),
    *("s_mov_b64 s[4:5], s[10:11]", "s_cbranch_scc1 .LBB0_1"),
)


@pytest.mark.parametrize(("spills", "release", "is_refused"), [(4, "3.9.0", True), (0, "3.9.0", False), (4, "3.8.0", False)])
def test_on_amd_code_that_lost_an_address_is_refused_before_its_launch(spills, release, is_refused, monkeypatch):
    assembly = f"; .sgpr_spill_count: {spills}\n" + kernel_text(*LOST, arguments=(POINTER, POINTER))
    kernel = Compiled(assembly)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(miscompiled.triton, "__version__", release)
    miscompiled.refuse_miscompiled.cache_clear()
    launch = Launch.of(kernel, (1,), {}, {})
    with (
        pytest.raises(MiscompiledError, match="gfx942 not supported: LLVM loses the address of 1 access")
        if is_refused
        else nullcontext()
    ):
        launch._run_on_gpu([torch.zeros(4)], 0)
    assert kernel.launches == (not is_refused)


MEETING = (
    *("s_and_saveexec_b64 s[6:7], vcc", "s_cbranch_execz .LBB0_1", "global_load_dword v55, v0, s[2:3]", ".LBB0_1:"),
    *("{}", "s_mov_b32 s5, s33", "s_or_b64 exec, exec, s[6:7]", "v_accvgpr_write_b32 a46, v56"),
)


@pytest.mark.parametrize(
    ("line", "is_refused"),
    [
        ("v_accvgpr_write_b32 a45, v55", True),
        ("v_mov_b32_e32 v55, v208", True),
        ("scratch_store_dword off, v55, off", True),
        ("v_writelane_b32 v254, s74, 38", False),  # a spilled scalar: whether lanes are on does not matter
        ("s_mov_b32 s90, s30", False),
    ],
)
def test_on_amd_code_that_writes_lanes_while_they_are_off_is_refused(line, is_refused):
    """As in two drawn cases with qq_bias for gfx942 under Triton 3.6, whose outputs were wrong."""
    text = kernel_text(*(each.format(line) for each in MEETING))
    with pytest.raises(MiscompiledError, match=f"the first by `{line}`") if is_refused else nullcontext():
        miscompiled.refuse_miscompiled(text, "gfx942")


TURN = (
    *(".LBB0_1:", "{}", "s_barrier", "s_waitcnt lgkmcnt(0)", "ds_read_b128 v[0:3], v4"),
    *("ds_write_b64 v4, v[6:7]", "s_cbranch_scc1 .LBB0_1"),
)


@pytest.mark.parametrize(
    ("line", "is_refused"),
    [
        ("s_waitcnt vmcnt(0)", True),
        ("s_waitcnt lgkmcnt(1)", True),
        ("s_waitcnt vmcnt(0) lgkmcnt(0)", False),
        ("s_wait_dscnt 0x0", False),
        ("s_wait_loadcnt_dscnt 0x300", False),
        ("s_wait_loadcnt_dscnt 0x1", True),
    ],
)
def test_on_amd_a_barrier_that_does_not_wait_for_stores_into_lds_is_refused(line, is_refused):
    """As in a prefill over X_PACKED with two stages for gfx950, under Triton 3.9."""
    text = kernel_text(*(each.format(line) for each in TURN))
    refused = pytest.raises(MiscompiledError, match=r"the first by `ds_write_b64 v4, v\[6:7\]`")
    with refused if is_refused else nullcontext():
        miscompiled.refuse_miscompiled(text, "gfx942")
    assert facts._amd_spills(text) == (0, is_refused)  # `compile` and the budgets name it, too


def test_accesses_of_lds_after_a_store_need_no_wait_of_their_own():
    text = kernel_text("ds_write_b64 v4, v[6:7]", "ds_read_b64 v[0:1], v4", "s_waitcnt lgkmcnt(1)", "s_barrier")
    assert not miscompiled.unwaited_stores(text)


def test_code_that_cannot_be_read_is_no_error_of_the_emulator(monkeypatch):
    monkeypatch.setattr(miscompiled.triton, "__version__", "3.9.0")
    miscompiled.refuse_miscompiled.cache_clear()
    with pytest.raises(UnsupportedError, match="cannot be checked"):
        miscompiled.refuse_miscompiled("; .sgpr_spill_count: 4\n.text", "gfx942")


@pytest.mark.parametrize(
    ("architecture", "changes", "is_refused"),
    [
        ("sm90", {}, True),
        ("gfx942", {}, False),
        ("interpreter", {}, False),
        ("sm90", {"dtype": torch.bfloat16}, False),
        ("sm90", {"kv_cache_dtype": None, "k_scale": None, "v_scale": None}, False),
        ("sm90", {"layout": Layout.BLOCKS_FIRST_NHD}, False),
        ("sm90", {"selection_unit": None, "selected": None}, False),
    ],
)
def test_a_selection_that_triton_reads_wrong_is_refused(architecture, changes, is_refused, paged_call, device, monkeypatch):
    monkeypatch.setattr(miscompiled.triton, "__version__", "3.6.0")
    scale = torch.tensor(0.5, device=device)
    options = {
        "layout": Layout.SHUFFLED,
        "kv_cache_dtype": torch.float8_e4m3fn,
        "k_scale": scale,
        "v_scale": scale,
        "selection_unit": 16,
        "selected": torch.zeros(1, 2, 1, dtype=torch.int32, device=device),
    }
    call = paged_call([1], [40], **options | changes)
    with pytest.raises(MiscompiledError, match="float32 queries") if is_refused else nullcontext():
        launches(call, architecture=architecture, compute_units=8)
    monkeypatch.setattr(miscompiled.triton, "__version__", "3.9.0")
    launches(call, architecture=architecture, compute_units=8)
