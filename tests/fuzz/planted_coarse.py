"""Kernels that keep in 16 bits or float8 what others keep in float32, each with the `Rounding` that says so.

`KERNELS` are an online softmax in torch that rounds what its own `Rounding` names.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator

import attn_reference
import torch
from attn_contract import Layer
from attn_fuzz.targets.target import EVERYTHING, AttentionFunction, Target
from attn_fuzz.verdict.rounding import LARGEST, Rounding
from planted import rotate, write

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e4m3fnuz": torch.float8_e4m3fnuz,
    "fp8_e5m2": torch.float8_e5m2,
}
SUPPORT = dataclasses.replace(
    EVERYTHING,
    dtypes=("float32", "float16", "bfloat16"),
    head_sizes=(16, 32),
    group_sizes=(1, 2, 3),
    block_sizes=(4, 1, 16),
    tile_sizes=(16,),
    max_tokens=32,
    max_seq_len=200,
    exclude=lambda case: "a sink past float16" if case.sinks == "above" and case.dtype == "float16" else None,
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
        logits = self.kept(self.kept(query @ key.transpose(1, 2), "products") * layer.scale, "logits")
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
            acc = self.kept(rescaled + self.kept(self.kept(rounded @ of_keys, "products"), "outputs"), "outputs")
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


def attention_of(does: Rounding, rescales: str = "first", wrong: Callable[..., Layer] | None = None) -> AttentionFunction:
    """`Coarse` over the requests of a step."""

    def attention(q, k, v, kv_cache, layer: Layer, batch, *, out, lse) -> None:
        asked, layer = layer, layer if wrong is None else wrong(layer)
        if kv_cache is None:
            requests = attn_reference.varlen_requests(q, k, v, layer, batch, torch.float32)
        else:
            requests = attn_reference.paged_requests(q, kv_cache, layer, batch, torch.float32)
        kernel, group = Coarse(does, q.dtype, rescales), layer.num_heads // layer.num_kv_heads
        out = out.view(len(q), layer.num_heads, layer.value_size)
        for request in requests:
            seen = request.visible.any(0)[:, None]
            key, value = (
                torch.where(seen, x.transpose(0, 1).repeat_interleave(group, 0), 0) for x in (request.key, request.value)
            )
            query = request.query.transpose(0, 1)
            found, of_rows = kernel.rows(query, key, value, request.visible, layer, request.bias)
            found = found.transpose(0, 1)
            if asked.output_scale is None:
                out[request.rows] = found.to(out.dtype)
            else:
                out[request.rows] = attn_reference.quantize(found, asked.output_scale, out.dtype)
            if lse is not None:
                lse[:, request.rows] = of_rows

    return attention


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
OUTPUTS = _coarse("outputs", outputs="bfloat16")
NORMALIZED = _coarse("normalized", rescales="normalized", outputs="q", normalizes_first=True, dtypes=("float16", "bfloat16"))
FLOAT8 = _coarse("float8", weights="fp8_e4m3fn", weight_scale=256)
FLOAT8_UNSCALED = _coarse("float8-unscaled", weights="fp8_e4m3fnuz", sums_rounded=True)
FLOAT8_SATURATED = _coarse("float8-saturated", weights="fp8_e4m3fnuz", weight_scale=256)
FLOAT8_LATE = _coarse("float8-late", weights="fp8_e5m2", largest_weight=256)
OPERANDS = _coarse("operands", operands="tf32", dtypes=("float32",))
KERNELS = (
    *(SUMS, SPLIT_SUMS, LOGITS, OUTPUTS, NORMALIZED),
    *(FLOAT8, FLOAT8_UNSCALED, FLOAT8_SATURATED, FLOAT8_LATE, OPERANDS),
)
