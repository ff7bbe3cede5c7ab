"""The recording of one process of an engine, and its file, which is written anew after every call that was due."""

import json
import logging
import os
import socket
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Final

import attn_fuzz
from attn_fuzz import outputs
from attn_fuzz.shadow import Shadow

from attn_vllm_recording.blocks import Blocks
from attn_vllm_recording.settings import VARIABLE, Settings
from attn_vllm_recording.summary import FILE, SCHEMA

LOG: Final = logging.getLogger("vllm.attn_vllm_recording")
"""A child of vLLM's logger, so that messages are shown in the logs of its processes."""


class ProcessRecording:
    """A recording in a folder of its own, whose name begins with the host's name and the process id.

    Attributes:
        recording: the judged calls.
        blocks: the blocks that the scheduler assigns to all calls.
        layers, calls: the number of layers that were built, and of calls that were made, by the name of their backend.

    Raises:
        ValueError: the folder cannot be written.
    """

    def __init__(self, settings: Settings) -> None:
        try:
            settings.folder.mkdir(parents=True, exist_ok=True)
            folder = tempfile.mkdtemp(prefix=f"{socket.gethostname()}-{os.getpid()}-", dir=settings.folder)
        except OSError as error:
            raise ValueError(f"{VARIABLE}: {settings.folder} cannot be written: {error.strerror}") from None
        self.pid = os.getpid()
        self.settings = settings
        self.recording = attn_fuzz.Recording(Path(folder), settings.every, settings.limit, most=settings.most)
        self.blocks, self._saved_faults = Blocks(Shadow(limit=settings.limit)), 0
        self.layers: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.save()

    def save(self) -> None:
        """Replace the file in one step, so that a killed process leaves the last one. It raises no error."""
        try:
            outputs.write(self.recording.folder / FILE, json.dumps(self.state(), indent=1))
        except OSError as error:
            LOG.warning("attn-parity: the recording cannot be written: %s", error)

    def save_faults(self) -> None:
        """Save and log if the last step had faults."""
        shadow = self.blocks.shadow
        if shadow.wrong > self._saved_faults:
            if not self._saved_faults:
                LOG.error("attn-parity: the blocks of a step are wrong: %s", next(iter(shadow.faults), ""))
            self._saved_faults = shadow.wrong
            self.save()

    def state(self) -> dict[str, Any]:
        record, shadow = self.recording, self.blocks.shadow
        found = [
            {
                "index": one.index,
                "function": one.function,
                "wrong": one.wrong is not None,
                "message": one.wrong,
                "case": one.case.name if one.case is not None else None,
                "error": one.error,
            }
            for one in record.found
        ]
        return {
            "schema": SCHEMA,
            "host": socket.gethostname(),
            "pid": self.pid,
            "program": " ".join(sys.argv[:2]),
            "every": record.every,
            "most": record.most,
            "layers": dict(self.layers),
            "calls_by_backend": dict(self.calls),
            "calls": record.calls,
            "judged": record.judged,
            "wrong": record.wrong,
            "ratio": record.ratio,
            "not_judged": dict(record.not_judged),
            "found": found,
            "reads": shadow.reads,
            "wrong_reads": shadow.wrong,
            "not_seen": dict(shadow.not_seen),
            "faults": [str(fault) for fault in shadow.faults],
        }
