"""The table of known findings.

It is made of the declarations of the targets, findings/PACKAGE/NAME.toml, of what the scripts printed
(`attn_lab.findings.scripts`), and of how fast the fuzzer met each finding (`attn_lab.findings.speed`).
"""

import ast
from collections import Counter
from collections.abc import Iterator

from attn_fuzz.findings.finding import Finding
from attn_lab.findings import reports, scripts, speed
from attn_lab.findings.known import Shared, known
from attn_lab.findings.places import FOLDER, ROOT, file_of
from attn_lab.findings.speed import Speed
from attn_lab.pages import PAGES
from attn_lab.pages import table as table_of

PAGE = PAGES / "findings.md"
ALONE = ("compilers", "transformers")
"""Folders of findings that have a script and no declaration."""
_INTRODUCTION = """# Known findings

Bugs that the fuzzer has found in kernels of other projects. `findings/PACKAGE/NAME.toml` and the finding's declaration in
`attn_fuzz.findings` say what is known. `python -m attn_lab findings folders FOLDER` writes beside the package's source, for
each finding, a folder that can be sent to the kernel's owner: an issue, a script, a patch and a test; `findings check FOLDER`
runs them. Nothing is filed by a tool of this project. `aiter-decode-empty-request` needs AITER's main (`ATTN_PARITY_AITER`):
there `aiter-unified-attention` meets it. No target meets `sglang-aiter-decode-window` and `aiter-prefill-sparse-sinks`.

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
- {alone} findings in compilers and in transformers have a script alone:
{scripts}

In the table, "reach" says whether a path from an engine to the bug is cited. "Examples" is the median over runs of `fuzz
--keep-going` with different seeds: how many cases a target had drawn when the first one failed because of the finding, in the
target that met it first. ">" stands before the number of drawn cases where half of the runs or more did not meet it.
"Confirmed by" says what gives the expected result in the finding's script.

`python -m attn_lab findings run` runs the scripts, and `python -m attn_lab findings page` writes this page.
"""


def alone() -> Iterator[str]:
    """What each script says in its first line that is all there is of a finding."""
    for file in (file for folder in ALONE for file in sorted((FOLDER / folder).glob("*.py"))):
        said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        yield f"  - `python {file.relative_to(ROOT)}`: {said.partition(chr(10))[0]}"


def index(findings: Shared, speeds: dict[str, Speed]) -> str:
    """The table of all findings."""

    def cells(name: str, finding: Finding) -> tuple[str, ...]:
        report = reports.load(name)
        reach = "from an engine" if report.sent_by else "no engine is known"
        examples = speeds[name].median if name in speeds else "not measured"
        seen_in = f"{finding.seen_in}, on a GPU alone" if finding.needs_gpu else finding.seen_in
        link = f"[{name}](../../{file_of(name, '.toml').relative_to(ROOT)})"
        said = (link, finding.what, f"`{report.kernel}`", seen_in, reach, examples, report.confirmed_by)
        return (*said, finding.link or "not yet")

    columns = ("finding", "what", "kernel", "seen in", "reach", "examples", "confirmed by", "reported")
    rows = (cells(name, finding) for name, (finding, _) in findings.items())
    said = [*alone()]
    introduction = _INTRODUCTION.format(alone=len(said), scripts="\n".join(said))
    return "\n".join([introduction, *_on_gpus(), *table_of(columns, rows, ("examples",))]) + "\n"


def _on_gpus() -> Iterator[str]:
    """The number of findings whose folders passed `findings check` on each GPU."""
    for gpu, count in Counter(shown.run_on for shown in scripts.stored().values() if shown.run_on).items():
        yield f"On {gpu}, {count} folders passed `findings check`: the script shows the finding and the test fails, and with"
        yield from ("the patch neither does. The other folders were not shown to pass there.", "")


def text() -> str:
    return index(known(), speed.read())
