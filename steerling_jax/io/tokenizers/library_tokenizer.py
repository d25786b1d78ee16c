"""Vocabularies of other models, read by the `tokenizers` library from the content of a `tokenizer.json`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from steerling_jax.errors import UserError, error_summary
from steerling_jax.io.chat_template import ChatTemplate
from steerling_jax.io.tokenizers.byte_table import ByteTable
from steerling_jax.io.tokenizers.sentencepiece import SPACE
from steerling_jax.tokenizer import NO_ID, SpecialIds

# Characters that Unicode reserves for use inside a program. One of them marks special tokens in messages as plain text.
_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
_FIELDS = ("mask_id", "endofchunk_id", "bos_id", "pad_id", "eos_id")  # of SpecialIds


class LibraryTokenizer(ByteTable):
    """A tokenizer of the `tokenizers` library: byte-level BPE, or SentencePiece's BPE with byte fallback.

    Special tokens in a text are encoded as the text that they are, as in all tokenizers of this package; only the chat
    template adds special ids.

    Args:
        content: a `tokenizer.json`.
        origin: the file that it comes from, for messages.
        vocab_size: the number of rows of the model's embedding, which may be larger than the vocabulary.
        ids: the special ids, or the pieces that have them, by the fields of `SpecialIds`; the others are `NO_ID`.
        adds_bos: whether the start of a document goes before every text; None: as `tokenizer.json` says.
        model_ids: special ids in the model's config, which the vocabulary of the same model has.
        chat_template: None for a model without conversations.

    Raises:
        UserError: the content is not a `tokenizer.json`, is of an unknown kind, or has ids that the model lacks.
    """

    def __init__(
        self,
        content: str,
        origin: str,
        vocab_size: int,
        *,
        ids: Mapping[str, int | str],
        adds_bos: bool | None = None,
        model_ids: Sequence[int] = (),
        chat_template: ChatTemplate | None = None,
    ):
        from tokenizers import Tokenizer  # takes 0.1 s to import, and the models of this package do not need it

        try:
            self._tokenizer = Tokenizer.from_str(content)
        except Exception as error:  # the library raises plain Exceptions
            raise UserError(
                f"{origin} is not a tokenizer that can be read ({error_summary(error)}); download it again."
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        added = self._tokenizer.get_added_tokens_decoder()
        self._special_texts = {token.content: id for id, token in added.items() if token.special}
        vocabulary = self._tokenizer.get_vocab()
        special = SpecialIds(**dict.fromkeys(_FIELDS, NO_ID) | _numbers(ids, vocabulary))
        largest = max([*vocabulary.values(), *special.names()], default=-1)
        if largest >= vocab_size:
            raise UserError(
                f"{origin} has ids up to {largest}, but the model's vocabulary has {vocab_size}: "
                "the tokenizer belongs to another model."
            )
        decoding = _Decoding(_state(self._tokenizer.decoder), origin)
        pieces: list[bytes | None] = [None] * vocab_size
        for piece, id in vocabulary.items():
            pieces[id] = piece.encode() if id in added else decoding.piece(piece)
        for id in model_ids:
            if id >= vocab_size or pieces[id] is None:
                raise UserError(
                    f"{origin} has no token with the id {id}, which begins or ends texts in config.json: the tokenizer "
                    "belongs to another model."
                )
        names = {id: text for text, id in self._special_texts.items()}
        super().__init__(pieces, special, vocab_size, hashlib.sha256(content.encode()).hexdigest(), names)
        self.proto = content.encode()
        self._leading_space = decoding.drops_first_space
        self._inner = _without_prefix_space(self._tokenizer, content)
        bos = () if special.bos_id == NO_ID else (special.bos_id,)
        self.prefix = self._prefix_of_post_processor() if adds_bos is None else bos if adds_bos else ()
        self.chat_template = chat_template

    def _prefix_of_post_processor(self) -> tuple[int, ...]:
        """The special ids that the post-processor puts before a text."""
        ids = self._tokenizer.encode("a").ids
        plain = self._tokenizer.encode("a", add_special_tokens=False).ids
        return tuple(ids[: next((i for i in range(len(ids)) if ids[i : i + len(plain)] == plain), 0)])

    @classmethod
    def with_ids(cls, content: str, origin: str, special: SpecialIds, vocab_size: int) -> LibraryTokenizer:
        """A tokenizer with these special ids, as a corpus stores it: without a chat template."""
        ids = {name: id for name in _FIELDS if (id := getattr(special, name)) != NO_ID}
        return cls(content, origin, vocab_size, ids=ids)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, never special ones."""
        return self._tokenizer.encode(_valid(text), add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, without special and unused ids; an incomplete UTF-8 character becomes U+FFFD.

        A vocabulary that puts a space before every text loses it here again.
        """
        text = super().decode(ids)
        return text.removeprefix(" ") if self._leading_space else text

    @property
    def has_chat_template(self) -> bool:
        """Whether the model has a chat template."""
        return self.chat_template is not None

    def chat_prompt(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of a conversation (messages with `role` and `content`), ending with the start of the assistant's turn.

        Special tokens come from the template alone: in a message they are plain text, so that a message cannot end its
        own turn. Raises `UserError` if the model has no template, or the template fails.
        """
        return self._ids_of([messages], add_generation_prompt=True)[0]

    def chat_prompts(self, conversations: Sequence[Sequence[Mapping[str, str]]]) -> list[list[int]]:
        """`chat_prompt` of each conversation; the template is started once for many of them."""
        return self._ids_of(conversations, add_generation_prompt=True)

    def answer(self, text: str) -> list[int]:
        """Ids of an answer after its prompt, with the end of the turn."""
        return [*self._part(text, first=False), *self.turn_end]

    @property
    def turn_end(self) -> list[int]:
        """The special id that the template writes after the assistant's text; none if it writes none."""
        return self._turn_end

    @cached_property
    def _turn_end(self) -> list[int]:
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        (ids,) = self._ids_of([messages], add_generation_prompt=False)
        last = max((i for i, id in enumerate(ids) if id in self._names), default=-1)
        return ids[last : last + 1] if last >= 0 else []

    def _ids_of(
        self, conversations: Sequence[Sequence[Mapping[str, str]]], *, add_generation_prompt: bool
    ) -> list[list[int]]:
        if self.chat_template is None:
            raise UserError("This model has no chat template, since it was not trained for conversations.")
        marks = [self._unused_mark(messages) for messages in conversations]
        marked = [
            [{name: self._mark(text, mark) for name, text in message.items()} for message in messages]
            for messages, mark in zip(conversations, marks, strict=True)
        ]
        texts = self.chat_template.render_all(marked, add_generation_prompt=add_generation_prompt)
        return [list(self._ids_with_special(_valid(text), mark)) for text, mark in zip(texts, marks, strict=True)]

    def _unused_mark(self, messages: Sequence[Mapping[str, str]]) -> str:
        texts = "".join(text for message in messages for text in message.values())
        return next((mark for mark in _MARKS if mark not in texts), _MARKS[0])

    def _mark(self, text: str, mark: str) -> str:
        """`text` with a mark inside each special token, which keeps it from being one."""
        pattern = self._special_pattern
        return text if pattern is None else pattern.sub(lambda match: match[0][:1] + mark + match[0][1:], text)

    @cached_property
    def _special_pattern(self) -> re.Pattern[str] | None:
        longest_first = sorted(filter(None, self._special_texts), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def _ids_with_special(self, text: str, mark: str) -> Iterator[int]:
        """The ids of a rendered template: special tokens in it become their ids, marks are removed."""
        start = 0
        for match in self._special_pattern.finditer(text) if self._special_pattern else ():
            yield from self._part(text[start : match.start()].replace(mark, ""), first=start == 0)
            yield self._special_texts[match[0]]
            start = match.end()
        yield from self._part(text[start:].replace(mark, ""), first=start == 0)

    def _part(self, text: str, *, first: bool) -> list[int]:
        if not text:
            return []
        if first or self._inner is None:
            return self.encode(text)
        return self._inner.encode(text, add_special_tokens=False).ids


class _Decoding:
    """How the pieces of a vocabulary stand for bytes, from the decoder of its `tokenizer.json`."""

    def __init__(self, decoder: Mapping[str, Any], origin: str):
        steps = {step.get("type"): step for step in decoder.get("decoders", [decoder])}
        self._byte_level = "ByteLevel" in steps
        if not self._byte_level and not {"Replace", "Metaspace"} & set(steps):
            kind = " and ".join(map(str, steps)) if decoder else "none"
            raise UserError(
                f"{origin} has a decoder of the kind {kind}, which is not read; "
                "ByteLevel and SentencePiece's (Replace or Metaspace) are."
            )
        self._byte_fallback = "ByteFallback" in steps
        metaspace = steps.get("Metaspace", {"prepend_scheme": "never"}).get("prepend_scheme", "always")
        self.drops_first_space = steps.get("Strip", {}).get("start", 0) > 0 or metaspace != "never"
        self._bytes = byte_of_character()

    def piece(self, piece: str) -> bytes:
        """The bytes of a piece."""
        if self._byte_level:
            known = all(c in self._bytes for c in piece)
            return bytes(self._bytes[c] for c in piece) if known else piece.encode()
        if self._byte_fallback and piece.startswith("<0x") and re.fullmatch("<0x[0-9A-F]{2}>", piece):
            return bytes([int(piece[3:-1], 16)])
        return piece.replace(SPACE, " ").encode()


def byte_of_character() -> dict[str, int]:
    """The bytes by the characters that stand for them in byte-level vocabularies.

    Bytes that are visible characters of Latin-1 stand for themselves, the others for characters from U+0100 on. Source:
    GPT-2.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _numbers(ids: Mapping[str, int | str], vocabulary: Mapping[str, int]) -> dict[str, int]:
    """`ids` with pieces replaced by their numbers; pieces that the vocabulary lacks are left out."""
    return {
        name: vocabulary[id] if isinstance(id, str) else id
        for name, id in ids.items()
        if not isinstance(id, str) or id in vocabulary
    }


def _state(part: Any) -> dict[str, Any]:
    """The fields of a part of a tokenizer, as `tokenizer.json` has them; none for no part."""
    return {} if part is None else json.loads(part.__getstate__())


def _without_prefix_space(tokenizer: Any, content: str) -> Any:
    """The tokenizer for a text that follows a special token, where only the first text gets a space before it.

    None if there is no difference. The library decides it by the position in its input, which here is one part.
    """
    fields = _state(tokenizer.pre_tokenizer)
    if fields.get("type") != "Metaspace" or fields.get("prepend_scheme") != "first":
        return None
    from tokenizers import Tokenizer, pre_tokenizers

    inner = Tokenizer.from_str(content)
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=fields.get("split", True))
    inner.encode_special_tokens = True
    return inner


def _valid(text: str) -> str:
    """`text` without lone surrogates, which no tokenizer accepts; they become `?`."""
    return text.encode("utf-8", errors="replace").decode()
