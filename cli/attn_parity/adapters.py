"""Whether a failure is of the adapter that calls a kernel, and not of the kernel."""

import re

TRITON = "triton"
"""The package that no target loads as sources: it runs their kernels."""
_PLACE = re.compile(r"\(([^()]*):\d+, in \w+\)$")
"""The file in which an exception was raised: `attn_fuzz.run.case.exceptions` ends a message with it."""
_STAND_IN = re.compile(r"SimpleNamespace|cannot import name|\(unknown location\)|No module named")
"""An exception in the package's code because a stand-in of this project has less than what it stands for."""
_GONE = re.compile(r"(\w+)\(\) got an unexpected keyword argument ('\w+')")
_NEW = re.compile(r"(\w+)\(\) missing \d+ required .*?arguments?: ('\w+'(?:,? (?:and )?'\w+')*)")


def misfit(kind: str, message: str, package: str) -> str | None:
    """The reason why a failure is the adapter's and not the kernel's; None if it is not known to be.

    An exception that was raised outside of the package's files is one of a call that they do not take. Triton is called by
    kernels, and not by adapters.

    Args:
        kind, message: those of the verdict.
        package: the package of the kernel.
    """
    place = _PLACE.search(message)
    is_of_package = bool(place and place[1].startswith(f"{package}/"))
    if kind != "raised" or package == TRITON or (is_of_package and not _STAND_IN.search(message)):
        return None
    for pattern, what in ((_GONE, "gone"), (_NEW, "new")):
        if found := pattern.search(message):
            return f"the adapter does not fit {found[1]}: parameter {found[2]} is {what}"
    return f"the adapter does not fit: {message}"
