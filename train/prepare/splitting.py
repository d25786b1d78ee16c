"""Stage "splitting": clusters of near-duplicates, which decide together which split their documents are in."""

from __future__ import annotations

from steerling_jax.train.corpus.documents import Document
from steerling_jax.train.corpus.split import near_duplicates, split_of_key
from steerling_jax.train.prepare.duplicates import corpus_documents
from steerling_jax.train.prepare.preparation import Preparation

_CLUSTERED_CHARACTERS = 64_000_000  # the largest corpus in which near-duplicates are searched for


def is_clustered(preparation: Preparation) -> bool:
    """Whether near-duplicates are searched for, which holds all text in memory."""
    return preparation.survey["characters"] <= _CLUSTERED_CHARACTERS


def cluster_tasks(preparation: Preparation) -> list[str]:
    """The file of clusters, if it does not exist yet."""
    return preparation.missing(["clusters.json"])


def cluster_documents(preparation: Preparation, name: str) -> None:
    """Writes the split key of each document whose cluster has another key than its own.

    A document's own key is its cluster's name, or else the hash of its text. Near-duplicates share the smallest of
    their own keys: a choice that depends neither on the order of input nor on the number of parts.
    """
    keys: dict[str, str] = {}
    if is_clustered(preparation):
        hashes: list[str] = []
        texts: list[str] = []
        names: list[str] = []
        for part in range(len(preparation.parts)):
            for document in corpus_documents(preparation, part):
                hashes.append(document.sha256)
                texts.append(document.text)
                names.append(document.cluster)
        clusters = near_duplicates(texts, names)
        own_keys = [cluster_name or sha256 for sha256, cluster_name in zip(hashes, names)]
        smallest: dict[int, str] = {}
        for cluster, key in zip(clusters, own_keys):
            smallest[cluster] = min(smallest.get(cluster, key), key)
        # Only the differences are written: most documents of most corpora are their own cluster.
        keys = {
            sha256: smallest[cluster]
            for sha256, cluster, key in zip(hashes, clusters, own_keys)
            if smallest[cluster] != key
        }
    preparation.work.write_json(name, keys)


def split_of(preparation: Preparation, document: Document) -> str:
    """`train` or `heldout`."""
    key = preparation.clusters.get(document.sha256, document.cluster or document.sha256)
    return split_of_key(key, preparation.config.heldout_share)
