"""The sections of the report of `attn-parity doctor --full`, which is for machines on which this project has never run.

A section that fails has its error as its result, and the other sections still run.
"""

import dataclasses
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from attn_binaries.architectures import ARCHITECTURES
from attn_binaries.build import Outcome, build
from attn_fuzz.report.run import failure_json
from attn_fuzz.run import runner
from attn_fuzz.run.shard import FuzzPlan
from attn_fuzz.targets import registry
from attn_parity.commands.doctor import clock
from attn_parity.cpus import usable_cpus
from attn_parity.versions import version

SCHEMA = "attn-parity.doctor/1"
PACKAGES = ("attn-parity", "torch", "triton", "pytorch-triton-rocm", "amd-aiter", "hypothesis", "numpy", "vllm")
# those of AMD's to compile for where there is no GPU
OF_AMD = tuple(name for name in ARCHITECTURES if name.startswith("gfx"))
# by name: requests, and the query and key length of each
TIMED = {"decode, 64 x 8k": (64, 1, 8192), "decode, 1 x 128k": (1, 1, 131072), "prefill, 4 x 4k": (4, 4096, 4096)}

Section = dict[str, Any]


class Doctor(TypedDict):
    """The results of each section of `attn-parity doctor --full`; `error` or `unavailable` says why there are none."""

    schema: Literal["attn-parity.doctor/1"]
    time: str
    sections: dict[str, Section]


def sections(
    device: str, *, examples: int, workers: int, seed: int, folder: Path
) -> Iterator[tuple[str, Callable[[], Section]]]:
    """The sections of the report, by name, as functions that do the work.

    Args:
        device: "cpu" or "cuda".
        examples: the number of cases for each target.
        workers: the number of fuzzing processes.
        seed: the seed of the fuzzer.
        folder: the folder for failing cases.
    """
    yield "machine", lambda: machine(device)
    yield "aiter", aiter
    for architecture in [this_architecture()] if device == "cuda" else OF_AMD:
        yield f"compile {architecture}", lambda architecture=architecture: compiled(architecture, workers)
    for name in registry.battery():
        plan = FuzzPlan(target=name, device=device, examples=examples, seed=seed, folder=folder)
        yield f"fuzz {name}", lambda plan=plan: fuzzed(plan, workers)
    for name, sizes in TIMED.items():
        yield f"time {name}", lambda sizes=sizes: timed(device, *sizes)
    if device == "cuda" and not _not_compiled(architecture := this_architecture()):
        from attn_parity.commands.doctor import emulator, stages

        if architecture in OF_AMD:
            yield from emulator.sections(architecture)
        yield from stages.sections(architecture, workers)


def outcome(work: Callable[[], Section]) -> Section:
    """Do the work of a section. If the work raises, the error is the result."""
    started = time.monotonic()
    try:
        result = work()
    except Exception as error:
        result = {"error": f"{type(error).__name__}: {error}"}
    return {**result, "seconds": round(time.monotonic() - started, 1)}


def machine(device: str) -> Section:
    """Versions, and torch's properties of each GPU."""
    count = torch.cuda.device_count() if device == "cuda" else 0
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": usable_cpus(),
        "packages": {name: version(name) for name in PACKAGES},
        "hip": torch.version.hip,
        "cuda": torch.version.cuda,
        "kernels": "compiled" if device == "cuda" else "interpreted",
        "devices": [_properties(index) for index in range(count)],
    }


def aiter() -> Section:
    """The features of AMD's AITER, each with why it is missing or None, and whether AITER imports."""
    from attn_optimized.aiter_adapter import features_of, find_aiter, import_aiter

    found = find_aiter()
    if found.missing is not None:
        return {"unavailable": found.missing}
    signatures = {name: signature.arguments for name, signature in found.signatures.items()}
    features = features_of(found)
    return {"version": found.version, "imports": import_aiter().missing or True, "features": features, "signatures": signatures}


def compiled(architecture: str, workers: int) -> Section:
    """Compile the main launches that ship: registers, spills, instructions."""
    from attn_binaries.shipped_calls import chosen

    if reason := _not_compiled(architecture):
        return {"unavailable": reason}
    done = build([(architecture, name) for name in chosen(architecture, main=True)], workers)
    if done.interrupted:
        raise KeyboardInterrupt
    error = {"error": "\n".join(f"{name}: {error}" for (_, name), error in done.errors.items())} if done.errors else {}
    return {**facts_of(done), **error}


def facts_of(done: Outcome) -> Section:
    kernels = {name: dataclasses.asdict(binary.facts) for (_, name), binary in done.binaries.items()}
    return {"kernels": kernels, "spilling": [name for name, facts in kernels.items() if facts["vgpr_spills"]]}


def _not_compiled(architecture: str) -> str | None:
    """The reason why no launch is compiled for an architecture; None if it is."""
    from attn_optimized.device import missing_compiler

    if architecture not in ARCHITECTURES:
        return f"the size of a compute unit of {architecture} is not known: {', '.join(ARCHITECTURES)} are"
    return missing_compiler(architecture)


def fuzzed(plan: FuzzPlan, workers: int) -> Section:
    """Fuzz a target against the reference. The result holds its failing cases, shrunk."""
    target = registry.load(plan.target)
    if reason := target.unavailable(plan.device):
        return {"unavailable": reason}
    plans = runner.in_turns(runner.shards(plan), target.support(plan.device), workers)
    done = runner.run(plans, workers, stop_at_failure=True)
    return {
        "seed": plan.seed,
        "examples": sum(progress.examples for progress in done.progress),
        "refused": sum(progress.refused for progress in done.progress),
        "max_ratio": max(progress.ratio for progress in done.progress),
        "failures": [failure_json(progress.failure) for progress in done.progress if progress.failure is not None],
        **({"error": done.error} if done.error else {}),
        **({"interrupted": True} if done.interrupted else {}),
    }


def timed(device: str, requests: int, query_len: int, seq_len: int) -> Section:
    """Time the paged kernel (bfloat16, 32 query heads on 8, head size 128, blocks of 16) beside torch's SDPA on dense keys."""
    if device != "cuda":
        return {"unavailable": "no GPU in use: an interpreter's speed says nothing"}
    import attn_optimized
    from attn_binaries.shipped_calls import ShippedCall
    from attn_parity.commands.doctor.stages import tensors_on

    shipped = ShippedCall(name="timed", requests=requests, query_len=query_len, seq_len=seq_len)
    call, out = tensors_on(torch.device(device), shipped)
    kv_cache = call.kv_cache
    assert kv_cache is not None
    options = {"dtype": shipped.dtype, "device": device}
    dense_q = torch.randn(requests, shipped.num_heads, query_len, shipped.head_size, **options)
    dense_k, dense_v = torch.randn(2, requests, shipped.num_kv_heads, seq_len, shipped.head_size, **options)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    runs = [
        lambda: attn_optimized.paged_attention(call.q, kv_cache, call.layer, call.batch, out=out),
        lambda: sdpa(dense_q, dense_k, dense_v, is_causal=query_len > 1, enable_gqa=True),
    ]
    ours, peer = (spread.ms for spread in clock.in_turns(runs))
    return {"triton_ms": ours, "torch_sdpa_dense_ms": peer, "ratio": ours / peer}


def this_architecture() -> str:
    from attn_optimized.selector import this_architecture

    return this_architecture()


def _properties(index: int) -> Section:
    properties = torch.cuda.get_device_properties(index)
    names = ("name", "gcnArchName", "major", "minor", "multi_processor_count", "warp_size", "total_memory", "L2_cache_size")
    return {name: getattr(properties, name) for name in names if hasattr(properties, name)}
