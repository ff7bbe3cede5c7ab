"""AITER's HIP paged attention: its kernels compiled for an AMD GPU and emulated, behind AITER's own host code.

The targets are named with an architecture, as in `aiter-hip-pa-v1@gfx942`. AITER's Python (csrc/cpp_itfs/pa/*.py) chooses the
template's arguments and renders its C++ host function, which launches a kernel for partitions of 256 keys and one that merges
them. clang compiles the rendered source (`attn_fuzz.emulated.hip`), so that both run as they are. What differs from a GPU:

* -fgpu-flush-denormals-to-zero (csrc/cpp_itfs/utils.py) is left out, since the emulator knows kernels that keep denormals, and
  --amdgpu-kernarg-preload-count, since it reads arguments from memory. The compiler is not ROCm's.
* The workspace holds NaN before a call, and not what was there.

Files are those of the wheel of amd-aiter 0.1.7.post2.dev18, in aiter_meta/csrc/cpp_itfs/pa. Where they round:

    P             pa_kernels.cuh:586, 614-617 and pa.cuh:618, 646-649: divided by the partition's sum and 1e-6, then rounded to
                  q's dtype
    partitions    pa_kernels.cuh:812, pa.cuh:804: stored in q's dtype; pa_kernels.cuh:1097 divides by the sum of all and 1e-6
    float8        pa_kernels.cuh:393-402, 639-648 and pa.cuh:443-452, 659-668: q and P are rounded to float8

vLLM 0.33 calls paged_attention_v1 (v1/attention/backends/rocm_aiter_fa.py:1595-1649): decodes with one query each, blocks of 16
or 32 and heads of 64, 128 or 256 (912-917), ALiBi without a window (1416-1424), windows over a trimmed table (548-581). SGLang
0.5.23 calls paged_attention_ragged (srt/layers/attention/aiter_backend.py:4863-4883): blocks of 1, slots of all keys, the scale
1 / sqrt(D) (571), no window (3675-3693) and no ALiBi. `PagedAttention` of aiter/paged_attn.py calls paged_attention_rocm. Rows
of a block table lie side by side, as vLLM's do: the kernels take no stride of it.
"""

import contextlib
import ctypes
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from attn_contract import AttentionType, Batch, Layer, Layout
from attn_fuzz import foreign
from attn_fuzz.cases.case import Case
from attn_fuzz.findings.aiter.hip import HIP_PA, HIP_PA_RAGGED, HIP_PA_V1
from attn_fuzz.findings.finding import Finding
from attn_fuzz.targets import of_architecture
from attn_fuzz.targets.engine import VLLM
from attn_fuzz.targets.packages import AITER
from attn_fuzz.targets.packages.aiter.package import root
from attn_fuzz.targets.packages.sglang import package as sglang_package
from attn_fuzz.targets.packages.slots import slots_of_requests
from attn_fuzz.targets.rng import rng_of_lengths
from attn_fuzz.targets.support import Support
from attn_fuzz.targets.target import Target
from attn_fuzz.verdict.rounding import Rounding

if TYPE_CHECKING:
    from attn_amdgcn import Schedule

ARCHITECTURES = ("gfx942", "gfx90a", "gfx950")
"""pa_v1.cuh:21-24: for others the kernels are empty."""
HEADERS = ("hip/hip_version.h", "hip/hip_runtime.h", "hip/hip_fp8.h", "hip/hip_bf16.h")
PARTITION = 256
WAVE = 64
_FUNCTION = "attn_parity_paged_attention"
_FOLDERS = ("csrc/cpp_itfs/pa", "csrc/include", "csrc/include/ck_tile", "3rdparty/composable_kernel/include")
OPTIONS = (
    *("-std=c++20", "-w", "-DUSE_ROCM", "-DENABLE_FP8", "-D__HIP_PLATFORM_AMD__=1"),
    *("-U__HIP_NO_HALF_CONVERSIONS__", "-U__HIP_NO_HALF_OPERATORS__", "-fno-offload-uniform-block"),
    *("-mllvm", "--lsr-drop-solution=1", "-mllvm", "-enable-post-misched=0", "-mllvm", "-amdgpu-function-calls=false"),
)
"""The flags of csrc/cpp_itfs/utils.py, but for those of the module's docstring, -amdgpu-coerce-illegal-types, which a clang
without ROCm does not know, and EARLY."""
EARLY = ("-mllvm", "-amdgpu-early-inline-all=true")

Schedules = Callable[[], "Sequence[Schedule]"]
Call = Callable[[torch.Tensor, torch.Tensor, Layer, Batch, torch.Tensor], dict[str, Any]]
"""Returns the arguments of AITER's function by name, made of q, the cache, the layer, the batch and out [T, H, D]."""


def unavailable(name: str, architecture: str, device: str) -> str | None:
    """The reason why a target cannot run here: what is not here of AITER, such as a file below `root`, or of what compiles
    it."""
    from attn_fuzz.emulated import hip

    files = ("__init__.py",)
    if reason := of_architecture.unavailable(device) or AITER.missing(files):
        return reason
    if not (file := root() / name).is_file():
        return f"{file} is no file: pip install --no-deps {AITER.requirement}"
    return hip.missing(architecture, HEADERS)


@contextlib.contextmanager
def _loaded(name: str, architecture: str, tensors: dict[str, torch.Tensor], schedules: Schedules) -> Iterator[ModuleType]:
    """AITER's module of this name, whose compiled functions run on this machine and on the emulator.

    Args:
        tensors: that a function may get pointers to, by their names in messages.
    """
    from attn_fuzz.emulated import hip

    folders = tuple(root() / folder for folder in _FOLDERS)

    def compile_template_op(template: Any, name: str, includes: object, **arguments: Any) -> Any:
        text = template.render(**(arguments | {"func_name": _FUNCTION}))
        source = hip.Source(text, folders, (*OPTIONS, *EARLY))
        return functools.partial(hip.compiled(source, architecture).call, _FUNCTION, tensors=tensors, schedules=schedules)

    logger = SimpleNamespace(info=lambda text: None)
    utils = {"AITER_CORE_DIR": str(root()), "compile_template_op": compile_template_op, "str_to_bool": bool}
    stubs = {"csrc.cpp_itfs.utils": {**utils, "AITER_LOG_MORE": 0, "logger": logger}}
    stubs["csrc.cpp_itfs.torch_utils"] = {"torch_to_c_types": _c_types}
    gpu = SimpleNamespace(warp_size=WAVE)
    with (
        mock.patch.object(torch.cuda, "get_device_properties", return_value=gpu),
        mock.patch.object(torch.cuda, "current_stream", return_value=None),
    ):
        yield foreign.load("csrc", (f"cpp_itfs/pa/{name}.py",), stubs=stubs, folder=root() / "csrc")[0]


def _c_types(*arguments: Any) -> list[Any]:
    """The C arguments, as csrc/cpp_itfs/torch_utils.py:49-62 makes them. That module defines operators of torch."""
    kinds = {int: ctypes.c_int, float: ctypes.c_float}
    return [
        ctypes.c_void_p(each.data_ptr() if isinstance(each, torch.Tensor) else None)
        if each is None or isinstance(each, torch.Tensor)
        else kinds[type(each)](each)
        for each in arguments
    ]


def _target(
    name: str,
    module: str,
    function: str,
    description: str,
    call: Call,
    support: Callable[[str], Support],
    findings: tuple[Finding, ...] = (),
) -> Target:
    """A target of a function of AITER, whose arguments `call` makes."""

    def attention(architecture, q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        rng = rng_of_lengths(batch)
        arguments = call(q, kv_cache, layer, batch, out.view(q.shape))
        tensors = {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor)}
        with _loaded(module, architecture, tensors, lambda: of_architecture.schedules(rng)) as loaded:
            getattr(loaded, function)(**arguments)

    return of_architecture.with_architecture(
        name,
        description,
        architectures=ARCHITECTURES,
        attention=attention,
        support=support,
        rounding=lambda architecture: ROUNDING,
        unavailable=functools.partial(unavailable, f"csrc/cpp_itfs/pa/{module}.py"),
        findings=findings,
    )


def _new(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.full(shape, torch.nan, dtype=dtype)


def _workspace(rows: int, layer: Layer, partitions: int, itemsize: int) -> torch.Tensor:
    """Bytes for partitions' outputs, maxima and sums (rocm_aiter_fa.py:1610-1616), all NaN."""
    parts = rows * layer.num_heads * partitions
    return torch.full((parts * layer.head_size * itemsize + 2 * parts * 4,), 0xFF, dtype=torch.uint8)


def _shared(
    q: torch.Tensor, layer: Layer, out: torch.Tensor, rows: int
) -> tuple[dict[str, Any], tuple[torch.Tensor, torch.Tensor]]:
    """Arguments that all three functions have, and the scales of K and V, which have other names in one."""
    one = torch.ones(1)
    return {
        "out": out[:rows],
        "query": q[:rows],
        "scale": layer.scale,
        "alibi_slopes": layer.alibi_slopes,
        "kv_cache_dtype": "auto" if layer.kv_cache_dtype is None else "fp8",
    }, (one if layer.k_scale is None else layer.k_scale, one if layer.v_scale is None else layer.v_scale)


def _v1(q, kv_cache, layer: Layer, batch: Batch, out) -> dict[str, Any]:
    rows = batch.num_requests
    assert batch.block_table is not None
    shared, (k_scale, v_scale) = _shared(q, layer, out, rows)
    key_cache, value_cache = foreign.keys_and_values(kv_cache, layer)
    table, seq_lens, longest = batch.block_table.contiguous(), batch.seq_lens, batch.max_seq_len
    if layer.window[0] >= 0:
        table, seq_lens, longest = _trimmed(batch, layer.window[0] + 1, key_cache.shape[1])
    partitions = -(-longest // PARTITION)
    return shared | {
        "workspace_buffer": _workspace(rows, layer, partitions, q.element_size()),
        "key_cache": key_cache,
        "value_cache": value_cache,
        "block_tables": table,
        "cu_query_lens": batch.query_start_loc[:rows],
        "context_lens": seq_lens,
        "max_context_len": longest,
        "kv_cache_layout": "NHD",
        "logits_soft_cap": layer.logits_soft_cap or 0.0,
        "k_scale": k_scale,
        "v_scale": v_scale,
        "sliding_window": layer.window[0] + 1,
    }


def _trimmed(batch: Batch, window: int, block_size: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The table's blocks that a window reaches, the keys in them and the longest of these (rocm_aiter_fa.py:519, 548-581)."""
    assert batch.block_table is not None
    first = torch.clamp(batch.seq_lens - window, min=0) // block_size
    columns = first.long()[:, None] + torch.arange(-(-window // block_size) + 1)
    table = torch.gather(batch.block_table, 1, columns.clamp(max=batch.block_table.shape[1] - 1))
    return table, batch.seq_lens - first * block_size, min(batch.max_seq_len, window + block_size - 1)


def _ragged(q, kv_cache, layer: Layer, batch: Batch, out) -> dict[str, Any]:
    rows = batch.num_requests
    shared, (k_scale, v_scale) = _shared(q, layer, out, rows)
    key_cache, value_cache = foreign.keys_and_values(kv_cache, layer)
    indptr, indices = slots_of_requests(batch, batch.seq_lens, key_cache.shape[1])
    partitions = -(-batch.max_seq_len // PARTITION)
    return shared | {
        # it takes 4 bytes for each number of an output (aiter_backend.py:560-569)
        "workspace_buffer": _workspace(rows, layer, partitions, 4),
        "key_cache": key_cache.flatten(0, 1)[:, None],
        "value_cache": value_cache.flatten(0, 1)[:, None],
        "kv_indptr": indptr,
        "kv_page_indices": indices.int(),
        "kv_last_page_lens": torch.ones(rows, dtype=torch.int32),
        "block_size": 1,
        "max_num_partitions": partitions,
        "kv_cache_layout": "NHD",
        "logits_soft_cap": layer.logits_soft_cap or 0.0,
        "k_scale": k_scale,
        "v_scale": v_scale,
    }


def _rocm(q, kv_cache, layer: Layer, batch: Batch, out) -> dict[str, Any]:
    rows = batch.num_requests
    shared, (k_scale, v_scale) = _shared(q, layer, out, rows)
    key_cache, value_cache = foreign.packed_keys_and_values(kv_cache, layer)
    assert batch.block_table is not None
    parts = (rows, layer.num_heads, -(-batch.max_seq_len // PARTITION))
    return shared | {
        "exp_sums": _new(parts, torch.float32),
        "max_logits": _new(parts, torch.float32),
        "tmp_out": _new((*parts, layer.head_size), q.dtype),
        "key_cache": key_cache,
        "value_cache": value_cache,
        "num_kv_heads": layer.num_kv_heads,
        "block_tables": batch.block_table.contiguous(),
        "context_lens": batch.seq_lens,
        "block_size": key_cache.shape[3],
        "max_context_len": batch.max_seq_len,
        "key_scale": k_scale,
        "value_scale": v_scale,
    }


MAX_KEYS, LONG = 600, 4500
"""Keys of a request, and of one that is alone: 3 partitions, and 18, of which the merge takes 16 at once."""
ROUNDING = Rounding(
    keys_per_tile=PARTITION,
    dot_is_chained=True,
    splits=-(-LONG // PARTITION),
    merged_parts=2,
    normalizes_first=True,
    float8_dots=True,
)
_ENGINE = dataclasses.replace(VLLM, query_lens=("one",), empty_requests=False, signed_slopes=False, mixed_alibi=False)
_FLOAT8 = {"gfx942": ("fp8_e4m3fnuz",), "gfx950": ("fp8_e4m3fn",)}
"""The type that v_cvt_pk_fp8_f32 and the products of matrices read and write; gfx90a has neither."""


def _support(architecture: str, **fields: Any) -> Support:
    drawn: dict[str, Any] = {
        "attn_types": (AttentionType.DECODER,),
        "dtypes": ("float16", "bfloat16"),
        "head_sizes": (64, 128, 256),
        "cache_dtypes": _FLOAT8.get(architecture, ()),
        "scales": ("tensor",),
        "group_sizes": (1, 2, 3, 4, 5, 7, 8, 12, 16, 32, 24, 71),
        "engine": _ENGINE,
        "unused_slots": "mostly finite",
        "tile_sizes": (16, 64, PARTITION),
        "max_tokens": 4,
        "max_seq_len": MAX_KEYS,
        "long_seq_len": LONG,
    }
    return Support(**(drawn | fields))


def _v1_support(architecture: str) -> Support:
    return _support(
        architecture,
        layouts=(Layout.CONTENT_PACKED,),
        rules=("window", "logits_soft_cap", "alibi_slopes"),
        block_sizes=(16, 32),
        exclude=_window_with_alibi,
    )


def _window_with_alibi(case: Case) -> str | None:
    return "ALiBi with a window, which vLLM hands to another kernel" if case.alibi_slopes and case.window[0] >= 0 else None


def _ragged_support(architecture: str) -> Support:
    engine = dataclasses.replace(
        sglang_package.ENGINE,
        query_lens=("one",),
        other_scales=False,
        unlike_strides=(False,),  # it takes no stride of heads, and SGLang hands it a view of dense rows
        cited={"unlike_strides": "SGLang's srt/layers/attention/aiter_backend.py:4865"},
    )
    return _support(
        architecture,
        layouts=(sglang_package.LAYOUT,),
        rules=("logits_soft_cap",),
        head_sizes=(64, 128, 256, 80, 96),
        block_sizes=(1, 16, 64),
        engine=engine,
    )


def _rocm_support(architecture: str) -> Support:
    return _support(
        architecture,
        layouts=(Layout.X_PACKED, Layout.SHUFFLED),
        rules=("alibi_slopes",),
        head_sizes=(64, 128, 192, 256, 80, 96),
        block_sizes=(16, 32, 64),
    )


AITER_HIP_PA_V1 = _target(
    "aiter-hip-pa-v1",
    "pa_v1",
    "paged_attention_v1",
    "AITER's HIP paged_attention_v1, as vLLM's ROCM_AITER_FA calls it for decodes",
    _v1,
    _v1_support,
    HIP_PA_V1,
)
AITER_HIP_PA_RAGGED = _target(
    "aiter-hip-pa-ragged",
    "pa_ragged",
    "paged_attention_ragged",
    "AITER's HIP paged_attention_ragged, as SGLang's aiter backend calls it for decodes",
    _ragged,
    _ragged_support,
    HIP_PA_RAGGED,
)
AITER_HIP_PA_ROCM = _target(
    "aiter-hip-pa-rocm",
    "pa",
    "paged_attention_rocm",
    "AITER's HIP paged_attention_rocm, as its PagedAttention calls it for decodes",
    _rocm,
    _rocm_support,
    HIP_PA,
)
