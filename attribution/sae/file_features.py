"""What is read in the texts of one file: the features of each layer, and word n-grams; and its form on disk.

Legend: N texts, S latents of an autoencoder.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse import vstack as stack_tables

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.bundle import Bundle
from steerling_jax.evaluation.words import ngrams_of
from steerling_jax.explain.text_features import LayerFeatures, read_text_features
from steerling_jax.progress import Progress, no_progress


class FileFeatures(NamedTuple):
    """layers: of each autoencoder. ngrams: for each of the N texts, the hashes of its different n-grams, uint64."""

    layers: list[LayerFeatures]
    ngrams: list[np.ndarray]

    def select(self, texts: np.ndarray) -> FileFeatures:
        """Those of some of the texts, given by number."""
        return FileFeatures([one.select(texts) for one in self.layers], [self.ngrams[int(i)] for i in texts])


def read_file_features(
    bundle: Bundle,
    autoencoders: Sequence[Autoencoder],
    texts: Sequence[str],
    ngram: int,
    progress: Progress = no_progress,
) -> FileFeatures:
    """Reads texts. ngram: words of an n-gram. Raises `UserError` as `read_text_features` does."""
    hashes = [np.unique(np.array([_hash(one) for one in ngrams_of(text, ngram)], np.uint64)) for text in texts]
    return FileFeatures(read_text_features(bundle, autoencoders, texts, progress), hashes)


def joined(parts: Sequence[FileFeatures]) -> FileFeatures:
    """The features of several files as those of one."""
    layers = [
        LayerFeatures(
            csr_array(stack_tables([one.last for one in layer], format="csr")),
            csr_array(stack_tables([one.strongest for one in layer], format="csr")),
            np.concatenate([one.mean for one in layer]),
        )
        for layer in zip(*(part.layers for part in parts), strict=True)
    ]
    return FileFeatures(layers, [text for part in parts for text in part.ngrams])


def to_bytes(features: FileFeatures) -> bytes:
    """The content of a .npz file."""
    arrays: dict[str, np.ndarray] = {"layers": np.array(len(features.layers))}
    arrays["ngrams"] = np.concatenate(features.ngrams)
    arrays["ngrams_ends"] = np.cumsum([len(one) for one in features.ngrams])
    for number, layer in enumerate(features.layers):
        for name, table in (("last", layer.last), ("strongest", layer.strongest)):
            for field in ("data", "indices", "indptr"):
                arrays[f"{name}_{field}_{number}"] = getattr(table, field)
            arrays[f"{name}_shape_{number}"] = np.asarray(table.shape)
        arrays[f"mean_{number}"] = layer.mean
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    return content.getvalue()


def from_bytes(content: bytes) -> FileFeatures:
    """What `to_bytes` wrote."""
    with np.load(io.BytesIO(content)) as arrays:

        def table(name: str, number: int) -> csr_array:
            data, indices, indptr = (arrays[f"{name}_{field}_{number}"] for field in ("data", "indices", "indptr"))
            return csr_array((data, indices, indptr), shape=tuple(arrays[f"{name}_shape_{number}"].tolist()))

        layers = [
            LayerFeatures(table("last", number), table("strongest", number), arrays[f"mean_{number}"])
            for number in range(int(arrays["layers"]))
        ]
        return FileFeatures(layers, np.split(arrays["ngrams"], arrays["ngrams_ends"][:-1]))


def _hash(text: str) -> int:
    """64 bits that equal texts have in every process, unlike `hash`."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", errors="replace"), digest_size=8).digest(), "little")
