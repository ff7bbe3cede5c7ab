"""SGLang's Triton attention of DeepSeek-V4 over one pool of rows on ROCm (kernels/ops/attention/dsv4/unified_kv_kernels).

The pool has a ring of the last tokens of each request and, after the rings, the compressed entries of all requests. A decode
attends to a window in the ring and to entries (srt/layers/attention/deepseek_v4_backend_hip_radix.py:2612, :2929). A prefill
attends to a window, of which the ring has what lies before the step, and to entries (:2964). Some layers have no entries.

To a kernel a key is a key. So each token before the window is an entry here, and a layer without a window has all tokens.
SGLang's own functions list the rows. The Triton decode takes no -1. On gfx950 a prefill is one in HIP (paged_prefill.py:61).
"""

import dataclasses
import functools
import random
from types import SimpleNamespace

import torch
from attn_contract import Batch
from attn_fuzz import foreign
from attn_fuzz.findings.sglang import UNIFIED_KV
from attn_fuzz.foreign.loading import Stubs
from attn_fuzz.targets.modes import far
from attn_fuzz.targets.packages import SGLANG
from attn_fuzz.targets.packages.declaring import Sources
from attn_fuzz.targets.packages.latent_rows import decoded_rows, latent_support
from attn_fuzz.targets.packages.sglang import package as sglang_package
from attn_fuzz.targets.rng import rng_of_lengths
from attn_fuzz.targets.rows import rows_of
from attn_fuzz.targets.support import LatentSizes
from attn_fuzz.verdict.rounding import Rounding

FOLDER = "kernels/ops/attention/dsv4/unified_kv_kernels/"
WINDOWS, SPLITS = (16, 1, 5, 128), (None, 1, 2, 4)


def _stubs() -> Stubs:
    stubs = sglang_package.stubs()
    common = stubs["sglang.srt.utils"] | {"is_hip": lambda: True}
    own = {
        "sglang.srt.utils": common,
        "sglang.srt.utils.common": common,
        "sglang.srt.environ": {"envs": SimpleNamespace(SGLANG_MLA_HCA_KV_SPLITS=SimpleNamespace(get=lambda: 0))},
        "sglang.kernels.ops.quantization.fp8_kernel": {"is_fp8_fnuz": lambda: True},
        "aiter.ops.triton.utils.device_info": {"get_num_sms": lambda: sglang_package.COMPUTE_UNITS},
    }
    return stubs | own


SOURCES = Sources(SGLANG, ("runtime", "paged_decode", "paged_decode_indices", "paged_prefill"), _stubs, (FOLDER,), (FOLDER,))


def _tokens(kv_cache: torch.Tensor, batch: Batch) -> torch.Tensor:
    """[R, L, D]: the keys of each request, and NaN after them."""
    assert batch.block_table is not None
    positions = torch.arange(int(batch.seq_lens.max()), device=kv_cache.device)
    is_key, block_size = positions < batch.seq_lens[:, None], kv_cache.shape[1]
    blocks = torch.where(is_key, batch.block_table[:, positions // block_size], 0)
    return torch.where(is_key[..., None], kv_cache[blocks, positions % block_size], torch.nan)


class _Pool:
    """The rings, which hold the tokens [R, L, D] before `ends`, and an entry of each token."""

    def __init__(self, tokens: torch.Tensor, ends: torch.Tensor, ring: int, rng: random.Random) -> None:
        (requests, longest, _), device = tokens.shape, tokens.device
        self.of_rings = ring * (requests + 1)
        self.rows = far.pool(self.of_rings + requests * longest, tokens)
        slots = rng.sample(range(requests + 1), requests)
        for request, (slot, end) in enumerate(zip(slots, ends.tolist(), strict=True)):
            last = torch.arange(max(end - ring, 0), end, device=device)
            self.rows[slot * ring + last % ring] = tokens[request, last]
        entries = rng.sample(range(len(self.rows) - self.of_rings), requests * longest)
        self.slots = torch.tensor(slots, dtype=torch.int32, device=device)
        self.entries = torch.tensor(entries, dtype=torch.int32, device=device).view(requests, longest)
        self.rows[self.of_rings + self.entries] = tokens


def _attention(q, k, v, kv_cache, layer, batch, *, out, lse, attend) -> None:
    [request, seen], rng = decoded_rows(batch), rng_of_lengths(batch)
    if rows := len(request):
        has_window = layer.window[0] >= 0
        win = layer.window[0] + 1 if has_window else rng.choice(WINDOWS)
        before = torch.zeros_like(seen) if has_window else (seen - win).clamp(min=0)
        call = {"q": q[:rows], "attn_sink": layer.sinks, "softmax_scale": layer.scale}
        with foreign.as_on_a_gpu():
            rows_of(out, layer, rows)[:] = attend(SOURCES.load()[0], _tokens(kv_cache, batch), batch, win, before, rng, call)


def _decode(runtime, tokens, batch, win, before, rng, call) -> torch.Tensor:
    request, seen = decoded_rows(batch)
    ring = win + batch.max_query_len - 1 + rng.choice((0, 3))
    pool = _Pool(tokens, batch.seq_lens, ring, rng)
    entries, window = _entries(pool, request, before, rng), seen.clamp(max=win)
    streams = runtime.build_decode_streams(
        state_slot=pool.slots[request],
        positions=seen - 1,
        swa_len=window,
        hca_len=before,
        csa_len=before,
        hca_page_indices=entries,
        csa_width=entries.shape[1],
        win=win,
        ring_stride=ring,
        swa_pages=pool.of_rings,
    )
    indices, indptr = streams[2:4] if bool(before.any()) else streams[:2]
    if rng.choice((False, True)):  # entries of 4 tokens, which each layer puts after the window that all share
        indices, indptr = streams[4:]
        tail = {"prefix_len": window, "page_indices": entries, "valid_len": before, "swa_pages": pool.of_rings}
        runtime.fill_compress_tail(indices=indices, indptr=indptr, **tail)
    return runtime.decode(unified_kv=pool.rows, kv_indices=indices, kv_indptr=indptr, kv_splits=rng.choice(SPLITS), **call)


def _prefill(runtime, tokens, batch, win, before, rng, call) -> torch.Tensor:
    (request, seen), ring = decoded_rows(batch), win + rng.choice((0, 3))
    lengths = batch.query_start_loc.diff()
    firsts = batch.seq_lens - lengths
    pool = _Pool(tokens, firsts, ring, rng)
    ratio = rng.choice((4, 128)) if bool(before.any()) else 0
    lists = runtime.build_prefill_indices(
        compress_ratio=ratio,
        state_slot=pool.slots[request],
        positions=seen - 1,
        chunk_start=firsts[request],
        cu_q=batch.query_start_loc[request],
        win=win,
        ring_stride=ring,
        swa_pages=pool.of_rings,
        **dict.fromkeys(("c128_page_indices", "c4_sparse_page_indices"), _entries(pool, request, before, rng)),
    )
    names = ("kv_indices_prefix", "kv_indptr_prefix", "kv_indices_extend", "kv_indptr_extend")
    own = tokens[request, seen.long() - 1]
    return runtime.prefill(unified_kv=pool.rows, kv_extend=own, **dict(zip(names, lists, strict=True)), **call)


def _entries(pool: _Pool, request: torch.Tensor, before: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """[rows, width] int32: the entries of the tokens before each row's window, and -1 after them."""
    width = int(before.max()) + rng.choice((0, 1, 70))
    padded = torch.nn.functional.pad(pool.entries[request], (0, 70), value=-1)[:, :width]
    return torch.where(torch.arange(width, device=before.device) < before[:, None], padded, -1)


SGLANG_UNIFIED_DECODE = SOURCES.target(
    name="sglang-unified-decode",
    description="the Triton decode of SGLang over one pool of a window and entries",
    attention=functools.partial(_attention, attend=_decode),
    support=latent_support(
        rules=("head_size_v", "window", "sinks"),
        required_rules=("sinks",),
        latent=LatentSizes(widths=((512, 0), (128, 0)), group_sizes=(16, 8, 64, 128), block_sizes=(16, 1, 64)),
        max_seq_len=300,
        engine=dataclasses.replace(sglang_package.ENGINE, planes=(False,), fused_qkv=(False,)),
    ),
    rounding=Rounding(keys_per_tile=16, splits=16),
    findings=UNIFIED_KV,
)
SGLANG_UNIFIED_PREFILL = dataclasses.replace(
    SGLANG_UNIFIED_DECODE,
    name="sglang-unified-prefill",
    description="the Triton prefill of SGLang over one pool of a window and entries, and over the step's own rows",
    attention=functools.partial(_attention, attend=_prefill),
    support=lambda device: dataclasses.replace(SGLANG_UNIFIED_DECODE.support(device), max_tokens=24),
)
