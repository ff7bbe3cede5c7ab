"""The error of a call that is not judged."""


class NotJudgedError(Exception):
    """A call cannot be judged. The message is the reason, and is counted: it names no number that changes with every call."""
