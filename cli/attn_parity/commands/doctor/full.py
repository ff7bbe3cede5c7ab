"""`attn-parity doctor --full`: run everything on a machine, and write one file to send back."""

import secrets
import time
from pathlib import Path

from attn_fuzz import outputs
from attn_parity.commands.doctor import sections
from attn_parity.commands.doctor.sections import SCHEMA, Doctor, Section
from attn_parity.console import plain_table, results, task
from attn_parity.device import default_workers, say_what_runs_kernels, use_device
from attn_parity.files import check_writable, write_json
from rich.progress import TextColumn, TimeElapsedColumn


def report(json_file: Path, examples: int, seed: int | None) -> int:
    """Run every section, write the file after each, and print a line for each. Returns 0 if every section that ran is right."""
    device = use_device("auto")
    say_what_runs_kernels(device)
    check_writable(json_file)
    seed = secrets.randbelow(1 << 31) if seed is None else seed
    done: dict[str, Section] = {}
    table = plain_table("section", "seconds", "result", right=("seconds",))
    outputs.RUNS.mkdir(exist_ok=True)
    work = sections.sections(device, examples=examples, workers=default_workers(device), seed=seed, folder=outputs.RUNS)
    interrupted = False
    with task(None, TextColumn("{task.description}"), TimeElapsedColumn()) as update:
        for name, section in work:
            update(description=name)
            try:
                done[name] = sections.outcome(section)
            except KeyboardInterrupt:
                interrupted = True
                break
            interrupted = "interrupted" in done[name]
            table.add_row(name, f"{done[name]['seconds']:.1f}", in_words(done[name]))
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            write_json(json_file, Doctor(schema=SCHEMA, time=now, sections=done))
            if interrupted:
                break
    results.print(table)
    results.print(f"{'interrupted; so far: ' if interrupted else ''}{json_file}: please send it back")
    if interrupted:
        return 130
    return int(any("error" in section or section.get("failures") for section in done.values()))


def in_words(section: Section) -> str:
    if "error" in section:
        return f"error: {section['error'].splitlines()[-1][:100] if section['error'] else 'none given'}"
    if "unavailable" in section:
        return f"not here: {section['unavailable']}"
    if "examples" in section:
        failures = f"{len(section['failures'])} failing" if section["failures"] else "all agree"
        return f"{section['examples']} examples, {failures}, largest error {section['max_ratio']:.2f} of its bound"
    if "kernels" in section and "spilling" in section:
        return f"{len(section['kernels'])} compiled, {len(section['spilling'])} spill registers"
    if "launches" in section:
        launches = section["launches"].values()
        differ, other = sum(bool(each["differences"]) for each in launches), sum(not each["same_code"] for each in launches)
        return f"{len(launches)} launched here and emulated, {differ} left other bytes, {other} ran other code"
    if "shipped" in section:
        shipped, other = section["shipped"], section["other"]
        if "times" not in other:
            return f"{other['num_stages']} not timed: {other['why_not'].splitlines()[-1][:100]}"
        times = ", ".join(f"{each['times']['ms']:.3f} ms with {each['num_stages']}" for each in (shipped, other))
        return f"{times}, largest error {max(shipped['error'], other['error']):.2f} of its bound"
    if "ratio" in section:
        return f"{section['triton_ms']:.3f} ms, {section['ratio']:.2f} of torch's SDPA on dense keys"
    return "written"
