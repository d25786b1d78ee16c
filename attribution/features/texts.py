"""The texts in which features are looked for: lines of a file, or documents of a corpus store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from steerling_jax.errors import UserError
from steerling_jax.io.text_files import read_text

if TYPE_CHECKING:
    from steerling_jax.bundle import Bundle


class Texts(NamedTuple):
    """texts, where each is from, and the name of all."""

    texts: list[str]
    places: list[str]
    name: str


def read_lines(path: str) -> Texts:
    """The texts of a file, one a line, without empty lines. Raises `UserError` if there are none."""
    lines = enumerate(read_text(path).splitlines(), start=1)
    numbered = [(number, line) for number, line in lines if line.strip()]
    if not numbered:
        raise UserError(f"{path} has no texts; write one in each line.")
    return Texts([line for _, line in numbered], [f"line {number}" for number, _ in numbered], Path(path).name)


def read_corpus(folder: str, bundle: Bundle, tokens: int) -> Texts:
    """Training documents of a corpus store that was made with the model's tokenizer, about `tokens` tokens of them,
    evenly spaced. Raises `UserError` for a store of another tokenizer."""
    from steerling_jax.io.corpus.store import CorpusStore

    store = CorpusStore(folder)
    store.check_tokenizer(bundle.tokenizer.sha256)
    documents = [one for one in store.documents if one.split == "train" and one.end > one.start]
    if not documents:
        raise UserError(f"{folder} has no training documents; give another corpus.")
    step = max(1, sum(one.end - one.start for one in documents) // tokens)
    chosen = documents[::step]
    texts = [bundle.tokenizer.decode(store.tokens(one.start, one.end).tolist()) for one in chosen]
    kept = [(text, f"{one.name} ({one.source})") for text, one in zip(texts, chosen, strict=True) if text.strip()]
    return Texts([text for text, _ in kept], [place for _, place in kept], str(folder))
