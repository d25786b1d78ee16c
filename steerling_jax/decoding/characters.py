"""The tokens of a text as characters: which tokens make which characters, also while a text is half-written.

A character can take several tokens, as Korean does in a vocabulary that falls back to bytes, and a token can hold the
end of one character and the beginning of the next. `text_runs` divides a text into the smallest runs of tokens that
begin and end between two characters.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from steerling_jax.tokenizer import ByteTokenizer, Tokenizer


class TextRun(NamedTuple):
    """Tokens [start, end) and the text that they make.

    complete: whether the text is valid; an incomplete character is U+FFFD, as tokenizers decode it.
    """

    start: int
    end: int
    text: str
    complete: bool = True


def text_runs(tokenizer: Tokenizer, ids: Sequence[int], empty: Collection[int] = ()) -> tuple[TextRun, ...]:
    """The runs of a text, from left to right; together they hold every token once.

    Their texts, joined, are `tokenizer.decode(ids)`. empty: ids of positions without a token yet, such as the mask.
    Such a position is a run without text, and no character continues over it, since what will be written there is not
    known; the joined texts are then those of the parts between such positions.

    Example:
        >>> bundle = sj.load()
        >>> ids = bundle.tokenizer.encode("값 = 1")
        >>> [run.text for run in text_runs(bundle.tokenizer, ids)]
        ['값', ' =', ' ', '1']
    """
    ids = [int(i) for i in ids]
    runs: list[TextRun] = []
    for is_empty, group in itertools.groupby(range(len(ids)), key=lambda at: ids[at] in empty):
        places = list(group)
        if is_empty:
            runs += [TextRun(at, at + 1, "") for at in places]
            continue
        part = ids[places[0] : places[-1] + 1]
        made = _byte_runs(tokenizer, part) if isinstance(tokenizer, ByteTokenizer) else _prefix_runs(tokenizer, part)
        runs += [run._replace(start=run.start + places[0], end=run.end + places[0]) for run in made]
    return tuple(_without_first_space(tokenizer, ids, runs))


def _byte_runs(tokenizer: ByteTokenizer, ids: list[int]) -> Iterator[TextRun]:
    """The runs of ids whose bytes are known."""
    pieces = [tokenizer.token_bytes(i) for i in ids]
    whole = b"".join(pieces)
    characters = list(_characters(whole))
    inside = {at for start, end, _, _ in characters for at in range(start + 1, end)}
    first, offset, used = 0, 0, 0
    for at, piece in enumerate(pieces):
        offset += len(piece)
        if offset in inside:
            continue
        own = []
        while used < len(characters) and characters[used][1] <= offset:
            own.append(characters[used])
            used += 1
        yield TextRun(first, at + 1, "".join(text for *_, text, _ in own), all(valid for *_, valid in own))
        first = at + 1


def _characters(data: bytes) -> Iterator[tuple[int, int, str, bool]]:
    """(start, end, text, whether it is valid) of the characters in UTF-8 `data`; each part that is no character becomes
    U+FFFD, exactly as `bytes.decode` with `errors="replace"` divides it."""
    at = 0
    while at < len(data):
        try:
            text, bad = data[at:].decode(), None
        except UnicodeDecodeError as error:
            text, bad = data[at : at + error.start].decode(), (at + error.start, at + error.end)
        for character in text:
            size = len(character.encode())
            yield at, at + size, character, True
            at += size
        if bad is not None:
            yield *bad, "\ufffd", False
            at = bad[1]


def _prefix_runs(tokenizer: Tokenizer, ids: list[int]) -> Iterator[TextRun]:
    """The runs of a tokenizer that writes something between two ids: a token's text is what it adds to the text."""
    before = ""
    for at in range(len(ids)):
        text = tokenizer.decode(ids[: at + 1])
        yield TextRun(at, at + 1, text[len(before) :])
        before = text


def _without_first_space(tokenizer: Tokenizer, ids: list[int], runs: list[TextRun]) -> Iterator[TextRun]:
    """The runs without the space that some vocabularies put before every text, and that `decode` removes again."""
    first = next((number for number, run in enumerate(runs) if run.text), None)
    for number, run in enumerate(runs):
        if number == first and run.text.startswith(" ") and not tokenizer.decode(ids[: run.end]).startswith(" "):
            run = run._replace(text=run.text[1:])
        yield run
