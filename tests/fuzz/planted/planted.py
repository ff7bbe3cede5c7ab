"""Kernels with one planted fault each, offered as a third party would: `--target planted:NAME`.

Beside its fault each of them is the reference in float32, or an online softmax; and all of it is where PLANTED_REPAIRED is set.
"""

import dataclasses
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import attn_fuzz.run.case.trial
import attn_reference
import torch
from attn_contract import Batch, Layer
from attn_fuzz.errors import HelperKilledError, LimitError
from attn_fuzz.targets.reference import REFERENCE_FP32
from attn_fuzz.targets.support import EVERYTHING
from attn_fuzz.targets.target import AttentionFunction, RopeFunction, Target, WriteFunction
from attn_fuzz.verdict.rounding import LARGEST, Rounding

SMALL = dataclasses.replace(
    EVERYTHING,
    dtypes=("float32", "float16"),
    head_sizes=(16, 32),
    group_sizes=(1, 2),
    block_sizes=(4, 1, 16),
    tile_sizes=(16,),
    max_tokens=32,
    max_seq_len=64,
)
WITHOUT_LSE = dataclasses.replace(SMALL, rules=tuple(name for name in SMALL.rules if name != "lse"))
ALL_DTYPES = dataclasses.replace(SMALL, dtypes=("float32", "float16", "bfloat16"), max_seq_len=256)

attend = REFERENCE_FP32.attention
assert REFERENCE_FP32.write_kv_cache is not None
assert REFERENCE_FP32.rope_and_write_kv_cache is not None
write = REFERENCE_FP32.write_kv_cache
rotate = REFERENCE_FP32.rope_and_write_kv_cache


def _target(
    name: str,
    attention: AttentionFunction = attend,
    write_kv_cache: WriteFunction = write,
    rope_and_write_kv_cache: RopeFunction = rotate,
    repaired: AttentionFunction = attend,
    **fields,
) -> Target:
    def repairable(planted: Callable[..., object], right: Callable[..., object]) -> Callable[..., None]:
        def function(*args, **kwargs) -> None:
            (right if "PLANTED_REPAIRED" in os.environ else planted)(*args, **kwargs)

        return function

    fields = {"rounding": REFERENCE_FP32.rounding, "support": lambda device: SMALL, **fields}
    return Target(
        name=name,
        description="planted",
        attention=repairable(attention, repaired),
        write_kv_cache=repairable(write_kv_cache, write),
        rope_and_write_kv_cache=repairable(rope_and_write_kv_cache, rotate),
        **fields,
    )


def stored_values(value: torch.Tensor, layer: Layer) -> tuple[torch.Tensor, torch.Tensor]:
    """The stored numbers of values [k, HK, D] in a quantized cache, and its scales, which broadcast to them."""
    if layer.kv_cache_dtype is None:
        return value, torch.ones(1, 1, 1)
    if layer.v_scale is None:
        scale = (value.abs().amax(-1, keepdim=True) / LARGEST[layer.kv_cache_dtype]).clamp(min=2.0**-100)
    else:
        scale = layer.v_scale.reshape(1, -1, 1)
    return attn_reference.quantize(value, scale, layer.kv_cache_dtype).float(), scale


def flash(tile: int, splits: int, see: Callable[[torch.Tensor], torch.Tensor] = lambda visible: visible) -> AttentionFunction:
    """Online softmax over tiles of keys, in as many splits: how fast kernels round.

    P is rounded to V's dtype, with the scales of a quantized cache's tokens in it, relative to the tile's largest; fixed ones
    multiply the sum.

    Args:
        see: makes the mask that is used of the right one, [query_len, seq_len].
    """

    def attention(q, k, v, kv_cache, layer: Layer, batch, *, out, lse) -> None:
        if kv_cache is None:
            requests = attn_reference.varlen_requests(q, k, v, layer, batch, torch.float32)
        else:
            requests = attn_reference.paged_requests(q, kv_cache, layer, batch, torch.float32)
        out = out.view(q.shape)
        of_weights = q.dtype if layer.q_scale is None else torch.float16
        group = layer.num_heads // layer.num_kv_heads
        for request in requests:
            seen = see(request.visible)
            query = request.query.transpose(0, 1)
            stored, scales = stored_values(torch.where(request.seen[..., None], request.value, 0), layer)
            scales = scales.expand(len(stored), layer.num_kv_heads, 1)
            key, value, scales = (x.transpose(0, 1).repeat_interleave(group, 0) for x in (request.key, stored, scales))
            value = torch.where(seen.any(-2)[..., None], value, 0)
            logits = layer.scale * (query @ key.transpose(1, 2))
            if layer.logits_soft_cap is not None:
                # by exponentials, which fast kernels have
                logits = layer.logits_soft_cap * (1 - 2 / (torch.exp(2 * logits / layer.logits_soft_cap) + 1))
            if request.bias is not None:
                logits = logits + request.bias
            logits = torch.where(seen, logits, -torch.inf)
            rows = query.shape[:2]
            parts = []
            for part in torch.arange(key.shape[1]).tensor_split(splits):
                m, total, acc = query.new_full(rows, -torch.inf), query.new_zeros(rows), torch.zeros_like(query)
                for keys in part.split(tile):
                    m_new = torch.maximum(m, logits[..., keys].amax(-1)) if len(keys) else m
                    finite = torch.where(m_new.isinf(), 0, m_new)
                    p, alpha = torch.exp(logits[..., keys] - finite[..., None]), torch.exp(m - finite)
                    total = total * alpha + p.sum(-1)
                    largest = torch.ones(())
                    if layer.v_scale is None and len(keys):
                        of_keys = scales[:, keys, 0][:, None]
                        largest = of_keys.amax(-1, keepdim=True)
                        p = torch.where(seen[..., keys], p * (of_keys / largest), 0)
                    acc = acc * alpha[..., None] + (p.to(of_weights).float() @ value[:, keys]) * largest
                    m = m_new
                parts.append((m, total, acc))
            sink = (
                torch.full_like(parts[0][0], -torch.inf) if layer.sinks is None else layer.sinks.float()[:, None].expand(rows)
            )
            highest = torch.stack([sink, *(m for m, _, _ in parts)]).amax(0)
            finite = torch.where(highest.isinf(), 0, highest)
            denominator = torch.exp(sink - finite) + sum(total * torch.exp(m - finite) for m, total, _ in parts)
            numerator = sum(acc * torch.exp(m - finite)[..., None] for m, _, acc in parts)
            if layer.v_scale is not None:
                numerator = numerator * layer.v_scale.reshape(-1, 1, 1).expand(layer.num_kv_heads, 1, 1).repeat_interleave(
                    group, 0
                )
            result = torch.where(denominator[..., None] > 0, numerator / denominator[..., None], 0).transpose(0, 1)
            if layer.output_scale is None:
                out[request.rows] = result.to(out.dtype)
            else:
                out[request.rows] = attn_reference.quantize(result, layer.output_scale, out.dtype)
            if lse is not None:
                lse[:, request.rows] = highest + torch.log(torch.where(denominator > 0, denominator, 1))

    return attention


def without_last_key(visible: torch.Tensor) -> torch.Tensor:
    """No row sees the last of the keys that it should."""
    later = visible.flip(1).cumsum(1).flip(1)
    return visible & (later > 1)


def with_one_key_more(visible: torch.Tensor) -> torch.Tensor:
    """Every row sees the key after the last that it should, if there is one."""
    shifted = torch.zeros_like(visible)
    shifted[:, 1:] = visible[:, :-1]
    return visible | shifted


def _afterwards(fault: Callable[..., None]) -> AttentionFunction:
    """The right attention, and then `fault(q, kv_cache, batch, out, lse)`."""

    def attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        attend(q, k, v, kv_cache, layer, batch, out=out, lse=lse)
        fault(q, kv_cache, batch, out, lse)

    return attention


def _owned(batch: Batch) -> int:
    return int(batch.query_start_loc[-1])


def _nan(q, kv_cache, batch, out, lse) -> None:
    out[: _owned(batch)] = torch.nan


def _lse_in_base_2(q, kv_cache, batch, out, lse) -> None:
    if lse is not None:
        lse[:, : _owned(batch)] /= 0.6931472


def _unowned_rows(q, kv_cache, batch, out, lse) -> None:
    out[_owned(batch) :] = 0


def _unowned_lse(q, kv_cache, batch, out, lse) -> None:
    if lse is not None:
        lse[:, _owned(batch) :] = 0


def _changes_q(q, kv_cache, batch, out, lse) -> None:
    own = q[: _owned(batch)]
    own.copy_(own.float() + 1)


def _is_slow(q, kv_cache, batch, out, lse) -> None:
    with open(os.environ["PLANTED_CALLED"], "a") as called:
        called.write(".")
    time.sleep(0.3)


def _is_slow_and_nan(q, kv_cache, batch, out, lse) -> None:
    _is_slow(q, kv_cache, batch, out, lse)
    _nan(q, kv_cache, batch, out, lse)


def _breaks_the_judge(q, kv_cache, batch, out, lse) -> None:
    attn_fuzz.run.case.trial._with_judgement = None


def _raises(*args, **kwargs) -> None:
    raise RuntimeError("a planted\nexception")


def _limited(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    if batch.max_query_len > 1:
        raise RuntimeError("as Triton's interpreter tells it") from LimitError("a function that this tool does not know")
    attend(q, k, v, kv_cache, layer, batch, out=out, lse=lse)


def _hangs(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    if len(batch.seq_lens) > 1:
        time.sleep(600)
    attend(q, k, v, kv_cache, layer, batch, out=out, lse=lse)


def _segfaults(q, kv_cache, batch, out, lse) -> None:
    if batch.max_query_len:
        os.kill(os.getpid(), signal.SIGSEGV)


def _killed_once(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    """The process of its first call dies, and no other, as if an operator had killed it."""
    called = Path(os.environ["PLANTED_CALLED"])
    if not called.exists():
        called.write_text(".")
        os.kill(os.getpid(), signal.SIGKILL)
    attend(q, k, v, kv_cache, layer, batch, out=out, lse=lse)


def _killed_always(*args, **kwargs) -> None:
    """The process dies, as if the system were out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def _without_memory_once(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    """It is out of memory for a while, as on a GPU that other processes use."""
    called = Path(os.environ["PLANTED_CALLED"])
    if not called.exists():
        called.write_text(str(os.getpid()))
    if called.read_text() == str(os.getpid()):
        _without_memory()
    attend(q, k, v, kv_cache, layer, batch, out=out, lse=lse)


def _helper_killed_once(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    """As by a system that is out of memory, which kills the process that compiles."""
    called = Path(os.environ["PLANTED_CALLED"])
    if not called.exists():
        called.write_text(".")
        _helper_killed()
    attend(q, k, v, kv_cache, layer, batch, out=out, lse=lse)


def _helper_killed(*args, **kwargs) -> None:
    raise HelperKilledError("the process that compiles was killed by SIGKILL")


def _exits_with_255(*args, **kwargs) -> None:
    os._exit(255)


def _without_memory(*args, **kwargs) -> None:
    raise RuntimeError("Triton Error [CUDA]: out of memory")


def _writes_into_a_neighbours_row(q, kv_cache, batch, out, lse) -> None:
    """A stray write after the rows of the requests; a step without tokens fails in another way."""
    if not _owned(batch):
        raise ZeroDivisionError("no tokens")
    _unowned_rows(q, kv_cache, batch, out, lse)


def _exits(q, kv_cache, batch, out, lse) -> None:
    if batch.max_query_len:
        os._exit(3)


def _last_row_unwritten(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    rows = out.clone()
    attend(q, k, v, kv_cache, layer, batch, out=rows, lse=lse)
    written = max(_owned(batch) - 1, 0)
    out[:written] = rows[:written]


def _one_key_short(q, k, v, kv_cache, layer: Layer, batch: Batch, *, out, lse) -> None:
    if kv_cache is not None:
        batch = dataclasses.replace(batch, seq_lens=(batch.seq_lens - 1).clamp(min=0))
    attend(q, k, v, kv_cache, layer, batch, out=out, lse=lse)


def _no_sinks(q, k, v, kv_cache, layer: Layer, batch, *, out, lse) -> None:
    attend(q, k, v, kv_cache, dataclasses.replace(layer, sinks=None), batch, out=out, lse=lse)


def _write_and_more(k, v, kv_cache, layer, slot_mapping) -> None:
    write(k, v, kv_cache, layer, slot_mapping)
    kv_cache[(-1,) * kv_cache.dim()] = 0.25


def _rotate_only_what_is_written(q, k, v, positions, cos_sin_cache, kv_cache, layer, slot_mapping, *, is_neox) -> None:
    before = q[: len(slot_mapping)].clone()
    rotate(q, k, v, positions, cos_sin_cache, kv_cache, layer, slot_mapping, is_neox=is_neox)
    q[: len(slot_mapping)][slot_mapping == -1] = before[slot_mapping == -1]


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no message")


def _raises_unprintably(*args, **kwargs) -> None:
    raise UnprintableError


def _raises_surrogates(*args, **kwargs) -> None:
    raise RuntimeError("\ud800\x1b[31m")


def _interrupts(*args, **kwargs) -> None:
    raise KeyboardInterrupt


def _other_memory(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    """It writes, but into memory that nobody else will see."""
    out.data = torch.empty_like(out)
    attend(q, k, v, kv_cache, layer, batch, out=out, lse=lse)


def _sets_state(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    attend(q, k, v, kv_cache, layer, batch, out=out, lse=lse)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_num_threads(3)
    os.chdir("/")
    print("kernels print")


def _forks(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    attend(q, k, v, kv_cache, layer, batch, out=out, lse=lse)
    if os.fork() == 0:
        out.fill_(7)


def _refuses_too_late(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    if lse is not None:
        q.fill_(1)
        raise NotImplementedError("no LSE here")
    attend(q, k, v, kv_cache, layer, batch, out=out, lse=lse)


def _refuses_in_time(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    if lse is not None:
        raise NotImplementedError("no LSE here")
    attend(q, k, v, kv_cache, layer, batch, out=out, lse=lse)


RAISES_UNPRINTABLY = _target("planted-raises-unprintably", _raises_unprintably)
RAISES_SURROGATES = _target("planted-raises-surrogates", _raises_surrogates)
INTERRUPTS = _target("planted-interrupts", _interrupts)
OTHER_MEMORY = _target("planted-other-memory", _other_memory)
SETS_STATE = _target("planted-sets-state", _sets_state)
FORKS = _target("planted-forks", _forks)
REFUSES_TOO_LATE = _target(
    "planted-refuses-too-late",
    _refuses_too_late,
    support=lambda device: WITHOUT_LSE,
)
REFUSES_IN_TIME = _target(
    "planted-refuses-in-time",
    _refuses_in_time,
    support=lambda device: WITHOUT_LSE,
)
NO_NARROW_SINKS = _target(
    "planted-no-narrow-sinks",
    support=lambda device: dataclasses.replace(SMALL, exclude=lambda case: "narrow sinks" if case.narrow_sinks else None),
    refuses=False,
)
NAN = _target("planted-nan", _afterwards(_nan))
LSE_IN_BASE_2 = _target("planted-lse-in-base-2", _afterwards(_lse_in_base_2))
UNOWNED_ROWS = _target("planted-unowned-rows", _afterwards(_unowned_rows))
UNOWNED_LSE = _target("planted-unowned-lse", _afterwards(_unowned_lse))
CHANGES_Q = _target("planted-changes-q", _afterwards(_changes_q))
RAISES = _target("planted-raises", _raises)
HANGS = _target("planted-hangs", _hangs)
HANGS_EMULATED = dataclasses.replace(HANGS, name="planted-hangs-emulated", compiles=True)
LIMITED = _target("planted-limited", _limited)
SEGFAULTS = _target("planted-segfaults", _afterwards(_segfaults))
WRITES_INTO_A_NEIGHBOURS_ROW = _target("planted-writes-into-a-neighbours-row", _afterwards(_writes_into_a_neighbours_row))
KILLED_ONCE = _target("planted-killed-once", _killed_once)
KILLED_ALWAYS = _target("planted-killed-always", _killed_always)
HELPER_KILLED_ONCE = _target("planted-helper-killed-once", _helper_killed_once)
HELPER_KILLED = _target("planted-helper-killed", _helper_killed)
EXITS_WITH_255 = _target("planted-exits-with-255", _exits_with_255)
WITHOUT_MEMORY_ONCE = _target("planted-without-memory-once", _without_memory_once)
WITHOUT_MEMORY = _target("planted-without-memory", _without_memory)
EXITS = _target("planted-exits", _afterwards(_exits))
LAST_ROW_UNWRITTEN = _target("planted-last-row-unwritten", _last_row_unwritten)
ONE_KEY_SHORT = _target("planted-one-key-short", _one_key_short)
NO_SINKS = _target("planted-no-sinks", _no_sinks)
WRITE_AND_MORE = _target("planted-write-and-more", write_kv_cache=_write_and_more)
ROTATES_ONLY_WHAT_IS_WRITTEN = _target(
    "planted-rotates-only-what-is-written", rope_and_write_kv_cache=_rotate_only_what_is_written
)
SLOW = _target("planted-slow", _afterwards(_is_slow))
SLOW_NAN = _target("planted-slow-nan", _afterwards(_is_slow_and_nan))
FLASH = _target(
    "planted-flash",
    flash(16, 1),
    support=lambda device: ALL_DTYPES,
    rounding=lambda device: Rounding(keys_per_tile=16, exact_division=True),
    events=lambda step: ["ragged"] if step.batch.num_requests > 1 else [],
)
FLASH_SPLIT = _target(
    "planted-flash-split",
    flash(4, 3),
    support=lambda device: ALL_DTYPES,
    rounding=lambda device: Rounding(keys_per_tile=4, splits=3, exact_division=True),
)
FLASH_ONE_KEY_SHORT = _target(
    "planted-flash-one-key-short",
    flash(16, 1, without_last_key),
    repaired=flash(16, 1),
    support=lambda device: ALL_DTYPES,
    rounding=lambda device: Rounding(keys_per_tile=16, exact_division=True),
)
BREAKS_THE_JUDGE = _target("planted-breaks-the-judge", _afterwards(_breaks_the_judge))
NO_TARGET = "a string"
