"""`UserError`, the exception for mistakes that the user can correct, and helpers to raise it."""


class UserError(Exception):
    """Invalid input. The message is one sentence that names the file, field or value and says what to do.

    field: the name of the invalid field or argument, for callers that report it separately; None where no single field
    is at fault.
    """

    def __init__(self, message: str = "", field: str | None = None):
        super().__init__(message)
        self.field = field


def require(condition: bool, message: str, field: str | None = None) -> None:
    """Raises `UserError(message, field)` unless `condition` holds."""
    if not condition:
        raise UserError(message, field)


def require_share(name: str, value: float) -> None:
    """Raises `UserError` unless `value` is a fraction in (0, 1]."""
    require(0 < value <= 1, f"{name} is {value}, but it must be above 0 and at most 1.")


def error_summary(error: BaseException | str) -> str:
    """The error's first line, at most 200 characters, to be quoted in a message; its class name if it has no text."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200].rstrip(".")
