"""Torch's operations as they run: the base of modes that note them."""

from torch.utils._python_dispatch import TorchDispatchMode


class EagerMode(TorchDispatchMode):
    """A mode of operations that nobody compiles."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether torch keeps each operation from its compiler. It would import the compiler, in two seconds of a process."""
        return False
