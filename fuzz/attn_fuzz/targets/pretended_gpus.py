"""What kernels are told of the GPU that they run on, of GPUs that are not here: torch is pretended to name them."""

import random
from types import SimpleNamespace
from unittest import mock

import torch

_MOST_COMPUTE_UNITS = 304


def check(choose: random.Random) -> None:
    """Check that a GPU is named as the launch tables name it, with the compute units that it has.

    Raises:
        AssertionError: it has another name, or another number of compute units.
    """
    from attn_optimized import device
    from attn_optimized.selector.priorities import this_architecture

    major, minor = choose.randint(7, 13), choose.randint(0, 9)
    amd = f"gfx{choose.choice(('9', '10', '11', '12'))}{choose.randrange(256):02x}"
    properties = SimpleNamespace(major=major, minor=minor, multi_processor_count=choose.randint(1, _MOST_COMPUTE_UNITS))
    hip, expected = choose.choice(((None, f"sm{major}{minor}"), ("7.1", amd)))
    if hip:
        properties.gcnArchName = f"{amd}:sramecc+:xnack-"
    gpu = torch.device("cuda", 0)
    with (
        mock.patch.object(device, "_INTERPRETED", False),
        mock.patch.object(torch.version, "hip", hip),
        mock.patch.object(torch.cuda, "is_available", return_value=True),
        mock.patch.object(torch.cuda, "get_device_properties", return_value=properties),
    ):
        named = {device.architecture_of(gpu, torch.bfloat16), this_architecture()}
        compute_units = device.compute_units_of(gpu)
    assert named == {expected}, f"a GPU {expected} is taken for {named}"
    assert compute_units == properties.multi_processor_count
