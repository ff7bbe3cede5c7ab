"""The error of a call that is not judged."""


class NotJudgedError(Exception):
    """A call cannot be judged. The message is the reason. Equal reasons are counted, so it has no number of a call."""
