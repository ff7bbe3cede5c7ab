"""pytest --attn-target=my_package.fuzzing:TARGET: the fuzzer's battery as test items, in any folder, beside any other tests.

Without the option nothing is collected and nothing is imported. Per target, in this order:

    declarations        it loads, can run on this device, and declares a Support and a Rounding
    finding[NAME]       its stored case still fails as the finding says, and is then an expected failure; or it is refused
    past                the corpus of cases that failed once, as far as the target supports them
    cases[I], cases[I@M]  a shard of cases, drawn, run and judged, in mode M of the target; those that `attn-parity fuzz` draws
                        for the same seed

A failure shows the table, and where the smallest case, its script and the case as it was found are. The case as it was found is
written before it is shrunk: a run that is ended meanwhile has it.
"""

import itertools
import re
import warnings
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from attn_fuzz.findings.finding import Finding
    from attn_fuzz.run.shard import Failure, FuzzPlan, Progress


TARGET_HELP = (
    "fuzz this: a name, module:attribute, or all, for every target that can run here but those that compile for other GPUs"
)
_ACCOUNT = "attn-account"
"""The property of an item's report that holds its account."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("attn-parity", "fuzzing of attention kernels")
    group.addoption("--attn-target", action="append", default=[], metavar="T", help=TARGET_HELP)
    group.addoption("--attn-examples", type=int, default=300, metavar="N", help="cases to draw for each target (300)")
    group.addoption("--attn-seed", type=int, default=0, metavar="S", help="draws other cases (0)")
    group.addoption("--attn-case-seconds", type=float, default=60.0, metavar="S", help="per case, compiling included (60)")
    group.addoption(
        "--attn-report", type=Path, default=Path("attn-parity-runs"), metavar="DIR", help="folder for failing cases"
    )


def pytest_configure(config: pytest.Config) -> None:
    if not config.option.attn_target:
        return
    if config.option.attn_examples < 1 or config.option.attn_seed < 0 or not 0 < config.option.attn_case_seconds <= 86_400:
        raise pytest.UsageError("--attn-examples: at least 1; --attn-seed: at least 0; --attn-case-seconds: at most a day")
    from attn_fuzz import extras

    try:
        extras.require("fuzz")
    except ModuleNotFoundError as error:
        raise pytest.UsageError(f"--attn-target: {error}") from None


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A battery is one more thing that the session itself holds, whatever files and folders it was given."""
    report = yield
    if isinstance(collector, pytest.Session) and report.passed:
        targets = dict.fromkeys(itertools.chain.from_iterable(map(_names, collector.config.option.attn_target)))
        report.result += [_Battery.from_parent(collector, name=name, nodeid=name) for name in targets]
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say for each target, all of whose shards passed, which mistakes they could not have seen."""
    told: dict[str, list[Any]] = {}
    for each in terminalreporter.getreports("passed"):
        for name, value in each.user_properties:
            if name == _ACCOUNT:
                told.setdefault(value["target"], []).append(value)
    for target, parts in told.items():
        import msgspec
        from attn_fuzz.account import account, gaps

        accounts = account.together([msgspec.convert(part["accounts"], account.Accounts) for part in parts])
        for line in gaps.lines(accounts, {*parts[0]["subjects"]}):
            terminalreporter.write_line(f"{target}: {line}")


def _names(option: str) -> list[str]:
    if option != "all":
        return [option]
    import torch
    from attn_fuzz.targets import registry

    return registry.runnable("cuda" if torch.cuda.is_available() else "cpu")


class _Battery(pytest.Collector):
    """The tests of one target: its declarations, one test for each known finding, and one for each shard of drawn cases."""

    def collect(self) -> Iterator[pytest.Item]:
        import msgspec
        import torch
        from attn_fuzz.corpus import files
        from attn_fuzz.run import runner
        from attn_fuzz.run.shard import FuzzPlan, exact_every
        from attn_fuzz.targets import registry

        yield _Declarations.from_parent(self, name="declarations")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            target = registry.usable(self.name, device)
        except registry.TargetError:
            return  # the declarations say so
        option = self.config.option
        plan = FuzzPlan(
            target=self.name,
            device=device,
            examples=option.attn_examples,
            seed=option.attn_seed,
            case_seconds=option.attn_case_seconds,
            folder=option.attn_report,
            exact_every=exact_every(target, device),
        )
        for finding in target.findings_on(device):
            yield _StoredCase.from_parent(self, name=f"finding[{finding.name}]", plan=plan, finding=finding)
        if past := tuple(files.admitted(files.shipped(), self.name, target.support(device)).cases):
            yield _Cases.from_parent(self, name="past", plan=msgspec.structs.replace(plan, examples=0, past=past))
        in_modes = [
            msgspec.structs.replace(plan, target=name, exact_every=exact_every(registry.load(name), device))
            for name in registry.with_modes(self.name, device)[1:]
        ]
        for i, shard in enumerate(runner.through_modes(plan, in_modes)):
            mode = shard.target.removeprefix(self.name)
            yield _Cases.from_parent(self, name=f"cases[{i}{mode}]", plan=shard)


class _TargetFails(Exception):  # noqa: N818 - the outcome of a test, no error of this plugin
    """A case on which the target is wrong; its text is for people."""


class _Item(pytest.Item):
    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: object = None) -> str:
        from attn_fuzz.errors import ExecutorError, InputError

        if isinstance(excinfo.value, _TargetFails | InputError | ExecutorError | OSError):
            return str(excinfo.value)
        return str(super().repr_failure(excinfo))

    def reportinfo(self) -> tuple[Path, None, str]:
        assert self.parent is not None
        return Path(self.config.rootpath), None, f"{self.parent.name}: {self.name}"


class _Declarations(_Item):
    def runtest(self) -> None:
        import torch
        from attn_fuzz.targets import registry

        assert self.parent is not None
        try:
            registry.usable(self.parent.name, "cuda" if torch.cuda.is_available() else "cpu")
        except registry.LimitedTargetError as error:
            pytest.skip(str(error))


class _StoredCase(_Item):
    """The stored case of something that the target is known to do wrong."""

    def __init__(self, *, plan: "FuzzPlan", finding: "Finding", **options: object) -> None:
        super().__init__(**options)  # pyright: ignore[reportArgumentType]
        self.plan, self.finding = plan, finding

    def runtest(self) -> None:
        from attn_fuzz.cases import case_file
        from attn_fuzz.findings.finding import explanation
        from attn_fuzz.run import shard
        from attn_fuzz.targets import registry

        case = case_file.load(self.finding.path)
        with shard.start_executor(self.plan) as executor:
            verdict = executor.run(case)
        if explanation([self.finding], case, verdict) is not None:
            pytest.xfail(self.finding.what)
        if verdict.kind == "limit":
            pytest.skip(f"not run, by a limit of this tool: {verdict.about}")
        if verdict.kind == "refused":
            support = registry.load(self.plan.target).support(self.plan.device)
            pytest.skip(f"the target refuses its stored case: {support.beyond(case)}")
        raise _TargetFails(f"its stored case no longer fails so: {verdict.kind}. Fixed? {self.finding.path}")


class _Cases(_Item):
    """Draws and runs the cases of one shard; fails with the smallest failing case."""

    def __init__(self, *, plan: "FuzzPlan", **options: object) -> None:
        super().__init__(**options)  # pyright: ignore[reportArgumentType]
        self.plan = plan

    def runtest(self) -> None:
        import msgspec
        from attn_fuzz import report
        from attn_fuzz.report import declared
        from attn_fuzz.report.run import not_run, of_frames
        from attn_fuzz.run import shard
        from attn_fuzz.targets import registry

        first: Path | None = None

        def save_first(progress: "Progress") -> None:
            nonlocal first
            if progress.failure is not None and first is None:
                first = report.save(progress.failure.first, self.plan.folder, f"{self._file_name}-first")

        with shard.start_executor(self.plan) as executor:
            progress = shard.fuzz(self.plan, executor, save_first)
        assert self.parent is not None
        subjects = sorted(declared.subjects(registry.load(self.parent.name).support(self.plan.device)))
        told = {"target": self.parent.name, "subjects": subjects, "accounts": msgspec.to_builtins(progress.accounts)}
        self.user_properties.append((_ACCOUNT, told))
        cases = progress.replayed + progress.examples
        frames = of_frames(progress.frames)
        limits = "\n".join([*not_run(progress.limits, cases), *frames[1:]])
        known = [f"{count} fail as the known finding {name} says" for name, count in progress.known.items()]
        text = ", ".join([f"{cases} cases, largest error {progress.ratio:.2f} of its bound", *known, *frames[:1]])
        self.add_report_section("call", "attn-parity", text)
        if progress.failure is not None:
            failures = [progress.failure, *progress.others]
            tables = [_told(failure, self.plan, self._file_name) for failure in failures]
            tables[0] += f"\nas it was found: {first}"
            raise _TargetFails("\n\nanother failure, which was met while this one was shrunk:\n".join(tables))
        if cases and sum(progress.limits.values()) == cases:
            pytest.skip(limits)
        if limits:
            warnings.warn(pytest.PytestWarning(limits), stacklevel=1)

    @property
    def _file_name(self) -> str:
        """Names the files of a failure: several items of a target may fail."""
        target, item = (re.sub(r"[^\w.+-]+", "-", name).strip("-")[:80] for name in (self.plan.target, self.name))
        return f"{target}-{self.plan.seed}-{item}"


def _told(failure: "Failure", plan: "FuzzPlan", name: str) -> str:
    """The table of a failure, what explains it, and where its case and script were written."""
    from attn_fuzz import report
    from attn_fuzz.explain import in_process
    from rich.console import Console

    case, verdict = failure.case, failure.verdict
    console = Console(width=140, color_system=None)
    with console.capture() as table:
        console.print(report.summary(case, verdict))
    case_path, script_path = report.write(case, verdict, plan.folder, name)
    lines = in_process.of_failure(failure, plan)
    files = f"case: {case_path}   script: {script_path}"
    return "\n".join(
        [table.get().rstrip("\n"), *lines, files, f"again: {report.pasted(report.again(case, case_path, verdict))}"]
    )
