"""Conversations from a JSON lines file as examples for instruction tuning (`objectives/instruction.py`).

A line is `{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}`. Roles are `system`
(only first), `user` and `assistant`; other keys are ignored, except for `language` where the objective needs one of
every sample (`objectives/language_tuning.py`). Each turn of the assistant is an example, whose prompt is
the `chat_prompt` of the turns before it: the same ids that decoding receives. For models of other families the chat
template of the model makes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from steerling_jax.errors import UserError
from steerling_jax.io.text_files import decode_text, load_json
from steerling_jax.io.tokenizers.byte_table import ByteTable
from steerling_jax.train.data.pipeline import Example

ROLES = ("system", "user", "assistant")
Message = Mapping[str, str]


class Conversation(NamedTuple):
    """messages: in order. language: its number among the languages of the objective; None for objectives without."""

    messages: list[Message]
    language: int | None


@dataclass(frozen=True)
class Answer:
    """ids: prompt, answer and end of turn, (N,) int32. prompt: the number of ids of the prompt. language: as that of
    its `Conversation`."""

    ids: np.ndarray
    prompt: int
    language: int | None


def read_conversations(path: str | Path, languages: Sequence[str] = ()) -> Iterator[Conversation]:
    """The conversation of each line that is not empty. Raises `UserError` that names the line.

    languages: where given, each line has one of them as its `language`.
    """
    try:
        with Path(path).open("rb") as lines:
            for number, content in enumerate(lines, start=1):
                line = decode_text(content, f"{path}, line {number}")
                if line.strip():
                    yield _conversation(line, languages, f"{path}, line {number}")
    except OSError as error:
        raise UserError(f"Cannot read the conversations {path}: {error.strerror}.") from error


def _conversation(line: str, languages: Sequence[str], where: str) -> Conversation:
    """The validated content of one line."""
    try:
        content = load_json(line)
    except ValueError as error:
        raise UserError(f"{where} is not JSON ({error}): write one conversation per line.") from None
    messages = content.get("messages") if isinstance(content, dict) else None
    if not isinstance(messages, list) or not messages:
        raise UserError(f'{where} has no list of messages: write {{"messages": [{{"role": …, "content": …}}, …]}}.')
    for index, message in enumerate(messages):
        _check(message, index, f"{where}, message {index + 1}")
    if all(message["role"] != "assistant" for message in messages):
        raise UserError(f"{where} has no turn of the assistant to train on: remove the line.")
    return Conversation(messages, _language(content, languages, where) if languages else None)


def _language(content: Mapping[str, Any], languages: Sequence[str], where: str) -> int:
    """The number of the language of a line."""
    known = ", ".join(languages)
    if "language" not in content:
        raise UserError(f"{where} has no language: add the key 'language' with one of {known}.")
    if content["language"] not in languages:
        raise UserError(
            f"{where} is in the language {content['language']!r}, but the language features are of {known}: remove the "
            "line, or make features with texts in that language."
        )
    return languages.index(content["language"])


def _check(message: Any, index: int, where: str) -> None:
    if not isinstance(message, dict) or not isinstance(message.get("content"), str) or not message["content"].strip():
        raise UserError(f"{where} has no text as its content: give it a role and a content.")
    role = message.get("role")
    if role not in ROLES:
        raise UserError(f"{where} has role {role!r}, but it must be one of {', '.join(ROLES)}.")
    if role == "system" and index > 0:
        raise UserError(f"{where} has role 'system', which only the first message may have.")
    if role == "assistant" and index == 0:
        raise UserError(f"{where} has role 'assistant', but there is no message before it to answer.")


def answers(conversations: Iterable[Conversation], tokenizer: ByteTable) -> list[Answer]:
    """Each turn of the assistant, after the prompt that decoding would receive for it."""
    turns = [
        (messages[:index], message["content"], language)
        for messages, language in conversations
        for index, message in enumerate(messages)
        if message["role"] == "assistant"
    ]
    prompts = tokenizer.chat_prompts([before for before, *_ in turns])
    return [
        Answer(np.array([*prompt, *tokenizer.answer(text)], np.int32), len(prompt), language)
        for prompt, (_, text, language) in zip(prompts, turns, strict=True)
    ]


class Conversations:
    """Answers as examples of T = `seq_len` tokens, held in memory; a Grain random-access source.

    Item i is a dict of int32 arrays: `tokens` (T,), padded at the end; `answer` (T,), the number of the sampler block
    that a token of the answer is in, −1 for all other tokens; `sequence` (), the number i; and with languages
    `language` (), the number of its language. Sampler blocks beyond T are left out, and so are answers of which no
    whole block fits; `too_long` counts these.
    """

    def __init__(
        self, path: str | Path, tokenizer: ByteTable, *, seq_len: int, block: int, languages: Sequence[str] = ()
    ):
        """block: tokens of a sampler block; 1 for a model that writes token by token. languages: see
        `read_conversations`. Raises `UserError` for an invalid file and if no answer fits.
        """
        all_answers = answers(read_conversations(path, languages), tokenizer)
        if not all_answers:
            raise UserError(f"{path} has no conversations: write one per line.")
        self._path, self._seq_len, self._block, self._pad = path, seq_len, block, max(tokenizer.special.pad_id, 0)
        self._answers = [answer for answer in all_answers if answer.prompt + block <= seq_len]
        self.too_long = len(all_answers) - len(self._answers)
        if not self._answers:
            raise UserError(
                f"No prompt of {path} leaves room for a block of its answer in data.seq_len ({seq_len}): raise it."
            )

    def __len__(self) -> int:
        return len(self._answers)

    def __repr__(self) -> str:
        """Identifies the source in Grain's messages, so it contains no memory address."""
        return f"Conversations({len(self)} answers of {self._path})"

    def __getitem__(self, index: Any) -> Example:
        index = int(index)
        answer, T = self._answers[index], self._seq_len
        # Decoding fills whole blocks counted from the end of the prompt: training sees the same positions, so a block
        # that seq_len would cut is left out.
        blocks = (T - answer.prompt) // self._block
        end = min(len(answer.ids), answer.prompt + blocks * self._block)
        tokens, block_number = np.full(T, self._pad, np.int32), np.full(T, -1, np.int32)
        tokens[:end] = answer.ids[:end]
        block_number[answer.prompt : end] = np.arange(end - answer.prompt) // self._block
        example = {"tokens": tokens, "answer": block_number, "sequence": np.array(index, np.int32)}
        return example if answer.language is None else example | {"language": np.array(answer.language, np.int32)}
