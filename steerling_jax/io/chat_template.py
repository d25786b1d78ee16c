"""Chat templates: Jinja programs that come with a model and turn a conversation into the text that it was trained on.

A template is code from another source. It runs in Jinja's sandbox, in a child process with limits on time and memory:
the sandbox prevents access to attributes and files, but not a loop without end or a text of many gigabytes, and a
thread that is inside such a loop cannot be stopped.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from steerling_jax.errors import UserError, error_summary

SECONDS = 10.0  # of a rendering, the start of the child process included; a usual one takes 0.1 s
_AT_ONCE = 256  # conversations of one process; a usual one takes less than a millisecond
_PROGRAM = Path(__file__).with_name("chat_template_process.py")


@dataclass(frozen=True)
class ChatTemplate:
    """source: the Jinja text. origin: the file that it comes from, for messages. variables: the texts of special tokens
    by the names that templates use, such as `bos_token`."""

    source: str
    origin: str
    variables: Mapping[str, str] = field(default_factory=dict)

    def render(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True, seconds: float = SECONDS
    ) -> str:
        """The text of a conversation; `add_generation_prompt` adds the beginning of the assistant's turn.

        Raises `UserError` if the template rejects the conversation, fails, or takes more than `seconds`.
        """
        return self._render([messages], add_generation_prompt, seconds)[0]

    def render_all(
        self, conversations: Sequence[Sequence[Mapping[str, str]]], *, add_generation_prompt: bool = True
    ) -> list[str]:
        """`render` of each conversation. One process renders many of them, so that its start is not paid for each."""
        texts: list[str] = []
        for start in range(0, len(conversations), _AT_ONCE):
            texts += self._render(conversations[start : start + _AT_ONCE], add_generation_prompt, SECONDS)
        return texts

    def _render(
        self, conversations: Sequence[Sequence[Mapping[str, str]]], add_generation_prompt: bool, seconds: float
    ) -> list[str]:
        request = {
            "template": self.source,
            "seconds": seconds,
            "variables": {**self.variables, "add_generation_prompt": add_generation_prompt},
            "conversations": [[dict(message) for message in messages] for messages in conversations],
        }
        try:
            # -P: the folder of the program is not searched for modules. Its names must not hide others.
            result = subprocess.run(
                [sys.executable, "-P", str(_PROGRAM)],
                input=json.dumps(request).encode(),
                capture_output=True,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            raise self._failure(f"did not end within {seconds:g} s") from None
        try:
            answer = json.loads(result.stdout)
        except ValueError:  # the process was killed, or ran out of memory while it reported
            raise self._failure("needs more time or memory than it may take") from None
        if "rejected" in answer:
            raise UserError(f"The chat template of {self.origin} rejects the conversation: {answer['rejected']}.")
        if "error" in answer:
            raise self._failure(f"failed ({error_summary(answer['error'])})")
        return answer["texts"]

    def _failure(self, what: str) -> UserError:
        return UserError(
            f"The chat template of {self.origin} {what}; correct the template, or give the prompt as plain text."
        )
