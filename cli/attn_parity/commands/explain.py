"""`attn-parity explain`: what is wrong with an output, and which mistake gives exactly this output."""

from pathlib import Path

import click
from attn_fuzz.cases import case_file
from attn_fuzz.explain import captured_outputs
from attn_fuzz.explain.in_process import explained
from attn_parity.case_files import case_target_option, usable_target
from attn_parity.console import results
from attn_parity.device import use_device
from attn_parity.options import case_seconds_option, device_option


@click.command("explain")
@click.argument("file", type=click.Path(path_type=Path))
@case_target_option
@case_seconds_option
@device_option
def command(file: Path, target_name: str | None, case_seconds: float, device: str) -> int:
    """Say which rows of a failing case are wrong, and which mistake gives exactly this output; exit 1 if it is wrong.

    The case is run again with other numbers, and in richer forms. For a captured call,
    its stored output is explained, unless --target names a kernel.
    """
    case = case_file.load(file)
    verdict = captured_outputs.verdict(case, explains=True) if target_name is None else None
    if verdict is not None:
        lines = [f"{verdict.kind}: {verdict.message}", *verdict.explanation] if verdict.failed else []
    else:
        device = use_device(device)
        name, _ = usable_target(case, file, target_name, device)
        first = file.with_name(f"{file.stem}-first{file.suffix}")
        lines = explained(case, case_file.load(first) if first.is_file() else None, name, device, case_seconds)
    for line in lines or ["no output of this case is wrong: there is nothing to explain"]:
        results.print(line)
    return int(bool(lines))
