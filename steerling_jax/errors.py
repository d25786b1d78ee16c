"""The one exception that is meant for the person at the keyboard."""


class UserError(Exception):
    """Bad input, told in one sentence: names the file, field or value and what to do about it."""


def require(condition: bool, sentence: str) -> None:
    """Raises `UserError(sentence)` where `condition` does not hold."""
    if not condition:
        raise UserError(sentence)


def first_line(error: BaseException | str) -> str:
    """What is wrong, to stand in a sentence: the first line, at most 200 characters of it, or the error's name."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200].rstrip(".")
