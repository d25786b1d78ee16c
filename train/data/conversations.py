"""Conversations from a JSONL file, as examples for instruction tuning (`steerling_jax/objectives/instruction.py`).

A line is `{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}`: roles are `system`
(only first), `user` and `assistant`; other keys are left alone. Each turn of the assistant is an example of its own,
whose prompt is what `chat_prompt` makes of the turns before it: exactly the ids that decoding is given.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from steerling_jax.errors import UserError
from steerling_jax.io.tokenizers.byte_table import ByteTable
from steerling_jax.train.data.pipeline import Example

ROLES = ("system", "user", "assistant")
Message = Mapping[str, str]


@dataclass(frozen=True)
class Answer:
    """ids: prompt, answer and the end of turn. prompt: how many of them are the prompt."""

    ids: np.ndarray
    prompt: int


def read_conversations(path: str | Path) -> Iterator[list[Message]]:
    """The messages of each line; empty lines are passed over. Raises `UserError` that names the line."""
    try:
        with Path(path).open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _messages(line, f"{path}, line {number}")
    except OSError as error:
        raise UserError(f"Cannot read the conversations {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text ({error.reason}): save it as UTF-8.") from error


def _messages(line: str, where: str) -> list[Message]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is no JSON ({error}): write one conversation a line.") from None
    messages = found.get("messages") if isinstance(found, dict) else None
    if not isinstance(messages, list) or not messages:
        raise UserError(f'{where} has no list of messages: write {{"messages": [{{"role": …, "content": …}}, …]}}.')
    for place, message in enumerate(messages):
        _check(message, place, f"{where}, message {place + 1}")
    if all(message["role"] != "assistant" for message in messages):
        raise UserError(f"{where} has no turn of the assistant, so there is nothing to learn: leave it out.")
    return messages


def _check(message: Any, place: int, where: str) -> None:
    if not isinstance(message, dict) or not isinstance(message.get("content"), str) or not message["content"].strip():
        raise UserError(f"{where} has no text as its content: give it a role and a content.")
    role = message.get("role")
    if role not in ROLES:
        raise UserError(f"{where} has role {role!r}, but it must be one of {', '.join(ROLES)}.")
    if role == "system" and place > 0:
        raise UserError(f"{where} has role 'system', which only the first message may have.")
    if role == "assistant" and place == 0:
        raise UserError(f"{where} has role 'assistant', but there is nothing to answer before it.")


def answers(messages: Sequence[Message], tokenizer: ByteTable) -> Iterator[Answer]:
    """Each turn of the assistant after what decoding would be given for it."""
    for place, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt = tokenizer.chat_prompt(messages[:place])
            answer = [*tokenizer.encode(message["content"]), *tokenizer.turn_end]
            yield Answer(np.array([*prompt, *answer], np.int32), len(prompt))


class Conversations:
    """Answers as examples of T = `seq_len` tokens, held in memory; a Grain random-access source.

    Item i is `tokens` (T,) int32, padded at the end; `answer` (T,) int32, the number of the sampler block that a token
    of the answer is in, −1 for all others; `sequence` () int32, that is, i. Sampler blocks that do not fit T are left
    out, and answers none of whose blocks fits (`too_long` counts them).
    """

    def __init__(self, path: str | Path, tokenizer: ByteTable, *, seq_len: int, block: int):
        found = [answer for messages in read_conversations(path) for answer in answers(messages, tokenizer)]
        if not found:
            raise UserError(f"{path} has no conversations: write one a line.")
        self._path, self._seq_len, self._block, self._pad = path, seq_len, block, tokenizer.special.pad_id
        self._answers = [answer for answer in found if answer.prompt + block <= seq_len]
        self.too_long = len(found) - len(self._answers)
        if not self._answers:
            raise UserError(
                f"No prompt of {path} leaves room for a block of its answer in data.seq_len ({seq_len}): raise it."
            )

    def __len__(self) -> int:
        return len(self._answers)

    def __repr__(self) -> str:
        """Names the source in Grain's messages: no memory addresses."""
        return f"Conversations({len(self)} answers of {self._path})"

    def __getitem__(self, index: Any) -> Example:
        index = int(index)
        answer, T = self._answers[index], self._seq_len
        blocks = (T - answer.prompt) // self._block
        end = min(len(answer.ids), answer.prompt + blocks * self._block)
        tokens, number = np.full(T, self._pad, np.int32), np.full(T, -1, np.int32)
        tokens[:end] = answer.ids[:end]
        number[answer.prompt : end] = np.arange(end - answer.prompt) // self._block
        return {"tokens": tokens, "answer": number, "sequence": np.array(index, np.int32)}
