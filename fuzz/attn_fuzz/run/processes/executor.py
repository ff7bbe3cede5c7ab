"""Runs cases in a child process. A kernel that hangs or kills its process gets a verdict, and the fuzzer goes on.

A case is written to a file before the child process gets it. So the last case is on the disk even if the whole machine hangs.
"""

import contextlib
import errno
import importlib
import importlib.util
import multiprocessing
import multiprocessing.connection
import multiprocessing.process
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from attn_fuzz import foreign
from attn_fuzz.cases import case_file
from attn_fuzz.cases.case import Case
from attn_fuzz.errors import ExecutorError, FaultError, HelperKilledError, InputError
from attn_fuzz.findings import repairs
from attn_fuzz.findings.finding import Finding
from attn_fuzz.interpreted import dynamo
from attn_fuzz.patches.mutant import INSTALLED, Mutant, MutantError
from attn_fuzz.run.processes import prepared
from attn_fuzz.targets import registry
from attn_fuzz.verdict.verdict import COMPILED, FENCED, IN_EAGER, Verdict

if TYPE_CHECKING:
    from attn_fuzz.run.case.fence import Fence

START_SECONDS = 120.0
COMPILE_SECONDS = 600.0
"""The time that Dynamo has for one compilation. It is no part of the time that a case may take."""
KILL_SECONDS = 10.0
HARMLESS = "reference-fp32"
TRIAL = "attn_fuzz.run.case.trial:try_case"
_DEATH = "the process was killed by "
KILLED = f"{_DEATH}SIGKILL"
KILLED_FROM_OUTSIDE = "killed from outside and run again"
NO_MEMORY = "out of memory"
"""The words in messages of CUDA, HIP, torch and Triton if a GPU has no memory left."""
NOT_WRITTEN = "run without a file of the case in flight: the disk is full"
OUT_OF_MEMORY = "out of memory and run again"
HELPER_KILLED = "a process that compiles or is a rank was killed from outside: run again"


@dataclass
class Executor:
    """Runs cases of one target in a child process. If the process dies, the next case starts a new one.

    Args:
        target: name of the target. It may be changed to another that the process can run (`serves`).
        device: "cpu" or "cuda".
        case_seconds: seconds that one case may take. They include the compilation of kernels, and begin anew where Dynamo has
            compiled.
        ahead: path of the file that holds the running case.
        mutant: the bug to put back in the child's memory.
        sanitize: True if to check every access of interpreted kernels (`attn_fuzz.interpreted.sanitizer`).
        trial: the function that runs and judges a case in the child, as module:function. It takes the case, the Target and the
            device, and returns a Verdict. Its module is imported after the mutant is installed.
        exactly: True if calls can be followed in exact mode (`attn_fuzz.exact`), by a trial that takes `exactly`.
        fenced: True if the calls of a case with which nothing is wrong are made again with unmapped pages beside the tensors
            (`attn_fuzz.run.case.fence`).
        malformed: True if one call of each case is corrupted (`attn_fuzz.run.case.malformed`). Other options do not apply.
        environment: variables that the child has beside those of this process.
    """

    target: str
    device: str
    case_seconds: float
    ahead: Path
    mutant: Mutant | None = None
    sanitize: bool = False
    trial: str = TRIAL
    exactly: bool = False
    fenced: bool = False
    malformed: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    _repaired: "Executor | None" = field(default=None, init=False)
    _fault: "Fence | None" = field(default=None, init=False)
    _process: multiprocessing.process.BaseProcess | None = field(default=None, init=False)
    _connection: multiprocessing.connection.Connection | None = field(default=None, init=False)

    def __enter__(self) -> "Executor":
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def serves(self, other: "Executor") -> bool:
        """True if this executor's process can run the target of another one, too: the same in another mode."""
        bases = {name.partition("@")[0] for name in (self.target, other.target)}
        named = ("device", "case_seconds", "ahead", "mutant", "sanitize", "trial", "exactly", "fenced", "malformed")
        alike = all(getattr(self, name) == getattr(other, name) for name in named)
        return len(bases) == 1 and alike and not any(registry.load(each.target).compiles for each in (self, other))

    def run(self, case: Case, *, exactly: bool | None = None, **options: Any) -> Verdict:
        """The verdict on one case.

        A case whose process is killed by SIGKILL is run once more. A kernel does not send SIGKILL to its own process. An
        operator may send it, and so may a system that is short of memory. A target that finds no memory is run once more, too,
        in a new process: other processes use the GPU, and this one keeps memory of earlier cases. So is a target of which
        SIGKILL ended a process that compiles kernels or is a rank. A case whose process is lost (`prepared`) is run again.

        Args:
            exactly: True if to follow the case's call in exact mode; None: wherever calls can be followed.
            options: further arguments of the trial.

        Raises:
            CaseError: the case contradicts itself, or the contract.
            ExecutorError: the process could not be started, or the fuzzer itself is at fault, in a new process, too.
            MutantError: the mutant does not import, or raises what it does not announce.
            OSError: the case in flight cannot be written, and the disk is not full.
        """
        if self.malformed:
            return self._run_malformed(case)
        followed = self.exactly if exactly is None else exactly
        verdict = self._run_again_if_killed(case, options | ({"exactly": True} if followed else {}))
        if not self.fenced or verdict.kind != "agree":
            return verdict
        return self._run_fenced(case, verdict)

    def _run_malformed(self, case: Case) -> Verdict:
        """The verdict on a case with a corrupted call. This process names the corruption if the other one cannot."""
        verdict = self._run_again_if_killed(case, {"malformed": True})
        if verdict.kind not in ("crashed", "hung"):
            return verdict
        from attn_fuzz.run.case import malformed

        return malformed.named(verdict, malformed.corruption_of(case, registry.load(self.target)))

    def repaired(self, findings: Iterable[Finding]) -> "Executor":
        """An executor that differs in its environment: findings of the target are repaired (`attn_fuzz.findings.repairs`). It
        starts with its first case, and ends with this one."""
        if self._repaired is None:
            ahead = self.ahead.with_suffix(".repaired.json")
            self._repaired = replace(self, ahead=ahead, environment=repairs.environment(findings))
        self._repaired.target = self.target
        return self._repaired

    def _run_fenced(self, case: Case, verdict: Verdict) -> Verdict:
        """The verdict on a case with which nothing was wrong, after its calls were made with unmapped pages beside its tensors.

        A fault tells no tensor. So the calls are made again with only one side of one tensor fenced, until they fault again.
        The last tensor and side that was found so is tried first: smaller cases fault there, too, and each fault costs a
        process.
        """
        from attn_fuzz.run.case import fence  # imports what a mutant may patch

        seconds = dict(verdict.seconds)

        def tried(*fences: "Fence") -> Verdict:
            again = self._run_again_if_killed(case, {"fences": fences})
            seconds["target"] = seconds.get("target", 0.0) + again.seconds.get("target", 0.0)
            died = again.kind == "crashed" and again.message.startswith(_DEATH) and not again.message.startswith(KILLED)
            again = msgspec.structs.replace(again, seconds=dict(seconds), events=(*verdict.events, FENCED))
            return msgspec.structs.replace(again, kind="fence") if died else again

        def found(alone: "Fence", fault: Verdict) -> Verdict:
            self._fault = alone
            message = f"it touches memory {alone.words}: {fault.message} if that is unmapped, and not if it is mapped"
            return msgspec.structs.replace(fault, message=message, about=alone.words)

        if self._fault is not None and (fault := tried(self._fault)).kind == "fence":
            return found(self._fault, fault)
        first = tried(*fence.EVERYTHING)
        if first.kind == "agree":
            return msgspec.structs.replace(verdict, seconds=seconds, events=first.events)
        if first.kind == "fence":
            for alone in fence.each_alone(case):
                if (fault := tried(alone)).kind == "fence":
                    return found(alone, fault)
            about = "outside of its tensors"
            message = f"it touches memory {about}: {first.message} if all pages beside them are unmapped, not beside one alone"
            return msgspec.structs.replace(first, message=message, about=about)
        return first

    def _run_again_if_killed(self, case: Case, options: dict[str, Any]) -> Verdict:
        """The verdict on a case that is run with options of its trial, and once more after what may not be its fault."""
        try:
            verdict = self._run_once(case, options)
        except FaultError:  # an earlier case may have left the process unsound
            self.end()
            verdict = self._run_once(case, options)
        cause = _cause_from_outside(verdict)
        if cause is None:
            return verdict
        self.end()
        verdict = self._run_once(case, options)
        if _cause_from_outside(verdict) == HELPER_KILLED:
            raise ExecutorError(f"target {self.target}: {verdict.message}, twice: it may need more memory than there is")
        if _cause_from_outside(verdict) == cause:
            return msgspec.structs.replace(verdict, message=f"{verdict.message}, twice: it may need more memory than there is")
        return msgspec.structs.replace(verdict, events=(*verdict.events, cause))

    def _run_once(self, case: Case, options: dict[str, Any]) -> Verdict:
        try:
            case_file.save(self.ahead, case)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self.ahead.unlink(missing_ok=True)  # it holds an earlier case
            verdict = self._answer(case, options)
            return msgspec.structs.replace(verdict, events=(*verdict.events, NOT_WRITTEN))
        return self._answer(case, options)

    def _answer(self, case: Case, options: dict[str, Any]) -> Verdict:
        connection = self.start()
        assert self._process is not None
        started = time.monotonic()
        try:
            connection.send((self.target, case, options))
            compiles = False
            while True:
                # wait for the process, too: if the kernel forked it, the copy may hold the connection open
                seconds = COMPILE_SECONDS if compiles else self.case_seconds
                if not multiprocessing.connection.wait([connection, self._process.sentinel], seconds):
                    self.end()
                    return self._too_long(compiles)
                if not connection.poll():
                    raise EOFError
                received = connection.recv()
                if not isinstance(received, bool):
                    break
                compiles = received
            answer, sound = received
        except (EOFError, ConnectionError):
            cause = self._cause_of_death()
            if cause is None:
                return self._answer(case, options)
            return Verdict(kind="crashed", message=cause, seconds={"target": time.monotonic() - started})
        except Exception as error:
            self.end()
            return Verdict(kind="crashed", message=f"the target wrote into the fuzzer's own connection: {type(error).__name__}")
        if not sound:
            self.end()
        is_unsound = isinstance(answer, ExecutorError) and not isinstance(answer, FaultError)
        if is_unsound and self.target != HARMLESS and self._fuzzer_can(case):
            self.end()
            return Verdict(kind="crashed", message=f"the target left its process unsound: {answer.args[0].splitlines()[-1]}")
        if isinstance(answer, Exception):
            raise answer
        # a device that is not `sound` is broken for good by a bad access: then the mutant does run
        if self.mutant is not None and answer.kind == "raised" and sound:
            self.mutant.check_announced(answer.message, answer.about.rpartition(": ")[2])
        return answer

    def _too_long(self, compiles: bool) -> Verdict:
        """No answer in time. Dynamo may be at fault. The emulator is slow: it may be at fault, unless a mutant is."""
        if compiles:
            message = f"Dynamo has compiled for {COMPILE_SECONDS:g} s"
            return Verdict(kind="limit", message=message, about=f"{message} (lifted by another backend of torch.compile)")
        message = f"no answer in {self.case_seconds:g} s"
        if self.mutant is None and registry.load(self.target).compiles:
            return Verdict(kind="limit", message=message, about=f"{message} (lifted by a larger --case-seconds)")
        return Verdict(kind="hung", message=message)

    def _fuzzer_can(self, case: Case) -> bool:
        """True if the fuzzer can run a case with the reference as target, in a process that this target has not touched."""
        with Executor(HARMLESS, self.device, self.case_seconds, self.ahead.with_suffix(".again.json")) as sound:
            try:
                return not sound.run(case).failed
            except ExecutorError:
                return False

    def stop(self) -> None:
        """End the process, and delete the file of the running case."""
        self.end()
        self.ahead.unlink(missing_ok=True)
        if self._repaired is not None:
            self._repaired.stop()

    def end(self) -> None:
        """End the process, and that on repaired sources. The file of the running case stays."""
        if self._repaired is not None:
            self._repaired.end()
        process, self._process = self._process, None
        if process is None or process.pid is None:  # a run may be interrupted before its process has started
            return
        _kill_group(process.pid)
        process.kill()
        process.join(KILL_SECONDS)  # a process inside a driver call may not die: the next case starts another process

    def start(self) -> multiprocessing.connection.Connection:
        """Start the process unless it runs, and wait until it is ready. A process that SIGKILL ends meanwhile is tried again.

        Raises:
            ExecutorError: the target does not load, or the process does not start.
            MutantError: the mutant does not import.
        """
        if self._process is not None and self._process.is_alive() and self._connection is not None:
            return self._connection
        ready = self._started()
        if ready == KILLED:
            ready = self._started()
        if ready is not True:
            self.end()
            if isinstance(ready, MutantError):
                raise ready
            raise ExecutorError(f"target {self.target}: {ready or f'did not start in {START_SECONDS:g} s'}")
        assert self._connection is not None
        return self._connection

    def _started(self) -> bool | str | MutantError:
        """Start a process. Returns whether it is ready, or why it is not."""
        self._connection, theirs = multiprocessing.Pipe()
        load = _Load(self.target, self.device, self.mutant, self.sanitize, self.trial, self.exactly, self.environment)
        if self.mutant is not None and self.mutant.is_early:
            self._process = prepared.start_patched(self.mutant, _serve, theirs, load, daemon=True)
        else:
            self._process = prepared.start(self.device, _serve, theirs, load, daemon=True)
        theirs.close()
        try:
            return self._connection.poll(START_SECONDS) and self._connection.recv()
        except (EOFError, ConnectionError):
            return self._cause_of_death() or self._started()

    def _cause_of_death(self) -> str | None:
        """The end of the process in words; None if it is lost."""
        process, self._process = self._process, None
        assert process is not None
        assert process.pid is not None
        process.join(KILL_SECONDS)
        code = process.exitcode or 0
        _kill_group(process.pid)
        if prepared.is_lost(process):
            return None
        return f"{_DEATH}{signal.Signals(-code).name}" if code < 0 else f"the process exited with code {code}"


def _cause_from_outside(verdict: Verdict) -> str | None:
    """The event of a verdict that may not be the target's fault; None if the verdict is."""
    if verdict.message == KILLED:
        return KILLED_FROM_OUTSIDE
    if verdict.kind == "raised" and verdict.message.startswith(HelperKilledError.__name__):
        return HELPER_KILLED
    return OUT_OF_MEMORY if verdict.kind == "raised" and NO_MEMORY in verdict.message else None


_EVENTS = {COMPILED: dynamo.COMPILED, IN_EAGER: dynamo.EAGER}
"""Each event of Dynamo, and the count that makes it one of all later cases of its process: compiled code is kept."""
_Judge = Callable[[str, Case, dict[str, Any]], Verdict]
"""Runs and judges a case on the target of a name, with options of the Executor's trial."""


def use_interpreter(device: str) -> None:
    """Have Triton interpret kernels on a CPU. Triton reads this setting when a kernel is defined: call it before any import."""
    if device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"


class _Load(NamedTuple):
    """The order to a child process: the fields of its Executor that it needs."""

    target: str
    device: str
    mutant: Mutant | None
    sanitize: bool
    trial: str
    exactly: bool
    environment: Mapping[str, str]


def _serve(connection: multiprocessing.connection.Connection, load: _Load) -> None:
    """The child process: it receives a case and sends the verdict, until the parent is gone."""
    os.setsid()  # a kernel that signals its process group must not reach the fuzzer
    prepared.end_with_parent(group=True)
    os.dup2(2, 1)  # stdout is for results: a kernel's prints go to stderr
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a scheduler sends it to all processes: the main process ends the run
    with contextlib.suppress(EOFError, ConnectionError):  # the parent is gone
        judge = _loaded(connection, load)
        if judge is not None:
            _answer(connection, judge, load.device)


def _loaded(connection: multiprocessing.connection.Connection, load: _Load) -> "_Judge | None":
    """Load the target, send True, and return what runs and judges a case with options. Or send why the target does not load."""
    warnings.simplefilter("ignore")
    use_interpreter(load.device)
    os.environ.update(load.environment)
    sys.path[:0] = [folder for name, folder in load.environment.items() if name.startswith(foreign.variable(""))]  # on a GPU
    try:
        if load.mutant is not None and load.mutant not in INSTALLED:
            from attn_fuzz.patches import installation

            installation.install(load.mutant)
        import torch
        from attn_fuzz.exact import interpreter as exact_interpreter
        from attn_fuzz.interpreted import accesses, interpreter

        dynamo.watch()
        module, function = load.trial.split(":")
        try_case = getattr(importlib.import_module(module), function)
        torch.set_num_threads(1)
        if load.device == "cpu" and importlib.util.find_spec("triton"):
            interpreter.install()
        if load.exactly:
            exact_interpreter.install()
        if load.sanitize:
            accesses.install()
        if load.mutant is not None:
            from attn_fuzz.patches import installation

            installation.import_patched(load.mutant)
        target = registry.load(load.target)
        if not load.sanitize and target.can_be_fenced(load.device):
            accesses.install("bounds")
    except MutantError as error:
        connection.send(error)
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")
    else:
        connection.send(True)
        dynamo.watch(connection.send)
        from attn_fuzz.run.case.trial import try_fenced, try_malformed

        targets = {load.target: target}

        def run(name: str, case: Case, options: dict[str, Any]) -> Verdict:
            if name not in targets:
                targets[name] = registry.load(name)
            is_malformed = options.pop("malformed", False)
            function = try_malformed if is_malformed else try_fenced if "fences" in options else try_case
            verdict, frames = dynamo.undisturbed(lambda: function(case, targets[name], load.device, **options))
            happened = [event for event, name in _EVENTS.items() if dynamo.frames[name]]
            return msgspec.structs.replace(verdict, frames=frames, events=(*verdict.events, *happened))

        return run
    return None


def _answer(connection: multiprocessing.connection.Connection, judge: "_Judge", device: str) -> None:
    """Receive cases, and send a verdict on each, until the parent is gone."""
    from attn_fuzz.run.case import devices
    from attn_fuzz.run.case.exceptions import described

    me = os.getpid()
    while True:
        name, case, options = connection.recv()
        try:
            answer = judge(name, case, options)
        except FaultError as error:
            answer = FaultError(f"{case_file.dumps(case)}\n{error}")
        except Exception as error:
            if any(mutant.is_early for mutant in INSTALLED):
                message = f"in the fuzzer, which calls what is patched: {described(error)}"
                answer = Verdict(kind="raised", message=message, about=type(error).__name__)
            elif isinstance(error, InputError):
                answer = error
            else:
                answer = ExecutorError(f"the fuzzer itself failed on {case_file.dumps(case)}\n{traceback.format_exc()}")
        if os.getpid() != me:
            os._exit(1)  # this is a copy that the kernel forked: only the original answers
        connection.send((answer, devices.is_sound(device)))


def _kill_group(leader: int) -> None:
    """Kill an executor's process and the processes that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
