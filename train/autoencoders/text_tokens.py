"""The tokens that autoencoders are trained on: texts encoded by the model's tokenizer, kept in the run's folder."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.errors import UserError
from steerling_jax.io.atomic import atomic_path
from steerling_jax.progress import Progress, no_progress
from steerling_jax.train.corpus.documents import Document
from steerling_jax.train.corpus.input_files import source_files
from steerling_jax.train.corpus.parts import Part
from steerling_jax.train.corpus.python_documents import python_documents
from steerling_jax.train.corpus.reading import read_part
from steerling_jax.train.corpus.sources import TextSource

TOKENS_FILE = "tokens.npy"


class TextRun(Protocol):
    """What a run says about its texts; see `AutoencoderRun`."""

    @property
    def texts(self) -> tuple[str, ...]: ...
    @property
    def seq_len(self) -> int: ...
    @property
    def max_tokens(self) -> int | None: ...
    @property
    def held_out(self) -> int: ...


def open_tokens(
    run: TextRun, bundle: Bundle, folder: Path, progress: Progress = no_progress, *, encoded: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(training tokens, held-out tokens), each (n,) int32: encoded at the first start, read from `folder` at others.

    encoded: whether an earlier start of this run wrote them. Raises `UserError` if the texts cannot be read or are too
    short for one window and the held-out part.
    """
    path = folder / TOKENS_FILE
    if encoded and path.is_file():
        tokens = np.load(path, mmap_mode="r")
    else:
        tokens = _encode(run, bundle, progress)
        with atomic_path(path) as scratch, scratch.open("wb") as file:
            np.save(file, tokens)
    return tokens[: len(tokens) - run.held_out], tokens[len(tokens) - run.held_out :]


def _encode(run: TextRun, bundle: Bundle, progress: Progress) -> np.ndarray:
    limit = run.max_tokens or 1 << 62
    parts: list[np.ndarray] = []
    count = 0
    for document in _documents(run):
        parts.append(np.asarray(bundle.tokenizer.encode(document.text), np.int32))
        count += len(parts[-1])
        progress("encoding texts", min(count, limit), limit if run.max_tokens else count)
        if count >= limit:
            break
    tokens = np.concatenate(parts)[:limit] if parts else np.zeros(0, np.int32)
    least = run.seq_len + run.held_out
    if len(tokens) < least:
        raise UserError(
            f"The texts have {len(tokens):,} tokens, but the run needs at least {least:,}: one window of seq_len and "
            f"held_out = {run.held_out:,}; add texts, or lower these."
        )
    return tokens


def _documents(run: TextRun) -> Iterator[Document]:
    if not run.texts:
        return python_documents()
    source = TextSource(run.texts)
    parts = (Part(0, str(file.format), (file,)) for file in source_files(source))
    return itertools.chain.from_iterable(read_part(part, source) for part in parts)
