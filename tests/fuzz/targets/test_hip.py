"""HIP programs whose host code runs here, and AITER's paged attention as one of them. No AMD GPU has run any of it."""

import ctypes

import pytest
import torch
from attn_contract import Layer, Layout
from attn_fuzz.emulated import hip
from attn_fuzz.errors import LimitError
from attn_fuzz.interpreted.sanitizer import Violation
from attn_fuzz.targets.packages.aiter.hip import AITER_HIP_PA_RAGGED, AITER_HIP_PA_ROCM, AITER_HIP_PA_V1
from attn_fuzz.verdict.rounding import CallRounding, Rounding

ARCHITECTURE = "gfx942"
LAYOUT = Layout.KV_FIRST_NHD
TARGETS = {base.name: base for base in (AITER_HIP_PA_V1, AITER_HIP_PA_RAGGED, AITER_HIP_PA_ROCM)}
DOUBLE = """
struct dim3 { unsigned x, y, z; dim3(unsigned x) : x(x), y(1), z(1) {} };
extern "C" int hipLaunchKernel(const void*, dim3, dim3, void**, unsigned long, void*);
extern "C" int __hipPushCallConfiguration(dim3, dim3, unsigned long = 0, void* = 0);
extern "C" int __hipPopCallConfiguration(dim3*, dim3*, unsigned long*, void**);
__attribute__((global)) __attribute__((amdgpu_flat_work_group_size(64, 64))) void twice(float* x, int n) {
  int i = 64 * __builtin_amdgcn_workgroup_id_x() + __builtin_amdgcn_workitem_id_x();
  if (i < n) x[i] *= 2;
}
extern "C" void run(float* x, int n, int threads) { twice<<<dim3((n + 63) / 64), dim3(threads)>>>(x, n); }
struct Rows { int n, times; float* x; int* none; };
__attribute__((global)) __attribute__((amdgpu_flat_work_group_size(64, 64))) void multiply(Rows rows) {
  int i = __builtin_amdgcn_workitem_id_x();
  if (i < rows.n) rows.x[i] *= rows.none ? 0 : rows.times;
}
extern "C" void run_rows(float* x, int n, int times) { multiply<<<dim3(1), dim3(64)>>>(Rows{n, times, x, 0}); }
"""


@pytest.fixture(scope="module")
def double(tmp_path_factory):
    """A program without headers: clang alone compiles it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        if reason := hip.missing(ARCHITECTURE, headers=()):
            pytest.skip(reason)
        yield hip.compiled(hip.Source(DOUBLE, options=("-nogpuinc", "-nogpulib", "-w")), ARCHITECTURE)


def run(program: hip.Binary, x: torch.Tensor, n: int, threads: int = 64) -> None:
    program.call("run", ctypes.c_void_p(x.data_ptr()), n, threads, tensors={"x": x})


def test_a_launch_of_the_host_code_runs_on_its_tensors(double):
    x = torch.arange(100.0)
    run(double, x, 99)
    assert x.tolist() == [*(2.0 * i for i in range(99)), 99.0]


def test_a_struct_may_hold_pointers(double):
    x = torch.arange(9.0)
    double.call("run_rows", ctypes.c_void_p(x[1:].data_ptr()), 7, 3, tensors={"x": x})
    assert x.tolist() == [0.0, *(3.0 * i for i in range(1, 8)), 8.0]
    with pytest.raises(Violation, match="multiply for gfx942: 4 bytes at byte 36 of x, which has 36 bytes"):
        double.call("run_rows", ctypes.c_void_p(x[1:].data_ptr()), 9, 3, tensors={"x": x})


def test_a_store_past_a_tensor_and_a_workgroup_of_another_size_are_told(double):
    with pytest.raises(Violation, match="twice for gfx942: 4 bytes at byte 400 of x, which has 400 bytes"):
        run(double, torch.arange(100.0), 101)
    with pytest.raises(LimitError, match=r"a workgroup of \(32, 1, 1\) lanes, where the kernel has 64"):
        run(double, torch.arange(100.0), 100, threads=32)


@pytest.mark.parametrize(
    ("architecture", "reason"), [(None, "name an architecture"), ("gfx1201", "has nothing for gfx1201, but for gfx942")]
)
@pytest.mark.parametrize("name", TARGETS)
def test_a_target_says_what_it_is_compiled_for(name, architecture, reason):
    base = TARGETS[name]
    target = base if architecture is None else base.compiled_for(architecture)
    if "pip install" in (told := target.unavailable("cpu")):
        pytest.skip(told)
    assert reason in told


@pytest.mark.parametrize(
    ("variable", "reason"),
    [("ROCM_PATH", "has no hip/hip_runtime.h: ROCM_PATH"), ("ATTN_PARITY_CLANG", "needs clang: ATTN_PARITY_CLANG")],
)
def test_a_missing_tool_is_named(variable, reason, monkeypatch, tmp_path):
    if hip.missing(ARCHITECTURE, headers=()):
        pytest.skip("clang is not here")
    monkeypatch.setenv(variable, str(tmp_path / "nothing"))
    assert reason in (hip.missing(ARCHITECTURE) or "")


@pytest.mark.parametrize(("dtype", "weights"), [(torch.float8_e4m3fnuz, 2.0**-4), (None, 2.0**-8)])
def test_float8_dots_are_those_of_a_float8_cache(dtype, weights):
    scales = {} if dtype is None else {"k_scale": torch.ones(1), "v_scale": torch.ones(1)}
    layer = Layer(num_heads=1, num_kv_heads=1, head_size=64, scale=1.0, layout=LAYOUT, kv_cache_dtype=dtype, **scales)
    call = CallRounding(
        rounding=Rounding(keys_per_tile=64, float8_dots=True), layer=layer, dtype=torch.bfloat16, out_dtype=torch.bfloat16
    )
    assert call.of_weights == pytest.approx(weights, rel=1e-5)
    assert call.of_operands == (0.0 if dtype is None else 2.0**-4)
    assert call.of_underflown_queries == (0.0 if dtype is None else 2.0**-11)
