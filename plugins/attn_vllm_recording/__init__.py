"""vLLM plugin: records and judges the calls of vLLM's own attention backends, in every process of an engine.

The environment variable ATTN_PARITY_RECORDING switches it on (`settings`). Each process writes into a folder of its own
(`process`), and `python -m attn_vllm_recording FOLDER` sums them up (`summary`). `watching` wraps vLLM's layers, `backends`
says which calls of which backends can be judged, and `excerpt` copies the judged part of a call. `index_layers` judges the
layers that select keys, and `sparse_mla` the attention to selected keys.

Importing the package imports nothing of vLLM, and nothing else while the variable is not set.
"""

import os

from attn_vllm_recording.settings import VARIABLE

__all__ = ["VARIABLE", "register"]


def register() -> None:
    """Watch all layers of attention that this process builds, if the variable is set. vLLM calls this in every process.

    Raises:
        ValueError: the variable's value has no meaning, or its folder cannot be written.
        ModuleNotFoundError: the extra `fuzz` is missing. vLLM then ends, because a recording was asked for.
    """
    setting = os.environ.get(VARIABLE)
    if not setting:
        return
    try:
        from attn_vllm_recording.watching import watch
    except ModuleNotFoundError as error:
        from attn_fuzz import extras

        sentence = extras.missing((error.name or "").split(".")[0])
        if sentence is None:
            raise
        raise ModuleNotFoundError(f"{VARIABLE} is set, and {sentence}", name=error.name) from None
    watch(setting)
