"""Bodies of responses in OpenAI's format, with the extensions `seed` and, if the request asks for it, `trace`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from steerling_jax.decoding.trace import Commit

Matches = Sequence[dict[str, Any]]  # an object for each classifier that found a text positive


@dataclass(frozen=True)
class ResponseBody:
    """What all parts of one response have in common, and the parts made of it.

    created: seconds since 1970. steering: labels, for the trace. include_usage: a stream ends with a chunk of token
    counts. prompt_matches: what the server's classifiers found in the prompt; None without classifiers.
    """

    id: str
    created: int
    model: str
    chat: bool
    seed: int
    trace: bool = False
    steering: tuple[str, ...] = ()
    include_usage: bool = False
    prompt_matches: Matches | None = None

    def whole(
        self, text: str, finish: str, usage: dict[str, int], commits: Iterable[Commit], output_matches: Matches = ()
    ) -> dict[str, Any]:
        """The response to a request without `stream`."""
        choice = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
        body = self._frame("chat.completion" if self.chat else "text_completion", choice, finish) | {"usage": usage}
        return body | ({"trace": self._trace(commits)} if self.trace else {}) | self._matches(output_matches)

    def first_chunk(self) -> dict[str, Any] | None:
        """The first chunk of a chat, which names the role."""
        return self._chunk({"delta": {"role": "assistant", "content": ""}}) if self.chat else None

    def text_chunk(self, text: str, commits: Sequence[Commit]) -> dict[str, Any]:
        """A chunk of new text."""
        chunk = self._chunk({"delta": {"content": text}} if self.chat else {"text": text})
        return chunk | ({"trace": self._trace(commits)} if self.trace else {})

    def finish_chunk(self, finish: str, output_matches: Matches = ()) -> dict[str, Any]:
        """The last chunk of the text, which has the reason why it ended."""
        chunk = self._chunk({"delta": {}} if self.chat else {"text": ""}, finish)
        return chunk | self._matches(output_matches)

    def usage_chunk(self, usage: dict[str, int]) -> dict[str, Any]:
        """The chunk of token counts, after the last one of the text."""
        return self._chunk({}) | {"choices": [], "usage": usage}

    def _chunk(self, choice: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        frame = self._frame("chat.completion.chunk" if self.chat else "text_completion", choice, finish)
        return frame | ({"usage": None} if self.include_usage else {})

    def _frame(self, kind: str, choice: dict[str, Any], finish: str | None) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": [{"index": 0, **choice, "logprobs": None, "finish_reason": finish}],
            "seed": self.seed,
        }

    def _matches(self, output: Matches) -> dict[str, Any]:
        if self.prompt_matches is None:
            return {}
        return {"classifiers": {"prompt": list(self.prompt_matches), "output": list(output)}}

    def _trace(self, commits: Iterable[Commit]) -> dict[str, Any]:
        return {"commits": [commit._asdict() for commit in commits], "steering": list(self.steering)}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """OpenAI's object of token counts."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
