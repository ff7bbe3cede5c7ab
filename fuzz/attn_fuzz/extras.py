"""The extras of this project's distribution, and the modules that each installs. Importing this module needs no extra."""

import importlib.util

MODULES = {
    "cpu": ("triton",),
    "emulated": ("yaml",),
    "fuzz": ("hypothesis", "msgspec", "safetensors"),
    "ray": ("ray",),
    "redis": ("redis",),
    "transformers": ("transformers",),
}
_ALSO = {"triton": ", or a torch build for GPUs, which brings it"}


def install(extra: str) -> str:
    """The command that installs an extra beside the package."""
    return f"pip install 'attn-parity[{extra}]'"


def missing(module: str) -> str | None:
    """A sentence that names a missing module and the extra that installs it; None if no extra does."""
    for extra, modules in MODULES.items():
        if module in modules:
            return f"this needs {module}, which is missing: {install(extra)}{_ALSO.get(module, '')}"
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
