"""Every field of a Layer, every way in which it can be wrong or contradict another one, and what is out of scope."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from attn_contract import AttentionType, ContractError, Layer, Layout, UnsupportedError

INT32_MAX = 2**31 - 1
FLOAT32_MAX = torch.finfo(torch.float32).max
FLOAT32_TINY = torch.finfo(torch.float32).tiny
FP8, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
ENCODER = {"attn_type": AttentionType.ENCODER, "layout": None}
CROSS = {"attn_type": AttentionType.ENCODER_DECODER}


def layer(**changes: object) -> Layer:
    """H 4, HK 2, D 8."""
    fields = {"num_heads": 4, "num_kv_heads": 2, "head_size": 8, "scale": 0.5, "layout": Layout.BLOCKS_FIRST_NHD}
    return Layer(**fields | changes)


def fixed(k: object = None, v: object = None) -> dict[str, object]:
    """Scales that do not change, of an fp8 cache."""
    k, v = (torch.ones(1) if scale is None else scale for scale in (k, v))
    return {"kv_cache_dtype": FP8, "k_scale": k, "v_scale": v}


def cached(k: object = None, v: object = None) -> dict[str, object]:
    """Scales per token and head beside an int8 cache of 6 blocks of 4 slots."""
    k, v = (torch.ones(6, 4, 2) if scales is None else scales for scales in (k, v))
    return {"kv_cache_dtype": torch.int8, "k_scale_cache": k, "v_scale_cache": v}


def inline(dtype: torch.dtype = torch.int8) -> dict[str, object]:
    return {"kv_cache_dtype": dtype, "layout": Layout.CONTENT_PACKED_SCALED}


def every_other(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, with stride 2 in the last dimension."""
    return torch.stack([tensor, tensor], dim=-1)[..., 0]


REFUSED = [
    # heads, sizes and scale
    ({"num_heads": 0}, "num_heads: got 0, expected an int, at least 1"),
    ({"num_heads": -4}, "num_heads: got -4, expected an int, at least 1"),
    ({"num_heads": 4.0}, "num_heads: got 4.0, expected an int"),
    ({"num_heads": True}, "num_heads: got True, expected an int"),
    ({"num_heads": np.int64(4)}, "num_heads: got np.int64(4), expected an int"),
    ({"num_heads": torch.tensor(4)}, "num_heads: got tensor(4), expected an int"),
    ({"num_heads": 2**31}, "num_heads: got 2147483648, expected an int, at least 1 and at most 2147483647"),
    ({"num_heads": 10**5000}, "num_heads: got int that is too long to show, expected an int, at least 1"),
    ({"num_heads": 3}, "num_heads: got 3, expected a multiple of num_kv_heads (2)"),
    ({"num_kv_heads": 0}, "num_kv_heads: got 0, expected an int, at least 1"),
    ({"num_kv_heads": None}, "num_kv_heads: got None, expected an int"),
    ({"num_kv_heads": 8}, "num_heads: got 4, expected a multiple of num_kv_heads (8)"),
    ({"head_size": 0}, "head_size: got 0, expected an int, at least 1"),
    ({"head_size": "8"}, "head_size: got '8', expected an int"),
    ({"scale": float("nan")}, "scale: got nan, expected 0 or a number"),
    ({"scale": float("inf")}, "scale: got inf, expected 0 or a number"),
    ({"scale": 1e-39}, "scale: got 1e-39, expected 0 or a number from 2^-126 (GPUs may take a smaller one for 0) to 2^64"),
    ({"scale": -(2.0**65)}, "scale: got -3.6893488147419103e+19, expected 0 or a number from 2^-126"),
    ({"scale": 10**400}, "scale: got 1000"),
    ({"scale": None}, "scale: got None, expected 0 or a number"),
    ({"scale": "1" * 1000}, "scale: got '1111"),
    ({"scale": True}, "scale: got True, expected 0 or a number"),
    ({"scale": torch.tensor(0.5)}, "scale: got tensor(0.5000), expected 0 or a number"),
    # attention type, layout
    ({"attn_type": "decoder"}, "attn_type: got 'decoder', expected an AttentionType: decoder, encoder"),
    ({"attn_type": None}, "attn_type: got None, expected an AttentionType"),
    ({"layout": "BLOCKS_FIRST_NHD"}, "layout: got 'BLOCKS_FIRST_NHD', expected None or a Layout: BLOCKS_FIRST_NHD"),
    ({"layout": None}, "layout: got None with attn_type=decoder, expected a Layout"),
    (CROSS | {"layout": None}, "layout: got None with attn_type=encoder_decoder, expected a Layout"),
    (ENCODER | {"layout": Layout.KV_FIRST_HND}, "layout: got KV_FIRST_HND with attn_type=encoder, expected None"),
    (
        {"attn_type": AttentionType.ENCODER_ONLY, "layout": Layout.X_PACKED},
        "layout: got X_PACKED with attn_type=encoder_only, expected None",
    ),
    # which keys are visible
    ({"window": None}, "window: got None, expected a tuple (left, right)"),
    ({"window": 4}, "window: got 4, expected a tuple (left, right)"),
    ({"window": [4, 4]}, "window: got [4, 4], expected a tuple (left, right)"),
    ({"window": [10**5000]}, "window: got list that is too long to show, expected a tuple (left, right)"),
    ({"window": (4,)}, "window: got (4,), expected a tuple (left, right)"),
    ({"window": (-2, 0)}, "window[0]: got -2, expected an int, at least -1"),
    ({"window": (0, -2)}, "window[1]: got -2, expected an int, at least -1"),
    ({"window": (4.0, 4)}, "window[0]: got 4.0, expected an int"),
    ({"window": (4, None)}, "window[1]: got None, expected an int"),
    ({"window": (False, 4)}, "window[0]: got False, expected an int"),
    ({"window": (2**31, 0)}, "window[0]: got 2147483648, expected an int, at least -1 and at most 2147483647"),
    ({"sink_tokens": -1}, "sink_tokens: got -1, expected an int, at least 0"),
    ({"sink_tokens": None}, "sink_tokens: got None, expected an int"),
    ({"sink_tokens": True}, "sink_tokens: got True, expected an int"),
    ({"sink_tokens": 2**31}, "sink_tokens: got 2147483648, expected an int, at least 0 and at most 2147483647"),
    ({"chunked_local": 0}, "chunked_local: got 0, expected an int, at least 1"),
    ({"chunked_local": -1}, "chunked_local: got -1, expected an int, at least 1"),
    ({"chunked_local": False}, "chunked_local: got False, expected an int"),
    ({"chunked_local": 4.0}, "chunked_local: got 4.0, expected an int"),
    ({"ranges_clamped": None}, "ranges_clamped: got None, expected a bool"),
    ({"ranges_clamped": 1}, "ranges_clamped: got 1, expected a bool"),
    ({"ranges_clamped": np.bool_(True)}, "ranges_clamped: got np.True_, expected a bool"),
    (
        ENCODER | {"ranges_clamped": True},
        "ranges_clamped: got True, expected False for ENCODER: only DECODER has bidirectional",
    ),
    (CROSS | {"ranges_clamped": True}, "ranges_clamped: got True, expected False for ENCODER_DECODER"),
    (CROSS | {"window": (4, -1)}, "window: got (4, -1), expected (-1, -1) for ENCODER_DECODER: query and key positions belong"),
    (CROSS | {"sink_tokens": 1}, "sink_tokens: got 1, expected 0 for ENCODER_DECODER"),
    (CROSS | {"chunked_local": 4}, "chunked_local: got 4, expected None for ENCODER_DECODER"),
    (CROSS | {"alibi_slopes": torch.zeros(4)}, "alibi_slopes: got a tensor, expected None for ENCODER_DECODER"),
    (CROSS | {"alibi_slopes": np.zeros(4)}, "alibi_slopes: got array([0., 0., 0., 0.]), expected a tensor"),
    # logits
    ({"logits_soft_cap": -1.0}, "logits_soft_cap: got -1.0, expected None or 0 (off), or a number"),
    ({"logits_soft_cap": float("nan")}, "logits_soft_cap: got nan, expected None or 0 (off)"),
    ({"logits_soft_cap": float("inf")}, "logits_soft_cap: got inf, expected None or 0 (off)"),
    ({"logits_soft_cap": 1e39}, "logits_soft_cap: got 1e+39, expected None or 0 (off)"),
    ({"logits_soft_cap": 1e-39}, "logits_soft_cap: got 1e-39, expected None or 0 (off), or a number from 2^-126 to 2^32"),
    ({"logits_soft_cap": 2.0**33}, "logits_soft_cap: got 8589934592.0, expected None or 0 (off), or a number from 2^-126"),
    ({"logits_soft_cap": False}, "logits_soft_cap: got False, expected None or 0 (off)"),
    ({"logits_soft_cap": "50"}, "logits_soft_cap: got '50', expected None or 0 (off)"),
    ({"logits_soft_cap": torch.tensor(50.0)}, "logits_soft_cap: got tensor(50.), expected None or 0 (off)"),
    ({"alibi_slopes": [0.0] * 4}, "alibi_slopes: got [0.0, 0.0, 0.0, 0.0], expected a tensor"),
    ({"alibi_slopes": torch.zeros(2)}, "alibi_slopes: got shape (2,), expected shape (4,): one per query head"),
    ({"alibi_slopes": torch.tensor(0.0)}, "alibi_slopes: got shape (), expected one dimension"),
    ({"alibi_slopes": torch.zeros(4, 1)}, "alibi_slopes: got shape (4, 1), expected one dimension"),
    ({"alibi_slopes": torch.zeros(4).half()}, "alibi_slopes: got torch.float16, expected torch.float32"),
    ({"alibi_slopes": every_other(torch.zeros(4))}, "alibi_slopes: got stride 2 in the last dimension, expected 1"),
    ({"sinks": [0.0] * 4}, "sinks: got [0.0, 0.0, 0.0, 0.0], expected a tensor"),
    ({"sinks": torch.zeros(2)}, "sinks: got shape (2,), expected shape (4,): one per query head"),
    ({"sinks": torch.tensor(0.0)}, "sinks: got shape (), expected shape (4,)"),
    ({"sinks": torch.zeros(4, 1)}, "sinks: got shape (4, 1), expected shape (4,)"),
    ({"sinks": torch.zeros(4).double()}, "sinks: got torch.float64, expected float32, float16 or bfloat16"),
    ({"sinks": every_other(torch.zeros(4))}, "sinks: got stride 2 in the last dimension, expected 1"),
    ({"sinks": torch.zeros(1).expand(4)}, "sinks: got stride 0 in the last dimension, expected 1"),
    # dtype of the cache
    ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype: got 'fp8', expected None (q's dtype) or a torch.dtype"),
    ({"kv_cache_dtype": np.dtype("int8")}, "kv_cache_dtype: got dtype('int8'), expected None (q's dtype) or a torch.dtype"),
    ({"kv_cache_dtype": np.zeros(2)}, "kv_cache_dtype: got array([0., 0.]), expected None (q's dtype) or a torch.dtype"),
    ({"kv_cache_dtype": torch.float16}, "kv_cache_dtype: got torch.float16, expected None (q's dtype), torch.float8_e4m3fn"),
    ({"kv_cache_dtype": torch.uint8}, "kv_cache_dtype: got torch.uint8, expected None (q's dtype), torch.float8_e4m3fn"),
    (
        fixed() | {"kv_cache_dtype": torch.float8_e5m2},
        "kv_cache_dtype: got torch.float8_e5m2, expected an e4m3 float8: two bits",
    ),
    (
        fixed() | {"kv_cache_dtype": torch.float8_e5m2fnuz},
        "kv_cache_dtype: got torch.float8_e5m2fnuz, expected an e4m3 float8: two bits",
    ),
    (ENCODER | fixed(), "kv_cache_dtype: got torch.float8_e4m3fn, expected None: encoder has no KV cache"),
    # scales: one kind of them for a quantized cache, none for another one
    (
        fixed() | {"kv_cache_dtype": None},
        "kv_cache_dtype: got None, expected a quantized dtype, since there are scales: k_scale",
    ),
    (
        cached() | {"kv_cache_dtype": None},
        "kv_cache_dtype: got None, expected a quantized dtype, since there are scales: k_scale_",
    ),
    (
        ENCODER | {"v_scale": torch.ones(1)},
        "kv_cache_dtype: got None, expected a quantized dtype, since there are scales: k_scale",
    ),
    (
        {"layout": Layout.CONTENT_PACKED_SCALED},
        "kv_cache_dtype: got None, expected a quantized dtype, since there are scales: those in the rows of CONTENT",
    ),
    (
        {"kv_cache_dtype": FP8},
        "k_scale: got no scales, expected for torch.float8_e4m3fn either k_scale and v_scale, or k_scale_c",
    ),
    ({"kv_cache_dtype": torch.int8}, "k_scale: got no scales, expected for torch.int8 either"),
    (
        cached() | fixed(),
        "k_scale: got k_scale and v_scale; k_scale_cache and v_scale_cache, expected for torch.float8_e4m3fn eit",
    ),
    (fixed() | inline(FP8), "k_scale: got k_scale and v_scale; those in the rows of CONTENT_PACKED_SCALED, expected for"),
    (
        cached() | inline(),
        "k_scale: got k_scale_cache and v_scale_cache; those in the rows of CONTENT_PACKED_SCALED, expected for",
    ),
    (
        fixed() | {"kv_cache_dtype": torch.int8},
        "k_scale: got scales for all tokens, expected k_scale_cache or inline scales: int8 has one per token",
    ),
    (fixed() | {"v_scale": None}, "v_scale: got None, expected a tensor: k_scale and v_scale come together"),
    (fixed() | {"k_scale": None}, "k_scale: got None, expected a tensor: k_scale and v_scale come together"),
    (cached() | {"k_scale_cache": None}, "k_scale_cache: got None, expected a tensor: k_scale_cache and v_scale_cache come"),
    (cached() | {"v_scale_cache": None}, "v_scale_cache: got None, expected a tensor: k_scale_cache and v_scale_cache come"),
    (fixed(k=1.0), "k_scale: got 1.0, expected a tensor"),
    (fixed(v=np.float32(1)), "v_scale: got np.float32(1.0), expected a tensor"),
    (
        fixed(k=torch.ones(4)),
        "k_scale: got torch.float32 (4,), expected torch.float32, shape () or (1,), or (2,): one per KV head",
    ),
    (fixed(v=torch.ones(0)), "v_scale: got torch.float32 (0,), expected torch.float32, shape () or (1,), or (2,)"),
    (fixed(v=torch.ones(2, 1)), "v_scale: got torch.float32 (2, 1), expected torch.float32, shape () or (1,), or (2,)"),
    (fixed(k=torch.ones(1).double()), "k_scale: got torch.float64 (1,), expected torch.float32"),
    (fixed(k=torch.ones(1).expand(2)), "k_scale: got stride 0 in the last dimension, expected 1"),
    (fixed(k=torch.ones(1).to_sparse()), "k_scale: got a tensor of torch.sparse_coo, expected torch.strided"),
    (fixed(k=torch.ones(2)) | {"num_kv_heads": 1}, "k_scale: got torch.float32 (2,), expected torch.float32, shape () or (1,)"),
    (cached(k=1.0), "k_scale_cache: got 1.0, expected a tensor"),
    (
        cached(k=torch.ones(6, 4)),
        "k_scale_cache: got torch.float32 (6, 4), expected torch.float32, shape (num_blocks, block_size, 2)",
    ),
    (cached(v=torch.ones(6, 4, 1)), "v_scale_cache: got torch.float32 (6, 4, 1), expected torch.float32, shape (num_blocks"),
    (cached(v=torch.ones(6, 4, 2).half()), "v_scale_cache: got torch.float16 (6, 4, 2), expected torch.float32"),
    ({"output_scale": 1.0}, "output_scale: got 1.0, expected a tensor"),
    ({"output_scale": torch.ones(4)}, "output_scale: got torch.float32 (4,), expected torch.float32, shape () or (1,)"),
    ({"output_scale": torch.ones(1).half()}, "output_scale: got torch.float16 (1,), expected torch.float32, shape () or (1,)"),
]

ACCEPTED = [
    {},
    ENCODER,
    CROSS,
    {"attn_type": AttentionType.ENCODER_ONLY, "layout": None, "window": (4, 4), "sink_tokens": 1, "chunked_local": 4},
    ENCODER | {"alibi_slopes": torch.zeros(4), "sinks": torch.zeros(4), "logits_soft_cap": 50.0, "output_scale": torch.ones(1)},
    CROSS | {"sinks": torch.zeros(4), "logits_soft_cap": 50.0} | fixed(),
    {"num_heads": 1, "num_kv_heads": 1, "head_size": 1},
    {"scale": 0.0},
    {"scale": -FLOAT32_TINY},
    {"scale": -(2.0**64)},
    {"window": (0, 0)},
    {"window": (INT32_MAX, -1), "sink_tokens": INT32_MAX, "chunked_local": INT32_MAX, "ranges_clamped": True},
    {"chunked_local": 1},
    {"sinks": torch.zeros(4, dtype=torch.bfloat16)},
    {"sinks": torch.zeros(1).expand(1), "num_heads": 1, "num_kv_heads": 1},
    {"output_scale": torch.tensor(1.0)},
    fixed(),
    fixed() | {"kv_cache_dtype": FNUZ},
    fixed(k=torch.tensor(2.0), v=torch.ones(2)),
    cached(),
    cached() | {"kv_cache_dtype": FP8},
    cached() | {"layout": Layout.X_PACKED},
    cached(k=torch.ones(6, 2, 4, 2)[:, 0], v=torch.ones(4, 2, 6).permute(2, 0, 1)),
    inline(),
    inline(FP8),
    inline(FNUZ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refuses(changes, message):
    with pytest.raises(ContractError) as caught:
        layer(**changes)
    assert str(caught.value).startswith(message)
    assert caught.value.argument == message.split(":")[0]


@pytest.mark.parametrize("changes", ACCEPTED)
def test_accepts(changes):
    made = layer(**changes)
    assert {name: getattr(made, name) for name in changes} == changes


def test_its_tensors_are_all_that_it_holds():
    given = {"alibi_slopes": torch.zeros(4), "sinks": torch.zeros(4), "output_scale": torch.ones(1)}
    for scales in (fixed(), cached()):
        tensors = given | {name: value for name, value in scales.items() if isinstance(value, torch.Tensor)}
        assert layer(**given | scales).tensors == tensors
    assert layer().tensors == {}


@pytest.mark.parametrize(("cap", "expected"), [(None, None), (0, None), (0.0, None), (-0.0, None), (50, 50.0), (0.5, 0.5)])
def test_a_soft_cap_is_a_positive_float_or_none(cap, expected):
    """So that no implementation asks in how many ways it may be off."""
    got = layer(logits_soft_cap=cap).logits_soft_cap
    assert (type(got), got) == (type(expected), expected)


@pytest.mark.parametrize("cap", [FLOAT32_TINY, 2.0**32, np.float64(30)])
def test_a_soft_cap_is_normal_and_at_most_2_to_the_32(cap):
    assert layer(logits_soft_cap=cap).logits_soft_cap == cap


@pytest.mark.parametrize("scale", [1, 2**60, np.float64(0.5)])
def test_a_scale_is_a_float(scale):
    got = layer(scale=scale).scale
    assert type(got) is float
    assert got == scale


def test_which_types_read_a_cache():
    assert [kind for kind in AttentionType if kind.reads_cache] == [AttentionType.DECODER, AttentionType.ENCODER_DECODER]


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("kv_lora_rank", 512, "MLA (kv_lora_rank) not supported: its layers are given by head_size, head_size_v and"),
        ("rswa_window", 128, "R-SWA (rswa_window) not supported: its window is counted from a prefix of each request"),
        ("use_alibi_sqrt", True, "ALiBi-sqrt (use_alibi_sqrt) not supported: alibi_slopes weight the distance itself"),
        ("chunk_lookback", 1, "chunk look-back (chunk_lookback) not supported: chunked_local hides every earlier chunk"),
        ("dropout_p", 0.1, "dropout (dropout_p) not supported: attention here is inference"),
        ("dropout_p", 0.0, "dropout (dropout_p) not supported"),
        ("dcp_world_size", 2, "decode context parallelism (DCP) (dcp_world_size) not supported: a layer is one rank's"),
        ("pcp_world_size", 2, "prefill context parallelism (PCP) (pcp_world_size) not supported: a layer is one rank's"),
    ],
)
def test_what_is_out_of_scope_is_refused_by_name(setting, value, message):
    with pytest.raises(UnsupportedError) as caught:
        layer(**{setting: value})
    assert str(caught.value).startswith(f"attn_contract: {message}")
    assert setting in caught.value.feature


def test_all_that_is_out_of_scope_is_refused_at_once():
    with pytest.raises(UnsupportedError, match=r"^attn_contract: MLA .*; dropout \(dropout_p\) not supported: attention here"):
        layer(kv_lora_rank=512, dropout_p=0.1)


def test_an_unknown_field_is_a_type_error():
    """Python's own, and it names the field."""
    with pytest.raises(TypeError, match="sliding_window"):
        layer(sliding_window=4)


def test_copies_are_checked_as_well():
    original = layer(logits_soft_cap=50, **fixed())
    assert copy.copy(original).tensors == original.tensors
    assert replace(original, window=(3, 0)).logits_soft_cap == 50.0
    with pytest.raises(ContractError, match=r"^num_heads: got 3"):
        replace(original, num_heads=3)
    with pytest.raises(UnsupportedError, match="dropout"):
        replace(original, dropout_p=0.5)
