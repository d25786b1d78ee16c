"""The one exception that is meant for the person at the keyboard."""


class UserError(Exception):
    """Bad input, told in one sentence: names the file, field or value and what to do about it."""


def require(condition: bool, sentence: str) -> None:
    """Raises `UserError(sentence)` where `condition` does not hold."""
    if not condition:
        raise UserError(sentence)


def require_share(name: str, value: float) -> None:
    """Raises `UserError` where `value` is no share above 0."""
    require(0 < value <= 1, f"{name} is {value}, but it must be above 0 and at most 1.")


def first_line(error: BaseException | str) -> str:
    """What is wrong, to stand in a sentence: the first line, at most 200 characters of it, or the error's name."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200].rstrip(".")
