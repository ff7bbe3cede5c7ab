"""Kernels that keep in 16 bits or float8 what others keep in float32, each with the `Rounding` that says so.

`KERNELS` are an online softmax in torch that rounds what its own `Rounding` names.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator

import attn_reference
import torch
from attn_contract import Batch, Layer
from attn_fuzz.cases.case import Case
from attn_fuzz.targets.support import EVERYTHING
from attn_fuzz.targets.target import AttentionFunction, Target
from attn_fuzz.verdict.rounding import LARGEST, U32, Rounding
from planted import rotate, with_one_key_more, without_last_key, write

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e4m3fnuz": torch.float8_e4m3fnuz,
    "fp8_e5m2": torch.float8_e5m2,
}


def _is_far(case: Case) -> bool:
    return case.sinks in ("above", "below") or case.values.kind == "extreme"


SUPPORT = dataclasses.replace(
    EVERYTHING,
    dtypes=("float32", "float16", "bfloat16"),
    rules=tuple(name for name in EVERYTHING.rules if name != "q_scale"),
    head_sizes=(16, 32),
    group_sizes=(1, 2, 3),
    block_sizes=(4, 1, 16),
    tile_sizes=(16,),
    max_tokens=32,
    max_seq_len=200,
    exclude=lambda case: "numbers past float16" if case.dtype == "float16" and _is_far(case) else None,
)


def cut_to_tf32(x: torch.Tensor) -> torch.Tensor:
    return (x.contiguous().view(torch.int32) & -(1 << 13)).view(torch.float32)


@dataclasses.dataclass(frozen=True)
class Coarse:
    """An online softmax over tiles of keys, in parts that are merged one after the other.

    Args:
        does: the roundings that it makes.
        dtype: of q.
        rescales: "first": sums are rescaled, and then a tile is added. "normalized": the output is that of the keys so far.
    """

    does: Rounding
    dtype: torch.dtype
    rescales: str = "first"

    def kept(self, x: torch.Tensor, name: str) -> torch.Tensor:
        value = getattr(self.does, name)
        dtype = self.dtype if value == "q" else DTYPES.get(value, torch.float32)
        return x.to(dtype).float()

    def factors(self, *tensors: torch.Tensor) -> Iterator[torch.Tensor]:
        for x in tensors:
            yield cut_to_tf32(x) if self.does.operands == "tf32" else self.kept(x, "operands")

    def dot(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """a @ b, of which 32 products at once join the sum, all cut to a multiple of `dot_unit` of the largest's power of 2."""
        if self.does.dot_unit == U32:
            return a @ b
        total = a.new_zeros(*a.shape[:-1], 1, b.shape[-1])
        for places in torch.arange(a.shape[-1]).split(32):
            summands = torch.cat([a[..., places, None] * b[..., None, places, :], total], -2)
            step = torch.exp2(torch.frexp(summands.abs().amax(-2, keepdim=True)).exponent - 1.0) * self.does.dot_unit
            total = ((summands / step).trunc() * step).sum(-2, keepdim=True)
        return total.squeeze(-2)

    def weights(self, p: torch.Tensor) -> torch.Tensor:
        dtype = self.dtype if self.does.weights in (None, "q") else DTYPES[self.does.weights]
        scaled = p * self.does.weight_scale
        return (scaled.clamp(max=LARGEST.get(dtype, math.inf)).to(dtype).float()) / self.does.weight_scale

    def sum_of(self, p: torch.Tensor) -> torch.Tensor:
        """The sum of the last dim, pair by pair."""
        while p.shape[-1] > 1:
            p = torch.nn.functional.pad(p, (0, p.shape[-1] % 2))
            p = self.kept(p[..., ::2] + p[..., 1::2], "sums")
        return p[..., 0]

    def logits(self, query: torch.Tensor, key: torch.Tensor, layer: Layer, bias: torch.Tensor | None) -> torch.Tensor:
        query, key = self.factors(query, key)
        logits = self.kept(self.kept(self.dot(query, key.transpose(1, 2)) * layer.scale, "products"), "logits")
        if (cap := layer.logits_soft_cap) is not None:
            logits = self.kept(cap * self.kept(torch.tanh(self.kept(logits / cap, "logits")), "logits"), "logits")
        return logits if bias is None else self.kept(logits + self.kept(bias, "logits"), "logits")

    def part(self, logits, value, m, total) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The maximum, the sum of weights and the output of logits [H, q, k]; the output is divided if `normalized`."""
        acc = logits.new_zeros(*m.shape, value.shape[-1])
        for keys in filter(len, torch.arange(value.shape[1]).split(self.does.keys_per_tile)):
            tile = logits[..., keys]
            new = torch.maximum(m, tile.amax(-1))
            new = torch.where((new - m > math.log(self.does.largest_weight)) | m.isinf(), new, m)
            finite = torch.where(new.isinf(), 0, new)
            p = torch.exp(self.kept(tile - finite[..., None], "logits"))
            decay = torch.exp(self.kept(m - finite, "logits"))
            rounded = self.weights(p)
            summed = rounded if self.does.sums_rounded or self.does.sums else p
            before, total = total, self.kept(self.kept(total * self.kept(decay, "sums"), "sums") + self.sum_of(summed), "sums")
            if self.rescales == "normalized":
                share = 1 / torch.where(total > 0, total, 1)
                decay, rounded = decay * before * share, self.weights(p * share[..., None])
            rescaled = self.kept(acc * self.kept(decay, "outputs")[..., None], "outputs")
            rounded, of_keys = self.factors(rounded, value[:, keys])
            acc = self.kept(rescaled + self.kept(self.kept(self.dot(rounded, of_keys), "products"), "outputs"), "outputs")
            m = self.kept(new, "maximum")
        return m, total, acc

    def rows(self, query, key, value, seen, layer: Layer, bias) -> tuple[torch.Tensor, torch.Tensor]:
        """out [H, q, D] and LSE [H, q]."""
        logits = torch.where(seen, self.logits(query, key, layer, bias), -torch.inf)
        m, total, out = query.new_full(query.shape[:2], -torch.inf), query.new_zeros(query.shape[:2]), torch.zeros_like(query)
        for i, keys in enumerate(torch.arange(key.shape[1]).tensor_split(self.does.splits)):
            first, one = torch.full_like(m, -torch.inf), torch.zeros_like(m)
            if i == 0 and layer.sinks is not None:
                first = layer.sinks.float()[:, None].expand(m.shape)
                one = torch.where(first.isinf(), 0.0, 1.0)
            of_part, sums, acc = self.part(logits[..., keys], value[:, keys], first, one)
            divisor = torch.where(sums > 0, sums, 1)
            acc = acc if self.rescales == "normalized" else acc / divisor[..., None]
            if self.does.splits == 1:
                return acc, of_part + torch.log(divisor)
            acc = self.kept(acc, "outputs")
            lse = self.kept(of_part + self.kept(torch.log(divisor), "sums"), "maximum")
            new = torch.maximum(m, lse)
            finite = torch.where(new.isinf(), 0, new)
            decay, share = torch.exp(m - finite), torch.exp(lse - finite)
            total = self.kept(self.kept(total * self.kept(decay, "sums"), "sums") + self.kept(share, "sums"), "sums")
            out = self.kept(out * self.kept(decay, "outputs")[..., None], "outputs")
            out = self.kept(out + self.kept(self.kept(share, "outputs")[..., None] * acc, "outputs"), "outputs")
            m = self.kept(new, "maximum")
        divisor = torch.where(total > 0, total, 1)
        return out / divisor[..., None], m + torch.log(divisor)


class SumNotRescaled(Coarse):
    def kept(self, x, name):
        return (
            torch.where(x <= 1, 1.0, x) if name == "sums" and x.dim() == 2 and bool((x <= 1).all()) else super().kept(x, name)
        )


class OutputNotRescaled(Coarse):
    def kept(self, x, name):
        return torch.ones_like(x) if name == "outputs" and x.dim() == 2 else super().kept(x, name)


class LastTileDropped(Coarse):
    def part(self, logits, value, m, total):
        keys = max(0, value.shape[1] - 1) // self.does.keys_per_tile * self.does.keys_per_tile or value.shape[1]
        return super().part(logits[..., :keys], value[:, :keys], m, total)


class LseOfBase2(Coarse):
    def rows(self, *args):
        out, lse = super().rows(*args)
        return out, lse / math.log(2)


class LseWithoutMaximum(Coarse):
    def rows(self, *args):
        out, lse = super().rows(*args)
        return out, torch.where(lse.isinf(), lse, lse - lse.clamp(min=0))


@dataclasses.dataclass(frozen=True)
class Mistake:
    """What a wrong kernel takes for the layer, for the step, for the mask [q, k], for its KV heads, and for a softmax."""

    layer: Callable[[Layer], Layer] = lambda layer: layer
    batch: Callable[[Batch], Batch] = lambda batch: batch
    see: Callable[[torch.Tensor], torch.Tensor] = lambda visible: visible
    repeat: Callable[[torch.Tensor, int], torch.Tensor] = lambda x, group: x.repeat_interleave(group, 0)
    kernel: type[Coarse] = Coarse


def _layer(**fields) -> Mistake:
    """A layer with other fields: numbers, or functions of the layer."""
    return Mistake(
        layer=lambda layer: dataclasses.replace(
            layer, **{name: value(layer) if callable(value) else value for name, value in fields.items()}
        )
    )


def _another_table(batch: Batch) -> Batch:
    table = batch.block_table
    return batch if table is None else dataclasses.replace(batch, block_table=table.roll(1, 0))


def _of_left(change: int) -> Callable[[Layer], tuple[int, int]]:
    return lambda layer: (max(0, layer.window[0] + change) if layer.window[0] >= 0 else -1, layer.window[1])


RIGHT = Mistake()
MISTAKES = {
    "window one short": _layer(window=_of_left(-1)),
    "window one long": _layer(window=_of_left(1)),
    "right window lost": _layer(window=lambda layer: (layer.window[0], -1)),
    "sinks dropped": _layer(sinks=None),
    "sinks of the next head": _layer(sinks=lambda layer: None if layer.sinks is None else layer.sinks.roll(1)),
    "scale of the head size": _layer(scale=lambda layer: layer.head_size**-0.5),
    "soft cap dropped": _layer(logits_soft_cap=None),
    "ALiBi of the other sign": _layer(alibi_slopes=lambda layer: None if layer.alibi_slopes is None else -layer.alibi_slopes),
    "ALiBi of the next head": _layer(
        alibi_slopes=lambda layer: None if layer.alibi_slopes is None else layer.alibi_slopes.roll(1)
    ),
    "chunks ignored": _layer(chunked_local=None),
    "scale of K for V": _layer(v_scale=lambda layer: layer.k_scale),
    "bias between drafts dropped": Mistake(batch=lambda batch: dataclasses.replace(batch, qq_bias=None)),
    "another request's blocks": Mistake(batch=_another_table),
    "last key missing": Mistake(see=without_last_key),
    "one key more": Mistake(see=with_one_key_more),
    "first key missing": Mistake(see=lambda visible: visible & (visible.cumsum(-1) > 1)),
    "mask of another row": Mistake(see=lambda visible: visible.roll(1, -2)),
    "heads by remainder": Mistake(repeat=lambda x, group: x.repeat(group, 1, 1)),
    "sum not rescaled": Mistake(kernel=SumNotRescaled),
    "output not rescaled": Mistake(kernel=OutputNotRescaled),
    "last tile dropped": Mistake(kernel=LastTileDropped),
    "LSE of base 2": Mistake(kernel=LseOfBase2),
    "LSE without its maximum": Mistake(kernel=LseWithoutMaximum),
}


def attention_of(does: Rounding, rescales: str = "first", mistake: Mistake = RIGHT) -> AttentionFunction:
    """`Coarse` over the requests of a step."""

    def attention(q, k, v, kv_cache, layer: Layer, batch, *, out, lse) -> None:
        asked, layer, batch = layer, mistake.layer(layer), mistake.batch(batch)
        if kv_cache is None:
            requests = attn_reference.varlen_requests(q, k, v, layer, batch, torch.float32)
        else:
            requests = attn_reference.paged_requests(q, kv_cache, layer, batch, torch.float32)
        kernel, group = mistake.kernel(does, q.dtype, rescales), layer.num_heads // layer.num_kv_heads
        out = out.view(len(q), layer.num_heads, layer.v_head_size)
        for request in requests:
            visible = mistake.see(request.visible)
            seen = visible.any(-2)[..., None]
            key, value = (torch.where(seen, mistake.repeat(x.transpose(0, 1), group), 0) for x in (request.key, request.value))
            query = request.query.transpose(0, 1)
            found, of_rows = kernel.rows(query, key, value, visible, layer, request.bias)
            found = found.transpose(0, 1)
            if asked.output_scale is None:
                out[request.rows] = found.to(out.dtype)
            else:
                out[request.rows] = attn_reference.quantize(found, asked.output_scale, out.dtype)
            if lse is not None:
                lse[:, request.rows] = of_rows

    return attention


def with_mistake(target: Target, mistake: Mistake) -> Target:
    """One of `KERNELS` with a mistake."""
    return dataclasses.replace(target, attention=attention_of(target.rounding("cpu"), mistake=mistake))


def _coarse(name: str, *, rescales: str = "first", dtypes: tuple[str, ...] = SUPPORT.dtypes, **does) -> Target:
    declared = Rounding(keys_per_tile=16, **does)
    return Target(
        name=f"planted-coarse-{name}",
        description="planted",
        attention=attention_of(declared, rescales),
        write_kv_cache=write,
        rope_and_write_kv_cache=rotate,
        support=lambda device: dataclasses.replace(SUPPORT, dtypes=dtypes),
        refuses=False,
        rounding=lambda device: declared,
    )


_IN_16_BITS = {"maximum": "q", "sums": "q", "outputs": "q"}
SUMS = _coarse("sums", dtypes=("bfloat16", "float16"), **_IN_16_BITS)
SPLIT_SUMS = _coarse("split-sums", dtypes=("bfloat16", "float16"), splits=3, **_IN_16_BITS)
LOGITS = _coarse("logits", products="q", logits="q", dtypes=("bfloat16", "float16"))
DECODE = _coarse("decode", products="q", logits="q", dtypes=("bfloat16", "float16"), splits=3, **_IN_16_BITS)
OUTPUTS = _coarse("outputs", outputs="bfloat16")
NORMALIZED = _coarse("normalized", rescales="normalized", outputs="q", normalizes_first=True, dtypes=("float16", "bfloat16"))
FLOAT8 = _coarse("float8", weights="fp8_e4m3fn", weight_scale=256)
FLOAT8_UNSCALED = _coarse("float8-unscaled", weights="fp8_e4m3fnuz", sums_rounded=True)
FLOAT8_SATURATED = _coarse("float8-saturated", weights="fp8_e4m3fnuz", weight_scale=256)
FLOAT8_LATE = _coarse("float8-late", weights="fp8_e5m2", largest_weight=256)
OPERANDS = _coarse("operands", operands="tf32", dtypes=("float32",))
DOTS = _coarse("dots", dot_unit=2.0**-13, dtypes=("bfloat16", "float16"))
SUMS_AND_FLOAT8 = _coarse(
    "sums-and-float8", weights="fp8_e4m3fn", weight_scale=256, dtypes=("bfloat16", "float16"), **_IN_16_BITS
)
KERNELS = (
    *(SUMS, SPLIT_SUMS, LOGITS, DECODE, OUTPUTS, NORMALIZED),
    *(FLOAT8, FLOAT8_UNSCALED, FLOAT8_SATURATED, FLOAT8_LATE, SUMS_AND_FLOAT8, OPERANDS, DOTS),
)
