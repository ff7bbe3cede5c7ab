"""The adapter of AITER: each of its functions as a target on the double `attn_fuzz.documented_aiter`.

They need no AITER and no AMD GPU. They show that AITER is called as it documents, and that what it does not do is refused.
Prefill and decode are served by functions of AITER that take a part of what a call may ask for. Their targets hand each
function what it takes: a prefill gets the dense keys of its requests, and a decode gets each query as a request of its own.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import attn_reference
import torch
from attn_contract import AttentionType, Batch, Layer, Layout, UnsupportedError
from attn_contract.layer import UNLIMITED
from attn_contract.rules import asked, words_of
from attn_fuzz.cases.case import Case
from attn_fuzz.targets import aiter_sizes, no_interpreter, no_keys, no_requests, waits, wrong_arguments
from attn_fuzz.targets.aiter import AITER_UNIFIED_ATTENTION, ROWS
from attn_fuzz.targets.choices import choices_by
from attn_fuzz.targets.engine import Engine
from attn_fuzz.targets.target import Support, Target
from attn_fuzz.targets.triton import TRITON, missing_triton
from attn_fuzz.targets.wrong_arguments import must_refuse
from attn_fuzz.verdict.rounding import Rounding


@functools.cache
def documented(device: str) -> Any:
    """AITER as it documents itself."""
    from attn_fuzz.documented_aiter import stand_in

    return stand_in()


@functools.cache
def documented_with_two_edges(device: str) -> Any:
    from attn_fuzz.documented_aiter import with_two_edges

    return with_two_edges(documented(device))


def _unified(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    unified(documented(q.device.type), q, kv_cache, layer, batch, out=out, lse=lse)


def unified(aiter: Any, q, kv_cache, layer, batch, *, out, lse) -> None:
    """The adapter of an AITER's unified_attention."""
    from attn_optimized import aiter_adapter

    _refuse_without_a_cache(kv_cache, layer)
    attend = functools.partial(aiter_adapter.unified_attention, aiter, q, kv_cache, layer, batch, out=out, lse=lse)
    attend(validate=True)
    choose = choices_by((q.shape, batch.seq_lens))
    aiter_sizes.check("unified_attention", _idle(aiter), choose)
    if choose.random() < 0.25:
        nobodys = no_requests.without_requests(batch, choose)
        no_requests.check(functools.partial(aiter_adapter.unified_attention, aiter, q, kv_cache, layer, nobodys), out)
        no_keys.check(functools.partial(aiter_adapter.unified_attention, aiter, q, kv_cache, layer), batch, out)
        waits.check(lambda: aiter_adapter.unified_attention(_idle(aiter), q, kv_cache, layer, batch, out=out, lse=lse))
    if q.device.type == "cpu" and layer.output_scale is not None:  # which type the GPU's own float8 is, is asked of the GPU
        no_interpreter.check(attend, q.dtype)


def _idle(aiter: Any) -> Any:
    """The same AITER, whose functions do nothing."""
    return dataclasses.replace(aiter, functions=dict.fromkeys(aiter.signatures, lambda **_: None))


def _decode(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    from attn_optimized import aiter_adapter

    _check_sizes("paged_attention_v1", q, batch)
    _decode_each(aiter_adapter.paged_attention_v1, q, kv_cache, layer, batch, out=out, lse=lse)


def _decode_by_assembly(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    """A window's right edge says nothing about a query at the last key, so layers without a window get one."""
    from attn_optimized import aiter_adapter

    _check_sizes("pa_fwd_asm", q, batch)
    decode = functools.partial(_decode_each, aiter_adapter.pa_fwd_asm, q, kv_cache, batch=batch, out=out, lse=lse)
    must_refuse(functools.partial(decode, dataclasses.replace(layer, scale=1.001 * layer.scale)), "another scale")
    must_refuse(functools.partial(decode, dataclasses.replace(layer, window=(0, 0))), "a window of one key")
    if layer.window[0] < 0 <= layer.window[1]:
        raise UnsupportedError("AITER's decode", "a window", "its right edge hides keys from no query at the last key")
    if layer.window == (UNLIMITED, UNLIMITED):
        layer = dataclasses.replace(layer, window=(UNLIMITED, 0))
    # 17 at least, so that all groups beyond a tile are drawn, which layers of a model seldom have
    group = choices_by((q.shape, batch.query_start_loc, batch.seq_lens)).randint(_MOST_OF_A_TILE + 1, 4 * _MOST_OF_A_TILE)
    wide = q[:, :1].repeat(1, group * layer.num_kv_heads, 1)
    of_groups = dataclasses.replace(layer, num_heads=wide.shape[1])
    must_refuse(
        functools.partial(
            _decode_each, aiter_adapter.pa_fwd_asm, wide, kv_cache, of_groups, batch, out=torch.empty_like(wide), lse=None
        ),
        f"a group of {group} heads",
    )
    # an engine may have the scale in float32
    decode(dataclasses.replace(layer, scale=torch.tensor(layer.scale).item()))


def _check_sizes(function: str, q: torch.Tensor, batch: Batch) -> None:
    """See `aiter_sizes.check`."""
    choose = choices_by((q.shape, batch.query_start_loc, batch.seq_lens))
    aiter_sizes.check(function, _idle(documented(q.device.type)), choose)


def _decode_each(function: Callable[..., object], q, kv_cache, layer, batch, *, out, lse) -> None:
    """Each query as a request of its own, which sees the keys up to its position. Other batches must be refused."""
    _refuse_without_a_cache(kv_cache, layer)
    if batch.causal is not True:
        raise UnsupportedError("AITER's decode", "non-causal attention", "a query is at its last key")
    arguments = kv_cache, layer
    decode = functools.partial(function, documented(q.device.type), q, *arguments, out=out, lse=lse)
    if (batch.query_start_loc.diff() != 1).any():
        looks_like_one = batch.max_query_len <= 1 and batch.num_actual_tokens == batch.num_requests
        refused = functools.partial(decode, batch, validate=looks_like_one)
        must_refuse(refused, "requests with other than one query token")
    one_each = _one_token_each(batch)
    if one_each.num_requests:
        looser = dataclasses.replace(one_each, max_query_len=2)
        must_refuse(functools.partial(decode, looser, validate=bool(len(q) % 2)), "a bound of two query tokens")
    if len(q) > one_each.num_actual_tokens:
        padded = dataclasses.replace(one_each, num_actual_tokens=one_each.num_actual_tokens + 1)
        must_refuse(functools.partial(decode, padded, validate=bool(len(q) % 2)), "a row of padding")
    scattered = q.repeat_interleave(2, dim=1)[:, ::2]
    if q.shape[1] > 1 and not scattered.is_contiguous():  # one head has no stride
        must_refuse(
            lambda: function(documented(q.device.type), scattered, *arguments, one_each, out=out, lse=lse), "heads apart"
        )
    wider = out.new_empty(*out.shape[:-1], out.shape[-1] + 1)[..., :-1]
    if not wider.is_contiguous():
        must_refuse(lambda: decode(one_each, out=wider), "an output with gaps")
    choose = choices_by((q.shape, batch.seq_lens))
    if choose.random() < 0.25:
        nobodys = no_requests.without_requests(one_each, choose, max_query_len=1, num_actual_tokens=0)
        no_requests.check(functools.partial(decode, nobodys), out)
        aiter = _idle(documented(q.device.type))
        waits.check(lambda: function(aiter, q, *arguments, one_each, out=out, lse=lse))
    decode(one_each, validate=True)


def _one_token_each(batch: Batch) -> Batch:
    """A causal batch with a request for each query. A rule of the batch stays as it is."""
    query_lens = batch.query_start_loc.diff()
    request = torch.repeat_interleave(torch.arange(batch.num_requests, device=query_lens.device), query_lens)
    row = torch.arange(len(request), device=request.device)
    seen = (batch.seq_lens - batch.query_start_loc[1:])[request] + row + 1
    assert batch.block_table is not None
    return dataclasses.replace(
        batch,
        query_start_loc=torch.arange(len(request) + 1, dtype=torch.int32, device=request.device),
        seq_lens=seen.clamp(min=0).int(),
        max_query_len=1,
        num_actual_tokens=len(request),
        causal=True,
        block_table=batch.block_table[request],
        slot_mapping=None,
    )


def _prefill(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    """The keys of all requests, dense and in q's dtype. The rows that no request owns stay out of the call.

    The bounds on lengths are the lengths themselves in every other call, by the number of keys: AITER drops the edges of a
    window by them.
    """
    from attn_optimized import aiter_adapter

    _check_sizes("flash_attn_varlen", q, batch)
    function = "AITER's flash_attn_varlen_func"
    if isinstance(batch.causal, torch.Tensor):
        raise UnsupportedError(function, words_of("per_request_causal"), "it has one flag")
    for name in asked(batch):
        raise UnsupportedError(function, words_of(name), "it is told of no batch")
    if layer.kv_cache_dtype is not None:
        raise UnsupportedError(function, "a quantized cache", "it reads dense keys of q's dtype")
    key_lens, k, v = _dense_keys(q, k, v, kv_cache, layer, batch)
    rows = int(batch.query_start_loc[-1])
    bounds = batch.max_query_len, batch.max_seq_len
    if len(k) % 2 == 0:  # so are those of a batch without keys, which AITER does not hand to a kernel
        bounds = tuple(max(lens.tolist(), default=0) for lens in (batch.query_start_loc.diff(), key_lens))
    arguments = {
        "q": q[:rows],
        "k": k,
        "v": v,
        "query_start_loc": batch.query_start_loc,
        "key_start_loc": torch.nn.functional.pad(key_lens.cumsum(0), (1, 0)).int(),
        "max_query_len": bounds[0],
        "max_key_len": bounds[1],
        "out": out.view(q.shape)[:rows],
        "lse": None if lse is None else lse[:, :rows],
    }
    # the edges of its windows are two or three, by the version
    whole = (documented if rows % 2 else documented_with_two_edges)(q.device.type)
    attend = functools.partial(aiter_adapter.flash_attn_varlen, layer=layer, causal=batch.causal)
    lacking, is_needed = _lacking(whole, layer, causal=batch.causal, has_lse=lse is not None, sizes=(q.shape, key_lens))
    if is_needed and batch.num_requests and bounds[0]:
        must_refuse(functools.partial(attend, lacking, **arguments), "an AITER without an argument of the call")
    prefill = functools.partial(attend, whole if is_needed else lacking)
    wrong_arguments.must_contradict(prefill, arguments, optional=("lse",))
    with mock.patch.dict(os.environ, ENABLE_CK="0"):
        must_refuse(functools.partial(prefill, **arguments), "AITER's fallback without CK")
    prefill(**arguments)
    if rows % 4 == 0:
        nobodys = {name: arguments[name][:1] for name in ("query_start_loc", "key_start_loc")}
        no_requests.check(functools.partial(prefill, **{**arguments, **nobodys}), arguments["out"])
    _check_few_keys(functools.partial(attend, whole), arguments, layer, len(k) // 2 % 2, causal=batch.causal)


def _lacking(aiter: Any, layer: Layer, *, causal: bool, has_lse: bool, sizes: object) -> tuple[Any, bool]:
    """The same AITER without an argument of its prefill, which `sizes` choose, and whether a call needs the argument."""
    from attn_fuzz.documented_aiter import without

    left, right = layer.window
    needs = {
        "window_size": left != UNLIMITED or (right != UNLIMITED and not causal),
        "logits_soft_cap": layer.logits_soft_cap is not None,
        "alibi_slopes": layer.alibi_slopes is not None,
        "sink_ptr": layer.sinks is not None,
        "return_lse": has_lse,
    }
    argument = choices_by(sizes).choice(list(needs))
    return without(aiter, "flash_attn_varlen_func", argument), needs[argument]


def _check_few_keys(
    prefill: Callable[..., object], arguments: dict[str, Any], layer: Layer, num_keys: int, *, causal: bool
) -> None:
    """Check which queries see the only key of their request, or that none sees a key where there is none.

    A case hardly ever has so few keys and a window and an LSE. The LSE of a query that sees no key is the sink, or -inf
    without one.

    Raises:
        AssertionError: another query sees the key, or an LSE without keys is no sink.
    """
    query_lens = arguments["query_start_loc"].diff()
    rows, num_requests = len(arguments["q"]), len(query_lens)
    if not rows:
        return
    keys = arguments["k"].new_zeros(num_requests * num_keys, layer.num_kv_heads, layer.head_size)
    device = keys.device
    few = {
        "k": keys,
        "v": torch.ones_like(keys),
        "key_start_loc": torch.arange(num_requests + 1, dtype=torch.int32, device=device) * num_keys,
        "max_key_len": num_keys,
        "out": torch.empty_like(arguments["q"]),
        "lse": torch.empty(layer.num_heads, rows, device=device),
    }
    prefill(**{**arguments, **few})
    # of each query, how many queries of its request come after it: as far is it to the left of the key
    after = torch.repeat_interleave(arguments["query_start_loc"][1:], query_lens) - torch.arange(rows, device=device) - 1
    right = 0 if causal else layer.window[1]
    sees = (num_keys > 0) & (after <= (right if right != UNLIMITED else rows))
    without = keys.new_full((layer.num_heads,), -torch.inf, dtype=torch.float32) if layer.sinks is None else layer.sinks.float()
    wrong = f"{num_keys} keys, seen by rows {sees.tolist()}: got the LSE {few['lse'].tolist()}"
    assert torch.equal(few["lse"][:, ~sees], without[:, None].expand_as(few["lse"])[:, ~sees]), wrong
    assert not few["out"][~sees].any(), f"{wrong}, and an output of rows that see none"
    # a sink may be so large that a key changes no LSE
    assert layer.sinks is not None or (few["lse"][:, sees] != -torch.inf).all(), wrong


def _dense_keys(q, k, v, kv_cache, layer, batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Numbers of keys [R], and keys and values [sum of them, HK, D]. A request without a query gets none."""
    lens = torch.zeros_like(batch.seq_lens)
    keys, values = [q.new_empty(0, layer.num_kv_heads, layer.head_size) for _ in range(2)]
    for request in _requests(q, k, v, kv_cache, layer, batch):
        lens[request.index] = len(request.key)
        keys, values = torch.cat([keys, request.key.to(q.dtype)]), torch.cat([values, request.value.to(q.dtype)])
    return lens, keys, values


def _requests(q, k, v, kv_cache, layer: Layer, batch: Batch) -> Iterator[attn_reference.Request]:
    if kv_cache is not None:
        return attn_reference.paged_requests(q, kv_cache, layer, batch, torch.float64)
    return attn_reference.varlen_requests(q, k, v, layer, batch, torch.float64)


def _refuse_without_a_cache(kv_cache: torch.Tensor | None, layer: Layer) -> None:
    if kv_cache is None:
        raise UnsupportedError("AITER", f"{layer.attn_type} attention", "it reads a KV cache")


_MOST_OF_A_TILE = 16
_WHOLE_BLOCKS = 240
"""Of more keys the adapter of pa_fwd_asm may have to refuse some."""
_RULES = ("window", "logits_soft_cap", "alibi_slopes", "sinks")


def _unified_support(device: str) -> Support:
    support = AITER_UNIFIED_ATTENTION.support(device)
    # the double has no instructions of a GPU, and reads both types of float8 on all
    both = ("fp8_e4m3fn", "fp8_e4m3fnuz")
    return dataclasses.replace(support, rules=(*_RULES, "qq_bias"), cache_dtypes=both, unused_slots="NaN", max_seq_len=512)


def _decode_support(device: str) -> Support:
    return Support(
        attn_types=(AttentionType.DECODER,),
        dtypes=("float16", "bfloat16"),
        layouts=ROWS,
        head_sizes=(64, 128),
        block_sizes=(16, 32),
        rules=("window", "logits_soft_cap", "alibi_slopes"),
        cache_dtypes=("fp8_e4m3fn", "fp8_e4m3fnuz"),
        scales=("tensor",),
        engine=Engine(fused_qkv=(False,), dense_out=(True,)),
        max_tokens=64,
        max_seq_len=512,
        exclude=_caps_what_it_biases,
    )


def _caps_what_it_biases(case: Case) -> str | None:
    is_capped = case.logits_soft_cap is not None
    return "a soft cap with ALiBi or with a window" if is_capped and (case.alibi_slopes or case.window[0] >= 0) else None


def _assembly_support(device: str) -> Support:
    return Support(
        attn_types=(AttentionType.DECODER,),
        dtypes=("float16", "bfloat16"),
        layouts=(Layout.SHUFFLED,),
        head_sizes=(128,),
        block_sizes=(16,),
        engine=Engine(scale_signs=(1,), other_scales=False, fused_qkv=(False,), dense_out=(True,)),
        max_tokens=64,
        max_seq_len=128,
        exclude=_beyond_assembly,
    )


def _beyond_assembly(case: Case) -> str | None:
    if case.group_size > _MOST_OF_A_TILE:
        return f"more than {_MOST_OF_A_TILE} query heads for each KV head"
    if max((request.seq_len for request in case.requests), default=0) + case.slack > _WHOLE_BLOCKS:
        return f"a bound of more than {_WHOLE_BLOCKS} keys"
    return None


def _prefill_support(device: str) -> Support:
    return Support(
        attn_types=tuple(AttentionType),
        dtypes=("float16", "bfloat16"),
        layouts=ROWS,
        rules=(*_RULES, "non_causal", "lse"),
        max_tokens=128,
        max_seq_len=512,
        exclude=may_run_assembly,
    )


def may_run_assembly(case: Case) -> str | None:
    is_lossy = case.sinks or case.logits_soft_cap is not None
    is_assembled = case.dtype == "bfloat16" and case.head_size == 128 and not case.alibi_slopes
    return "sinks or a soft cap in assembly kernels" if is_lossy and is_assembled else None


def rounding(device: str) -> Rounding:
    """The double sums all keys in a row."""
    triton = TRITON.rounding(device)
    return dataclasses.replace(triton, dot_is_chained=True, rounds_dequantized=True, exact_division=False)


def _target(name: str, **fields: Any) -> Target:
    return Target(name=name, rounding=rounding, unavailable=missing_triton, **fields)


DOCUMENTED_AITER_UNIFIED = _target(
    "documented-aiter-unified",
    description="the adapter of AITER's unified_attention, on a double that computes what AITER documents",
    attention=_unified,
    support=_unified_support,
)
DOCUMENTED_AITER_DECODE_ASSEMBLY = _target(
    "documented-aiter-decode-assembly",
    description="the adapter of AITER's pa_fwd_asm, on a double that computes what AITER documents",
    attention=_decode_by_assembly,
    support=_assembly_support,
)
DOCUMENTED_AITER_PREFILL = _target(
    "documented-aiter-prefill",
    description="the adapter of AITER's flash_attn_varlen_func, on a double that computes what AITER documents",
    attention=_prefill,
    support=_prefill_support,
)
DOCUMENTED_AITER_DECODE = _target(
    "documented-aiter-decode",
    description="the adapter of AITER's paged_attention_v1, on a double that computes what AITER documents",
    attention=_decode,
    support=_decode_support,
)
