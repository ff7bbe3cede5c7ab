"""The page of known findings, and for each finding a page that can be filed as an issue with its owner.

    python -m attn_fuzz.report.findings_page

writes docs/generated/findings.md and docs/generated/findings/NAME.md from the declarations of the targets, findings/NAME.toml
and NAME.py, and from what the scripts printed (`attn_fuzz.report.finding_scripts`). With --check it exits with 1 if a page is
not what they make of it.
"""

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from attn_fuzz.findings.finding import Finding
from attn_fuzz.report import finding_scripts
from attn_fuzz.report.finding_scripts import ARCHITECTURE, ROOT, Report, Shown
from attn_fuzz.targets import registry

PAGE = ROOT / "docs" / "generated" / "findings.md"
Shared = dict[str, tuple[Finding, list[str]]]
"""Findings by name, each with the targets that share it."""
_INTRODUCTION = """# Known findings

Bugs that the fuzzer has found in kernels of other projects. Each finding has a page, whose title and body are ready to be filed
with the kernel's owner. Nothing is filed by a tool of this project.

- The page of a finding has a script, which needs torch, Triton and the package's files alone. The script prints what it
  expects, by a few lines of torch, and what it got. It exits with 1 where the finding shows, with 0 where it does not, and with
  2 where it cannot run.
- Each script that launches kernels was run on a CPU twice: with kernels that Triton's own interpreter runs, and with kernels
  that were compiled for gfx942 and run on this project's emulator. A script that launches none was run on a CPU once. No script
  was run on a GPU.
- A run of the fuzzer counts the cases that a finding explains, and goes on. It says when the stored case of a finding no longer
  fails. `attn-parity select` lists the findings that a layer can meet in the selected backend.
- To replay a finding, install the package of the version that is named, without what it requires (`pip install
  --no-deps vllm==0.33.0`), and start in the repository's root. The replay exits with 1 and names the finding.
- Two findings are in compilers, and have scripts without pages. `python findings/compilers/ptxas-lost-shift.py`: ptxas 12.8,
  which Triton 3.6.0 and 3.7.1 bring, stores to a wrong address of shared memory in a kernel that spills registers.
  `python findings/compilers/llvm-copies-before-exec.py`: LLVM 22, which Triton 3.6.0 brings, saves registers of a kernel for
  gfx950 while lanes are off, and restores them for all lanes. The outputs are wrong.

`python -m attn_fuzz.report.finding_scripts` runs the scripts, and `python -m attn_fuzz.report.findings_page` writes the pages.
"""


def shared(targets: Iterable[tuple[str, Iterable[Finding]]]) -> Shared:
    found: Shared = {}
    for target, findings in targets:
        for finding in findings:
            found.setdefault(finding.name, (finding, []))[1].append(target)
    return found


def index(findings: Shared, shown: dict[str, Shown]) -> str:
    """The page of all findings."""
    lines = [
        _INTRODUCTION,
        "| finding | seen in | a path from an engine | reported |",
        "| --- | --- | --- | --- |",
    ]
    for name, (finding, _) in findings.items():
        sent = "is cited" if _report(name).sent_by else "none is known"
        lines.append(f"| [{name}](#{name}) | {finding.seen_in} | {sent} | {finding.link or 'not yet'} |")
    for name, (finding, names) in findings.items():
        report = _report(name)
        lines += [
            "",
            f"## {name}",
            "",
            finding.what,
            "",
            f"- Page to be filed: [{report.title}](findings/{name}.md)",
            f"- Seen in: {finding.seen_in}",
            f"- Lines: {_list(report.lines)}",
            f"- Cause: {finding.cause}",
            f"- Expected and got: {_numbers(shown[name].interpreted)}",
            f"- Since: {report.since}.",
            f"- Newest: {report.newest}.",
            f"- Sent by: {_list(report.sent_by) or 'no engine that is known'}",
            f"- Harm: {report.harm}.",
            f"- Targets: {', '.join(names)}",
            f"- Report: {finding.link or 'not reported yet'}",
            f"- Replay: `attn-parity replay fuzz/attn_fuzz/findings/{finding.path.name}`",
        ]
    return "\n".join(lines) + "\n"


def page(finding: Finding, shown: Shown) -> str:
    """A title and a body for the owner of the kernel."""
    report, script = _report(finding.name), finding_scripts.script(finding.name)
    case = (ast.get_docstring(ast.parse(script)) or "").partition("\n\n")[2]
    lines = [
        f"# {report.title}",
        "",
        finding.what,
        "",
        f"**Version.** {finding.seen_in}. {_sentence(report.since)} {_sentence(report.newest)}",
        "",
        "**Lines.**",
        "",
        *(f"- `{line}`" for line in report.lines),
        "",
        f"**Cause.** {finding.cause}",
        "",
        f"**Smallest case.** {' '.join(case.split())} The script below prints",
        "",
        *_fenced(shown.interpreted),
        "",
        f"**Harm.** {_sentence(report.harm)}",
        "",
        "**Who sends such a call.**" + ("" if report.sent_by else " No engine that is known."),
        "",
        *(f"- `{line.partition(' ')[0]}` {line.partition(' ')[2]}".rstrip() for line in report.sent_by),
        *([""] if report.sent_by else []),
        *_confirmation(report, shown),
        "",
        "**Script.** It needs torch, Triton and the package's files. It exits with 1 where the bug shows, with 0 where it does",
        "not, and with 2 where it cannot run.",
        "",
        "```python",
        script.rstrip("\n"),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _confirmation(report: Report, shown: Shown) -> Iterator[str]:
    if shown.compiled is None:
        yield "**How it was confirmed.** The script launches no kernel. It ran the package's own Python code on a CPU."
        yield "It was not run on a GPU."
    else:
        yield from _confirmation_by_kernels(shown.interpreted, shown.compiled)
    if shown.mended is None:
        yield "No change of a few lines was tried."
        return
    yield f"With these changes of `{report.file}` the script exits with 0, which shows that the lines are the cause:"
    for mend in report.mend:
        removed = (f"-{line}" for line in mend.old.rstrip("\n").split("\n"))
        yield from ("", "```diff", *removed, *(f"+{line}" for line in mend.new.rstrip("\n").split("\n")), "```")


def _confirmation_by_kernels(interpreted: str, compiled: str) -> Iterator[str]:
    same = interpreted == compiled
    yield "**How it was confirmed.** What is expected is computed in the script, by torch. The kernel ran on a CPU: by Triton's"
    yield f"own interpreter, and compiled for {ARCHITECTURE}, on an emulator of its instructions."
    yield "The output was the same." if same else "The outputs differ in their last digits."
    yield "It was not run on a GPU."
    if not same:
        yield from ("The compiled kernel's output:", "", *_fenced(compiled))


def pages() -> dict[Path, str]:
    """The text of each page of the targets' findings."""
    targets = [registry.load(name) for name in registry.names()]
    findings = shared((target.name, target.findings) for target in targets)
    shown = finding_scripts.results()
    texts = {PAGE: index(findings, shown)}
    for name, (finding, _) in findings.items():
        texts[PAGE.with_suffix("") / f"{name}.md"] = page(finding, shown[name])
    return texts


def _report(name: str) -> Report:
    if (found := finding_scripts.report(name)) is None:
        raise FileNotFoundError(f"{name}: expected its report {finding_scripts.FOLDER / name}.toml")
    return found


def _numbers(output: str) -> str:
    return ", ".join(f"{words[0]} `{' '.join(words[1:])}`" for line in output.splitlines() if (words := line.split()))


def _fenced(text: str) -> list[str]:
    return ["```", *text.rstrip("\n").splitlines(), "```"]


def _list(lines: Iterable[str]) -> str:
    return "; ".join(lines)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def main(checks: bool) -> int:
    current = pages()
    stray = {path for path in PAGE.with_suffix("").glob("*.md") if path not in current}
    if checks:
        wrong = [path for path, text in current.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
        for path in (*wrong, *stray):
            print(f"{path} is not current: run `python -m attn_fuzz.report.findings_page`")
        return 1 if wrong or stray else 0
    for path in stray:
        path.unlink()
    for path, text in current.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
