"""Text out of a canvas that is filled out of order: what was given out is never taken back.

Only the run of committed tokens from the prompt on is read. Bytes of an unfinished character, and what may be the start
of a stop text, are held until it is clear what they are. The text does not depend on how the commits were bundled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from steerling_jax.decoding.trace import Commit
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.tokenizer import Tokenizer

Finish = Literal["stop", "length"]
_HALF = "\ufffd"  # what half a character is decoded to


class TextWriter:
    """One request's text as it comes. tokens: how many ids it is made of so far; finish: why it ended, None before.

    A text ends before the stop text that is complete first, at the end of the turn ("stop"), after `max_tokens` ids or
    with the canvas ("length").
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: ModelConfig,
        prompt_length: int,
        new_tokens: int,
        max_tokens: int,
        stop: Sequence[str] = (),
    ):
        self.tokens = 0
        self.finish: Finish | None = None
        self._config, self.prompt_length, self._most = config, prompt_length, max_tokens
        self._canvas = np.full(new_tokens, config.mask_token_id, np.int32)
        self._read = 0  # canvas positions that were read
        self._pieces = TokenPieces(tokenizer)
        self._stops = StopTexts(stop)
        self._ready = ""

    def commit(self, commits: Iterable[Commit]) -> list[Commit]:
        """Tokens, step by step. Gives back the commits up to the text's end; later ones play no part."""
        used = []
        for commit in commits:
            if self.finish is not None:
                break
            for position, token in zip(commit.positions, commit.token_ids):
                self._canvas[position - self.prompt_length] = token
                if token == self._config.eot_id:  # it overwrites what follows
                    self._canvas[position - self.prompt_length + 1 :] = self._config.eos_token_id
            self._advance()
            used.append(commit)
        return used

    def end(self) -> None:
        """No more comes: masks that are left, before an end of turn, are no text."""
        self._canvas = self._canvas[self._canvas != self._config.mask_token_id]
        self._advance()
        if self.finish is None:
            self._close("length")

    def take(self) -> str:
        """The text that is new since the last call."""
        text, self._ready = self._ready, ""
        return text

    def _advance(self) -> None:
        while self.finish is None and self._read < len(self._canvas):
            token = int(self._canvas[self._read])
            if token == self._config.mask_token_id:
                return
            self._read += 1
            if token == self._config.eos_token_id:
                continue
            if token == self._config.eot_id:
                self._close("stop")
                return
            self.tokens += 1
            self._give(self._pieces.push(token))
            if self.finish is None and self.tokens == self._most:
                self._close("length")

    def _give(self, text: str) -> None:
        found, complete = self._stops.push(text)
        self._ready += found
        if complete:
            self.finish = "stop"

    def _close(self, finish: Finish) -> None:
        self._give(self._pieces.rest())
        if self.finish is None:
            self._ready += self._stops.rest()
            self.finish = finish


class TokenPieces:
    """Ids to text, one by one. Decodes only the last few ids, so that a token costs the same late in a text."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        # What was given out last and all that came after it: a tokenizer may write something between two ids.
        self._ids: list[int] = []
        self._fresh = 0  # the index of the first id after what was given out last
        self._given = 0  # characters of the ids' text that were given out

    def push(self, id: int) -> str:
        """The text that `id` completes."""
        self._ids.append(id)
        text = self._tokenizer.decode(self._ids)
        whole = text.rstrip(_HALF)
        new = whole[self._given :]
        self._given += len(new)
        if new and whole == text:
            self._ids = self._ids[self._fresh :]
            self._fresh, self._given = len(self._ids), len(self._tokenizer.decode(self._ids))
        return new

    def rest(self) -> str:
        """What is left of a character that was not finished."""
        return self._tokenizer.decode(self._ids)[self._given :]


class StopTexts:
    """Lets text through up to the stop text that is complete first; holds what may be the start of one."""

    def __init__(self, stops: Iterable[str]):
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text that is let through, and whether a stop text was found right after it."""
        self._held += text
        starts = [(self._held.find(stop), stop) for stop in self._stops]
        ends = [(start + len(stop), start) for start, stop in starts if start >= 0]
        if ends:
            before, self._held = self._held[: min(ends)[1]], ""
            return before, True
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        before, self._held = self._held[:cut], self._held[cut:]
        return before, False

    def rest(self) -> str:
        """What was held, now that no more comes."""
        text, self._held = self._held, ""
        return text

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that a stop text starts with."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
