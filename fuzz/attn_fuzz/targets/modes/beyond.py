"""NAME@beyond: the calls that the target's engine never sends, too. What its Support leaves out stays out.

A failure of such a target is no failure of the engine, unless a like case that the engine sends fails, too: `attn-parity fuzz`
tells them apart.
"""

import dataclasses

from attn_fuzz.targets.engine import ANY_ENGINE, GIVES_KEYS, Engine
from attn_fuzz.targets.target import NoModeError, Target


def of_any_engine(target: Target) -> Target:
    engine = Engine(**GIVES_KEYS) if target.dense_keys else ANY_ENGINE
    if {*target.support("cpu").engine.restricted} <= {*engine.restricted}:
        raise NoModeError("its engine sends all that the contract allows")
    return dataclasses.replace(target, support=lambda device: dataclasses.replace(target.support(device), engine=engine))
