"""The one exception that is meant for the person at the keyboard."""


class UserError(Exception):
    """Bad input, told in one sentence: names the file, field or value and what to do about it."""


def require(condition: bool, sentence: str) -> None:
    """Raises `UserError(sentence)` where `condition` does not hold."""
    if not condition:
        raise UserError(sentence)
