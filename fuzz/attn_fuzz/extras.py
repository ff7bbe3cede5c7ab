"""The extras of this project's distribution, and the modules that each installs. Importing this module needs no extra."""

import importlib.metadata
import importlib.util
import re

MODULES = {
    "cpu": ("triton",),
    "emulated": ("yaml",),
    "fuzz": ("hypothesis", "msgspec", "safetensors"),
    "ray": ("ray",),
    "redis": ("redis",),
    "transformers": ("transformers",),
}
_ALSO = {"torch": ", or the build for this machine's GPU", "triton": ", or a torch build for GPUs, which brings it"}


def install(extra: str) -> str:
    """The command that installs an extra beside the package."""
    return f"pip install 'attn-parity[{extra}]'"


def missing(module: str) -> str | None:
    """A sentence that names a missing module and what installs it; None if neither this project nor an extra of it needs it."""
    for extra, modules in MODULES.items():
        if module in modules:
            return f"this needs {module}, which is missing: {install(extra)}{_ALSO.get(module, '')}"
    always = (each for each in importlib.metadata.requires("attn-parity") or () if "extra ==" not in each)
    if module in {re.split(r"[^\w-]", requirement)[0] for requirement in always}:
        return f"this needs {module}, which is missing: pip install {module}{_ALSO.get(module, '')}"
    return None


def require(extra: str) -> None:
    """Check that the modules of an extra are there, and import none of them.

    Raises:
        ModuleNotFoundError: a module is missing; the message names the extra.
    """
    for module in MODULES[extra]:
        if importlib.util.find_spec(module) is None:
            raise ModuleNotFoundError(missing(module), name=module)


def triton_unavailable(device: str) -> str | None:
    """The reason why Triton's kernels cannot run on a device type here, or None if they can."""
    if importlib.util.find_spec("triton") is None:
        return missing("triton")
    return None
