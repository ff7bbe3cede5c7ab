"""The table of known findings, and what can be filed as an issue with the owner of a finding's kernel.

They are made of the declarations of the targets, findings/PACKAGE/NAME.toml and NAME.py, of what the scripts printed
(`attn_lab.findings.scripts`), and of docs/generated/findings-speed.json: after how many examples each finding was met.
"""

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from attn_fuzz.errors import InputError
from attn_fuzz.findings import sglang
from attn_fuzz.findings.aiter.sparse import OF_MAIN
from attn_fuzz.findings.finding import Finding
from attn_fuzz.targets import registry
from attn_fuzz.text import nearest
from attn_lab.findings import folders
from attn_lab.findings import scripts as finding_scripts
from attn_lab.findings.issue_text import file_of
from attn_lab.findings.scripts import ROOT
from attn_lab.pages import table as table_of

PAGE = ROOT / "docs" / "generated" / "findings.md"
SPEED = PAGE.with_name("findings-speed.json")
Shared = dict[str, tuple[Finding, list[str]]]
"""Findings by name, each with the targets that share it."""
_INTRODUCTION = """# Known findings

Bugs that the fuzzer has found in kernels of other projects. `findings/PACKAGE/NAME.toml` and the finding's declaration in
`attn_fuzz.findings` say what is known. `python -m attn_lab findings --write FOLDER` writes beside the package's source, for
each finding, a folder that can be sent to the kernel's owner: an issue, a script, a patch and a test; `--check FOLDER` runs
them. Nothing is filed by a tool of this project. `aiter-decode-empty-request` needs AITER's main (`ATTN_PARITY_AITER`): there
`aiter-unified-attention` meets it. No target meets `sglang-aiter-decode-window`
and `aiter-prefill-sparse-sinks`.

- A script needs torch, Triton and the package's files alone. It exits with 1 where the finding shows, with 0 where it does not,
  and with 2 where it cannot run.
- Each script that launches kernels was run on a CPU twice: with kernels that Triton's own interpreter runs, and with kernels
  that were compiled for gfx942 and run on this project's emulator. A script that launches none was run on a CPU once.
- A finding that shows on a GPU alone says so, and which GPU showed it. On a CPU its script imitates in Triton's interpreter
  what the GPU does, its stored case agrees, and no failure is explained by it.
- A run of the fuzzer counts the cases that a finding explains, and goes on. It says when the stored case of a finding no longer
  fails. `attn-parity select` lists the findings that a layer can meet in the selected backend.
- To replay a finding, install the package of the version that is named, without what it requires (`pip install
  --no-deps vllm==0.33.0`), and start in the repository's root: `attn-parity replay fuzz/attn_fuzz/findings/cases/NAME.json`
  exits with 1 and names the finding.
- Six findings are in compilers, and have scripts alone. `python findings/compilers/ptxas-lost-shift.py`: ptxas 12.8,
  which Triton 3.6.0 and 3.7.1 bring, stores to a wrong address of shared memory in a kernel that spills registers.
  `python findings/compilers/llvm-copies-before-exec.py`: LLVM 22, which Triton 3.6.0 brings, saves registers of a kernel for
  gfx950 while lanes are off, and restores them for all lanes. The outputs are wrong.
  `python findings/compilers/llvm-partial-spill.py`: LLVM 24, which Triton 3.9.0 brings, spills two words of a value for gfx942
  and gfx950 as four, over the address of a tensor. SGLang's extend attention then loads from another address: the case beside
  the script shows it. `python findings/compilers/llvm-wait-behind-barrier.py`: LLVM, as Triton 3.8.0 and 3.9.0 bring it,
  lets waves of a pipelined loop for gfx950 pass a barrier before their stores into LDS are done.
  `python findings/compilers/llvm-reads-behind-barrier.py`: LLVM, as Triton 3.6.0 and 3.7.0 bring it, moves reads of LDS behind
  a barrier, where other waves write. LMDeploy's decode of 80 dims for gfx942 has it.
  `python findings/compilers/triton-same-place.py`: Triton 3.8.0 and 3.9.0 load the last of four tiles, for gfx950, into the
  place in LDS where the third one is still read. SGLang's sparse latent attention has it.
- Two findings are in transformers, and have a script alone. `python findings/transformers/paged-eager-soft-cap.py`:
  continuous batching (`generate_batch`) serves Gemma 2 without its soft cap of logits, as `"paged|eager"` drops the argument
  `softcap`. A [recording](../guide/transformers.md#4-continuous-batching) found it.
  `python findings/transformers/minimax-decode-mask.py`: MiniMax decodes with a mask of one entry for all keys, so that a
  request that is padded beside a longer one gets other logits.

In the table, "reach" says whether a path from an engine to the bug is cited. "Examples" is the median over hunts with
different seeds: how many cases a target had drawn when the first one failed because of the finding, in the target that met it
first. ">" stands before the number of drawn cases where half of the hunts or more did not meet it. "Confirmed by" says what
gives the expected result in the finding's script.

`python -m attn_lab findings --run` runs the scripts, and `python -m attn_lab findings` writes this page.
"""


def shared(targets: Iterable[tuple[str, Iterable[Finding]]]) -> Shared:
    found: Shared = {}
    for target, findings in targets:
        for finding in findings:
            found.setdefault(finding.name, (finding, []))[1].append(target)
    return found


class Speed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The examples after which hunts met a finding.

    Attributes:
        drawn: the most examples that a hunt drew for one of the finding's targets.
        after: of each hunt, how many examples a target had drawn when it met the finding; None if no target did.
    """

    drawn: int
    after: list[int | None]

    @property
    def median(self) -> str:
        middle = statistics.median_high(self.drawn + 1 if after is None else after for after in self.after)
        return f">{self.drawn}" if middle > self.drawn else str(middle)


def speeds(findings: Shared, hunts: Sequence[dict[str, Any]]) -> dict[str, Speed]:
    """The speed at which these hunts met each finding. A hunt of none of a finding's targets says nothing of it.

    Args:
        hunts: of several seeds, the JSON of each target's run, by target.
    """
    found = {}
    for name, (_, targets) in findings.items():
        hunted = [[hunt[target] for target in targets if target in hunt] for hunt in hunts]
        if counts := [of for of in hunted if of]:
            met = [[each["known_after"].get(name) for each in of] for of in counts]
            after = [min((number for number in of if number is not None), default=None) for of in met]
            found[name] = Speed(max(each["examples"] for of in counts for each in of), after)
    return found


def index(findings: Shared, speed: dict[str, Speed]) -> str:
    """The table of all findings."""

    def cells(name: str, finding: Finding) -> tuple[str, ...]:
        report = finding_scripts.report(name)
        reach = "from an engine" if report.sent_by else "no engine is known"
        examples = speed[name].median if name in speed else "not measured"
        seen_in = f"{finding.seen_in}, on a GPU alone" if finding.needs_gpu else finding.seen_in
        link = f"[{name}](../../{file_of(name, '.toml').relative_to(ROOT)})"
        said = (link, finding.what, f"`{report.kernel}`", seen_in, reach, examples, report.confirmed_by)
        return (*said, finding.link or "not yet")

    columns = ("finding", "what", "kernel", "seen in", "reach", "examples", "confirmed by", "reported")
    rows = (cells(name, finding) for name, (finding, _) in findings.items())
    return "\n".join([_INTRODUCTION, *_on_gpus(), *table_of(columns, rows, ("examples",))]) + "\n"


def _on_gpus() -> Iterator[str]:
    """The number of findings whose folders passed `--check` on each GPU."""
    for gpu, count in Counter(shown.run_on for shown in finding_scripts.results().values() if shown.run_on).items():
        yield f"On {gpu}, {count} folders passed `--check`: the script shows the finding and the test fails, and with the patch"
        yield from ("neither does. The other folders were not shown to pass there.", "")


def known() -> Shared:
    """All findings but those in compilers: of targets, and two that no target meets."""
    found = shared((name, registry.load(name).findings) for name in registry.names())
    return found | {finding.name: (finding, []) for finding in (*OF_MAIN, *sglang.HOST)}


def table() -> str:
    """The page of the targets' findings."""
    return index(known(), msgspec.json.decode(SPEED.read_bytes(), type=dict[str, Speed]))


def write(folder: Path, names: Sequence[str]) -> Iterator[str]:
    """Write the folders of the named findings, or of all, beside the sources of their packages. Yields a line for each.

    Raises:
        InputError: there is no such finding.
    """
    return folders.write({name: finding for name, (finding, _) in _named(names).items()}, finding_scripts.results(), folder)


def _named(names: Sequence[str]) -> Shared:
    findings = known()
    if unknown := [name for name in names if name not in findings]:
        raise InputError(f"NAME: got {unknown[0]}, which is no finding of a target{nearest(unknown[0], findings)}")
    return {name: findings[name] for name in names or findings}


def write_speed(files: Iterable[Path]) -> None:
    """Write speed.json of what `attn-parity fuzz --keep-going --json` wrote, of several seeds, on a CPU."""
    written = [msgspec.json.decode(path.read_bytes()) for path in files]
    hunts = [{run["target"]: run for run in each.get("runs", [each])} for each in written]
    met_there = {name: found for name, found in known().items() if not found[0].needs_gpu}
    lines = (f'"{name}":{msgspec.json.encode(of).decode()}' for name, of in speeds(met_there, hunts).items())
    SPEED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
