"""Is what the model was trained on what is indexed? By the hashes that go along with a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from steerling_jax.bundle import Bundle
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.trained_texts import trained_texts

_NAMED = 20  # absent documents that are named


def coverage(bundle: Bundle, corpus: CorpusStore, splits: Sequence[str]) -> dict[str, Any] | None:
    """Documents the model was trained on, how many of them are indexed, names of the first that are not, and how many
    indexed documents it was not trained on; None where the model does not say what it was trained on."""
    trained = trained_texts(bundle.folder)
    if trained is None:
        return None
    here = {document.sha256 for document in corpus.documents if document.split in splits}
    absent = [name for sha256, name in trained.items() if sha256 not in here]
    return {
        "trained_on": len(trained),
        "indexed": len(trained) - len(absent),
        "absent": len(absent),
        "absent_names": absent[:_NAMED],
        "not_trained_on": len(here - trained.keys()),
    }
