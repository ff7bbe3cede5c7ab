"""The participants of `speed`, in cases of all types."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from attn_fuzz.foreign.loading import variable

from benchmarks.participants import attention, hopper, latent
from benchmarks.participants.attention import Participant
from benchmarks.participants.before import load_before
from benchmarks.participants.loading import load_all, package_folder


class Given(NamedTuple):
    """What a run is told of its participants.

    Attributes:
        vllm, aiter, before: folders of two packages, and of this project as it was; see `loading` and `before`.
        tries: see `latent.participants`.
    """

    vllm: Path | None
    aiter: Path | None
    before: Path | None
    tries: Mapping[str, Sequence[int]]


def everybody(given: Given, tell: Callable[[str], None]) -> tuple[list[Participant], dict[str, str]]:
    """The participants that are here, and the versions of other projects' packages.

    Raises:
        MissingPeerError: a folder that was named does not hold what it should.
    """
    kernels = load_all(given.vllm, given.aiter, tell)
    for package, folder in (("vllm", given.vllm), ("aiter", given.aiter)):
        if folder is not None:  # where the fuzzer's adapters look for index kernels
            os.environ[variable(package)] = str(package_folder(package, folder).parent)
    found = [
        *attention.participants(kernels.vllm, kernels.aiter, given.before and load_before(given.before)),
        *latent.participants(kernels.vllm, given.tries),
        *hopper.participants(kernels.fa3, kernels.flashmla),
    ]
    return found, kernels.versions
