"""A file of requests to a file of results, one JSON object a line each; killed at any time, it goes on where it was.

A request is `{"id", "prompt" or "prompt_ids", …}` with any of `settings.NAMES`. A result is one line, written at once,
in the order in which texts are done; where asked for, it holds the trace, as docs/trace.md describes it. A line that
cannot be done gets an error in place of a text, since one bad line should not cost the others their night; the next run
tries it again, for it may have been mended.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from steerling_jax.bundle import Bundle
from steerling_jax.decoding.generation import Generation, Prompt, generate_many
from steerling_jax.decoding.trace_record import Origin, record_of, to_plain
from steerling_jax.errors import UserError
from steerling_jax.infer.settings import NAMES, BadField, GenerationRequest, read_settings, shown
from steerling_jax.infer.text_stream import TextWriter
from steerling_jax.io.atomic import atomic_path
from steerling_jax.io.trace_file import model_origin
from steerling_jax.steering.config import SteeringConfig

_FIELDS = {*NAMES, "id", "prompt", "prompt_ids"}
_PREFIX_BYTES = 256 << 20
Id = str | int


@dataclass
class BatchFile:
    """What is to be done, and the counts of this run.

    defaults: settings for lines that do not give their own. always: steering of all lines. skipped: lines whose result
    was there; written: results; failed: lines that got an error.
    """

    bundle: Bundle
    source: Path
    target: Path
    defaults: Mapping[str, Any]
    always: Sequence[SteeringConfig] = ()
    rows: int = 8
    skipped: int = 0
    written: int = 0
    failed: int = 0

    @cached_property
    def origin(self) -> Origin:
        """What traces say of the model."""
        return model_origin(self.bundle)

    @property
    def finished(self) -> int:
        return self.skipped + self.written + self.failed

    def run(self) -> Iterator[int]:
        """Yields `finished` after every result. Raises `UserError` where a file cannot be used."""
        done = finished_ids(self.target)
        tasks: dict[int, tuple[Id, GenerationRequest, Prompt]] = {}
        prompts = self._prompts(done, tasks)
        many = generate_many(self.bundle, prompts, rows=self.rows, prefix_cache_bytes=_PREFIX_BYTES)
        for number, generation in many:
            id, wanted, prompt = tasks.pop(number)
            line = _result(self.bundle, id, wanted, generation)
            if wanted.trace:
                line["trace"] = to_plain(record_of(self.bundle, self.origin, prompt, generation))
            self._append(line)
            self.written += 1
            yield self.finished

    def _prompts(self, done: set[Id], tasks: dict[int, tuple[Id, GenerationRequest, Prompt]]) -> Iterator[Prompt]:
        """The lines that are still to be done, put down in `tasks`; writes the errors of those that cannot be."""
        seen: dict[Id, int] = {}
        number = 0
        for line, text in _lines(self.source):
            id = None
            try:
                fields = _parse(text)
                id = _id(fields, seen, line)
                if id in done:
                    self.skipped += 1
                    continue
                wanted = self._read(fields)
            except UserError as error:
                message = f"{self.source.name}, line {line}: {error}"
                self._append({"id": id, "line": line, "error": {"message": message}})
                self.failed += 1
                continue
            prompt = Prompt(wanted.prompt.tolist(), wanted.generation, wanted.steering or None)
            tasks[number] = id, wanted, prompt
            number += 1
            yield prompt

    def _read(self, fields: dict[str, Any]) -> GenerationRequest:
        text, ids = fields.get("prompt"), fields.get("prompt_ids")
        if (text is None) == (ids is None):
            raise BadField("Give prompt, a text, or prompt_ids, token ids (one of the two).", "prompt")
        if text is not None and not isinstance(text, str):
            raise BadField(f"prompt is {shown(text)}, but it must be a text; token ids go in prompt_ids.", "prompt")
        if ids is not None and not (isinstance(ids, list) and all(type(i) is int for i in ids)):
            raise BadField(f"prompt_ids is {shown(ids)}, but it must be a list of token ids.", "prompt_ids")
        given = {name: fields[name] for name in NAMES if fields.get(name) is not None}
        name = "prompt_ids" if text is None else "prompt"
        return read_settings(
            {**self.defaults, **given}, fields[name], self.bundle, prompt_name=name, always=self.always
        )

    def _append(self, value: dict[str, Any]) -> None:
        """One line in one write: a killed run leaves at most the last line unfinished."""
        # A text may hold a lone surrogate, which has no bytes but can be written as JSON's \udXXX.
        line = json.dumps(value, ensure_ascii=False).encode("utf-8", errors="backslashreplace") + b"\n"
        try:
            with self.target.open("ab") as file:
                file.write(line)
        except OSError as error:
            raise UserError(f"Cannot write {self.target}: {error.strerror}; run it again when there is room.") from None


def finished_ids(path: Path) -> set[Id]:
    """Ids that have a result in `path`. Lines with an error, and a last line without its end, are taken out of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        with path.open("rb") as file:
            done = {line: _finished_id(path, line, text) for line, text in enumerate(file, start=1)}
        if None in done.values():
            with atomic_path(path) as mended, mended.open("wb") as out, path.open("rb") as file:
                out.writelines(text for line, text in enumerate(file, start=1) if done[line] is not None)
    except OSError as error:
        raise UserError(f"Cannot use {path} for results: {error.strerror}; choose another file.") from None
    return {id for id in done.values() if id is not None}


def _finished_id(path: Path, line: int, text: bytes) -> Id | None:
    """A result line's id; None where it is an error or was not finished."""
    if not text.endswith(b"\n"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict) and ("error" in value or ("text" in value and isinstance(value.get("id"), Id))):
        return None if "error" in value else value["id"]
    raise UserError(f"{path}, line {line} is no result of a batch: give another --output, or delete the line.")


def count_lines(path: Path) -> int:
    """Requests in the file: lines that are not blank."""
    return sum(1 for _ in _lines(path))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            for line, text in enumerate(file, start=1):
                if text.strip():
                    yield line, text
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}; give a file of requests.") from None


def _parse(text: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"this is not JSON ({error}); write one object on one line.") from None
    if not isinstance(fields, dict):
        raise UserError("this is JSON, but no object; write one object on one line.")
    for name in fields:
        if name not in _FIELDS:
            near = difflib.get_close_matches(name, _FIELDS, n=1)
            raise BadField(
                f"there is no field {shown(name)}; {f'did you mean {near[0]}?' if near else 'leave it out.'}", name
            )
    return fields


def _id(fields: dict[str, Any], seen: dict[Id, int], line: int) -> Id:
    """The line's id, put down in `seen`. Raises `UserError` where there is none, or it is another line's."""
    id = fields.get("id")
    if not isinstance(id, Id) or isinstance(id, bool):
        raise BadField(f"id is {shown(id)}, but it must be a text or a whole number.", "id")
    if id in seen:
        raise BadField(f"id {shown(id)} is that of line {seen[id]} too; give each line its own.", "id")
    seen[id] = line
    return id


def _result(bundle: Bundle, id: Id, wanted: GenerationRequest, generation: Generation) -> dict[str, Any]:
    """One line: what the server would answer to the same request."""
    trace = generation.trace
    writing = TextWriter(
        bundle.tokenizer,
        bundle.config,
        trace.prompt_length,
        wanted.generation.max_new_tokens,
        wanted.max_tokens,
        wanted.stop,
    )
    writing.commit(trace.commits)
    writing.end()
    return {
        "id": id,
        "text": writing.take(),
        "finish_reason": writing.finish,
        "prompt_tokens": trace.prompt_length,
        "generated_tokens": writing.tokens,
        "seed": generation.seed,
    }
