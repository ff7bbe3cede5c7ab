"""ROCM_AITER_FA: decoders on AITER's flash attention for prefill and extend, and on its paged kernels for decode.

A step is split into three phases, by lengths that the host knows:

    prefill   no context: flash_attn_varlen_func over this step's own keys, which need no cache
    extend    a context and many query tokens: the same over this step's keys, and over the context in chunks gathered from the
              cache, merged by their LSEs; the sink joins the first alone. With a window, one call over the keys it can reach
    decode    few query tokens: paged_attention_v1 for a single one; unified_attention for more, and with sinks or a window,
              since the other knows no sinks (vLLM #43817)

Prefills, and extends without a window, take a step's keys and values from the dense tensors: an fp8 cache quantizes them for
later steps and not for their own. Decodes, and extends with a window, read them from the cache.
"""

import dataclasses
from dataclasses import dataclass, field

import torch
from attn_contract import (
    FLOAT8_DTYPES,
    YES,
    AttentionConfig,
    AttentionType,
    Batch,
    Capabilities,
    Combination,
    ContractError,
    Layer,
    No,
    Only,
    UnsupportedError,
)
from attn_contract.arguments import check_int, check_vector
from attn_contract.layer import UNLIMITED
from attn_contract.validation import check_lengths, check_own_tokens, check_paged_attention

from attn_optimized.aiter_adapter import (
    PAGED_ATTENTION_BLOCK_SIZES,
    PAGED_ATTENTION_HEAD_SIZES,
    Aiter,
    flash_attn_varlen,
    may_run_assembly,
    paged_attention_v1,
    unified_attention,
)
from attn_optimized.aiter_adapter.key_values import key_value_rows
from attn_optimized.backends.base import AttentionBackend, AttentionImpl, AttentionMetadataBuilder
from attn_optimized.backends.declaring import LAYOUTS_OF_ROWS, answer, declared_features, triton_capabilities
from attn_optimized.backends.metadata import CommonAttentionMetadata
from attn_optimized.merge import merge_attn_states

_NAME = "ROCM_AITER_FA"
_FUNCTIONS = ("flash_attn_varlen_func", "unified_attention", "paged_attention_v1")
_DECODER_PHASES = "its phases are a decoder's: prefill, extend and decode"
CONTEXT_CHUNK_KEYS = 32 * 1024
"""Keys of all requests together that an extend gathers at a time."""


@dataclass(frozen=True, eq=False, kw_only=True)
class KeySpan:
    """Consecutive keys of each of R requests, to be gathered from the cache.

    Args:
        begins: [R] int32, the first key of each request.
        key_start_loc: [R + 1] int32, prefix sum of the numbers of keys.
        num_keys, max_key_len: their sum and their largest, on the host.
    """

    begins: torch.Tensor
    key_start_loc: torch.Tensor
    num_keys: int
    max_key_len: int

    @classmethod
    def of(cls, begins: torch.Tensor, ends: torch.Tensor, device: torch.device) -> "KeySpan":
        """Keys [begin, end) of each request, from lengths on the host."""
        lens = ends - begins
        return cls(
            begins=_to(device, begins.int()),
            key_start_loc=_to(device, _start_loc(lens)),
            num_keys=int(lens.sum()),
            max_key_len=int(lens.max()),
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class PhaseMetadata:
    """The requests of one phase, in the order of the step.

    Args:
        batch: these requests alone; its query rows count from 0 and are all owned.
        rows: which rows of the step they are: a slice, or their int64 indices where requests of other phases lie in between.
        query_lens, seq_lens: [R] int64, on the host.
    """

    batch: Batch
    rows: slice | torch.Tensor
    query_lens: torch.Tensor
    seq_lens: torch.Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class ExtendMetadata(PhaseMetadata):
    """Extends, and their context in chunks that are gathered one after the other."""

    context_chunks: tuple[KeySpan, ...]
    _reaches: dict[int, KeySpan] = field(default_factory=dict)

    def reach(self, left: int) -> KeySpan:
        """The keys that a window with this left edge can see; copied to the device once for all layers that have it."""
        if left not in self._reaches:
            begins = (self.seq_lens - self.query_lens - left).clamp(min=0)
            self._reaches[left] = KeySpan.of(begins, self.seq_lens, self.batch.seq_lens.device)
        return self._reaches[left]


@dataclass(frozen=True, eq=False, kw_only=True)
class AiterFlashAttentionMetadata:
    """A step, whole and split into phases; a phase without requests is None.

    Args:
        step: what the device is told of all requests.
        query_start_loc_cpu, seq_lens_cpu: what the host was told, by which the step is split.
    """

    step: Batch
    query_start_loc_cpu: torch.Tensor
    seq_lens_cpu: torch.Tensor
    decode: PhaseMetadata | None
    extend: ExtendMetadata | None
    prefill: PhaseMetadata | None


class AiterFlashAttentionMetadataBuilder(AttentionMetadataBuilder[AiterFlashAttentionMetadata]):
    """Splits a step into decode, extend and prefill.

    An engine that keeps its batch in this order spares every copy of rows: each phase is then a slice of the step. Any other
    order is served too.

    Args:
        attn_type: DECODER.
        num_speculative_tokens: of a draft, each request's query tokens beyond the first: up to so many more are a decode.
        context_chunk_keys: keys of all requests together that an extend gathers at a time.

    Raises:
        UnsupportedError: another `attn_type` than DECODER.
        ContractError: an argument is out of range.
    """

    metadata = AiterFlashAttentionMetadata

    def __init__(
        self, attn_type: AttentionType, *, num_speculative_tokens: int = 0, context_chunk_keys: int = CONTEXT_CHUNK_KEYS
    ) -> None:
        super().__init__(attn_type)
        if attn_type is not AttentionType.DECODER:
            raise UnsupportedError(_NAME, f"{attn_type} attention", _DECODER_PHASES, "TRITON_ATTN")
        check_int("num_speculative_tokens", num_speculative_tokens, minimum=0)
        check_int("context_chunk_keys", context_chunk_keys, minimum=1)
        self.reorder_batch_threshold = 1 + num_speculative_tokens
        self.context_chunk_keys = context_chunk_keys

    def build(self, common_attn_metadata: CommonAttentionMetadata) -> AiterFlashAttentionMetadata:
        """Split a step by the lengths that the host knows; waits for no device.

        Raises:
            ContractError: it is no CommonAttentionMetadata, or what its `batch` refuses; the host does not know `seq_lens_cpu`,
                or its lengths are not as many as the device's, no lengths, or beyond the step's bounds.
            UnsupportedError: a request with more queries than keys.
        """
        return super().build(common_attn_metadata)

    def _build(self, common_attn_metadata: CommonAttentionMetadata) -> AiterFlashAttentionMetadata:
        step = common_attn_metadata.batch(self.attn_type)
        query_start_loc_cpu, seq_lens_cpu = common_attn_metadata.query_start_loc_cpu, common_attn_metadata.seq_lens_cpu
        if seq_lens_cpu is None:
            raise ContractError("seq_lens_cpu", None, f"a tensor: {_NAME} splits a step by lengths that the host knows")
        _check_host("query_start_loc_cpu", query_start_loc_cpu, step.query_start_loc)
        _check_host("seq_lens_cpu", seq_lens_cpu, step.seq_lens)
        on_host = dataclasses.replace(step, query_start_loc=query_start_loc_cpu, seq_lens=seq_lens_cpu)
        query_lens = check_lengths(on_host, ("query_start_loc_cpu", "seq_lens_cpu"))
        seq_lens = seq_lens_cpu.long()
        if len(wrong := (query_lens > seq_lens).nonzero()):
            r = int(wrong[0])
            reason = f"its prefill takes them from the same rows (request {r}: {query_lens[r]} and {seq_lens[r]})"
            raise UnsupportedError(_NAME, "more queries than keys", reason, "TRITON_ATTN")
        is_short = query_lens <= self.reorder_batch_threshold
        has_context = query_lens < seq_lens

        def phase(chosen: torch.Tensor) -> PhaseMetadata | None:
            return _phase(step, query_lens, seq_lens, chosen) if chosen.any() else None

        extend = phase(~is_short & has_context)
        return AiterFlashAttentionMetadata(
            step=step,
            query_start_loc_cpu=query_start_loc_cpu,
            seq_lens_cpu=seq_lens_cpu,
            decode=phase(is_short & (query_lens > 0)),
            extend=None if extend is None else self._with_context(extend),
            prefill=phase(~is_short & ~has_context),
        )

    def _with_context(self, extend: PhaseMetadata) -> ExtendMetadata:
        device = extend.batch.seq_lens.device
        context_lens = extend.seq_lens - extend.query_lens
        chunk = max(1, self.context_chunk_keys // len(context_lens))
        chunks = tuple(
            KeySpan.of(context_lens.clamp(max=begin), context_lens.clamp(max=begin + chunk), device)
            for begin in range(0, int(context_lens.max()), chunk)
        )
        return ExtendMetadata(
            batch=extend.batch,
            rows=extend.rows,
            query_lens=extend.query_lens,
            seq_lens=extend.seq_lens,
            context_chunks=chunks,
        )


class AiterFlashAttentionImpl(AttentionImpl[AiterFlashAttentionMetadata]):
    """A decoder's layer: each phase of a step by a kernel of AITER's."""

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor | None,
        kv_cache: torch.Tensor | None,
        attn_metadata: AiterFlashAttentionMetadata,
        *,
        output: torch.Tensor,
        lse: torch.Tensor | None = None,
    ) -> torch.Tensor:
        self._check_metadata(attn_metadata)
        step = attn_metadata.step
        self._check_step(query, step, output, lse)
        kv_cache = self._own_view(kv_cache)
        view = check_paged_attention(query, kv_cache, self.layer, step, output, lse, values=self.validate)
        _check_host_lengths(attn_metadata, view.block_size, values=self.validate)
        for function in _FUNCTIONS:
            self.aiter.load(function)  # a phase whose function is missing would be found after others have written
        by_head = output.view(query.shape)
        if attn_metadata.prefill is not None or attn_metadata.extend is not None:
            key, value = _given("key", key), _given("value", value)
            check_own_tokens(key, value, query, self.layer, step, output)
            if attn_metadata.prefill is not None:
                self._prefill(query, key, value, attn_metadata.prefill, by_head)
            if attn_metadata.extend is not None:
                self._extend(query, key, value, kv_cache, attn_metadata.extend, by_head)
        if attn_metadata.decode is not None:
            self._decode(query, kv_cache, attn_metadata.decode, by_head)
        return output

    def _prefill(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, prefill: PhaseMetadata, output: torch.Tensor
    ) -> None:
        q, out = query[prefill.rows], output[prefill.rows]
        self._attend(q, key[prefill.rows], value[prefill.rows], self.layer, prefill.batch, out=out)
        _put_back(output, prefill, out)

    def _extend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        extend: ExtendMetadata,
        output: torch.Tensor,
    ) -> None:
        q, out = query[extend.rows], output[extend.rows]
        left = self.layer.window[0]
        if left != UNLIMITED:
            reach = extend.reach(left)
            k, v = self._gather(kv_cache, extend.batch, reach, q.dtype)
            self._attend(q, k, v, self.layer, extend.batch, reach, out=out)
        else:
            lse = q.new_empty((self.layer.num_heads, len(q)), dtype=torch.float32)
            chunk_out, chunk_lse = torch.empty_like(out), torch.empty_like(lse)
            self._attend(q, key[extend.rows], value[extend.rows], self.layer, extend.batch, out=out, lse=lse)
            # a sink counts once: this step's own keys had it. All of the context lies to the left of a window's right edge
            context_layer = dataclasses.replace(self.layer, sinks=None, window=(UNLIMITED, UNLIMITED))
            for chunk in extend.context_chunks:
                k, v = self._gather(kv_cache, extend.batch, chunk, q.dtype)
                self._attend(q, k, v, context_layer, extend.batch, chunk, causal=False, out=chunk_out, lse=chunk_lse)
                merge_attn_states(out, lse, chunk_out, chunk_lse, out=out, lse=lse)
        _put_back(output, extend, out)

    def _decode(self, query: torch.Tensor, kv_cache: torch.Tensor, decode: PhaseMetadata, output: torch.Tensor) -> None:
        q, out = query[decode.rows], output[decode.rows]
        layer = self.layer
        is_plain = decode.batch.max_query_len == 1 and layer.sinks is None and layer.window[0] == UNLIMITED
        # paged_attention_v1 steps over rows of q and out as if they were dense
        is_dense = q.stride(1) == layer.head_size and out.is_contiguous()
        kernel = paged_attention_v1 if is_plain and is_dense else unified_attention
        kernel(self.aiter, q, kv_cache, layer, decode.batch, out=out)
        _put_back(output, decode, out)

    def _attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: Layer,
        batch: Batch,
        span: KeySpan | None = None,
        *,
        causal: bool = True,
        out: torch.Tensor,
        lse: torch.Tensor | None = None,
    ) -> None:
        """Attend to the keys of a span, or to those of the queries' own tokens."""
        flash_attn_varlen(
            self.aiter,
            q,
            k,
            v,
            layer,
            query_start_loc=batch.query_start_loc,
            key_start_loc=batch.query_start_loc if span is None else span.key_start_loc,
            max_query_len=batch.max_query_len,
            max_key_len=batch.max_query_len if span is None else span.max_key_len,
            causal=causal,
            out=out,
            lse=lse,
        )

    def _gather(
        self, kv_cache: torch.Tensor, batch: Batch, span: KeySpan, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values of a span, dense [num_keys, HK, D] and dequantized."""
        k, v = key_value_rows(kv_cache, self.layer, _NAME)
        block_size = k.shape[1]
        requests = torch.arange(batch.num_requests, device=k.device)
        request = torch.repeat_interleave(requests, span.key_start_loc.diff(), output_size=span.num_keys)
        before = span.key_start_loc[:-1] - span.begins
        position = torch.arange(span.num_keys, device=k.device) - before[request]
        assert batch.block_table is not None
        block = batch.block_table[request, position // block_size].long()
        slot = position % block_size
        k, v = k[block, slot], v[block, slot]
        if self.layer.k_scale is not None and self.layer.v_scale is not None:
            k, v = (k.float() * self.layer.k_scale).to(dtype), (v.float() * self.layer.v_scale).to(dtype)
        return k, v


class AiterFlashAttentionBackend(AttentionBackend):
    name = _NAME
    impl = AiterFlashAttentionImpl
    builder = AiterFlashAttentionMetadataBuilder

    @classmethod
    def capabilities(cls, aiter: Aiter) -> Capabilities:
        features = declared_features(aiter)
        needed = (features.prefill, features.prefill_lse, features.unified, features.decode)
        no_encoder = No(_DECODER_PHASES)
        no_such_mask = No("AITER's flash_attn_varlen_func knows causality and a window, and no other mask")
        non_causal = No(
            "its extend attends to this step's tokens with causal=True, and its decode takes unified_attention, which asserts "
            "causal (vLLM #40176)"
        )
        return triton_capabilities(
            cls.name,
            available=answer(aiter.missing or next((reason for reason in needed if reason), None)),
            architectures=Only(
                ("gfx942", "gfx950"), "AITER's flash attention and paged attention are built for CDNA 3 and later"
            ),
            attn_types={
                AttentionType.DECODER: YES,
                AttentionType.ENCODER: no_encoder,
                AttentionType.ENCODER_ONLY: no_encoder,
                AttentionType.ENCODER_DECODER: No(
                    "its prefill takes cu_seqlens_k from the decoder's query_start_loc with causal=True (vLLM #39119, #38450)"
                ),
            },
            dtypes=Only((torch.float16, torch.bfloat16), "AITER's flash attention knows no other type"),
            head_sizes=PAGED_ATTENTION_HEAD_SIZES,
            block_sizes=PAGED_ATTENTION_BLOCK_SIZES,
            layouts=Only(LAYOUTS_OF_ROWS, "AITER's kernels read rows of one head's dims, by their strides"),
            kv_cache_dtypes=Only(FLOAT8_DTYPES, "AITER's decode reads no int8"),
            scales=Only(("tensor",), "AITER's decode takes one k_scale and one v_scale"),
            output_dtypes=Only((), "AITER's flash_attn_varlen_func has no output_scale"),
            rules={
                "window": answer(features.prefill_window or features.unified_window),
                "sink_tokens": No("its `sink_size` has not been shown to mean the same, and unified_attention has none"),
                "chunked_local": no_such_mask,
                "logits_soft_cap": answer(features.prefill_soft_cap or features.unified_soft_cap),
                "alibi_slopes": No(
                    "its extend attends to the context in chunks, and AITER would anchor ALiBi at each chunk's own end"
                ),
                "sinks": answer(features.prefill_sinks or features.unified_sinks),
                "bidirectional_ranges": no_such_mask,
                "ranges_clamped": no_such_mask,
                "qq_bias": No("AITER's flash_attn_varlen_func has no such bias"),
                "non_causal": non_causal,
                "per_request_causal": non_causal,
                "lse": No("AITER's kernels for decode return none"),
                "batch_invariant": No("it takes another kernel for another mix of requests"),
                "rope": No("its prefill attends to this step's own keys, and a cache write rotates only what it writes"),
                "kv_sharing": No("its prefill reads this step's own keys and values, which such a layer has not"),
            },
            combinations=(
                Combination(
                    property="sinks in bfloat16 with a head size of 128",
                    applies=lambda config, _: config.asks("sinks") and _may_run_assembly(config),
                    reason="AITER's prefill may take assembly kernels for them, which have not been shown to keep sinks",
                ),
                Combination(
                    property="a soft cap in bfloat16 with a head size of 128",
                    applies=lambda config, _: config.asks("logits_soft_cap") and _may_run_assembly(config),
                    reason="AITER's prefill may take assembly kernels for them, which have not been shown to cap",
                ),
            ),
        )


def _may_run_assembly(config: AttentionConfig) -> bool:
    return may_run_assembly(config.head_size, config.dtype, alibi=config.asks("alibi_slopes"))


def _phase(step: Batch, query_lens: torch.Tensor, seq_lens: torch.Tensor, chosen: torch.Tensor) -> PhaseMetadata:
    """The phase of the chosen requests, [R] bool; all lengths are the host's."""
    device = step.query_start_loc.device
    rows = chosen.repeat_interleave(query_lens).nonzero().flatten()
    taken = _consecutive(chosen.nonzero().flatten(), device)
    query_lens, seq_lens = query_lens[chosen], seq_lens[chosen]
    assert step.block_table is not None
    batch = Batch(
        query_start_loc=_to(device, _start_loc(query_lens)),
        seq_lens=step.seq_lens[taken],
        max_query_len=int(query_lens.max()),
        max_seq_len=int(seq_lens.max()),
        num_actual_tokens=len(rows),
        causal=True,
        block_table=step.block_table[taken],
    )
    return PhaseMetadata(batch=batch, rows=_consecutive(rows, device), query_lens=query_lens, seq_lens=seq_lens)


def _check_host(name: str, host: torch.Tensor, like: torch.Tensor) -> None:
    check_vector(name, host, torch.int32)
    if len(host) != len(like) or host.device.type != "cpu":
        raise ContractError(name, f"{len(host)} entries on {host.device}", f"{len(like)} on the CPU, as many as on the device")


def _consecutive(indices: torch.Tensor, device: torch.device) -> slice | torch.Tensor:
    """Ascending indices as a slice, where they have no gap."""
    first, last = int(indices[0]), int(indices[-1])
    return slice(first, last + 1) if last - first + 1 == len(indices) else _to(device, indices)


def _start_loc(lens: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(lens.cumsum(0), (1, 0)).int()


def _to(device: torch.device, host: torch.Tensor) -> torch.Tensor:
    """On the device, without waiting for it."""
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def _put_back(output: torch.Tensor, phase: PhaseMetadata, out: torch.Tensor) -> None:
    """A slice of the output is the output; scattered rows of it are a copy."""
    if not isinstance(phase.rows, slice):
        output[phase.rows] = out


def _check_host_lengths(attn_metadata: AiterFlashAttentionMetadata, block_size: int, *, values: bool) -> None:
    """Check that the block table has room for the lengths of the host, and with `values` that the device has the same."""
    step = attn_metadata.step
    assert step.block_table is not None
    num_blocks = step.block_table.shape[1]
    phases = (attn_metadata.decode, attn_metadata.extend, attn_metadata.prefill)
    longest = max((phase.batch.max_seq_len for phase in phases if phase is not None), default=0)
    if longest > num_blocks * block_size:
        expected = f"at most {num_blocks * block_size}: block_table has {num_blocks} columns of {block_size} slots"
        raise ContractError("seq_lens_cpu", longest, expected)
    if values:
        for name in ("query_start_loc", "seq_lens"):
            on_host, on_device = getattr(attn_metadata, f"{name}_cpu"), getattr(step, name).cpu()
            if len(wrong := (on_host != on_device).nonzero()):
                r = int(wrong[0])
                raise ContractError(f"{name}_cpu[{r}]", int(on_host[r]), f"{int(on_device[r])}, as on the device")


def _given(name: str, tensor: torch.Tensor | None) -> torch.Tensor:
    if tensor is None:
        raise ContractError(name, None, f"a tensor: {_NAME} reads this step's keys and values in prefill and extend")
    return tensor


AiterFlashAttentionImpl.backend = AiterFlashAttentionBackend
