"""Steps of a model of LAYERS layers, and their participants: metadata once, then a cache write and attention in each layer.

Sequences are short and every layer has a cache of its own, so that the device waits for the host and never the other way round.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from attn_contract import AttentionType, Layout, UnsupportedError
from attn_contract.layouts import K, V
from attn_optimized import paged_attention, write_kv_cache
from attn_optimized.backends import BACKENDS, AttentionBackend

from benchmarks.participants.attention import AITER, VLLM, Prepared, aiter_triton, vllm_triton
from benchmarks.participants.latent import vllm_triton as vllm_latent
from benchmarks.participants.loading import Kernels
from benchmarks.steps import latent_steps
from benchmarks.steps.calls import DTYPE, Call, attention_call
from benchmarks.steps.cases import Attention
from benchmarks.steps.latent import latent_case
from benchmarks.steps.latent_steps import LatentCase, LatentStep

FUNCTIONS, OPS = "functions", "torch.ops.attn_parity"
LAYERS = 32
LAYOUTS = (Layout.BLOCKS_FIRST_NHD, Layout.X_PACKED, Layout.SHUFFLED, Layout.KV_FIRST_NHD)
DECODES = Attention(name="64 decodes", query_lens=(1,) * 64, seq_lens=(100,) * 64)
MIXED = Attention(name="31 decodes, 128 new tokens", query_lens=(*(1,) * 31, 128), seq_lens=(*(100,) * 31, 300))
LATENT = LatentCase("64 decodes, MLA", (1,) * 64, (100,) * 64, num_heads=16)
CASES = (DECODES, MIXED, LATENT)
TINY = (
    Attention(name="2 decodes", query_lens=(1, 1), seq_lens=(20, 7), num_heads=4, num_kv_heads=2, head_size=32),
    LatentCase("2 decodes, MLA", (1, 1), (20, 7), num_heads=2, latent_size=32, rope_size=16, nope_size=16, v_head_dim=16),
)


class Parts(NamedTuple):
    """A participant's functions in a step: `build` once, then `write` and `attend` in each layer. None: it has none."""

    build: Callable[[], Any] | None
    write: Callable[[int], Any] | None
    attend: Callable[[int, Any], Any]

    def step(self, num_layers: int) -> None:
        metadata = None if self.build is None else self.build()
        for layer in range(num_layers):
            if self.write is not None:
                self.write(layer)
            self.attend(layer, metadata)


def joining(
    case: Attention | LatentCase, num_layers: int, device: torch.device, peers: Kernels
) -> Iterator[tuple[str, Parts | str]]:
    """Our backends, by their names, our functions and ops, then vLLM's and AITER's functions.

    Instead of parts, the reason why a participant does not join.
    """
    if isinstance(case, LatentCase):
        yield from _of_latent(case, num_layers, device, peers)
        return
    for name, backend in BACKENDS.items():
        if not name.endswith(("MLA", "SPARSE")):  # these have latent caches, or attend to selected keys
            yield name, _or_why(functools.partial(_backend, backend, case, num_layers, device))
    calls = [attention_call(case, device, seed=0) for _ in range(num_layers)]
    yield FUNCTIONS, _our_functions(calls)
    yield OPS, _our_ops(calls) if device.type == "cuda" else "on a CPU the ops run the reference"
    if peers.vllm is not None:
        yield VLLM, _or_why(functools.partial(_vllm, peers.vllm, calls))
    if peers.aiter is not None:
        yield AITER, _or_why(functools.partial(_functions, functools.partial(aiter_triton, peers.aiter), calls, None))


def _of_latent(case: LatentCase, num_layers: int, device: torch.device, peers: Kernels) -> Iterator[tuple[str, Parts | str]]:
    made = [latent_steps.whole_step(case, device) for _ in range(num_layers)]
    yield "TRITON_MLA", _or_why(functools.partial(_latent_backend, BACKENDS["TRITON_MLA"], case, made))
    if peers.vllm is not None:
        sizes = {"num_heads": case.num_heads, "latent": case.latent_size, "rope": case.rope_size}
        same = latent_case(case.name, case.query_lens, case.seq_lens, **sizes)
        calls = [attention_call(same, device, seed=0) for _ in range(num_layers)]
        prepare = functools.partial(vllm_latent, peers.vllm)
        yield VLLM, _or_why(functools.partial(_functions, prepare, calls, None))


def _or_why(make: Callable[[], Parts]) -> Parts | str:
    try:
        return make()
    except UnsupportedError as error:
        return str(error)


@dataclass(frozen=True, eq=False)
class _New:
    """This step's tokens, and where they are written."""

    key: torch.Tensor
    value: torch.Tensor
    slots: torch.Tensor

    @classmethod
    def of(cls, call: Call) -> "_New":
        case, layer = call.case, call.layer
        shape = (case.num_tokens, layer.num_kv_heads, layer.head_size)
        key, value = (torch.randn(shape, device=call.q.device).to(DTYPE) for _ in range(2))
        return cls(key, value, latent_steps.slots_of(case, call.batch, case.block_size))


def _backend(backend: type[AttentionBackend], case: Attention, num_layers: int, device: torch.device) -> Parts:
    """The parts of a backend, with the first of LAYOUTS that it takes.

    Raises:
        UnsupportedError: it takes none. The reason is that for the first.
    """
    refused: list[UnsupportedError] = []
    for layout in LAYOUTS:
        calls = (attention_call(replace(case, layout=layout), device, seed=0) for _ in range(num_layers))
        try:
            layers = [(call, backend.impl(call.layer, dtype=DTYPE, block_size=case.block_size)) for call in calls]
        except UnsupportedError as error:
            refused.append(error)
        else:
            return _parts(backend, layers)
    raise refused[0]


def _parts(backend: type[AttentionBackend], layers: Sequence[tuple[Call, Any]]) -> Parts:
    first, _ = layers[0]
    batch, new, out = first.batch, _New.of(first), torch.empty_like(first.q)
    builder = backend.builder(AttentionType.DECODER)
    common = latent_steps.common_metadata(batch, new.slots)

    def write(layer: int) -> None:
        call, impl = layers[layer]
        impl.do_kv_cache_update(new.key, new.value, call.kv_cache, new.slots)

    def attend(layer: int, metadata: Any) -> torch.Tensor:
        call, impl = layers[layer]
        return impl.forward(call.q, new.key, new.value, call.kv_cache, metadata, output=out)

    return Parts(functools.partial(builder.build, common), write, attend)


def _latent_backend(backend: type[AttentionBackend], case: LatentCase, made: Sequence[LatentStep]) -> Parts:
    """Decodes in the absorbed form. The products with W_UK and W_UV are the engine's, and no part of this."""
    impls = [latent_steps.layer_of(case, step, backend) for step in made]
    kv_c, k_pe = made[0].new.split([case.latent_size, case.rope_size], dim=1)
    q = made[0].absorbed.q
    out = q.new_empty(*q.shape[:2], case.latent_size)

    def write(layer: int) -> None:
        impls[layer].do_kv_cache_update(kv_c, k_pe, made[layer].absorbed.kv_cache, made[layer].slots)

    def attend(layer: int, metadata: Any) -> torch.Tensor:
        return impls[layer].forward_mqa(q, made[layer].absorbed.kv_cache, metadata, output=out)

    return Parts(latent_steps.built(case, made[0], backend), write, attend)


def _our_functions(calls: Sequence[Call]) -> Parts:
    new, out, batch = _New.of(calls[0]), torch.empty_like(calls[0].q), calls[0].batch

    def write(layer: int) -> None:
        write_kv_cache(new.key, new.value, calls[layer].cache, calls[layer].layer, new.slots)

    def attend(layer: int, metadata: Any) -> torch.Tensor:
        return paged_attention(calls[layer].q, calls[layer].cache, calls[layer].layer, metadata, out=out)

    return Parts(functools.partial(replace, batch), write, attend)


def _our_ops(calls: Sequence[Call]) -> Parts:
    """Our ops with arguments by position, as a compiled graph has them."""
    new, out, layer, batch = _New.of(calls[0]), torch.empty_like(calls[0].q), calls[0].layer, calls[0].batch
    ops = torch.ops.attn_parity
    settings = str(layer.layout), layer.num_kv_heads, layer.scale, str(layer.attn_type)
    lengths = batch.query_start_loc, batch.seq_lens, batch.max_query_len, batch.max_seq_len, batch.num_actual_tokens
    step = *settings, *lengths, batch.block_table, batch.causal, None

    def write(number: int) -> None:
        ops.write_kv_cache(new.key, new.value, calls[number].cache, str(layer.layout), new.slots)

    def attend(number: int, _: Any) -> torch.Tensor:
        ops.paged_attention(calls[number].q, calls[number].cache, *step, out, None)
        return out

    return Parts(None, write, attend)


def _vllm(module: SimpleNamespace, calls: Sequence[Call]) -> Parts:
    """The functions that vLLM's TRITON_ATTN calls in each layer, without its checks."""
    new, one = _New.of(calls[0]), torch.ones((), device=calls[0].q.device)
    caches = [call.kv_cache for call in calls if call.kv_cache is not None]
    planes = [(kv_cache[:, K], kv_cache[:, V]) for kv_cache in caches]

    def write(layer: int) -> None:
        module.triton_reshape_and_cache_flash(new.key, new.value, *planes[layer], new.slots, "auto", one, one)

    return _functions(functools.partial(vllm_triton, module), calls, write)


def _functions(prepare: Callable[[Any], Prepared], calls: Sequence[Any], write: Callable[[int], Any] | None) -> Parts:
    runs = [prepare(call).run for call in calls]
    return Parts(None, write, lambda layer, _: runs[layer]())
