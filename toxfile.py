"""The last line of `tox run`: the minutes of its steps. tox itself prints seconds by environment, without names of steps."""

import atexit
import time
from collections import defaultdict

from tox.execute import Outcome
from tox.plugin import impl
from tox.tox_env.api import ToxEnv

STEPS = {"pyright": "pages and types", "docs/api.py": "pages and types", "attn_lab": "emulated launches", "pytest": "tests"}
"""The steps of the environment `checks`, by a word of their commands."""
MINUTES = defaultdict[str, float](float)
_began = time.monotonic()


def _until_now() -> float:
    """The minutes since the last call."""
    global _began
    before, _began = _began, time.monotonic()
    return (_began - before) / 60


def step_of(environment: str, command: list[str]) -> str:
    """The step of a command; that of an environment without steps is the environment."""
    return next((STEPS[word] for word in command if environment == "checks" and word in STEPS), environment)


@impl
def tox_before_run_commands(tox_env: ToxEnv) -> None:
    name = tox_env.conf.name or ""
    MINUTES["install" if name == "checks" else name] += _until_now()


@impl
def tox_after_run_commands(tox_env: ToxEnv, exit_code: int, outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        MINUTES[step_of(tox_env.conf.name or "", list(outcome.request.cmd))] += (outcome.elapsed or 0) / 60
    _until_now()


@atexit.register
def _print() -> None:
    if MINUTES:
        print(f"minutes: {', '.join(f'{step} {minutes:.1f}' for step, minutes in MINUTES.items())}")
