"""Answers in OpenAI's shapes, with `seed` and, where asked for, `trace` beside the published fields."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from steerling_jax.decoding.trace import Commit


@dataclass(frozen=True)
class Reply:
    """What all parts of one answer share. created: seconds since 1970. steering: labels, for the trace."""

    id: str
    created: int
    model: str
    chat: bool
    seed: int
    trace: bool = False
    steering: tuple[str, ...] = ()
    include_usage: bool = False

    def whole(self, text: str, finish: str, usage: dict[str, int], commits: Iterable[Commit]) -> dict[str, Any]:
        """The answer to a request without `stream`."""
        said = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
        answer = self._frame("chat.completion" if self.chat else "text_completion", said, finish) | {"usage": usage}
        return answer | ({"trace": self._trace(commits)} if self.trace else {})

    def opening(self) -> dict[str, Any] | None:
        """The first chunk of a chat, which names the role."""
        return self._chunk({"delta": {"role": "assistant", "content": ""}}) if self.chat else None

    def chunk(self, text: str, commits: Sequence[Commit]) -> dict[str, Any]:
        """What is new."""
        chunk = self._chunk({"delta": {"content": text}} if self.chat else {"text": text})
        return chunk | ({"trace": self._trace(commits)} if self.trace else {})

    def closing(self, finish: str) -> dict[str, Any]:
        """The last chunk, which says why the text ended."""
        return self._chunk({"delta": {}} if self.chat else {"text": ""}, finish)

    def counts(self, usage: dict[str, int]) -> dict[str, Any]:
        """The chunk with the counts, after the last."""
        return self._chunk({}) | {"choices": [], "usage": usage}

    def _chunk(self, said: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        frame = self._frame("chat.completion.chunk" if self.chat else "text_completion", said, finish)
        return frame | ({"usage": None} if self.include_usage else {})

    def _frame(self, kind: str, said: dict[str, Any], finish: str | None) -> dict[str, Any]:
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish}
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": [choice],
                "seed": self.seed}  # fmt: skip

    def _trace(self, commits: Iterable[Commit]) -> dict[str, Any]:
        return {"commits": [commit._asdict() for commit in commits], "steering": list(self.steering)}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
