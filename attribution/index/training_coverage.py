"""How much of a model's training data an index covers, by the document hashes that are stored with the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from steerling_jax.bundle import Bundle
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.training_documents import read_training_documents

_LISTED = 20  # absent documents that are listed by name


def training_coverage(bundle: Bundle, corpus: CorpusStore, splits: Sequence[str]) -> dict[str, Any] | None:
    """Compares the documents that the model was trained on with the documents of the indexed splits.

    Returns counts of trained, indexed and absent documents, the names of the first absent ones, and the count of
    indexed documents that are not training data. None if the model does not record its training documents.
    """
    trained = read_training_documents(bundle.folder)
    if trained is None:
        return None
    indexed = {document.sha256 for document in corpus.documents if document.split in splits}
    absent = [name for sha256, name in trained.items() if sha256 not in indexed]
    return {
        "trained_on": len(trained),
        "indexed": len(trained) - len(absent),
        "absent": len(absent),
        "absent_names": absent[:_LISTED],
        "not_trained_on": len(indexed - trained.keys()),
    }
