"""Refusals: of a call that contradicts the contract, and of a valid call that an implementation does not serve."""


class ContractError(ValueError):
    """An argument of a call contradicts the contract. Raised before anything is written.

    Attributes:
        argument: its name, as the caller wrote it (`block_table`, `q`, `window`, ...).
        got: the argument as it was, in words.
        expected: the argument as it should have been, in words.
    """

    def __init__(self, argument: str, got: object, expected: str) -> None:
        super().__init__(argument, got, expected)
        self.argument = argument
        self.got = got
        self.expected = expected

    def __str__(self) -> str:
        return f"{self.argument}: got {self.got}, expected {self.expected}"


class UnsupportedError(NotImplementedError):
    """A valid call that an implementation does not serve.

    Attributes:
        implementation: the name of who refuses.
        feature: the property of the call that is not supported, in words.
        reason: why it is not supported.
        instead: an implementation that serves the call; None if there is none, or none is known.
    """

    def __init__(self, implementation: str, feature: str, reason: str, instead: str | None = None) -> None:
        super().__init__(implementation, feature, reason, instead)
        self.implementation = implementation
        self.feature = feature
        self.reason = reason
        self.instead = instead

    def __str__(self) -> str:
        end = f"; use {self.instead}" if self.instead else ""
        return f"{self.implementation}: {self.feature} not supported: {self.reason}{end}"


class MiscompiledError(UnsupportedError):
    """A valid call that an implementation serves, and for which the compiler at hand makes wrong code."""
