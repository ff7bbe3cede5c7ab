"""Each main launch with two numbers of stages of its loop: the table's, and another one. A GPU says which is faster.

Where the table has one stage, the other launch has two; else it has one fewer. All other parameters are the table's, so the
entry of the table and this rule say what is timed.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal

import msgspec
import torch
from attn_binaries import shipped_calls
from attn_binaries.build import SHIPPED, LaunchName, Outcome, build
from attn_binaries.shipped_calls import ShippedCall
from attn_fuzz.cases.call import Call
from attn_fuzz.targets.triton import TRITON
from attn_fuzz.verdict.judge import judge_call
from attn_optimized.attention import paged_attention_calls, plan_of
from attn_optimized.device import compute_units_of
from attn_optimized.kernel_call import KernelCall
from attn_optimized.launch.table import Entry
from attn_optimized.launch.tiles import entry_of
from attn_optimized.launch.workload import Workload
from attn_parity.commands.doctor import clock
from attn_parity.commands.doctor.clock import Time
from attn_parity.commands.doctor.sections import Section, facts_of

OTHERS = ("attn_parity.commands.doctor.stages",)
"""The modules that make these launches: see `build.SHIPPED`."""
JUDGED_ROWS = 64
"""Rows of q that the judge sees: whole requests, of which it sees one at least."""
STD_OF_BYTES = 16.0
"""The standard deviation of a cache's elements of one byte. None of 2^33 normal numbers is above the largest float8 then."""
OUTPUT_SCALE = 2.0**-10
"""The scale of float8 outputs. Outputs are means of some thousand values, so about 2^-6."""
SEED = 0


class Variant(msgspec.Struct, omit_defaults=True):
    """A launch with a number of stages.

    Attributes:
        waves, spills: as `Facts.waves` and `Facts.vgpr_spills`.
        error: the largest error / bound of the rows that were judged.
        why_not: why it is not timed.
    """

    num_stages: int
    waves: float | None = None
    spills: int | None = None
    error: float | None = None
    times: Time | None = None
    why_not: str | None = None


class Pair(msgspec.Struct):
    """A main launch in both variants, and the entry of its table."""

    architecture: str
    entry: Entry
    shipped: Variant
    other: Variant

    def is_of(self, entry: Entry) -> bool:
        """True if what ships has its stages by an entry. Some launches have fewer: for their layout, or for want of memory."""
        return self.entry == entry and self.shipped.num_stages == entry.parameters.num_stages

    @property
    def gain(self) -> float | None:
        """The factor by which the other variant is faster."""
        return self.shipped.times.ms / self.other.times.ms if self.shipped.times and self.other.times else None

    @property
    def verdict(self) -> Literal["faster", "slower", "within the spread", "not timed"]:
        """The other variant beside the shipped one. It is faster if its p90 is below the shipped one's p10."""
        shipped, other = self.shipped.times, self.other.times
        if shipped is None or other is None:
            return "not timed"
        if other.p90 < shipped.p10:
            return "faster"
        return "slower" if shipped.p90 < other.p10 else "within the spread"


def with_other_stages(call: KernelCall) -> KernelCall:
    stages = call.launch.options["num_stages"]
    options = {**call.launch.options, "num_stages": 2 if stages == 1 else stages - 1}
    return call._replace(launch=replace(call.launch, options=options))


def calls() -> dict[str, ShippedCall]:
    """The main calls that read a cache, by name. Rows with scales of their own cannot be drawn number by number."""
    main = (each for each in shipped_calls.CALLS if each.main and each.op == "paged")
    return {each.name: each for each in main if not each.layout.has_inline_scales}


def all_of(architecture: str) -> dict[str, KernelCall]:
    """Their launches of attention with the other number of stages, by the names of the calls."""
    shipped = {name: shipped_calls.kernel_calls(each, architecture)[name] for name, each in calls().items()}
    return {name: with_other_stages(call) for name, call in shipped.items()}


def sections(architecture: str, workers: int) -> Iterator[tuple[str, Callable[[], Section]]]:
    """The sections of the report: all are compiled, and then the two variants of each call are timed."""
    compiled = functools.cache(lambda: _compiled(architecture, workers))
    yield "compile other stages", lambda: facts_of(compiled()[1])
    for name, shipped in calls().items():
        yield f"stages of {name}", lambda shipped=shipped: msgspec.to_builtins(timed(shipped, architecture, *compiled()))


def _compiled(architecture: str, workers: int) -> tuple[Outcome, Outcome]:
    """The launches that ship, which Triton's cache has since the report compiled them, and the others."""
    done = [build([(architecture, name) for name in calls()], workers, launches=launches) for launches in (SHIPPED, OTHERS)]
    if any(outcome.interrupted for outcome in done):
        raise KeyboardInterrupt
    return done[0], done[1]


def timed(
    shipped: ShippedCall, architecture: str, of_table: Outcome, of_others: Outcome, device: torch.device | str = "cuda"
) -> Pair:
    """Judge and time both variants of a call on the same tensors. An error of the other variant is why it is not timed."""
    call, out = tensors_on(torch.device(device), shipped)
    units = compute_units_of(out.device)
    plan = plan_of(call.q, call.layer, call.batch, architecture=architecture, compute_units=units)
    assert call.kv_cache is not None
    launches = list(paged_attention_calls(call.q, call.kv_cache, call.layer, call.batch, plan, out=out))
    others = [with_other_stages(launches[0]), *launches[1:]]
    runs = [lambda each=each: [launch.run(out.device) for launch in each] for each in (launches, others)]
    pair = Pair(
        architecture=architecture,
        entry=entry_of(Workload.of(call.q, call.layer, call.batch), architecture, units),
        shipped=_variant(launches[0], of_table, (architecture, shipped.name)),
        other=_variant(others[0], of_others, (architecture, shipped.name)),
    )
    pair.shipped.error = judged(call, out, runs[0], plan.splits)
    if pair.other.spills and not pair.shipped.spills:
        pair.other.why_not = f"{pair.other.spills} registers are spilled, and none of what ships"
    if pair.other.why_not is None:
        try:
            pair.other.error = judged(call, out, runs[1], plan.splits)
            pair.shipped.times, pair.other.times = clock.in_turns(runs)
        except Exception as error:  # a compiler or a driver raises anything
            pair.other.why_not = f"{type(error).__name__}: {error}"
    return pair


def _variant(launch: KernelCall, compiled: Outcome, job: LaunchName) -> Variant:
    variant = Variant(num_stages=launch.launch.options["num_stages"])
    if (binary := compiled.binaries.get(job)) is None:
        variant.why_not = compiled.errors.get(job, "not compiled")
    else:
        variant.waves, variant.spills = binary.facts.waves, binary.facts.vgpr_spills
        variant.why_not = "; ".join(binary.facts.faults) or None
    return variant


def judged(call: Call, out: torch.Tensor, run: Callable[[], object], splits: int) -> float:
    """Run a call, and return the largest error / bound of the first requests.

    Raises:
        DisagreementError: it is above 1.
        ValueError: an element of the output is NaN: all are before it runs.
    """
    out.view(torch.uint8).fill_(0xFF)
    run()
    if bool(out.float().isnan().any()):
        raise ValueError("an element of the output is not written, or NaN")
    batch = call.batch
    requests = min(batch.num_requests, max(1, JUDGED_ROWS // batch.max_query_len))
    rows = requests * batch.max_query_len
    ends = {name: tensor[: requests + (name == "query_start_loc")] for name, tensor in batch.tensors.items()}
    first = replace(call, q=call.q[:rows], batch=replace(batch, **ends, num_actual_tokens=rows))
    rounding = replace(TRITON.rounding(out.device.type), splits=splits)
    judgement = judge_call(first, out[:rows], None, rounding, generic=True)
    judgement.raise_for_differences()
    return judgement.ratio


def tensors_on(device: torch.device, shipped: ShippedCall) -> tuple[Call, torch.Tensor]:
    """A call that ships with normal numbers, and its output. Requests share blocks where the cache has too few."""
    step, view = shipped_calls.step_of(shipped), shipped_calls.cache_view(shipped)
    generator = torch.Generator(device).manual_seed(SEED)
    q = torch.empty_strided(step.q.shape, step.q.stride(), dtype=step.q.dtype, device=device).normal_(generator=generator)
    raw = torch.empty(view.end, dtype=shipped.kv_cache_dtype or shipped.dtype, device=device)
    for part in raw.split(1 << 26):
        part.copy_(torch.randn(len(part), generator=generator, device=device) * (STD_OF_BYTES if raw.itemsize == 1 else 1))
    layer = replace(step.layer, **{name: _of_layer(name, each, device) for name, each in step.layer.tensors.items()})
    blocks = torch.randperm(view.num_blocks, generator=generator, device=device).int()
    of_batch = {name: _of_batch(name, each, shipped, blocks) for name, each in step.batch.tensors.items()}
    call = Call(q=q, layer=layer, batch=replace(step.batch, **of_batch), kv_cache=view.tensor(raw))
    return call, torch.empty_like(step.out, device=device)


def _of_layer(name: str, like: torch.Tensor, device: torch.device) -> torch.Tensor:
    if name == "alibi_slopes":
        return torch.exp2(-8 * torch.arange(1, len(like) + 1, device=device) / len(like))
    scale = OUTPUT_SCALE if name == "output_scale" else 1 / STD_OF_BYTES
    return torch.full_like(like, scale, device=device)


def _of_batch(name: str, like: torch.Tensor, shipped: ShippedCall, blocks: torch.Tensor) -> torch.Tensor:
    counted = torch.arange(like.numel(), dtype=torch.int32, device=blocks.device).view(like.shape)
    match name:
        case "query_start_loc":
            return counted * shipped.query_len
        case "seq_lens":
            return torch.full_like(counted, shipped.seq_len)
        case "block_table":
            return blocks[counted % len(blocks)]
        case "bidirectional_ranges":
            # ranges of half of the keys, and as many keys between two of them
            return counted % like[0].numel() * (shipped.seq_len // like[0].numel())
    raise AssertionError(name)
