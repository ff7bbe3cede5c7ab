"""vLLM's conversions of what a query selects: positions to slots, on one rank or on several, and pools to positions.

triton_convert_req_index_to_global_index and triton_filter_and_convert_dcp_index (v1/attention/backends/mla/sparse_utils.py:493,
:643) keep -1, or put what is left in front, with its number. ROCm has a function of its own, which writes one list after the
other (v1/attention/backends/mla/rocm_aiter_mla_sparse.py:228). It is given no -1 before the end of a list.

GLM-5.3-Flash selects pools. expand_pools_and_append_tail (models/glm5next/amd/ops/kpool_compress.py:830) makes positions of
them, with those of the pool that is not full yet. ROCm's attention takes as many as the pools alone have, and its
fit_kpool_indices_to_aiter (rocm_aiter_mla_sparse.py:130) lets the tail replace the last ones.
"""

import random
from types import ModuleType

import torch
from attn_fuzz.targets.indexer import guarded, index_engine, judged_target
from attn_fuzz.targets.packages.combined_lists import check
from attn_fuzz.targets.packages.declaring import Sources
from attn_fuzz.targets.packages.latent_rows import decoded_rows, selected_tokens
from attn_fuzz.targets.packages.vllm import package as vllm_package
from attn_fuzz.targets.rng import rng_of_lengths
from attn_fuzz.targets.rows import rows_of

MLA = "v1/attention/backends/mla/"
TILE = 16
"""Columns of a program; engines have 128."""


def _name_kernel(modules: list[ModuleType]) -> None:
    """A kernel of its name is looked up there to compile it."""
    kernel = modules[0].ConvertReqIndexToGlobalIndexKernel.kernel
    vars(modules[0])[kernel.__name__] = kernel


COMMON = vllm_package.amid_anything(f"{MLA}sparse_utils", *vllm_package.LAUNCHER, change=_name_kernel)
ROCM = vllm_package.amid_anything(f"{MLA}rocm_aiter_mla_sparse")
POOLS = vllm_package.amid_anything("models/glm5next/amd/ops/kpool_compress")


def _slots(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    [request, seen], rng = decoded_rows(batch), rng_of_lengths(batch)
    if rows := len(request):
        tokens = selected_tokens(layer, batch)[0]
        tokens = torch.nn.functional.pad(tokens, (0, -tokens.shape[1] % TILE or TILE), value=-1)
        convert = rng.choice((_on_ranks, _on_rocm, _kept))
        convert(tokens, request, batch.block_table, layer.view_of(kv_cache).block_size, seen, rng)
    rows_of(out, layer, rows).zero_()


def _right(tokens, request, block_table, block_size: int, stride: int) -> list[list[int]]:
    """The slots of the tokens of each row, blocks being `stride` rows apart, without those of -1."""
    tables, slots = block_table.tolist(), zip(request.tolist(), tokens.tolist(), strict=True)
    return [[tables[r][j // block_size] * stride + j % block_size for j in row if j >= 0] for r, row in slots]


def _arguments(tokens, request, block_table, block_size: int, stride: int) -> dict[str, object]:
    sizes = {"BLOCK_SIZE": block_size, "BLOCK_STRIDE_ROWS": stride, "NUM_TOPK_TOKENS": tokens.shape[1], "BLOCK_N": TILE}
    return {"req_id": request.int(), "block_table": block_table, "token_indices": tokens, **sizes}


def _kept(tokens, request, block_table, block_size: int, seen, rng: random.Random) -> None:
    stride = block_size + rng.choice((0, 3))
    found = COMMON.load()[0].triton_convert_req_index_to_global_index(
        **_arguments(tokens, request, block_table, block_size, stride)
    )
    right, width = _right(tokens, request, block_table, block_size, stride), tokens.shape[1]
    lengths = torch.full((len(tokens),), width)
    check([row + [-1] * (width - len(row)) for row in right], found, lengths, seen - 1)


def _on_ranks(tokens, request, block_table, block_size: int, seen, rng: random.Random) -> None:
    """One rank is all of them: the functions are the same then."""
    stride, ranks = block_size + rng.choice((0, 3)), rng.choice((1, 2, 3))
    rank, run = rng.randrange(ranks), rng.choice([size for size in (1, 2, 4, 16) if block_size % size == 0])
    found, lengths = COMMON.load()[0].triton_filter_and_convert_dcp_index(
        **_arguments(tokens, request, block_table, block_size, stride),
        dcp_size=ranks,
        dcp_rank=rank,
        cp_kv_cache_interleave_size=run,
        return_valid_counts=True,
    )
    owned = torch.where((tokens >= 0) & (tokens // run % ranks == rank), tokens // (run * ranks) * run + tokens % run, -1)
    check(_right(owned, request, block_table, block_size, stride), found, lengths, seen - 1)


def _on_rocm(tokens, request, block_table, block_size: int, seen, rng: random.Random) -> None:
    stride, lengths = block_size + rng.choice((0, 3)), (tokens >= 0).sum(1)
    packed = tokens.sort(dim=1, descending=True).values
    ends = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    with guarded((1, int(ends[-1])), torch.int32, "slots") as flat:
        ROCM.load()[0].triton_convert_req_index_to_global_index(
            cu_seqlens=ends, paged_kv_indices=flat, **_arguments(packed, request, block_table, block_size, stride)
        )
    found = torch.full(tokens.shape, -1, dtype=torch.int32)
    found[torch.arange(tokens.shape[1]) < lengths[:, None]] = flat[0]
    check(_right(packed, request, block_table, block_size, stride), found, lengths, seen - 1)


def _pools(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    [request, seen], rng, size = decoded_rows(batch), rng_of_lengths(batch), layer.selection_unit
    if rows := len(request):
        width, full = batch.selected.shape[2] + 1, (seen // size).tolist()
        chosen = [rng.sample(range(count), min(count, width)) for count in full]
        pools = torch.tensor([[*row, *[-1] * (width - len(row))] for row in chosen], dtype=torch.int32)
        found = POOLS.load()[0].expand_pools_and_append_tail(pools, seen, size)
        tails = [[*range(count * size, length)] for count, length in zip(full, seen.tolist(), strict=True)]
        expanded = [[c * size + i for c in row for i in range(size)] for row in chosen]
        _check_holes(expanded, tails, found, seen)
        fitted = ROCM.load()[0].fit_kpool_indices_to_aiter(found, width * size)
        kept = [row[: width * size - len(tail)] for row, tail in zip(expanded, tails, strict=True)]
        _check_holes(kept, tails, fitted, seen)
    rows_of(out, layer, rows).zero_()


def _check_holes(own, tails, found, seen) -> None:
    """-1 may stand anywhere."""
    right = [row + tail for row, tail in zip(own, tails, strict=True)]
    lengths = torch.tensor([len(row) for row in right])
    check(right, found.sort(dim=1, descending=True).values, lengths, seen - 1)


def _target(name: str, attention, sources: tuple[Sources, ...], units: tuple[int, ...], description: str):
    selections = {"selections": ("top", "some", "holes", "all"), "selected_per_head": (False,)}
    return judged_target(
        name,
        attention,
        description=f"{description} of vLLM",
        engine=index_engine(selection_units=units, more_queries_than_keys=False, **selections),
        group_sizes=(1,),
        unavailable=lambda device: next(filter(None, (each.unavailable(device) for each in sources)), None),
        modules=lambda: [each.load()[0] for each in sources],
    )


VLLM_SELECTED_SLOTS = _target("vllm-selected-slots", _slots, (COMMON, ROCM), (1,), "conversions of selected positions to slots")
VLLM_SELECTED_POOLS = _target("vllm-selected-pools", _pools, (POOLS, ROCM), (4, 2, 8), "positions of selected pools")
