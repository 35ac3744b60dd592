"""What goes wrong with run folders, as one line."""


class RunError(ValueError):
    """A run folder that cannot be made, read or trusted; the message is one line that says what to do."""


def first_line(error: Exception) -> str:
    """The reason of an error of another library, as one line."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return next(iter(reason.splitlines()), "") or type(error).__name__
