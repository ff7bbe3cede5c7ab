"""The output of `attn-parity select`: the layers of a model, their backends, the skipped ones, and the arguments of vLLM."""

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from attn_contract import AttentionConfig
from attn_contract.arguments import shown
from attn_fuzz.findings.aiter.unified import BACKENDS
from attn_parity.backend_runs import RUNS
from attn_parity.commands.select.vllm_arguments import VllmArguments
from attn_parity.console import plain_table, results
from attn_parity.model_config import Group, ModelConfig

if TYPE_CHECKING:
    from attn_optimized.selector import Assignment

_MAX_NAMES = 20


def print_config(config: ModelConfig, layers: Mapping[str, AttentionConfig], devices: int) -> None:
    """The groups of a model's layers, and the facts that its config does not give.

    Args:
        layers: those of the groups, by name; the heads are those of one device.
        devices: the number of devices that share the heads.
    """
    if config.filled:
        values = ", ".join(f"{name}={shown(value)}" for name, value in config.filled.items())
        results.print(f"not in the config, so taken from {config.filled_by}: {values}")
    if config.left_out:
        results.print(f"left out, since it has no KV cache: {', '.join(config.left_out)}")
    if config.unknown:
        first, more = config.unknown[:_MAX_NAMES], len(config.unknown) - _MAX_NAMES
        others = f" and {more} more" if more > 0 else ""
        results.print(f"not known, so not looked at: {', '.join(first)}{others}")
    for why, numbers in config.not_answered.items():
        results.print(f"not answered: layers {spans(numbers)}: {why}")
    table = plain_table("layer", "numbers", "asks for" if devices == 1 else f"asks for, on each of {devices} devices")
    for name, group in config.groups.items():
        if name in layers:
            table.add_row(name, spans(group.layers), _asks_for(group, layers[name]))
    results.print(table)
    results.print()


def spans(numbers: Sequence[int]) -> str:
    """Numbers in ascending order, shortened: `0-4, 6-10`, or `0, 2, .., 34` where all steps are alike."""
    steps = {after - before for before, after in itertools.pairwise(numbers)}
    if len(steps) == 1 and len(numbers) > 3 and steps != {1}:
        return f"{numbers[0]}, {numbers[1]}, .., {numbers[-1]}"
    present = set(numbers)
    ends = [number for number in numbers if number + 1 not in present]
    starts = [number for number in numbers if number - 1 not in present]
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in zip(starts, ends, strict=True)]
    return ", ".join(texts if len(texts) <= 3 else (*texts[:2], "..", texts[-1]))


def _asks_for(group: Group, layer: AttentionConfig) -> str:
    heads = f"{layer.num_heads} heads, {layer.num_kv_heads} KV heads of {layer.head_size}"
    rules = (name if value is True else f"{name} {value}" for name, value in group.rules.items())
    top_k = () if group.top_k is None else (f"top_k {group.top_k}",)
    return ", ".join((str(group.attn_type), heads, f"scale {group.scale:.4g}", *rules, *top_k))


def print_assignments(assignments: dict[str, "Assignment"]) -> None:
    table = plain_table("layer", "backend", "layout", "why")
    for name, chosen in assignments.items():
        layout = str(chosen.layout or "no cache")
        if chosen.allocation_layout:
            layout += f", as planes beside {chosen.allocation_layout}"
        table.add_row(name, chosen.backend, layout, chosen.why)
    results.print(table)
    layers: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for name, chosen in assignments.items():
        for one in chosen.skipped:
            for refusal in one.refusals:
                layers[one.backend, refusal.property, refusal.reason].append(name)
    _print_by_backend(("skipped", "for", "not supported", "why"), layers)


def print_findings(configs: dict[str, AttentionConfig], assignments: dict[str, "Assignment"]) -> None:
    """Known bugs that layers can meet in the backends that were selected for them."""
    layers: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for name, chosen in assignments.items():
        for finding in BACKENDS.get(chosen.backend, ()):
            if finding.meets(configs[name]):
                layers[chosen.backend, finding.name, finding.seen_in].append(name)
    _print_by_backend(("findings in", "for", "finding", "seen in"), layers)


def print_runs(assignments: Mapping[str, "Assignment"]) -> None:
    """Print how the kernels of the selected backends were run, and their known findings."""
    table = plain_table("backend", "its kernels", "how run", "known findings")
    for backend in dict.fromkeys(chosen.backend for chosen in assignments.values()):
        for run in RUNS[backend]:
            table.add_row(backend, run.kernels, run.how, run.known)
    results.print()
    results.print(table)


def _print_by_backend(columns: tuple[str, ...], layers: Mapping[tuple[str, str, str], list[str]]) -> None:
    """Print a table of remarks by backend and the layers that they are about; none if there is no remark."""
    if layers:
        table = plain_table(*columns)
        for (backend, what, why), names in layers.items():
            table.add_row(backend, ", ".join(names), what, why)
        results.print()
        results.print(table)


def print_vllm(arguments: VllmArguments, assignments: Mapping[str, "Assignment"]) -> None:
    """A command line to paste, after the reasons why its backend differs from the table's; or why there is no command line."""
    results.print()
    if arguments.line is None:
        results.print("no arguments for vLLM, whose --attention-backend is one for all layers:")
        why_not = dict(arguments.why_not)
    else:
        if arguments.own_why_not:
            reasons = "; ".join(arguments.own_why_not)
            results.print(f"this project's {arguments.backend} does not serve these layers: {reasons}")
        if arguments.own_line is not None:
            results.print(f"this project's first choice, which vLLM serves, too: {arguments.own_line}")
        others = dict.fromkeys(one.backend for one in assignments.values() if one.backend != arguments.backend)
        why_not = {backend: arguments.why_not.get(backend, (_FOR_MEMORY,)) for backend in others}
        if why_not:
            results.print(f"vLLM takes one backend for all layers, here {arguments.backend}. Why not the others of the table:")
    for backend, reasons in why_not.items():
        results.print(f"  {backend}: {'; '.join(reasons)}")
    if arguments.line is not None:
        results.print(arguments.line)


_FOR_MEMORY = "the table has it for the memory that layers share, which vLLM lays out by itself"
"""The remark on a backend that the command line could name instead: it comes after the one that the line names."""
