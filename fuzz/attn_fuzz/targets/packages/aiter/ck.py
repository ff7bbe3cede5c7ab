"""AITER's forward attention of composable kernels (CK), as `flash_attn_varlen_func` calls it where its assembly does not serve.

The assembly serves bfloat16 with V of 128 and without a window (aiter/ops/mha.py:1903-1916 of the wheel of amd-aiter
0.1.7.post2.dev18). Everything else goes to mha_varlen_fwd (csrc/py_itfs_ck/mha_varlen_fwd_kernels.cu), whose struct of
numbers is made here (:129-177). For dtype, width, mask and LSE CK's generator (example/ck_tile/01_fmha/generate.py, receipt
200, as mha.py:262 calls it) writes one instance for requests of unlike lengths. clang compiles it with CK's own host code,
which makes the kernel's arguments and its grid.

The compiler's options are AITER's (aiter/jit/optCompilerConfig.json) but for those that `packages.aiter.hip` names. With
-amdgpu-early-inline-all=true, which is AITER's too, clang 19 did not end: emulator.md.

float32 is cut to bfloat16 (CK_TILE_FLOAT_TO_BFLOAT16_DEFAULT=2), the weights and the output alike.
"""

import ctypes
import functools
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from attn_contract import AttentionType, Batch, Layer, Layout
from attn_fuzz.cases.case import Case
from attn_fuzz.targets import of_architecture
from attn_fuzz.targets.engine import GIVES_KEYS, Engine
from attn_fuzz.targets.packages.aiter import hip as aiter_hip
from attn_fuzz.targets.packages.aiter.dense import gathered
from attn_fuzz.targets.packages.aiter.package import root
from attn_fuzz.targets.rng import rng_of_lengths
from attn_fuzz.targets.support import Support
from attn_fuzz.verdict.rounding import Rounding

_EXAMPLE = "3rdparty/composable_kernel/example/ck_tile/01_fmha"
_FOLDERS = (_EXAMPLE, "3rdparty/composable_kernel/include", "csrc/include")
_OPTIONS = (
    *aiter_hip.OPTIONS,
    *("-DCK_TILE_FMHA_FWD_FAST_EXP2=1", "-DCK_TILE_FLOAT_TO_BFLOAT16_DEFAULT=2"),
    "-DCK_TILE_ATTENTION_LOGITS_SOFT_CAP_DEFAULT=0",
)
_CALL = """
hipError_t hipPeekAtLastError() { return hipSuccess; }
hipError_t hipGetDevice(int*) { return hipErrorNoDevice; } // is_wave32 of CK then says no
extern "C" void attn_parity_fmha(const void* q, const void* k, const void* v, void* out, void* lse, const void* q_starts,
                                 const void* k_starts, const int* n, float scale) {
  fmha_fwd_args a{};
  a.q_ptr = q, a.k_ptr = k, a.v_ptr = v, a.o_ptr = out, a.lse_ptr = lse;
  a.seqstart_q_ptr = q_starts, a.seqstart_k_ptr = k_starts;
  a.batch = n[0], a.max_seqlen_q = n[1], a.nhead_q = n[2], a.nhead_k = n[3], a.hdim_q = n[4], a.hdim_v = n[5];
  a.stride_q = n[6], a.nhead_stride_q = n[7], a.stride_k = n[8], a.nhead_stride_k = n[9];
  a.stride_v = n[10], a.nhead_stride_v = n[11], a.stride_o = n[12], a.nhead_stride_o = n[13], a.nhead_stride_lse = n[14];
  a.window_size_left = n[15], a.window_size_right = n[16], a.mask_type = n[17];
  a.scale_s = scale, a.scale_p = 1, a.scale_o = 1;
  fmha_fwd_<trait_0, ck_tile::gfx9_t>(ck_tile::stream_config{}, a);
}
"""
_BOTTOM_RIGHT = 2  # mask_enum::mask_bottom_right of CK's mask.hpp


@functools.cache
def _instance(dtype: str, head_size: int, *, has_mask: bool, has_lse: bool) -> str:
    """The source of an instance, as CK's generator writes it."""
    features = f"_nlogits*_nbias*_{'' if has_mask else 'n'}mask*_{'' if has_lse else 'n'}lse*_ndropout*_nskip*"
    name = f"*d{head_size}_{dtype}*{features}"
    given = ("-d", "fwd", "--receipt", "200", "--targets", "gfx942", "--filter", name)
    with tempfile.TemporaryDirectory() as made:
        generator = root() / _EXAMPLE / "generate.py"
        subprocess.run([sys.executable, "-B", generator, *given, "--output_dir", made], check=True, capture_output=True)
        [file] = Path(made).glob("fmha_fwd_d*.cpp")
        return file.read_text()


def _attend(architecture, q, k, v, kv_cache, layer: Layer, batch: Batch, *, out, lse) -> None:
    from attn_fuzz.emulated import hip

    rows, starts, out = int(batch.query_start_loc[-1]), batch.query_start_loc, out.view(*q.shape[:2], -1)
    if kv_cache is not None:
        k, v, starts = gathered(kv_cache, layer, batch, batch.seq_lens)
    of_rows = None if lse is None else torch.full((layer.num_heads, rows), torch.nan)
    left, right = (-1 if edge >= batch.max_seq_len else edge for edge in layer.window)  # :428-429
    if batch.causal and batch.max_query_len > 1:  # :403
        right = 0
    has_mask = (left, right) != (-1, -1)
    dtype = "bf16" if q.dtype is torch.bfloat16 else "fp16"
    text = _instance(dtype, layer.head_size, has_mask=has_mask, has_lse=lse is not None) + _CALL
    source = hip.Source(text, tuple(root() / each for each in _FOLDERS), _OPTIONS)
    tensors = {"q": q, "k": k, "v": v, "out": out, "lse": of_rows, "q_starts": batch.query_start_loc, "k_starts": starts}
    strides = [stride for each in (q, k, v, out) for stride in each.stride()[:2]]
    sizes = (batch.num_requests, batch.max_query_len, layer.num_heads, layer.num_kv_heads, layer.head_size, layer.v_head_size)
    numbers = (*sizes, *strides, 0 if of_rows is None else rows, left, right, _BOTTOM_RIGHT * has_mask)
    rng = rng_of_lengths(batch)
    hip.compiled(source, architecture).call(
        "attn_parity_fmha",
        *(ctypes.c_void_p(None if each is None else each.data_ptr()) for each in tensors.values()),
        (ctypes.c_int * len(numbers))(*numbers),
        ctypes.c_float(layer.scale),
        tensors={name: tensor for name, tensor in tensors.items() if tensor is not None},
        schedules=lambda: of_architecture.schedules(rng),
    )
    if lse is not None:
        lse[:, :rows] = of_rows


def _excluded(case: Case) -> str | None:
    if case.dtype == "bfloat16" and case.head_size == 128 and max(case.window) <= 0:
        return "bfloat16, heads of 128 and no window: AITER's assembly serves it"
    if not any(request.seq_len for request in case.requests):
        return "no key in any request: host code launches nothing"
    return None


def _support(architecture: str) -> Support:
    return Support(
        attn_types=(AttentionType.DECODER, AttentionType.ENCODER_DECODER, AttentionType.ENCODER),
        dtypes=("float16", "bfloat16"),
        layouts=(Layout.KV_FIRST_NHD,),
        rules=("non_causal", "lse", "window"),
        head_sizes=(64, 128),
        group_sizes=(1, 2, 3, 8),
        block_sizes=(16,),
        engine=Engine(
            windows=("by causality",),
            scale_signs=(1,),
            empty_batches=False,
            **GIVES_KEYS,
            recycled=False,  # keys are rows of the call: their NaN times a weight of 0 is NaN
            unlike_strides=(False,),
        ),
        exclude=_excluded,
        tile_sizes=(64, 128),
        max_tokens=140,
        max_seq_len=200,
    )


AITER_CK_FMHA = of_architecture.with_architecture(
    "aiter-ck-fmha",
    "AITER's forward attention of composable kernels, mha_varlen_fwd, for what its assembly does not serve",
    architectures=("gfx942",),
    attention=_attend,
    support=_support,
    rounding=lambda architecture: Rounding(
        keys_per_tile=64, dot_is_chained=True, truncates_weights=True, truncates_output=True
    ),
    unavailable=functools.partial(aiter_hip.unavailable, f"{_EXAMPLE}/generate.py"),
)
