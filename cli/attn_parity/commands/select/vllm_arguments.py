"""A command line of `vllm serve` for the layers of a model, as far as vLLM 0.33's backends are known to serve them.

vLLM takes one backend for all layers by `--attention-backend`. A backend of ours has the name of vLLM's, and may serve more:
ours gives every phase a soft cap where vLLM's ROCM_AITER_FA caps its decode alone. So both are asked.
"""

import dataclasses
import itertools
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import torch
from attn_contract import (
    ANY,
    FLOAT8_DTYPES,
    FLOAT_DTYPES,
    QUANTIZED_DTYPES,
    YES,
    AttentionConfig,
    AttentionType,
    Capabilities,
    Combination,
    Layout,
    Multiples,
    No,
    Only,
)
from attn_fuzz.cases.poison import DTYPES
from attn_parity.model_config.deployed import Engine

if TYPE_CHECKING:
    from attn_optimized.aiter_adapter import Aiter

FLOAT8 = "float8"
"""The architecture's own float8 type."""
CACHE_WORDS: Mapping[str, tuple[str | None, str | None]] = {
    "auto": (None, None),
    "float16": (None, None),
    "bfloat16": (None, None),
    "fp8": (FLOAT8, "tensor"),
    "fp8_e4m3": (FLOAT8, "tensor"),
    "fp8_per_token_head": (FLOAT8, "inline"),
    "int8_per_token_head": ("int8", "inline"),
}
"""vLLM's words of --kv-cache-dtype for caches that are served here: the element type and the kind of scales. A line for vLLM
has the first word of a format."""
_BLOCKS = Multiples(16, "vLLM's cache has blocks in units of 16 slots")
_ANY_BLOCKS = Multiples(1, "vLLM's builder lists the slots of tokens one by one")
_HALVES = Only((torch.float16, torch.bfloat16), "vLLM declares no other dtype")
_BELOW_32 = Combination(
    property="a head size below 32",
    applies=lambda config, architecture: config.head_size < 32,
    reason="vLLM declares head sizes from 32 on",
)
_ALL_TYPES = dict.fromkeys(AttentionType, YES)
_DECODERS = {**dict.fromkeys(AttentionType, No("vLLM's backend is for decoders")), AttentionType.DECODER: YES}


def _of_vllm(name: str, *, rules: tuple[str, ...], **declared: Any) -> Capabilities:
    """A declaration of vLLM 0.33. vLLM may serve a rule that is not named here, but that is not known."""
    plain: dict[str, Any] = {
        "available": YES,
        "architectures": ANY,
        "attn_types": _ALL_TYPES,
        "dtypes": _HALVES,
        "head_sizes": ANY,
        "group_sizes": ANY,
        "block_sizes": _BLOCKS,
        "layouts": Only(tuple(Layout), "vLLM chooses the layout"),
        "kv_cache_dtypes": ANY,
        "scales": Only(("tensor",), "vLLM's backend has no other scales"),
        "output_dtypes": Only((), "no argument asks for it"),
        "combinations": (_BELOW_32,),
    }
    return Capabilities(backend=name, rules=dict.fromkeys(rules, YES), **{**plain, **declared})


def _of_mla(name: str, *rules: str, **declared: Any) -> Capabilities:
    """A backend of latent attention. Everything else that vLLM refuses, our own declarations refuse, too."""
    return _of_vllm(name, rules=("head_size_v", "non_causal", "lse", *rules), attn_types=_DECODERS, combinations=(), **declared)


VLLM_BACKENDS: Mapping[str, Capabilities] = {
    "ROCM_ATTN": _of_vllm(
        "ROCM_ATTN",
        rules=("window", "alibi_slopes", "non_causal"),
        dtypes=Only(FLOAT_DTYPES, "vLLM declares no other dtype"),
        head_sizes=Only((32, 64, 80, 96, 128, 160, 192, 224, 256), "vLLM's kernels are built for these"),
        attn_types={**_ALL_TYPES, AttentionType.ENCODER_DECODER: No("vLLM's backend does not take it")},
    ),
    "ROCM_AITER_FA": _of_vllm(
        "ROCM_AITER_FA",
        rules=("window", "sinks"),
        head_sizes=Only((64, 128, 256), "vLLM declares no other"),
        block_sizes=Only((16, 32), "vLLM declares no other"),
        attn_types=_DECODERS,
    ),
    "ROCM_AITER_UNIFIED_ATTN": _of_vllm(
        "ROCM_AITER_UNIFIED_ATTN", rules=("window", "sinks", "logits_soft_cap", "q_scale", "alibi_slopes")
    ),
    "TRITON_ATTN": _of_vllm(
        "TRITON_ATTN",
        rules=(
            *("window", "sinks", "logits_soft_cap", "q_scale", "alibi_slopes", "non_causal", "per_request_causal"),
            *("bidirectional_ranges", "batch_invariant"),
        ),
        dtypes=Only(FLOAT_DTYPES, "vLLM declares no other dtype"),
        kv_cache_dtypes=Only(QUANTIZED_DTYPES, "vLLM declares no other"),
        scales=Only(("tensor", "inline"), "vLLM's backend has no other scales"),
    ),
    "TRITON_ATTN_DIFFKV": _of_vllm(
        "TRITON_ATTN_DIFFKV",
        rules=("head_size_v", "window", "sinks", "logits_soft_cap", "q_scale", "alibi_slopes", "batch_invariant"),
        attn_types=_DECODERS,
        dtypes=Only(FLOAT_DTYPES, "vLLM declares no other dtype"),
        kv_cache_dtypes=Only(FLOAT8_DTYPES, "vLLM declares no other"),
    ),
    "ROCM_AITER_MLA": _of_mla("ROCM_AITER_MLA", block_sizes=_ANY_BLOCKS),
    "TRITON_MLA": _of_mla("TRITON_MLA", "batch_invariant"),
    "ROCM_AITER_TRITON_MLA": _of_mla("ROCM_AITER_TRITON_MLA", block_sizes=_ANY_BLOCKS),
    "ROCM_AITER_MLA_SPARSE": _of_mla("ROCM_AITER_MLA_SPARSE", "selection_unit", "sinks", block_sizes=ANY),
    "MINIMAX_M3_SPARSE": _of_vllm(
        "MINIMAX_M3_SPARSE",
        rules=("selection_unit",),
        attn_types=_DECODERS,
        head_sizes=Only((128,), "vLLM declares no other"),
        block_sizes=Only((128,), "vLLM declares no other"),
        kv_cache_dtypes=Only(FLOAT8_DTYPES, "vLLM declares no other"),
    ),
}
"""Properties of vLLM's backends, by our names, which are vLLM's."""


@dataclass(frozen=True)
class VllmArguments:
    """A command line with the first backend of vLLM's own list that serves all layers in vLLM, or None.

    Args:
        why_not: why it has none of the other backends, or none at all.
        own_line, own_backend: the same with the first backend that serves all layers here, too; None: it is that backend, or
            there is none.
        own_why_not: why this project's backend of the name `backend` does not serve them.
    """

    line: str | None
    backend: str | None
    why_not: Mapping[str, tuple[str, ...]]
    own_line: str | None = None
    own_backend: str | None = None
    own_why_not: tuple[str, ...] = ()


def vllm_arguments(
    layers: Mapping[str, AttentionConfig],
    engine: Engine,
    *,
    model: str,
    architecture: str,
    aiter: "Aiter",
    wanted: Mapping[str, str],
) -> VllmArguments:
    """The command line with the first backend of vLLM's list that serves all layers there, and of those that do here, too.

    Args:
        layers: by name; the heads are those of one device.
        engine: its float8 type is what vLLM's `fp8` means.
        model: the model that vLLM loads.
        wanted: by a layer's name, the only backend that the user wants.
    """
    from attn_optimized.backends import BACKENDS
    from attn_optimized.device import INTERPRETER
    from attn_optimized.selector import CacheKind, cache_kind, priorities

    if architecture == INTERPRETER:
        return VllmArguments(None, None, {"on a CPU": ("vLLM takes its own CPU backend, whatever is asked for",)})
    # layers of two kinds have no backend in common, whose reasons are then printed. vLLM's models choose that of one kind
    kinds: dict[str, CacheKind] = {layer: cache_kind(config) for layer, config in layers.items()}
    asked: list[CacheKind] = [kind for kind in kinds.values() if kind != "selection"]
    kind = max(asked or kinds.values(), key=get_args(CacheKind).index)
    of_vllm, too_here = dict[str, tuple[str, ...]](), dict[str, tuple[str, ...]]()
    for name in priorities(architecture, kind):
        if name.startswith("ROCM_") and not architecture.startswith("gfx"):
            of_vllm[name] = too_here[name] = ("vLLM has it on ROCm alone",)
            continue
        reasons, own_reasons = dict[str, None](), dict[str, None]()
        for layer, config in layers.items():
            chosen = priorities(architecture, "selection")[0] if kinds[layer] == "selection" else name
            if wanted.get(layer, chosen) != chosen:
                reasons[f"{layer} is asked for on {wanted[layer]}"] = None
            ours, handed = BACKENDS[chosen].capabilities(aiter), _without_chunks(config)
            own_reasons |= dict.fromkeys(map(str, ours.refusals(handed, architecture)))
            reasons |= dict.fromkeys(map(str, _of_its_own(ours, aiter).refusals(handed, architecture)))
            reasons |= dict.fromkeys(map(str, VLLM_BACKENDS[chosen].refusals(handed)))
            reasons |= dict.fromkeys(_without_an_argument(config, DTYPES[engine.float8]))
        of_vllm[name], too_here[name] = tuple(reasons), tuple(own_reasons | reasons)
    serving = [name for name, reasons in of_vllm.items() if not reasons]
    if not serving:
        return VllmArguments(None, None, too_here)
    first = serving[0]
    own = next((name for name in serving if not too_here[name]), None)
    why_not = dict(itertools.takewhile(lambda each: each[0] != first, too_here.items()))
    later = [name for name in of_vllm if name != first and name not in why_not]
    if any(config.asks("chunked_local") for config in layers.values()):
        why_not |= dict.fromkeys(later, (f"vLLM cuts chunks around any backend, so also around {first}",))
    elif own != first:
        why_not |= dict.fromkeys(later, (f"in vLLM's own list {first} comes first",))
    if by_models := [layer for layer, of_it in kinds.items() if of_it == "selection" != kind]:
        itself = f"vLLM's model chooses it for {', '.join(by_models)}, whatever the argument says"
        why_not[priorities(architecture, "selection")[0]] = (itself,)
    line = partial(_line, layers=layers, model=model, tensor_parallel=engine.tensor_parallel)
    if own is None or own == first:
        return VllmArguments(line(first), first, why_not, own_why_not=too_here[first])
    return VllmArguments(line(first), first, why_not, line(own), own, too_here[first])


def _of_its_own(ours: Capabilities, aiter: "Aiter") -> Capabilities:
    """What vLLM's backend serves, by what our declaration of its name says, whether this project has an adapter or not.

    vLLM needs the same AITER on the same architectures. Of latent attention it refuses what our declaration refuses.
    """
    from attn_optimized.backends.rocm_aiter_mla import NO_ADAPTER

    available = ours.available
    if available == NO_ADAPTER:
        available = YES if aiter.missing is None else No(aiter.missing)
    if "MLA" in ours.backend:
        return dataclasses.replace(ours, available=available)
    return dataclasses.replace(VLLM_BACKENDS[ours.backend], available=available, architectures=ours.architectures)


def _without_chunks(config: AttentionConfig) -> AttentionConfig:
    """A layer as its backend sees it: around any, vLLM's ChunkedLocalAttention cuts chunks into requests of their own."""
    return dataclasses.replace(config, rules={name: value for name, value in config.rules.items() if name != "chunked_local"})


def _without_an_argument(config: AttentionConfig, float8: torch.dtype) -> list[str]:
    """Requirements that no argument of vLLM expresses."""
    reasons = []
    if config.layout is not None:
        reasons.append("a layout of the cache: vLLM chooses it")
    if config.kv_cache_dtype not in (None, torch.int8, float8):
        reasons.append(f"a cache of {config.kv_cache_dtype}: vLLM's is of {float8} here")
    if cache_word(config) is None:
        cache = f"{config.kv_cache_dtype} with scales of kind {config.scales}"
        reasons.append(f"a cache of {cache}: no word of vLLM's --kv-cache-dtype says it")
    return reasons


def _line(backend: str, layers: Mapping[str, AttentionConfig], model: str, tensor_parallel: int) -> str:
    configs = list(layers.values())
    cached = next((config for config in configs if config.attn_type.reads_cache), None)
    words = ["vllm", "serve", model, "--attention-backend", backend, "--dtype", str(configs[0].dtype).removeprefix("torch.")]
    if cached is not None:
        words += ["--block-size", str(cached.block_size), "--kv-cache-dtype", str(cache_word(cached))]
    if tensor_parallel > 1:
        words += ["--tensor-parallel-size", str(tensor_parallel)]
    if any(config.asks("batch_invariant") for config in configs):
        words.insert(0, "VLLM_BATCH_INVARIANT=1")
    return shlex.join(words)


def cache_word(config: AttentionConfig) -> str | None:
    """vLLM's word for a cache's format; None if it has no word."""
    kind = {None: None, torch.int8: "int8"}.get(config.kv_cache_dtype, FLOAT8)
    return next((word for word, of_it in CACHE_WORDS.items() if of_it == (kind, config.scales)), None)
