"""The plan of any layer and step on any GPU holds the heads that it is asked for, or is refused."""

import dataclasses
import itertools
import re

import attn_optimized
import pytest
import torch
from attn_contract import AttentionType, Batch, ContractError, Layer, Layout, UnsupportedError
from attn_optimized.cascade import cascade_attention_calls
from attn_optimized.launch.parts import Parts
from attn_optimized.launch.table import Parameters, architectures, entries, table_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st

_KIB = {64: ("sm75",), 96: ("sm70",), 99: ("sm86", "sm89", "sm120"), 163: ("sm80", "sm87"), 227: ("sm90", "sm100", "sm103")}
SHARED_MEMORY = {architecture: kib << 10 for kib, names in _KIB.items() for architecture in names}
"""CUDA C++ Programming Guide, technical specifications per compute capability: shared memory of a thread block at most."""
MAX_PROGRAMS = ((1 << 31) - 1, 65_535, 65_535)
"""The same, dimensions of a grid at most; HIP's are no smaller."""


def sizes(most: int) -> st.SearchStrategy[int]:
    """Sizes up to the largest that a tile holds, and a few that are larger: tiles change at powers of two."""
    edges = [power + more for power in (16, 32, 64, 128, 256, 512) if power <= most for more in (-1, 0, 1)]
    return st.sampled_from([1, most, most + 1, *edges]) | st.integers(1, most + 40)


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    """Layers without a cache, with one, and with a latent one. Some have heads that no tile holds."""
    kind = draw(st.sampled_from(("dense", "paged", "latent")))
    kv_heads = 1 if kind == "latent" else draw(st.integers(1, 3))
    heads = kv_heads * draw(sizes(64))
    fields = {"attn_type": AttentionType.ENCODER_ONLY if kind == "dense" else AttentionType.DECODER}
    if kind == "latent":
        v_head_size = draw(sizes(512))
        fields |= {
            "layout": Layout.LATENT,
            "head_size_v": v_head_size,
            "head_size": v_head_size + draw(st.just(0) | sizes(128)),
        }
    else:
        fields |= {"layout": Layout.CONTENT_PACKED} if kind == "paged" else {}
        fields |= {"head_size": draw(sizes(512)), "head_size_v": draw(st.none() | sizes(512))}
    if kind != "dense" and draw(st.booleans()):
        scale = torch.empty((), device="meta")
        fields |= {"kv_cache_dtype": torch.float8_e4m3fn, "k_scale": scale, "v_scale": scale if kind == "paged" else None}
    slopes = torch.empty((heads,), device="meta") if draw(st.booleans()) else None
    return Layer(num_heads=heads, num_kv_heads=kv_heads, scale=1.0, alibi_slopes=slopes, **fields)


def batch_of(requests: int, longest: int, others: int, context: int, *, causal: bool) -> Batch:
    """A step of a request with `longest` queries, and of others with `others` queries each."""
    integers = torch.empty((requests + 1,), dtype=torch.int32, device="meta")
    bounds = {"max_query_len": longest, "max_seq_len": longest + context}
    tokens = longest + (requests - 1) * others
    return Batch(query_start_loc=integers, seq_lens=integers[1:], num_actual_tokens=tokens, causal=causal, **bounds)


def queries(layer: Layer, batch: Batch, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty((batch.num_actual_tokens, layer.num_heads, layer.head_size), dtype=dtype, device="meta")


parameters = st.builds(
    Parameters,
    block_m=st.sampled_from((16, 32, 64, 128)),
    block_n=st.sampled_from((16, 32, 64, 128)),
    num_warps=st.sampled_from((1, 2, 4, 8)),
    num_stages=st.integers(1, 4),
)
dtypes = st.sampled_from((torch.float32, torch.float16, torch.bfloat16))
gpus = st.sampled_from((*architectures(), *SHARED_MEMORY, "gfx906", "interpreter"))
longest_queries = st.sampled_from((1, 2, 5, 16, 17, 64, 300, 4096))


def too_large(layer: Layer) -> bool:
    if layer.layout is Layout.LATENT:
        return layer.v_head_size > 512 or layer.head_size - layer.v_head_size > 128
    return max(layer.head_size, layer.v_head_size) > 512


def padded(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())


@settings(max_examples=300)
@given(
    layer=layers(),
    dtype=dtypes,
    architecture=gpus,
    compute_units=st.sampled_from((1, 3, 132)),
    given_parameters=st.none() | parameters,
    requests=st.sampled_from((1, 2, 9, 64)),
    longest=longest_queries,
    others=st.booleans(),
    invariant=st.booleans(),
)
def test_a_plan_holds_what_it_is_for(
    layer, dtype, architecture, compute_units, given_parameters, requests, longest, others, invariant
):
    batch = batch_of(requests, longest, longest if others else 1, 10_000, causal=layer.attn_type is AttentionType.DECODER)
    q = queries(layer, batch, dtype)
    gpu = {"architecture": architecture, "compute_units": compute_units}
    options = gpu | ({} if given_parameters is None else {"parameters": given_parameters})
    options |= {"batch_invariant": True} if invariant else {}
    if too_large(layer):
        with pytest.raises(UnsupportedError, match="a tile holds whole heads"):
            attn_optimized.plan_of(q, layer, batch, **options)
        return
    plan = attn_optimized.plan_of(q, layer, batch, **options)
    assert (plan.architecture, plan.batch_invariant) == (architecture, invariant)
    assert plan.splits == 1 or not invariant, "the sums of a request depend on its batch"
    parts = Parts.empty(plan.splits, q, layer, batch) if plan.splits > 1 else ()
    assert plan.scratch_bytes == sum(part.nbytes for part in parts)
    check_tiles(plan.tiles, layer)
    if architecture.startswith("gfx9"):
        tile = plan.tiles.block_m * plan.tiles.widths.block_d * q.element_size()
        assert tile <= 64 << 10 or given_parameters or layer.layout is Layout.LATENT, "shared memory holds a tile of queries"
    check_parameters(plan, q, layer, given_parameters)
    check_memory(plan, q, layer)


def check_tiles(tiles, layer: Layer) -> None:
    """Dims stand in the least powers of two, and the heads of a KV head in groups of much the same size that a tile holds."""
    widths, heads = tiles.widths, layer.num_heads // layer.num_kv_heads
    assert (widths.head_size, widths.v_head_size) == (layer.head_size, layer.v_head_size)
    for size, first, *blocks in (
        (layer.head_size, widths.first_size, widths.block_d, widths.block_rest),
        (layer.v_head_size, widths.first_v_head_size, widths.block_v, widths.block_v_rest),
    ):
        assert 1 <= first <= size
        assert blocks == [padded(first), padded(size - first) if first < size else 0]
    assert tiles.heads_per_kv_head == heads
    assert tiles.group == -(-heads // tiles.groups_per_kv_head)
    assert tiles.block_m >= tiles.group
    assert tiles.queries == tiles.block_m // tiles.group
    assert tiles.block_m.bit_count() == 1
    assert tiles.small_block_m == 0 or tiles.group <= tiles.small_block_m < tiles.block_m


def check_parameters(plan, q: torch.Tensor, layer: Layer, given_parameters: Parameters | None) -> None:
    """They are those that were given, or those of an entry for such tensors; of its stages those that fit are taken."""
    if plan.architecture == "interpreter" and given_parameters is None:
        return
    tiles, taken = plan.tiles, plan.tiles.parameters
    is_latent = layer.layout is Layout.LATENT
    # the heads of a latent cache are cut by the tile, others by what is not slower
    if is_latent:
        assert tiles.groups_per_kv_head == -(-tiles.heads_per_kv_head // taken.block_m)
    assert tiles.block_m in (max(taken.block_m, 1 << (tiles.group - 1).bit_length()), max(taken.block_m, 64))
    asked = [given_parameters]
    if given_parameters is None:
        quantized = layer.kv_cache_dtype is not None
        asked = [
            entry.parameters
            for entry in entries(plan.architecture)
            if (entry.itemsize, entry.quantized) == (q.element_size(), quantized)
            and entry.phase.startswith("latent") == is_latent
        ]
    without_stages = [
        dataclasses.replace(one, num_stages=taken.num_stages) for one in asked if one.num_stages >= taken.num_stages
    ]
    assert taken in without_stages


def check_memory(plan, q: torch.Tensor, layer: Layer) -> None:
    """Tiles of several stages fit shared memory, as far as Triton keeps them there."""
    tiles, widths, stages = plan.tiles, plan.tiles.widths, plan.tiles.parameters.num_stages
    if plan.architecture not in SHARED_MEMORY or stages == 1:
        return
    dims = widths.row_block + (0 if layer.layout is Layout.LATENT else widths.value_row_block)
    keys = tiles.block_n * dims * (q.element_size() if layer.kv_cache_dtype is None else 1)
    rows = tiles.block_m * widths.row_block * q.element_size()
    logits = 4 * tiles.block_m * tiles.block_n if layer.alibi_slopes is not None else 0
    # dots of many rows of 16 bits (wgmma) run on while the next tile of keys is loaded, and others end before
    buffers = stages - (tiles.block_m < 64 or q.element_size() != 2)
    assert rows + logits + buffers * keys <= SHARED_MEMORY[plan.architecture]


@settings(max_examples=100)
@given(layer=layers(), dtype=dtypes, architecture=gpus, longest=longest_queries)
def test_a_batch_invariant_plan_knows_nothing_of_the_longest_request(layer, dtype, architecture, longest):
    """Its sums would be others beside a long prefill."""
    assume(not too_large(layer))
    causal = layer.attn_type is AttentionType.DECODER
    steps = [batch_of(2, bound, 1, 100, causal=causal) for bound in (longest, 1, 4096)]
    gpu = {"architecture": architecture, "compute_units": 8, "batch_invariant": True}
    plans = [attn_optimized.plan_of(queries(layer, step, dtype), layer, step, **gpu) for step in steps]
    assert len({(plan.tiles, plan.splits) for plan in plans}) == 1


@settings(max_examples=60)
@given(
    requests_and_heads=st.sampled_from([(8, 65_536), *itertools.product((1, 65_535, 65_536, 300_000), (1, 8))]),
    group=st.sampled_from((1, 8, 64)),
    longest=st.sampled_from((1, 3)),
)
def test_a_grid_is_one_that_gpus_have(requests_and_heads, group, longest):
    requests, kv_heads = requests_and_heads
    layer = Layer(
        num_heads=kv_heads * group,
        num_kv_heads=kv_heads,
        head_size=64,
        scale=1.0,
        attn_type=AttentionType.ENCODER_ONLY,
    )
    batch = batch_of(requests, longest, longest, 0, causal=False)
    call = (queries(layer, batch, torch.float16), layer, batch)
    try:
        grid = attn_optimized.plan_of(*call, architecture="sm90", compute_units=8).launch_grid
    except UnsupportedError:
        assert kv_heads > MAX_PROGRAMS[1]
        assert longest > 1, "where each request has one tile, heads may stand in the first dimension"
        return
    assert all(size <= most for size, most in zip(grid, MAX_PROGRAMS, strict=True))


NAMES = r"(sm[0-9]+|gfx1?[0-9a-f]{3})\Z"
"""The names of architectures."""


@given(
    name=st.sampled_from((*architectures(), "sm120")),
    place=st.integers(0, 7),
    character=st.sampled_from((*"0129abfgmsx ABF.:+-_\n", "")),
    removed=st.integers(0, 1),
)
def test_a_name_with_another_character_is_none_or_of_the_form_of_names(name, place, character, removed):
    edited = name[:place] + character + name[place + removed :]
    if re.match(NAMES, edited):
        assert table_of(edited) in architectures()
        return
    with pytest.raises(ContractError, match="architecture"):
        table_of(edited)


@pytest.mark.parametrize("architecture", ["sm90", "gfx942", "gfx1201"])
def test_each_part_of_a_cascade_has_parameters_of_its_gpu(architecture, paged_call):
    call = paged_call([3, 5], [70, 80], dtype=torch.float16)
    gpu = {"architecture": architecture, "compute_units": 8}
    *parts, _ = cascade_attention_calls(*call, 32, out=torch.empty_like(call.q), **gpu)
    tiles = {(entry.parameters.block_n, entry.parameters.num_warps) for entry in entries(architecture)}
    for part in parts:
        assert (part.launch.constants["KIND"].block_n, part.launch.options["num_warps"]) in tiles
