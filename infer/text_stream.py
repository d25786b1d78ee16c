"""Text from a canvas whose positions are filled out of order, emitted piece by piece and never taken back.

Only the unbroken run of committed tokens from the prompt on is decoded. Two things are held back until it is clear what
they are: the bytes of an incomplete character, and text that may be the beginning of a stop text. The text therefore
does not depend on how the commits were grouped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from steerling_jax.decoding.text_ids import TextIds
from steerling_jax.decoding.trace import Commit
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.tokenizer import Tokenizer

FinishReason = Literal["stop", "length"]
_REPLACEMENT = "\ufffd"  # tokenizers decode the bytes of an incomplete character to this


class TextWriter:
    """One request's text as its tokens are committed.

    A text ends before the first stop text that is complete or at the end of the turn ("stop"), or after `max_tokens`
    ids or with the canvas ("length"). tokens: the number of ids in the text so far. finish: why the text ended; None
    until then.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: ModelConfig | DecoderConfig,
        prompt_length: int,
        new_tokens: int,
        max_tokens: int,
        stop: Sequence[str] = (),
    ):
        self.tokens = 0
        self.finish: FinishReason | None = None
        self._ids, self.prompt_length, self._max_tokens = TextIds.of(config), prompt_length, max_tokens
        self._canvas = np.full(new_tokens, self._ids.mask, np.int32)
        self._read = 0  # canvas positions that were decoded
        self._detokenizer = IncrementalDetokenizer(tokenizer)
        self._stops = StopMatcher(stop)
        self._ready = ""

    def commit(self, commits: Iterable[Commit]) -> list[Commit]:
        """Adds tokens, step by step. Returns the commits up to the one with which the text ended."""
        used = []
        for commit in commits:
            if self.finish is not None:
                break
            for position, token in zip(commit.positions, commit.token_ids):
                self._canvas[position - self.prompt_length] = token
            self._advance()
            used.append(commit)
        return used

    def end(self) -> None:
        """Ends the text: no more tokens will be committed. Masks that remain, before an end of turn, are not text."""
        self._canvas = self._canvas[self._canvas != self._ids.mask]
        self._advance()
        if self.finish is None:
            self._close("length")

    def take(self) -> str:
        """The text that is new since the last call."""
        text, self._ready = self._ready, ""
        return text

    def _advance(self) -> None:
        """Decodes up to the first masked position: a later token's text could change once the gap is filled."""
        while self.finish is None and self._read < len(self._canvas):
            token = int(self._canvas[self._read])
            if token == self._ids.mask:
                return
            self._read += 1
            if token in self._ids.dropped:
                continue
            if token in self._ids.ends:
                self._close("stop")
                return
            self.tokens += 1
            self._emit(self._detokenizer.push(token))
            if self.finish is None and self.tokens == self._max_tokens:
                self._close("length")

    def _emit(self, text: str) -> None:
        released, stopped = self._stops.push(text)
        self._ready += released
        if stopped:
            self.finish = "stop"

    def _close(self, finish: FinishReason) -> None:
        """Emits what was held back. That can complete a stop text, which then is the reason for the end."""
        self._emit(self._detokenizer.flush())
        if self.finish is None:
            self._ready += self._stops.flush()
            self.finish = finish


class IncrementalDetokenizer:
    """Token ids to text, one at a time. Only the last few ids are decoded again, so that the cost of a token does not
    grow with the text."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        # The ids of the last complete piece and of everything after it. They are decoded together, since a tokenizer
        # may write something between two ids (sentencepiece: a space, except before the first one).
        self._ids: list[int] = []
        self._fresh = 0  # index of the first id after the last complete piece
        self._emitted = 0  # characters of the ids' text that were emitted

    def push(self, id: int) -> str:
        """The text that `id` completes; empty while a character is incomplete."""
        self._ids.append(id)
        text = self._tokenizer.decode(self._ids)
        # One character can take several tokens of one byte each. Until its last byte it decodes to replacement
        # characters, which must not be emitted: the complete character would come on top of them.
        complete = text.rstrip(_REPLACEMENT)
        new = complete[self._emitted :]
        self._emitted += len(new)
        if new and complete == text:
            # Nothing is incomplete: the ids before this piece are not needed as context any more.
            self._ids = self._ids[self._fresh :]
            self._fresh, self._emitted = len(self._ids), len(self._tokenizer.decode(self._ids))
        return new

    def flush(self) -> str:
        """The text that was held back; no more ids follow."""
        return self._tokenizer.decode(self._ids)[self._emitted :]


class StopMatcher:
    """Passes text on up to the first stop text that is complete, and holds back what may be the beginning of one."""

    def __init__(self, stops: Iterable[str]):
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text that can be emitted, and whether a stop text follows it."""
        self._held += text
        starts = [(self._held.find(stop), stop) for stop in self._stops]
        # The stop text that ends first counts, whichever begins first: that is where generation had to stop, and so
        # the result is the same whether the text comes in one piece or character by character.
        ends = [(start + len(stop), start) for start, stop in starts if start >= 0]
        if ends:
            before, self._held = self._held[: min(ends)[1]], ""
            return before, True
        cut = len(self._held) - max((self._overlap(stop) for stop in self._stops), default=0)
        before, self._held = self._held[:cut], self._held[cut:]
        return before, False

    def flush(self) -> str:
        """The text that was held back; no more text follows."""
        text, self._held = self._held, ""
        return text

    def _overlap(self, stop: str) -> int:
        """Length of the longest suffix of the held text that is a prefix of `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
