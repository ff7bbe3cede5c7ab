"""Each backend declares the layers that are stated here once more: no fewer and no more."""

import itertools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from attn_contract import RULES, AttentionConfig, AttentionType, ContractError, Layer, Layout, UnsupportedError
from attn_contract.arguments import named
from attn_contract.rules import label_of
from attn_optimized.aiter_adapter import Aiter, recorded
from attn_optimized.backends import BACKENDS
from hypothesis import given, settings
from hypothesis import strategies as st

AITER = recorded("2026-08")
ANY_DTYPE = (torch.float32, torch.float16, torch.bfloat16)
HALVES = (torch.float16, torch.bfloat16)
E4M3FN, E4M3FNUZ = FLOAT8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz)
LAYOUTS = tuple(layout for layout in Layout if not layout.has_latent_value)
# in the order in which AITER's backends prefer them: it is their declaration
ROWS = (
    Layout.BLOCKS_FIRST_NHD,
    Layout.CONTENT_PACKED,
    Layout.BLOCKS_FIRST_HND,
    Layout.KV_FIRST_NHD,
    Layout.KV_FIRST_HND,
)
OF_AMD = ("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201")
ARCHITECTURES = (*OF_AMD, "interpreter", "sm70", "sm86", "sm88", "sm89", "sm90", "sm120")
BEFORE_SM89 = ("sm70", "sm86", "sm88")
MOST = 1 << 20
PLAIN = AttentionConfig(num_heads=1, num_kv_heads=1, head_size=64, dtype=torch.float16, block_size=16)


def beyond_rocm_attn(config: AttentionConfig, architecture: str | None) -> bool:
    is_causal = config.attn_type is AttentionType.DECODER and not config.asks("non_causal")
    return config.asks("alibi_slopes") and (config.asks("window") or not is_causal)


def beyond_unified(config: AttentionConfig, architecture: str | None) -> bool:
    """Decoders are AITER's. It takes the device's own float8, for outputs and caches. A tile holds no blocks of 48."""
    has_bare_window = config.dtype == torch.float16 and config.value_of("window")[0] >= 0 and not config.asks("sinks")
    is_foreign = has_foreign(config.output_dtype, architecture) or has_foreign(config.kv_cache_dtype, architecture)
    both = config.asks("alibi_slopes") and config.asks("sinks")
    return config.attn_type is AttentionType.DECODER and (both or has_bare_window or is_foreign or config.block_size == 48)


def has_foreign(dtype: torch.dtype | None, architecture: str | None) -> bool:
    own = E4M3FN if architecture in ("gfx950", "gfx1201") else E4M3FNUZ
    return architecture is not None and dtype in FLOAT8 and dtype != own


def beyond_fa(config: AttentionConfig, architecture: str | None) -> bool:
    is_lossy = config.asks("sinks") or config.asks("logits_soft_cap")
    is_assembled = is_lossy and config.dtype == torch.bfloat16 and config.head_size == 128
    return is_assembled or has_foreign(config.kv_cache_dtype, architecture)


def before_sm89(config: AttentionConfig, architecture: str | None) -> bool:
    return config.kv_cache_dtype is not None and architecture in BEFORE_SM89


def beyond_float8_queries(config: AttentionConfig, architecture: str | None) -> bool:
    """vLLM 0.33 quantizes queries beside scales of a cache or head, on GPUs with float8 dots."""
    without_dots = architecture is not None and architecture.startswith(("gfx90a", "gfx11"))
    return config.asks("q_scale") and (without_dots or config.scales not in ("tensor", "head"))


def beyond_diffkv(config: AttentionConfig, architecture: str | None) -> bool:
    return before_sm89(config, architecture) or beyond_float8_queries(config, architecture)


def beyond_sparse_mla(config: AttentionConfig, architecture: str | None) -> bool:
    unpadded = config.num_heads > 128 and config.num_heads % 16 != 0
    return config.value_of("selection_unit") != 1 or unpadded or (config.asks("sinks") and architecture == "gfx1250")


@dataclass(frozen=True, kw_only=True)
class Served:
    """The layers that a backend serves.

    Args:
        group_sizes: query heads of each KV head.
        layouts: in order of preference. A layer whose layout is left to the backend has the first one that it can have.
        widths: of V, and by how many dims K is wider, where V has a width of its own.
        scales: kinds of scales of a quantized cache.
        beyond: whether a layer is refused on an architecture, or on no certain one, though each of its fields is served.
        plain: a layer that is served, which has the other fields.
    """

    rules: Collection[str]
    head_sizes: Collection[int]
    block_sizes: Collection[int]
    attn_types: Collection[AttentionType] = (AttentionType.DECODER,)
    group_sizes: Collection[int] = range(1, MOST)
    dtypes: Collection[torch.dtype] = ANY_DTYPE
    layouts: tuple[Layout, ...] = LAYOUTS
    architectures: Collection[str] = ARCHITECTURES
    cache_dtypes: Collection[torch.dtype] = FLOAT8
    scales: Collection[str] = ("tensor",)
    output_dtypes: Collection[torch.dtype] = ()
    top_ks: Collection[int] = range(1, MOST)
    widths: Collection[tuple[int, int]] = ()
    beyond: Callable[[AttentionConfig, str | None], bool] = lambda config, architecture: False
    plain: AttentionConfig = PLAIN

    def serves(self, config: AttentionConfig, architecture: str | None) -> bool:
        wide = config.value_of("head_size_v")
        fields = (
            config.rules.keys() <= {*self.rules},
            config.attn_type in self.attn_types,
            wide is not None or config.head_size in self.head_sizes,
            config.block_size is None or config.block_size in self.block_sizes,
            config.num_heads // config.num_kv_heads in self.group_sizes,
            config.dtype in self.dtypes,
            config.layout in (None, *self.layouts),
            architecture in (None, *self.architectures),
            config.kv_cache_dtype in (None, *self.cache_dtypes),
            config.scales in (None, *self.scales),
            config.output_dtype in (None, *self.output_dtypes),
            config.top_k is None or config.top_k in self.top_ks,
            (wide is None) != bool(self.widths) and (wide is None or (wide, config.head_size - wide) in self.widths),
        )
        return all(fields) and not self.beyond(config, architecture)


SERVED = {
    "TRITON_ATTN": Served(
        rules={*RULES} - {"head_size_v", "over_ranks", "selection_unit"},
        head_sizes=range(1, 513),
        block_sizes=range(1, MOST),
        attn_types=AttentionType,
        cache_dtypes=(*FLOAT8, torch.int8),
        scales=("tensor", "head", "token", "inline"),
        output_dtypes=FLOAT8,
        beyond=beyond_float8_queries,
    ),
    # vLLM 0.33: K of 32 dims and more, V of any other width. A tile of ours holds 512 dims
    "TRITON_ATTN_DIFFKV": Served(
        rules=(
            *("head_size_v", "window", "logits_soft_cap", "alibi_slopes", "sinks", "batch_invariant", "kv_sharing"),
            "q_scale",
        ),
        head_sizes=range(32, 513),
        block_sizes=range(16, MOST, 16),
        layouts=(Layout.CONTENT_PACKED,),
        widths={(v, k - v) for v, k in itertools.product(range(1, 513), range(32, 513)) if v != k},
        beyond=beyond_diffkv,
        plain=replace(PLAIN, layout=Layout.CONTENT_PACKED, rules={"head_size_v": 16}),
    ),
    # vLLM 0.33: the head sizes of its paged decode; a cache of planes, packed for HIP's kernels
    "ROCM_ATTN": Served(
        rules=("window", "alibi_slopes", "non_causal", "rope", "kv_sharing"),
        head_sizes=(32, 64, 80, 96, 128, 160, 192, 224, 256),
        block_sizes=range(16, MOST, 16),
        attn_types={*AttentionType} - {AttentionType.ENCODER_DECODER},
        layouts=(Layout.X_PACKED,),
        scales=("tensor", "head"),
        output_dtypes=FLOAT8,
        beyond=beyond_rocm_attn,
    ),
    # AITER's unified_attention: head sizes are powers of two
    "ROCM_AITER_UNIFIED_ATTN": Served(
        rules=("window", "logits_soft_cap", "alibi_slopes", "sinks", "qq_bias", "rope", "kv_sharing"),
        head_sizes=(16, 32, 64, 128, 256),
        block_sizes=range(16, MOST, 16),
        attn_types=AttentionType,
        group_sizes=range(1, 65),
        dtypes=HALVES,
        layouts=ROWS,
        architectures=OF_AMD,
        output_dtypes=FLOAT8,
        beyond=beyond_unified,
    ),
    # AITER's paged_attention_v1
    "ROCM_AITER_FA": Served(
        rules=("window", "logits_soft_cap", "sinks"),
        head_sizes=range(64, 257, 64),
        block_sizes=(16, 32),
        group_sizes=range(1, 65),
        dtypes=HALVES,
        layouts=ROWS,
        architectures=("gfx942", "gfx950"),
        beyond=beyond_fa,
    ),
    # vLLM 0.33: any head count; its kernel takes blocks of whole tiles of 16 slots. Ours holds 128 dims behind V
    "TRITON_MLA": Served(
        rules=("head_size_v", "lse", "non_causal", "batch_invariant", "over_ranks"),
        head_sizes=(),
        block_sizes=range(16, MOST, 16),
        dtypes=HALVES,
        layouts=(Layout.LATENT,),
        widths={*itertools.product(range(1, 513), range(129))},
        beyond=before_sm89,
        plain=replace(PLAIN, rules={"head_size_v": 32}),
    ),
    # vLLM 0.33: blocks of 1 slot or of tiles of 16, selections in tiles of 128, sinks on MI300 and MI350, AITER from CDNA 3 on
    "ROCM_AITER_MLA_SPARSE": Served(
        rules=("head_size_v", "selection_unit", "sinks"),
        head_sizes=(),
        block_sizes={1, *range(16, MOST, 16)},
        dtypes=HALVES,
        layouts=(Layout.LATENT,),
        architectures=("gfx942", "gfx950", "gfx1250", "interpreter", *(name for name in ARCHITECTURES if name[:2] == "sm")),
        widths={*itertools.product(range(1, 513), range(129))},
        top_ks=range(128, MOST, 128),
        beyond=beyond_sparse_mla,
        plain=replace(PLAIN, rules={"head_size_v": 32, "selection_unit": 1}),
    ),
    # vLLM 0.33: a page is a block that is selected
    "MINIMAX_M3_SPARSE": Served(
        rules=("selection_unit",),
        head_sizes=(128,),
        block_sizes=(128,),
        dtypes=HALVES,
        layouts=(Layout.CONTENT_PACKED,),
        beyond=lambda config, architecture: config.value_of("selection_unit") != 128,
        plain=replace(PLAIN, head_size=128, block_size=128, layout=Layout.CONTENT_PACKED, rules={"selection_unit": 128}),
    ),
}
"""By the name of a backend."""
NUMBERS = {
    "window": ((-1, 3), (0, -1), (3, 3)),
    "sink_tokens": (2,),
    "chunked_local": (16,),
    "selection_unit": (None, 1, 4, 128),
    "logits_soft_cap": (5.0,),
}
"""Different values of each rule that a config holds as a number. Other rules are on or off."""

SIZES = st.integers(1, 321) | st.sampled_from((16, 32, 64, 128, 192, 256))


def changes(plain: AttentionConfig) -> st.SearchStrategy[dict[str, Any]]:
    """A change of a config in one place, as fields of AttentionConfig. Some contradict the config."""
    rules = [(name, value) for name in RULES for value in NUMBERS.get(name, (True,)) if name != "head_size_v"]
    quantized = itertools.product((*FLOAT8, torch.int8), ("tensor", "head", "token"))
    kept = plain.rules if plain.asks("head_size_v") else {}
    of_widths = st.builds(lambda v, more: {"head_size": v + more, "rules": {"head_size_v": v}}, *[st.integers(1, 520)] * 2)
    no_cache = {"block_size": None, "layout": None, "kv_cache_dtype": None, "scales": None}
    uncached = [kind for kind in AttentionType if not kind.reads_cache]
    return st.one_of(
        st.sampled_from([{"rules": {**kept, name: value}} for name, value in rules]),
        st.sampled_from([{"kv_cache_dtype": dtype, "scales": scales} for dtype, scales in quantized]),
        st.sampled_from([{"output_dtype": dtype} for dtype in FLOAT8]),
        st.sampled_from([{"dtype": dtype} for dtype in ANY_DTYPE]),
        st.sampled_from([{"attn_type": kind} | (no_cache if kind in uncached else {}) for kind in AttentionType]),
        st.builds(dict, num_heads=st.integers(1, 96)),
        of_widths if kept else st.builds(dict, head_size=SIZES),
        st.builds(dict, block_size=SIZES),
        st.builds(dict, top_k=SIZES),
    )


def changed(plain: AttentionConfig, all_changes: list[dict[str, Any]]) -> AttentionConfig | None:
    """A config with several changes, the later ones of the same field alone; None if they contradict each other or a layout."""
    fields: dict[str, Any] = {}
    for change in all_changes:
        fields |= {**change, "rules": {**fields.get("rules", {}), **change.get("rules", {})}}
    fields["rules"] = {**plain.rules, **fields.get("rules", {})}
    try:
        return replace(plain, **fields)
    except ContractError:
        return None


@pytest.mark.parametrize("backend", SERVED)
def test_a_layer_is_refused_unless_it_is_served(backend):
    capabilities, served = BACKENDS[backend].capabilities(AITER), SERVED[backend]
    assert capabilities.layouts.values == served.layouts, "in order of preference"
    configs = st.lists(changes(served.plain), max_size=3).map(lambda all_changes: changed(served.plain, all_changes))

    @settings(max_examples=250)
    @given(config=configs.filter(bool), architecture=st.sampled_from((None, "gfx942", "gfx950", *ARCHITECTURES)))
    def holds(config: AttentionConfig, architecture: str | None) -> None:
        is_served = served.serves(config, architecture)
        assert bool(capabilities.refusals(config, architecture)) != is_served, f"stated: {is_served}"

    holds()


def each_value(served: Served) -> Iterator[tuple[AttentionConfig, str | None]]:
    """Plain layers with each value of one field, on each architecture or on no certain one."""
    plain, is_wide = served.plain, served.plain.asks("head_size_v")
    for size in range(1, 322):
        yield replace(plain, block_size=size), None
        if not is_wide:
            yield replace(plain, head_size=size), None
        if plain.asks("selection_unit"):
            yield replace(plain, top_k=size), None
    for heads in range(1, 97):
        yield replace(plain, num_heads=heads), None
    for name in [name for name in RULES if name != "head_size_v"]:
        for value in NUMBERS.get(name, (True,)):
            if (config := changed(plain, [{"rules": {name: value}}])) is not None:
                yield config, None
    for layout in LAYOUTS if not is_wide else ():
        scaled = {"kv_cache_dtype": E4M3FN, "scales": "inline"} if layout.has_inline_scales else {}
        yield replace(plain, layout=layout, **scaled), None
    for architecture in ARCHITECTURES:
        yield plain, architecture
        yield replace(plain, kv_cache_dtype=E4M3FN, scales="tensor"), architecture
        for dtype in FLOAT8:
            yield replace(plain, output_dtype=dtype), architecture
    edges = itertools.product((1, 31, 32, 255, 256, 257, 511, 512, 513), (-1, 0, 1, 31, 127, 128, 129))
    for v_head_size, more in edges if is_wide else ():
        if (config := changed(plain, [{"head_size": v_head_size + more, "rules": {"head_size_v": v_head_size}}])) is not None:
            yield config, None


@pytest.mark.parametrize("backend", SERVED)
def test_each_value_of_a_field_is_served_or_refused(backend):
    capabilities, served = BACKENDS[backend].capabilities(AITER), SERVED[backend]
    for config, architecture in each_value(served):
        refusals, is_served = capabilities.refusals(config, architecture), served.serves(config, architecture)
        assert bool(refusals) != is_served, f"{config} on {architecture}: got {refusals}, stated: {is_served}"


ANY_LAYER = "any layer"
FLASH, UNIFIED, PAGED = "flash_attn_varlen_func", "unified_attention", "paged_attention_v1"
CALLED = {"ROCM_AITER_FA": (FLASH, UNIFIED, PAGED), "ROCM_AITER_UNIFIED_ATTN": (UNIFIED,)}
"""The functions of AITER that a backend calls."""
OPTIONAL = {
    (FLASH, "window_size"): "window",
    (FLASH, "logits_soft_cap"): "logits_soft_cap",
    (FLASH, "alibi_slopes"): "alibi_slopes",
    (FLASH, "sink_ptr"): "sinks",
    (FLASH, "return_lse"): ANY_LAYER,
    (UNIFIED, "alibi_slopes"): "alibi_slopes",
    (UNIFIED, "sinks"): "sinks",
    (UNIFIED, "qq_bias"): "qq_bias",
    (UNIFIED, "output_scale"): "output_dtype",
}
"""Arguments that an AITER may lack, and what needs them. Without return_lse there is no extend."""
OF_FUNCTION = {
    FLASH: [rule for (function, _), rule in OPTIONAL.items() if function == FLASH],
    UNIFIED: [*(rule for (function, _), rule in OPTIONAL.items() if function == UNIFIED), "window", "logits_soft_cap"],
    PAGED: [],
}
LACKING = [*OPTIONAL, *((function, None) for function in OF_FUNCTION), (None, None)]
"""A function and its argument; a function; or all of them, where AITER is not installed."""


@pytest.mark.parametrize(
    ("aiter", "architecture", "refused"),
    [
        (AITER, "gfx942", {24, 48}),
        (AITER, "gfx1250", {24, 48, 80, 544}),
        (replace(AITER, unified_traits=frozenset({"rounded tiles"})), "gfx942", {24}),
        (recorded("0.1.7"), "gfx942", {24, 48, 80, 544}),
    ],
    ids=["2026-08", "2026-08 on gfx1250", "0.1.12", "0.1.7"],
)
def test_a_decoder_has_blocks_that_tiles_of_unified_attention_take(aiter, architecture, refused):
    capabilities = BACKENDS["ROCM_AITER_UNIFIED_ATTN"].capabilities(aiter)
    configs = [replace(PLAIN, block_size=size) for size in (16, 24, 32, 48, 64, 80, 128, 544)]
    assert {config.block_size for config in configs if capabilities.refusals(config, architecture)} == refused


def without(function: str | None, argument: str | None) -> Aiter:
    if function is None:
        return Aiter(missing="AITER is not installed")
    signatures = dict(AITER.signatures)
    signature = signatures.pop(function)
    if argument is not None:
        others = tuple(name for name in signature.arguments if name != argument)
        signatures[function] = replace(signature, arguments=others)
    return replace(AITER, signatures=signatures)


def in_words(rule: str, config: AttentionConfig) -> set[str]:
    """The words by which a backend that lacks a rule refuses a config."""
    if rule == "output_dtype":
        return {f"output dtype {named(config.output_dtype)}"} if config.output_dtype else set()
    return {rule} if rule == ANY_LAYER else {label_of(rule)} if config.asks(rule) else set()


def asking() -> Iterator[AttentionConfig]:
    for plain in (PLAIN, replace(PLAIN, dtype=torch.bfloat16, head_size=128), replace(PLAIN, head_size=24)):
        yield plain
        yield replace(plain, output_dtype=E4M3FNUZ)
        for rule in ("window", "logits_soft_cap", "alibi_slopes", "sinks", "qq_bias"):
            yield plain.with_rules(**{rule: NUMBERS.get(rule, (True,))[-1]})


@pytest.mark.parametrize(("function", "argument"), LACKING)
@pytest.mark.parametrize("backend", CALLED)
def test_features_that_an_aiter_lacks_are_refused_and_no_others(backend, function, argument):
    rules = [OPTIONAL[function, argument]] if argument else [ANY_LAYER, *OF_FUNCTION.get(function, [])]
    whole, lacking = (BACKENDS[backend].capabilities(aiter) for aiter in (AITER, without(function, argument)))
    for config in asking():
        expected = {one.property for one in whole.refusals(config, "gfx942")}
        if function in (None, *CALLED[backend]):
            expected |= set().union(*(in_words(rule, config) for rule in rules))
        assert {one.property for one in lacking.refusals(config, "gfx942")} == expected, config


@settings(max_examples=60)
@given(
    head_size=st.sampled_from((24, 64, 128, 513)),
    block_size=st.sampled_from((16, 48)),
    dtype=st.sampled_from(ANY_DTYPE),
    logits_soft_cap=st.sampled_from((None, 5.0)),
    attn_type=st.sampled_from((AttentionType.DECODER, AttentionType.ENCODER_DECODER)),
)
def test_the_constructors_refuse_what_is_declared_and_say_who_serves(head_size, block_size, dtype, logits_soft_cap, attn_type):
    sizes = {"num_heads": 2, "num_kv_heads": 2, "head_size": head_size, "scale": 1.0, "layout": ROWS[0]}
    layer = Layer(**sizes, attn_type=attn_type, logits_soft_cap=logits_soft_cap)
    config = AttentionConfig.of(layer, dtype, block_size=block_size)
    refusals = {name: backend.capabilities(AITER).refusals(config) for name, backend in BACKENDS.items()}
    serving = " or ".join(name for name, reasons in refusals.items() if not reasons)
    for name in [name for name, reasons in refusals.items() if reasons]:
        of_mla = {"kv_b_proj": None, "v_head_dim": None} if name == "TRITON_MLA" else {}
        of_mla |= {"topk_indices_buffer": None} if "SPARSE" in name else {}
        with pytest.raises(UnsupportedError) as refused:
            BACKENDS[name].impl(layer, dtype=dtype, block_size=block_size, aiter=AITER, **of_mla)
        assert str(refused.value).startswith(f"{name}: ")
        assert all(reason.property in str(refused.value) for reason in refusals[name])
        assert (refused.value.instead or "") == serving
