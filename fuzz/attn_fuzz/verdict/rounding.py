"""Roundings of kernels, and their sizes. The bounds of outputs and of properties are made of these numbers.

`attn_fuzz.verdict.oracle` derives the bound of an output whose right value is known. `attn_fuzz.properties.bound` derives the
bound of an output whose right value is unknown. Both use the symbols that `oracle` defines: u, eta, B, T, S, r and t.
"""

import math
from dataclasses import dataclass

import torch
from attn_contract import FLOAT8_DTYPES, Layer, Layout
from attn_contract.layer import SMALLEST_NORMAL

U32 = 2.0**-24
UNIT_ROUNDOFF = {
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
    torch.float8_e4m3fn: 2.0**-4,
    torch.float8_e4m3fnuz: 2.0**-4,
    torch.float8_e5m2: 2.0**-3,
}
# GPUs may flush float32 and bfloat16 subnormals to zero; half of float16's smallest subnormal is 2^-25
UNDERFLOW = {
    torch.float32: 2.0**-126,
    torch.float16: 2.0**-25,
    torch.bfloat16: 2.0**-126,
    torch.float8_e4m3fn: 2.0**-10,
    torch.float8_e4m3fnuz: 2.0**-11,
    torch.float8_e5m2: 2.0**-17,
}
LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e4m3fnuz: 240.0, torch.float8_e5m2: 57344.0, torch.int8: 127.0}
MIN_OF_INT8 = 1e-6
"""The least magnitude from which kernels make a scale of int8."""
FLUSHED_IN_FLOAT16 = 2.0**-14
"""float16's smallest normal number: matrix units that flush subnormals take smaller numbers for 0."""
SCALED_TO_INT8 = 8 * U32
"""The roundings to int8 and back: 127 over the largest number and its reciprocal (2 u32 and more each), and two products."""
U_TF32 = 2.0**-11
"""u of TF32. A factor whose bits beyond TF32's are cut loses between 0 and 2 u."""
CAP_ROUNDINGS = 8
LOST_IN_FLOAT16 = 2.0**-39
"""Half of float16's smallest subnormal, relative to a largest number of 2^14."""
_16_BITS = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_FLOAT8 = {"fp8_e4m3fn": torch.float8_e4m3fn, "fp8_e4m3fnuz": torch.float8_e4m3fnuz, "fp8_e5m2": torch.float8_e5m2}
COARSE = {
    "weights": ("q", *_16_BITS, *_FLOAT8),
    "operands": ("tf32", "bfloat16"),
    **dict.fromkeys(("products", "logits", "maximum", "sums", "outputs"), ("q", *_16_BITS)),
}
"""The fields of `Rounding` that are dtypes, with the dtypes that each may be."""


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """The roundings of a kernel. A target declares them, so that the judge can be as strict as the kernel is precise.

    Args:
        keys_per_tile: the number of keys in one step of the online softmax.
        dot_is_chained: True if a dot adds its products to the accumulator one after the other, instead of summing the tile
            first.
        splits: the most parts into which the keys are split.
        rounds_dequantized: True if K and V of a quantized cache are rounded to q's dtype before the dots.
        merged_parts: the number of parts of the keys whose outputs are rounded to q's dtype and then merged, one after the
            other. 1: the output is rounded once. Parts that are all merged at once count as 2: one rounding more. Beside a
            float8 q their dtype is that of `out`.
        normalizes_first: True if weights are divided by the denominator before they are rounded to V's dtype, instead of the
            output after the dots.
        narrow_sums: how often the sum of a tile's weights is rounded to the dtype of q: the sums that follow one another from a
            weight to the total. 0: weights are summed in float32.
        truncates_weights: True if weights are cut to the dtype of q toward 0, instead of rounded to the nearest number.
        truncates_output: True if the output is cut to its dtype toward 0.
        rounds_scaled_query: True if q is multiplied by the scale, or by the scale and log2(e), and rounded to its dtype again.
        float16_dots: True if q of bfloat16, and the weights, may be float16 in the dots with an e4m3fn cache, scaled so that
            the largest number of a row is 2^14 or more. Each number may lose LOST_IN_FLOAT16 of the largest.
        float8_dots: True if q and the weights are rounded to the cache's dtype, where that is float8, each number by itself.
        float8_weights: True if only the weights are rounded to the float8 of q, where q is float8 and nothing is dequantized.
        int8_dots: True if q and the weights become int8 where the cache is int8: multiples of 1/127 of the largest number of a
            row of q, or of a tile's weights times the scales of their values, that are cut toward 0. MIN_OF_INT8 is the
            least such largest number.
        flushes_float16: True if matrix units take float16's subnormal operands for 0, as those of gfx90a do (MIOpen, "MI200
            MFMA behavior specifics").
        exact_division: True if the output is the correctly rounded quotient if numerator and denominator are exact. Cases of
            exact numbers are then compared bitwise.
        small_tanh: True if the tanh of a soft cap has a small relative error also where it is small. Otherwise its error is
            relative to 1.
        dot_unit: u of the sums of products in both dots, if it is more than that of float32. Matrix units of Hopper keep 13
            bits after the first bit of the largest summand of float8 products: 2^-13.

    Each of the following fields is a dtype to which the kernel rounds where other kernels have float32: "q" for the dtype of q,
    "float16" or "bfloat16". None, the default, is no such rounding. docs/reference/judge.md derives the term of each.
        weights: weights before P.V; also "fp8_e4m3fn", "fp8_e4m3fnuz" or "fp8_e5m2". None: they have the dtype of V.
        weight_scale: the factor that float8 weights are multiplied by before they are rounded.
        largest_weight: the largest weight before it is scaled, where sums are rescaled late. Above 1, weights may saturate.
        sums_rounded: True if the denominator sums the rounded weights.
        operands: the factors of both dots; "tf32" or "bfloat16".
        products: q.k of a key, and P.V of a tile.
        logits: logits after they are scaled, capped and biased, and their differences to the maximum.
        maximum: the running maximum, of which only the rounded number is kept.
        sums: the denominator.
        outputs: the output while it is summed up.
    """

    keys_per_tile: int
    dot_is_chained: bool = False
    splits: int = 1
    rounds_dequantized: bool = False
    merged_parts: int = 1
    normalizes_first: bool = False
    narrow_sums: int = 0
    truncates_weights: bool = False
    truncates_output: bool = False
    rounds_scaled_query: bool = False
    float16_dots: bool = False
    float8_dots: bool = False
    float8_weights: bool = False
    int8_dots: bool = False
    exact_division: bool = False
    small_tanh: bool = False
    dot_unit: float = U32
    weights: str | None = None
    weight_scale: float = 1.0
    largest_weight: float = 1.0
    sums_rounded: bool = False
    operands: str | None = None
    products: str | None = None
    logits: str | None = None
    maximum: str | None = None
    sums: str | None = None
    outputs: str | None = None
    flushes_float16: bool = False

    def __post_init__(self) -> None:
        for name in ("keys_per_tile", "splits", "merged_parts"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"Rounding: got {value!r} {name}, expected an int of at least 1")
        if not isinstance(self.narrow_sums, int) or isinstance(self.narrow_sums, bool) or self.narrow_sums < 0:
            raise ValueError(f"Rounding: got {self.narrow_sums!r} narrow_sums, expected an int of at least 0")
        for name, dtypes in COARSE.items():
            value = getattr(self, name)
            if value is not None and value not in dtypes:
                raise ValueError(f"Rounding: got {value!r} {name}, expected one of {', '.join(dtypes)}, or None")
            if value is not None and self.exact_division:
                raise ValueError(
                    f"Rounding: got exact_division with {value!r} {name}, whose sums are not exact: expected one of them"
                )
        for name, least in (("weight_scale", SMALLEST_NORMAL), ("largest_weight", 1.0), ("dot_unit", U32)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value < math.inf:
                raise ValueError(f"Rounding: got {value!r} {name}, expected a finite number of at least {least:g}")
        if self.weight_scale != 1 and not (self.float8_dots or self.float8_weights or self.weights in _FLOAT8):
            raise ValueError(f"Rounding: got {self.weight_scale!r} weight_scale, expected 1 beside weights that are not float8")


@dataclass(frozen=True, kw_only=True)
class CallRounding:
    """The roundings of one call: a `Rounding`, applied to the call's layer and dtypes.

    Args:
        rounding: the roundings of the kernel.
        layer: says whether the cache and the output are quantized.
        dtype: the dtype of q, and of the weights that are multiplied by V. Beside a float8 q they are float16, unless
            `float8_dots` or `float8_weights` says that they are float8.
        out_dtype: dtype of the stored output.
    """

    rounding: Rounding
    layer: Layer
    dtype: torch.dtype
    out_dtype: torch.dtype

    def __post_init__(self) -> None:
        if self.dtype in FLOAT8_DTYPES:
            object.__setattr__(self, "dtype", torch.float16)

    @property
    def of_dequantized(self) -> float:
        """u_P if a kernel rounds dequantized K and V to q's dtype, else 0."""
        rounds = self.layer.kv_cache_dtype is not None and self.rounding.rounds_dequantized and not self._keeps_float8
        return UNIT_ROUNDOFF[self.dtype] if rounds else 0.0

    @property
    def _keeps_float8(self) -> bool:
        """True if the operands of both dots are float8: q, K, V and the weights."""
        return self.rounding.float8_weights and self.layer.q_scale is not None

    @property
    def _narrow(self) -> torch.dtype | None:
        """The float8 to which the weights, and a q of another type, are rounded; None if they are not."""
        cache_dtype = self.layer.kv_cache_dtype
        is_narrow = (self.rounding.float8_dots and cache_dtype in UNIT_ROUNDOFF) or self._keeps_float8
        return cache_dtype if is_narrow else None

    @property
    def _narrow_query(self) -> torch.dtype | None:
        """The float8 to which a q of another type is rounded."""
        return self._narrow if self.layer.q_scale is None else None

    def _dtype(self, name: str) -> torch.dtype | None:
        """The dtype that a field of `COARSE` names; None for float32."""
        value = getattr(self.rounding, name)
        dtype = self.dtype if value == "q" else (_16_BITS | _FLOAT8).get(value)
        return None if dtype is torch.float32 else dtype

    def unit_roundoff(self, name: str) -> float:
        """u of the dtype that a field of `COARSE` names; 0 for float32."""
        dtype = self._dtype(name)
        return 0.0 if dtype is None else UNIT_ROUNDOFF[dtype]

    def underflow(self, name: str) -> float:
        """eta of the dtype that a field of `COARSE` names; 0 for float32."""
        dtype = self._dtype(name)
        return 0.0 if dtype is None else UNDERFLOW[dtype]

    @property
    def _weights(self) -> torch.dtype:
        """The dtype to which weights are rounded."""
        return self._dtype("weights") or self._narrow or self.dtype

    @property
    def _weight_scale(self) -> float:
        """The factor of weights before they are rounded. Only float8 weights have one."""
        return self.rounding.weight_scale if self._weights in FLOAT8_DTYPES else 1.0

    @property
    def makes_int8(self) -> bool:
        """True if q and the weights are cut to int8."""
        return self.rounding.int8_dots and self.layer.kv_cache_dtype is torch.int8

    @property
    def of_operands(self) -> float:
        """The relative rounding of a score's factors before their dot: of dequantized K, q in float8, and q times the scale."""
        of_query = SCALED_TO_INT8 if self.makes_int8 else 0.0
        if (narrow := self._narrow_query) is not None:
            of_query = UNIT_ROUNDOFF[narrow]
        scaled_query = self.rounding.rounds_scaled_query * UNIT_ROUNDOFF[self.dtype]
        return self.of_dequantized + of_query + scaled_query + 2 * self._of_factors

    @property
    def _of_factors(self) -> float:
        """u of `operands`."""
        return U_TF32 if self.rounding.operands == "tf32" else self.unit_roundoff("operands")

    @property
    def of_cut_products(self) -> float:
        """2 u if the factors of a score are cut to TF32: the share that all products are expected to lose."""
        return 2 * U_TF32 * (self.rounding.operands == "tf32")

    @property
    def of_weights(self) -> float:
        """u_P. With a quantized cache, 3 u32 more for the quotient of two scales and for two products.

        Each rounding of a sum of weights is one u_P more: the sum divides all weights alike.
        """
        sums = self.rounding.narrow_sums * UNIT_ROUNDOFF[self.dtype]
        return (
            (SCALED_TO_INT8 if self.makes_int8 else UNIT_ROUNDOFF[self._weights] + sums)
            + self.of_dequantized
            + 2 * self._of_factors
            + 3 * U32 * (self.layer.kv_cache_dtype is not None)
        )

    @property
    def of_cut_weights(self) -> float:
        """u_P if weights are truncated: the loss that all of them share. 2 u of factors that are cut to TF32."""
        cut = self.rounding.truncates_weights and not self.makes_int8
        return UNIT_ROUNDOFF[self._weights] * cut + self.of_cut_products

    @property
    def of_output(self) -> float:
        """u_out, twice if the output is truncated."""
        return UNIT_ROUNDOFF[self.out_dtype] * (1 + self.rounding.truncates_output)

    @property
    def of_lost_queries(self) -> float:
        """The largest loss of an element of q, relative to the largest of its row."""
        is_float16 = self.dtype is torch.bfloat16 and self.layer.kv_cache_dtype is torch.float8_e4m3fn
        return LOST_IN_FLOAT16 if self.rounding.float16_dots and is_float16 else 0.0

    @property
    def of_lost_weights(self) -> float:
        """eta_P"""
        if self.makes_int8:
            return UNDERFLOW[torch.float32]
        least = max(UNDERFLOW[self._weights], self.of_flushed if self._weights is torch.float16 else 0.0)
        return max(least / self._weight_scale, self.of_lost_queries)

    @property
    def of_flushed(self) -> float:
        """The largest loss of an element of q, K and V, and of a weight, if matrix units flush float16's subnormals."""
        return FLUSHED_IN_FLOAT16 if self.rounding.flushes_float16 and self.dtype is torch.float16 else 0.0

    @property
    def of_underflown_queries(self) -> float:
        """The largest loss of an element of q that is rounded to float8 or flushed, independent of the others."""
        return self.of_flushed if (narrow := self._narrow_query) is None else UNDERFLOW[narrow]

    @property
    def _parts(self) -> torch.dtype:
        """The dtype of merged parts: q's, or the output's if q is float8."""
        return self.dtype if self.layer.q_scale is None or self.layer.output_scale is not None else self.out_dtype

    @property
    def of_parts(self) -> float:
        """(M - 1) u of the parts' dtype: each of M parts is rounded with its weight, and again in each merge but the last."""
        return (self.rounding.merged_parts - 1) * UNIT_ROUNDOFF[self._parts]

    @property
    def of_base_2(self) -> int:
        """2 for an LSE that comes back from base 2: the constant and the product are rounded. 4 for each merge, both ways.

        A logit's own way to base 2 is a part of its eps.
        """
        return 2 + 4 * (self.rounding.merged_parts - 1)

    @property
    def of_scales(self) -> float:
        """2 u32 for each scale that may multiply the output: the scale of V, and the output_scale."""
        return 2 * U32 * ((self.layer.kv_cache_dtype is not None) + (self.layer.output_scale is not None))

    @property
    def of_underflow(self) -> torch.Tensor | float:
        """Half the smallest step of a stored output, times the scale that reads it back, and of each part but one of M."""
        scale = 1.0 if self.layer.output_scale is None else self.layer.output_scale.double()
        return UNDERFLOW[self.out_dtype] * scale + (self.rounding.merged_parts - 1) * UNDERFLOW[self._parts]

    def terms(self, keys: int) -> int:
        """B + 2 T + S of a sum over a number of keys: the terms in a row, twice the tiles, and the splits."""
        in_a_row = keys if self.rounding.dot_is_chained else self.rounding.keys_per_tile
        return in_a_row + 2 * -(-keys // self.rounding.keys_per_tile) + self.rounding.splits

    def parts(self, span: torch.Tensor) -> torch.Tensor:
        """S of rows whose keys lie within `span` positions; 0 if the keys are not split."""
        return torch.zeros_like(span) if self.rounding.splits == 1 else span.clamp(max=self.rounding.splits)

    def tiles(self, span: torch.Tensor, keys: int) -> torch.Tensor:
        """T + S of rows whose keys lie within `span` positions. T counts the tiles that they see: other tiles change
        nothing."""
        tiles = ((span - 2) // self.rounding.keys_per_tile + 2).clamp(max=-(-keys // self.rounding.keys_per_tile))
        return torch.where(span > 0, tiles, 0) + self.parts(span)

    def of_logits(
        self,
        score: torch.Tensor,
        logit: torch.Tensor,
        distance: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor | float:
        """The error of a logit whose product and further steps are rounded to 16 bits.

        Args:
            score: |z| of each scaled product, or a bound of it.
            logit: |s|.
            distance: |s - m|.
            bias: as in `further_roundings`.
        """
        if self.rounding.products is self.rounding.logits is None:
            return 0.0
        cap, steps = self.layer.logits_soft_cap, score + distance
        if cap is not None:
            steps = steps + 2 * score.clamp(max=cap)
        if bias is not None:
            steps = steps + 2 * bias
        if cap is not None or bias is not None:
            steps = steps + logit
        lost = max(1.0, abs(self.layer.scale)) * (self.underflow("products") + 4 * self.underflow("logits"))
        return self.unit_roundoff("products") * score + self.unit_roundoff("logits") * steps + lost

    def of_maximum(self, largest: torch.Tensor, span: torch.Tensor, keys: int) -> torch.Tensor:
        """The error of a logit by roundings of the running maximum.

        Args:
            largest: the largest magnitude of a row's logits and its sink.
            span: as in `parts`.
            keys: the number of keys of the request.
        """
        # the maximum of logits of its own dtype is exact, but the LSE of a part is not
        is_exact = self._dtype("logits") is self._dtype("maximum")
        count = self.parts(span) if is_exact else self.tiles(span, keys)
        of_parts = math.log(keys + 1) * (self.rounding.splits > 1)
        return count * (self.unit_roundoff("maximum") * (largest + of_parts) + self.underflow("maximum"))

    def of_sums(self, tiles: torch.Tensor, span: torch.Tensor, total: torch.Tensor | float) -> torch.Tensor | float:
        """The relative error of a sum of weights that is kept in 16 bits, or whose weights are rounded.

        Args:
            tiles: T + S.
            span: as in `tiles`.
            total: l.
        """
        u, keys = self.unit_roundoff("sums"), self.rounding.keys_per_tile
        if not (u or self.rounding.sums_rounded):
            return 0.0
        rounded = UNIT_ROUNDOFF[self._weights] * (1 + self.rounding.truncates_weights)
        in_tile = keys - 1 if self.rounding.dot_is_chained else math.ceil(math.log2(keys))
        steps = torch.minimum(span, torch.full_like(span, in_tile)) + 3 * tiles
        lost = self.of_lost_weights * span + self.underflow("sums") * (span + steps)
        return torch.expm1((u * steps + rounded + lost / total) / (1 - u))

    def of_outputs(self, tiles: torch.Tensor) -> torch.Tensor:
        """The error, relative to its summands, of an output that is summed up in 16 bits or made of products of 16 bits."""
        u = self.unit_roundoff("outputs")
        return torch.expm1(u * (3 * tiles + 2) / (1 - u)) + self.unit_roundoff("products")

    def of_saturated_weights(self, shift: torch.Tensor) -> torch.Tensor:
        """The share that a weight may lose because the largest number of float8 is less.

        Args:
            shift: the error of the maximum that the weights are relative to.
        """
        largest = LARGEST.get(self._weights)
        if largest is None:
            return torch.zeros_like(shift)
        most = self._weight_scale * self.rounding.largest_weight
        return (1 - largest / (most * torch.exp(shift))).clamp(min=0)


def further_roundings(
    score: torch.Tensor, bias: torch.Tensor | None, layer: Layer, *, small_tanh: bool
) -> torch.Tensor | float:
    """r: the roundings between a scaled product and its logit, in units of u32.

    Args:
        score: |z| of each scaled product, or a bound of |z|.
        bias: the sum of the magnitudes of all biases of a score, or a bound of this sum. None if there is no bias.
        layer: says whether there are a cap, a quantized cache and a float8 q.
        small_tanh: as in `Rounding`.
    """
    further, cap = 0.0, layer.logits_soft_cap
    if layer.kv_cache_dtype is not None:
        further = further + 2 * score
    if layer.q_scale is not None:
        further = further + 2 * score
    if cap is not None or bias is not None:
        further = further + 2 * score
    if cap is not None:
        further = further + CAP_ROUNDINGS * ((2 * score).clamp(max=cap) if small_tanh else cap)
    if bias is not None:
        further = further + 3 * bias
    return further


def value_scale(layer: Layer) -> torch.Tensor | None:
    """The scale of V that all tokens share; None if there is none. In layout LATENT it is that of K."""
    return layer.k_scale if layer.layout is Layout.LATENT else layer.v_scale


def shared_scale(layer: Layer) -> torch.Tensor:
    """[H] float64: for each head the scale of V that all tokens share, or 1 if the scale is larger.

    |v| divided by this number is the larger one of |v| and |t|.
    """
    scale = value_scale(layer)
    assert scale is not None
    scale = scale.double().reshape(-1).expand(layer.num_kv_heads)
    return scale.repeat_interleave(layer.num_heads // layer.num_kv_heads).clamp(max=1)
