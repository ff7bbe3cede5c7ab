"""Attention over ranks that are processes: `attend_over_ranks`, its comparison of calls, both exchanges and its merges.

Each rank has a part of the heads of q, and gets the outputs of these heads. What the ranks return is judged against the
undivided reference. If a rank raises an error, each of the others must raise one, too.
"""

import dataclasses
import functools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, get_args

import torch
from attn_contract import AttentionType, Batch, ContractError, Layer, UnsupportedError
from attn_contract.rules import held_rules
from attn_fuzz.exact import call as exact
from attn_fuzz.targets.choices import choices_by
from attn_fuzz.targets.illegal import dims_of
from attn_fuzz.targets.merge import rows_of
from attn_fuzz.targets.rank_processes import TIMEOUT, RankProcesses
from attn_fuzz.targets.ranks import INTERLEAVES, TRITON_RANKS, Shard, dealt, refuse_without_a_cache
from attn_fuzz.targets.triton import TRITON, missing_triton
from attn_fuzz.targets.wrong_arguments import Calls, wrong_calls

MOST_RANKS = 3


class RankCall(NamedTuple):
    """The call of one rank: its heads of q, its part of the cache, its step, and options of `attend_over_ranks`."""

    q: torch.Tensor
    own: Shard
    step: Any
    options: dict[str, Any]


@functools.cache
def _processes() -> RankProcesses:
    from attn_optimized.context_parallel import RanksError

    return RankProcesses(MOST_RANKS, (ContractError, UnsupportedError, RanksError))


def _attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    refuse_without_a_cache(kv_cache, layer)
    choose = choices_by((q.shape, batch.query_start_loc, batch.seq_lens))
    results = on_all_ranks(_attend, _calls(q, kv_cache, layer, batch, out.dtype, choose))
    rows = int(batch.query_start_loc[-1])
    for own, own_lse in results:
        assert not own[rows:].float().any(), "rows that no request owns: expected an output of 0"
        assert own_lse[:, rows:].isneginf().all(), "rows that no request owns: expected an LSE of -inf"
    rows_of(out, layer, rows).copy_(torch.cat([own for own, _ in results], dim=1)[:rows])
    if lse is not None:
        lse[:, :rows] = torch.cat([own for _, own in results])[:, :rows]


def _calls(q, kv_cache, layer: Layer, batch: Batch, out_dtype: torch.dtype, choose: random.Random) -> list[RankCall]:
    from attn_optimized.context_parallel import Dealing, Exchange

    num_ranks = choose.choice([count for count in range(1, MOST_RANKS + 1) if layer.num_heads % count == 0])
    numbers = {"num_ranks": num_ranks, "interleave": choose.choice(INTERLEAVES)}
    options = {"exchange": choose.choice(get_args(Exchange)), "compare": choose.random() < 0.5}
    if layer.output_scale is not None:
        options["out_dtype"] = out_dtype
    if choose.random() < 0.5:
        options["attention"] = _attention_of_another_library
    calls = []
    for rank, heads in enumerate(q.chunk(num_ranks, dim=1)):
        calls.append(RankCall(heads, *dealt(kv_cache, layer, batch, Dealing(**numbers, rank=rank), choose), options))
    return calls


def on_all_ranks(
    function: Callable[..., tuple[torch.Tensor, torch.Tensor]], calls: Sequence[tuple[Any, ...]]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What `function(group, *call)` returns on each rank, in its process.

    Raises:
        ContractError, UnsupportedError: a rank's, which is no other rank's.
        AssertionError: a rank returned, and another one raised an error.
        NotCarriedError: the call is followed in exact mode, which no process of a rank is.
    """
    exact.refuse("what processes of ranks compute")
    try:
        results = _processes().call(function, calls)
    except BaseException:
        _processes().close()
        _processes.cache_clear()
        raise
    errors = [result for result in results if isinstance(result, Exception)]
    if not errors:
        return results
    error = min(errors, key=lambda error: not isinstance(error, ContractError | UnsupportedError))
    assert len(errors) == len(results), f"{len(errors)} of {len(results)} ranks raised an error: {error!r}"
    raise error


def _attend(group: Any, q: torch.Tensor, own: Shard, step: Any, options: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """One rank's call, in its process."""
    from attn_optimized.context_parallel import attend_over_ranks

    out, lse = attend_over_ranks(group, q, own.kv_cache, own.layer, step, **{"timeout": TIMEOUT, **options})
    return out, lse


def _attention_of_another_library(*arguments: Any, lse: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """What may attend in place of the kernels: where a rank has no key, its LSE is +inf or NaN, and its output NaN."""
    import attn_optimized

    out = attn_optimized.paged_attention(*arguments, out=out, lse=lse)
    is_empty = lse == -torch.inf
    lse[::2].masked_fill_(is_empty[::2], torch.inf)
    lse[1::2].masked_fill_(is_empty[1::2], torch.nan)
    return out.masked_fill_(is_empty.T[..., None], torch.nan)


def _forget() -> None:
    """Drop what is kept between calls, here and in the processes of ranks."""
    TRITON.forget()
    if _processes.cache_info().currsize:
        _processes().call(_forget_on_rank, [()] * MOST_RANKS)


def _forget_on_rank(group: Any) -> None:
    TRITON.forget()


def _illegal(q, k, v, kv_cache, layer, batch, *, out, lse) -> Calls:
    """Calls that are wrong on one rank, or not the same on all ranks. None if the step or the layer is refused."""
    choose = choices_by((q.shape, batch.query_start_loc, batch.seq_lens))
    try:
        refuse_without_a_cache(kv_cache, layer)
        calls = _calls(q, kv_cache, layer, batch, out.dtype, choose)
    except UnsupportedError:
        return
    # without a word calls are compared
    told = [{name: value for name, value in call.options.items() if name != "compare"} for call in calls]
    calls = [call._replace(options=options) for call, options in zip(calls, told, strict=True)]
    place = choose.randrange(len(calls))
    where = f"on rank {place} of {len(calls)}"

    def with_call(changed: RankCall) -> object:
        return on_all_ranks(_attend, [*calls[:place], changed, *calls[place + 1 :]])

    for what, change in {**_WRONG, **(_UNLIKE if len(calls) > 1 else {})}.items():
        changed = change(calls[place])
        if changed is not None:
            yield f"{what} {where}", functools.partial(with_call, changed)
    own = calls[place]
    for name, unlike in _unlike_layers(own.own.layer) if len(calls) > 1 else ():
        yield f"another {name} {where}", functools.partial(with_call, own._replace(own=own.own._replace(layer=unlike)))

    def attend(q: Any, kv_cache: Any, layer: Any, step: Any) -> object:
        return with_call(own._replace(q=q, own=own.own._replace(kv_cache=kv_cache, layer=layer), step=step))

    yield from _wrong_meetings(calls)
    # a number of rows or of dims of its own is not wrong on one rank
    free = {"kv_cache": dims_of(own.own.layer.layout, "block", "slot"), "q": (0, 2) if len(calls) == 1 else ()}
    own_cache, own_layer = own.own.kv_cache, own.own.layer
    tensors = {"q": own.q, "kv_cache": own_cache, "layer": own_layer, "step": own.step}
    for what, call in wrong_calls(attend, tensors, free=free):
        if "gaps" not in what:  # q is gathered, whatever its strides are
            yield f"{what} {where}", call


def _unlike_layers(layer: Layer) -> Iterator[tuple[str, Layer]]:
    """Layers with another number or without a tensor of a rule: they are legal, and belong to other calls."""
    for field in dataclasses.fields(Layer):
        value = getattr(layer, field.name)
        if float in (field.type, *get_args(field.type)):
            yield field.name, dataclasses.replace(layer, **{field.name: 0.5 if value is None else 2 * value + 0.5})
        elif field.name in held_rules(Layer) and isinstance(value, torch.Tensor):
            yield field.name, dataclasses.replace(layer, **{field.name: None})


def _wrong_meetings(calls: list[RankCall]) -> Calls:
    """Calls in which no rank can meet another: each of them has no group, or no time to wait."""
    from attn_optimized.context_parallel import attend_over_ranks

    q, own, step, options = calls[0]
    plain = {"q": q, "kv_cache": own.kv_cache, "layer": own.layer, "step": step, **options}
    yield from wrong_calls(functools.partial(attend_over_ranks, **plain), {"group": object()})

    def with_timeout(timeout: Any) -> object:
        return on_all_ranks(_attend, [call._replace(options={**call.options, "timeout": timeout}) for call in calls])

    yield from wrong_calls(with_timeout, {"timeout": TIMEOUT})


def _with_exchange(call: RankCall) -> RankCall:
    from attn_optimized.context_parallel import Exchange

    (other,) = set(get_args(Exchange)) - {call.options["exchange"]}
    return call._replace(options={**call.options, "exchange": other})


def _with_another_step(call: RankCall, **fields: Any) -> RankCall:
    return call._replace(step=dataclasses.replace(call.step, **fields))


def _on_another_rank(call: RankCall) -> RankCall:
    dealing = dataclasses.replace(call.step.dealing, num_ranks=MOST_RANKS + 1)
    return _with_another_step(call, dealing=dealing)


def _of_another_bound(call: RankCall) -> RankCall | None:
    """The step under another bound on queries, if a request of the local step is a query under one bound and not the other."""
    from attn_optimized.context_parallel import local_step

    whole = call.step.whole
    if whole.causal is False or not whole.num_requests or whole.num_requests == whole.num_actual_tokens:
        return None
    other = dataclasses.replace(whole, max_query_len=2 if whole.max_query_len <= 1 else 1)
    return call._replace(step=local_step(other, call.step.dealing))


def _made_causal(call: RankCall) -> RankCall | None:
    """Cross-attention by a step that is causal."""
    if call.own.layer.attn_type is AttentionType.DECODER:
        return None
    return _with_another_step(call, whole=dataclasses.replace(call.step.whole, causal=True))


def _of_another_length(call: RankCall) -> RankCall | None:
    whole = call.step.whole
    if not whole.num_requests:
        return None
    return _with_another_step(call, whole=dataclasses.replace(whole, seq_lens=whole.seq_lens + 1))


_WRONG: dict[str, Callable[[RankCall], RankCall | None]] = {
    "an unknown exchange": lambda call: call._replace(options={**call.options, "exchange": "by post"}),
    "no timeout": lambda call: call._replace(options={**call.options, "timeout": None}),
    "no function that merges": lambda call: call._replace(options={**call.options, "merge": None}),
    "the dealing of more ranks": _on_another_rank,
    "a causal step of cross-attention": _made_causal,
}
_UNLIKE: dict[str, Callable[[RankCall], RankCall | None]] = {
    "another exchange": _with_exchange,
    "a row of q too many": lambda call: call._replace(q=torch.cat([call.q, call.q.new_zeros(1, *call.q.shape[1:])])),
    "other lengths": _of_another_length,
    "another bound on queries": _of_another_bound,
}
"""Calls that are legal, but not the call of the other ranks."""


def unavailable(device: str) -> str | None:
    return missing_triton(device) or ("its ranks are processes on a CPU, which meet by gloo" if device != "cpu" else None)


TRITON_OVER_RANKS = dataclasses.replace(
    TRITON_RANKS,
    name="triton-over-ranks",
    description="the Triton kernels over ranks that are processes: attend_over_ranks by gloo, both exchanges",
    attention=_attention,
    unavailable=unavailable,
    must_refuse=_illegal,
    forget=_forget,
    modules=None,  # launches are emulated in this process, and its ranks are others
)
