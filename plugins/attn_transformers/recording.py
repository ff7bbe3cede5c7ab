"""Judges transformers' calls of another implementation of attention, while a model runs."""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from unittest import mock

import attn_reference
import torch
from attn_contract import ContractError, UnsupportedError

from attn_transformers import caches
from attn_transformers.arguments import Step, arguments_of, step_of
from attn_transformers.attention import through_cache, written
from attn_transformers.padding import hidden_tokens, models_watched
from attn_transformers.registration import intercepted

if TYPE_CHECKING:
    from attn_fuzz import Recording
    from attn_fuzz.shadow import Shadow

VALUE_BYTES = 1 << 26
"""The most bytes of keys and values that a recording's shadow keeps, to say how a key was altered."""


@contextlib.contextmanager
def recording(
    folder: str | Path,
    implementation: str,
    *,
    every: int = 1,
    limit: int = 10,
    captures: Literal["wrong", "all"] = "wrong",
    shadow: "Shadow | bool" = True,
) -> "Iterator[Recording]":
    """Judge the calls of an implementation of attention that models make inside the `with`, and capture the wrong ones.

    The reference computes what transformers' mask and arguments say, and the judge bounds how far rounding may lead away
    from it. The mask must be one of four dimensions, as those for `eager` and `sdpa`, or none.

    Args:
        folder, every, limit, captures: as for `attn_fuzz.recording`.
        implementation: its name as `attn_implementation`, such as "sdpa" or one that you registered.
        shadow: True to check caches by a shadow, in every call of any implementation; or the shadow.

    Yields:
        an `attn_fuzz.Recording`: its `calls`, `judged`, `wrong`, `not_judged`, `found`, `hidden`, and its `shadow`'s `faults`.

    Warns:
        UserWarning: a call cannot be judged, with the reason; or no call was judged at all; or a cache is wrong; or a mask
            hides every key of a token that is no padding.
    """
    import attn_fuzz
    from attn_fuzz.shadow import Shadow

    record = attn_fuzz.Recording(
        Path(folder), every, limit, captures, shadow=Shadow(value_bytes=VALUE_BYTES) if shadow is True else shadow or None
    )
    with contextlib.ExitStack() as patches:
        patches.enter_context(models_watched())
        hold = None if record.shadow is None else patches.enter_context(caches.watched(record.shadow))
        watched = functools.partial(_watched, record=record, implementation=implementation, hold=hold)
        patches.enter_context(intercepted(implementation, lambda function: functools.partial(watched, function)))
        yield record
    if record.shadow is not None and record.shadow.wrong:
        first = record.shadow.faults[0] if record.shadow.faults else "see its `wrong`"
        warnings.warn(f"recording: THE CACHE IS WRONG in {record.shadow.wrong} reads: {first}", stacklevel=3)
    if record.hidden:
        warnings.warn(
            f"recording: A MASK HIDES EVERY KEY of {record.hidden} tokens that are no padding, first {record.first_hidden}",
            stacklevel=3,
        )
    if reason := record.why_nothing_was_judged("no model asked for it, or the model attends by code of its own"):
        warnings.warn(f"recording: NO CALL of attn_implementation={implementation!r} WAS JUDGED: {reason}", stacklevel=3)


def _watched(
    function: Callable[..., Any],
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    record: "Recording",
    implementation: str,
    hold: Callable[[torch.Tensor, torch.Tensor, int], None] | None,
    **arguments: Any,
) -> Any:
    """The function's result. Its arguments and its output are judged.

    Arguments that the contract cannot express cause a warning, as do errors of the recording itself. An output of another shape
    cannot be judged either: it is in the recording's `found`. All are counted in its `not_judged`.
    """
    layer_index = getattr(module, "layer_idx", None)
    if hold is not None and isinstance(layer_index, int):
        hold(key, value, layer_index)
    with _updated_once(arguments.get("cache")):
        result = function(module, query, key, value, attention_mask, **arguments)
        try:
            with torch.no_grad():
                key, value, _, arguments = through_cache(module, key, value, **arguments)
                name = _name(implementation, module)
                record.note_hidden(hidden_tokens(module, query, key, attention_mask, **arguments), function=name)
                none_is_causal = "eager" not in implementation
                read = arguments_of(module, query, key, value, attention_mask, none_is_causal=none_is_causal, **arguments)
                step = step_of(read)
                if step is not None:
                    _see(record, step, _output(result[0], query, value.shape[3], step.rows), name)
        except Exception as error:
            known = isinstance(error, (ContractError, UnsupportedError))
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            record.pass_over(reason)
            warnings.warn(f"recording: a call of {implementation} was not judged: {reason}", stacklevel=2)
    return result


@contextlib.contextmanager
def _updated_once(cache: Any) -> Iterator[None]:
    """Make a second update of a cache inside the `with` do nothing but return the result of the first."""
    if cache is None:
        yield
        return
    update, given = cache.update, []

    def once(*, kwargs: dict[str, Any], **states: Any) -> Any:
        if not given:
            given.append((update(**states, kwargs=kwargs), dict(kwargs)))
        result, changed = given[0]
        kwargs.update(changed)
        return result

    with mock.patch.object(cache, "update", once):
        yield


def _output(out: torch.Tensor, query: torch.Tensor, v_head_size: int, rows: torch.Tensor) -> torch.Tensor:
    """[T, H, DV], the rows of a step in an implementation's [B, Q, H, DV]. An output of another shape is returned as it is."""
    num_rows, num_heads, num_queries, _ = query.shape
    if tuple(out.shape) != (num_rows, num_queries, num_heads, v_head_size):
        return out.detach()
    return out.detach().flatten(0, 1)[rows]


def _name(implementation: str, module: torch.nn.Module) -> str:
    """An implementation, with the number of the layer that calls it, if the layer has one."""
    layer = getattr(module, "layer_idx", None)
    return implementation if layer is None else f"{implementation}, layer {layer}"


def _see(record: "Recording", step: Step, out: torch.Tensor, function: str) -> None:
    import attn_fuzz

    if step.layer.layout is None:
        call = attn_fuzz.Call(q=step.q, k=step.k, v=step.v, layer=step.layer, batch=step.batch)
    else:
        call = attn_fuzz.Call(q=step.q, kv_cache=written(attn_reference, step), layer=step.layer, batch=step.batch)
    record.see(call, out, function=function)
