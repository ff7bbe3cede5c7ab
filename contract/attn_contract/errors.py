"""The two ways to say no: a call that contradicts the contract, and a valid call that somebody cannot serve."""


class ContractError(ValueError):
    """An argument of a call contradicts the contract. Raised before anything is written.

    Attributes:
        argument: name of the argument, as the caller wrote it (`block_table`, `q`, `window`, ...).
        got: what it was, in words.
        expected: what it should have been, in words.
    """

    def __init__(self, argument: str, got: object, expected: str) -> None:
        super().__init__(argument, got, expected)
        self.argument = argument
        self.got = got
        self.expected = expected

    def __str__(self) -> str:
        return f"{self.argument}: got {self.got}, expected {self.expected}"


class UnsupportedError(NotImplementedError):
    """A valid call that this implementation does not serve. It says who refuses what, why, and who can.

    Attributes:
        implementation: who refuses.
        feature: the property that is not supported.
        reason: why not.
        instead: who serves it, or None if nobody does.
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
