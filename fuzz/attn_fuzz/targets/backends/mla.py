"""The backend TRITON_MLA as a target: whole layers of latent attention, through the builder, prefills and decodes.

A case asks for absorbed attention, but a prefill is expanded. Both are the same bit by bit if W_UK and W_UV of a head are
permutations with signs, because every product of a query with W_UK is then one element of the query. So the target expands the
queries of a prefill and absorbs its outputs. Rows that are too wide to be expanded are decodes.
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import attn_reference
import torch
from attn_contract import AttentionType, Batch, Layer, Layout
from attn_fuzz.cases.tensors import Step
from attn_fuzz.targets.backends.layers import BackendLayers, backend_target, common_metadata, installed, named
from attn_fuzz.targets.engine import Engine
from attn_fuzz.targets.modes import invariant
from attn_fuzz.targets.rng import rng_of, rng_of_lengths
from attn_fuzz.targets.support import LatentSizes, Support
from attn_fuzz.targets.target import AttentionFunction, Mode, Target
from attn_fuzz.targets.triton import TRITON, TRITON_LATENT
from attn_fuzz.verdict.rounding import Rounding

MAX_CHUNKS = 3
"""The number of chunks into which the longest context of a step is cut."""
_CHUNK_KEYS = (48, 64, 100)
"""The keys of a chunk if all steps of a layer have the same chunks: see `options_of_layer`."""
_MAX_EXPANDED = 256
_ALL_ARE_DECODES = 1 << 20
"""A number of speculative tokens with which every request is a decode."""
# the expanded heads of the fourth last have as many dims as a tile holds
_WIDTHS = ((32, 16), (16, 8), (8, 0), (24, 8), (216, 32), (40, 17), (256, 32), (512, 64))


class Weights(NamedTuple):
    """W_UK and W_UV of each head, and the permutations that they are.

    Args:
        kv_b_proj: [N * (P + V), Lkv]. P is larger than Lkv, and V is Lkv: the dims of P that are left over are 0.
        key, value: [N, Lkv] int64: dim i of a head's key without rotation, or value, is this element of the latent vector.
        key_sign, value_sign: [N, Lkv], 1 or -1, by which the element is multiplied.
    """

    kv_b_proj: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    key_sign: torch.Tensor
    value_sign: torch.Tensor

    @property
    def latent_size(self) -> int:
        return self.key.shape[1]

    @property
    def nope_size(self) -> int:
        return self.kv_b_proj.shape[0] // len(self.key) - self.latent_size

    @property
    def v_head_dim(self) -> int:
        """The width of V: Lkv, unless rows are too wide to be expanded."""
        return 16 if self.latent_size + 8 > _MAX_EXPANDED else self.latent_size

    def of_heads(self, heads: slice) -> "Weights":
        """The weights of some heads."""
        of_head = self.kv_b_proj.unflatten(0, (len(self.key), -1))[heads]
        return Weights(of_head.flatten(0, 1), *(part[heads] for part in self[1:]))

    def unfolded(self, q: torch.Tensor) -> torch.Tensor:
        """The queries [T, N, P + R] of which q [T, N, Lkv + R] is the absorbed form."""
        latent, rotated = q[..., : self.latent_size], q[..., self.latent_size :]
        nope = latent.gather(2, self.key.expand_as(latent)) * self.key_sign
        left_over = q.new_zeros(*q.shape[:2], self.nope_size - self.latent_size)
        return torch.cat([nope, left_over, rotated], dim=-1)

    def folded(self, out: torch.Tensor) -> torch.Tensor:
        """The outputs [T, N, Lkv] that W_UV makes into out."""
        return torch.empty_like(out).scatter_(2, self.value.expand_as(out), out * self.value_sign)


@functools.lru_cache(maxsize=64)
def weights(num_heads: int, latent_size: int, dtype: torch.dtype, device: torch.device) -> Weights:
    """Weights of a layer, drawn once for all layers of its sizes."""
    draw = torch.Generator().manual_seed(num_heads * 1009 + latent_size)

    def permutations() -> tuple[torch.Tensor, torch.Tensor]:
        order = torch.stack([torch.randperm(latent_size, generator=draw) for _ in range(num_heads)])
        sign = 1 - 2 * torch.randint(2, order.shape, generator=draw)
        return order, sign.float()

    (key, key_sign), (value, value_sign) = permutations(), permutations()
    w_uk, w_uv = (
        torch.zeros(num_heads, latent_size, latent_size).scatter_(2, order[..., None], sign[..., None])
        for order, sign in ((key, key_sign), (value, value_sign))
    )
    left_over = torch.zeros(num_heads, 8, latent_size)
    if latent_size + 8 > _MAX_EXPANDED:  # never multiplied: see `is_wide`
        w_uk, w_uv = w_uk[:, :16], w_uv[:, :16]
    kv_b_proj = torch.cat([w_uk, left_over, w_uv], dim=1).flatten(0, 1)
    # float8 of a query that is to be refused has no scatter
    kv_b_proj, key_sign, value_sign = (part.to(device, dtype) for part in (kv_b_proj, key_sign, value_sign))
    return Weights(kv_b_proj, key.to(device), value.to(device), key_sign, value_sign)


def is_wide(layer: Layer) -> bool:
    """True if rows are too wide for the target's expanded heads."""
    return layer.head_size + 8 > _MAX_EXPANDED


def builder_options(layer: Layer, batch: Batch) -> dict[str, Any]:
    """The longest decode, and the keys that are gathered at once, chosen by the step. Steps with wide rows have only
    decodes."""
    rng = rng_of_lengths(batch)
    longest = max((batch.seq_lens - batch.query_start_loc.diff()).tolist(), default=0)
    options = {
        "num_speculative_tokens": rng.choice((0, 0, 0, 1, 3)),
        "context_chunk_keys": max(1, -(-longest // rng.randint(1, MAX_CHUNKS))),
    }
    if is_wide(layer):
        options["num_speculative_tokens"] = batch.max_query_len
    return options


def options_of_layer(layer: Layer, batch: Batch) -> dict[str, Any]:
    """The same options for each step of a layer, as in an engine. Outputs that must not depend on the batch need them."""
    rng = rng_of((layer.num_heads, layer.scale))
    options = {"num_speculative_tokens": rng.choice((0, 0, 0, 1, 3)), "context_chunk_keys": rng.choice(_CHUNK_KEYS)}
    return {**options, "num_speculative_tokens": _ALL_ARE_DECODES} if is_wide(layer) else options


@dataclasses.dataclass(frozen=True, eq=False)
class MlaLayers(BackendLayers):
    """A backend of latent attention, and the layers that were made of it."""

    def attention(self, q, k, v, kv_cache, layer, batch, *, out, lse, options_of=builder_options, **mode: bool) -> None:
        impl, own_cache = self._impl(layer, q, kv_cache, **mode)
        metadata = self._metadata_of(layer, batch, options_of(layer, batch))
        attend_phases(impl, _step(metadata, q, own_cache, layer, batch, out, lse))

    def write_latent_cache(self, kv_c, k_pe, kv_cache, layer, slot_mapping) -> None:
        impl, kv_cache = self._impl(layer, kv_c, kv_cache)
        impl.do_kv_cache_update(kv_c, k_pe, kv_cache, slot_mapping)

    def _metadata_of(self, layer: Layer, batch: Batch, options: dict[str, Any]) -> Any:
        """The metadata of a step, built once for all layers that are called with this Batch and split it alike."""
        key: Any = tuple(options.values())
        known = self._steps.get(key)
        if known is None or known[0] is not batch:
            common = common_metadata(batch, layer.attn_type)
            if _decodes_alone(batch, options) and options["context_chunk_keys"] % 2:
                common = dataclasses.replace(common, seq_lens_cpu=None)  # by which nothing is split
            metadata = self.load().builder(layer.attn_type, **options).build(common)
            known = self._steps[key] = (batch, metadata)
        return known[1]

    def _arguments(self, layer: Layer, rows: torch.Tensor, kv_cache: torch.Tensor | None, *mode: Any, **options: Any) -> Any:
        arguments, kv_cache = super()._arguments(layer, rows, kv_cache, *mode, **options)
        of_layer = weights_of(layer, rows)
        return {**arguments, "kv_b_proj": of_layer.kv_b_proj, "v_head_dim": of_layer.v_head_dim}, kv_cache


class MlaStep(NamedTuple):
    """The inputs and outputs of a step of latent attention. Prefills and decodes are rows of the same queries and output.

    Args:
        metadata: as the builder makes it.
        of_layer: the layer's weights.
        q: [T, N, Lkv + R].
        latent: see `own_rows`. A step without a prefill needs none.
        kv_cache: as the layer addresses it.
        by_head: [T, N, Lkv], the output.
        lse: [N, T].
    """

    metadata: Any
    of_layer: Weights
    q: torch.Tensor
    latent: torch.Tensor | None
    kv_cache: torch.Tensor
    by_head: torch.Tensor
    lse: torch.Tensor | None


def _step(metadata: Any, q, kv_cache, layer: Layer, batch: Batch, out, lse) -> MlaStep:
    latent = None if metadata.prefill is None else own_rows(q, kv_cache, layer, batch)
    by_head = out.view(len(out), layer.num_heads, layer.v_head_size)
    return MlaStep(metadata, weights_of(layer, q), q, latent, kv_cache, by_head, lse)


def attend_phases(impl: Any, step: MlaStep) -> None:
    """The prefills of a step, and its decodes."""
    metadata, of_layer, q, latent, kv_cache, by_head, lse = step
    if metadata.prefill is not None:
        assert latent is not None
        rows = metadata.prefill.rows
        kv_c, k_pe = latent[rows].tensor_split((of_layer.latent_size,), dim=1)
        expanded = torch.empty_like(by_head[rows])
        lse_rows = None if lse is None else torch.empty_like(lse[:, rows])
        impl.forward_mha(of_layer.unfolded(q[rows]), kv_c, k_pe, kv_cache, metadata, output=expanded, lse=lse_rows)
        by_head[rows] = of_layer.folded(expanded)
        if lse is not None and lse_rows is not None:
            lse[:, rows] = lse_rows
    if metadata.decode is not None:
        rows = metadata.decode.rows
        q_rows, out_rows = q[rows], by_head[rows]
        lse_rows = None if lse is None else lse[:, rows]
        impl.forward_mqa(q_rows, kv_cache, metadata, output=out_rows, lse=lse_rows)
        if not isinstance(rows, slice):
            by_head[rows] = out_rows
            if lse is not None and lse_rows is not None:
                lse[:, rows] = lse_rows


def _decodes_alone(batch: Batch, options: dict[str, Any]) -> bool:
    longest = int(batch.query_start_loc.diff().max()) if batch.num_requests else 0
    return batch.causal is False or longest <= 1 + options["num_speculative_tokens"]


def weights_of(layer: Layer, rows: torch.Tensor) -> Weights:
    return weights(layer.num_heads, layer.v_head_size, rows.dtype, rows.device)


def own_rows(q: torch.Tensor, kv_cache: torch.Tensor, layer: Layer, batch: Batch) -> torch.Tensor:
    """This step's latent vectors and rotated keys [T, Lkv + R], as the cache holds them.

    A prefill attends to the tensors of the step, and a quantized cache rounds them only for later steps. The reference reads
    the cache. Both agree if the tensors are rounded before.
    """
    rows = q.new_zeros(len(q), layer.head_size)
    for request in attn_reference.paged_requests(q, kv_cache, layer, batch, torch.float64):
        own = min(len(request.key), len(request.query))
        if own:
            rows[request.rows.stop - own : request.rows.stop] = request.key[-own:, 0].to(q.dtype)
    return rows


def phases(step: Step) -> Iterable[str]:
    """The phases into which the step is split, and whether a context is cut."""
    options = builder_options(step.layer, step.batch)
    query_lens, seq_lens = step.batch.query_start_loc.diff().tolist(), step.batch.seq_lens.tolist()
    most = 1 + options["num_speculative_tokens"] if step.batch.causal is True else step.batch.max_query_len
    phases: set[str] = set()
    for query_len, seq_len in zip(query_lens, seq_lens, strict=True):
        if 0 < query_len <= most:
            phases.add("decode")
        elif query_len:
            phases.add("prefill" if query_len == seq_len else "extend")
        if most < query_len < seq_len and seq_len - query_len > options["context_chunk_keys"]:
            phases.add("chunks")
    return sorted(phases)


def support(device: str) -> Support:
    latent = TRITON_LATENT.support(device)
    return dataclasses.replace(
        latent,
        attn_types=(AttentionType.DECODER,),
        dtypes=("float16", "bfloat16"),
        layouts=(Layout.LATENT,),
        rules=("head_size_v", "lse", "non_causal"),
        latent=LatentSizes(
            widths=_WIDTHS if device == "cpu" else ((64, 32), (128, 64), *_WIDTHS[-2:]), block_sizes=(16, 64, 80)
        ),
        refused_sizes={"widths": ((528, 16), (496, 144)), "block_sizes": (8, 24)},
        cache_dtypes=("fp8_e4m3fn", "fp8_e4m3fnuz"),
        scales=("tensor",),
        output_dtypes=(),
        engine=Engine(more_queries_than_keys=False, saturated=False),
        exclude=lambda case: None,
    )


def rounding(device: str) -> Rounding:
    """A prefill merges its own keys with each chunk of the context, which it rounds to q's dtype where it is quantized."""
    triton = TRITON.rounding(device)
    return dataclasses.replace(triton, merged_parts=1 + MAX_CHUNKS, rounds_dequantized=True, exact_division=False)


def invariant_by(attention: AttentionFunction) -> Mode:
    """See `invariant.mode`; here the chunks of attention are the layer's (`options_of_layer`)."""

    def of(target: Target) -> Target:
        def merging(device: str) -> Rounding:
            support = target.support(device)
            longest = max(support.max_seq_len, support.long_seq_len or 0)
            return dataclasses.replace(rounding(device), merged_parts=1 + -(-longest // min(_CHUNK_KEYS)))

        return dataclasses.replace(invariant.mode(attention)(target), rounding=merging)

    return of


_LAYERS = MlaLayers(named("TRITON_MLA"), installed)
BACKEND_TRITON_MLA = backend_target(
    "backend-triton-mla",
    _LAYERS,
    description="the backend TRITON_MLA: whole layers of latent attention, prefills expanded and decodes absorbed",
    support=support,
    write_kv_cache=None,
    rope_and_write_kv_cache=None,
    write_latent_cache=_LAYERS.write_latent_cache,
    rounding=rounding,
    events=phases,
    sanitizes=False,
    exact=False,
    modes={"invariant": invariant_by(functools.partial(_LAYERS.attention, batch_invariant=True, options_of=options_of_layer))},
)
