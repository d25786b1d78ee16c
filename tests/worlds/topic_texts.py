"""Texts for the golden Qwen3, whose texts are ids in decimal: two topics, of small and of large ids, in two groups."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.worlds.paths import REPOSITORY

MODEL = REPOSITORY / "tests" / "golden_decoders" / "qwen3"
AUTOENCODER = REPOSITORY / "tests" / "golden_autoencoders" / "qwen3_model"
READ_WITH = ["--model", str(MODEL), "--autoencoder", str(AUTOENCODER), "--k", "10"]


def topic_texts(topic: str, count: int, vocabulary: int, seed: int = 0) -> list[str]:
    """Texts of 9 to 16 ids of the lower ("low") or of the upper half of the vocabulary, which end with one of three."""
    rng = np.random.default_rng([seed, topic == "low"])
    first, last = (1, vocabulary // 2) if topic == "low" else (vocabulary // 2, vocabulary)
    texts = [[*rng.integers(first, last, int(rng.integers(8, 16))), first + rng.integers(3)] for _ in range(count)]
    return [" ".join(map(str, ids)) for ids in texts]


def write_lines(path: Path, rows: list[dict[str, str]]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
