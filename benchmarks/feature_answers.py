"""Redundancy by features beside redundancy in the likelihoods of answers, over checkpoints of trainings.

    python benchmarks/feature_answers.py texts/answers --model MODEL --autoencoder runs/sae_pydocs/export --layer 2 \\
        --checkpoints runs/a/checkpoints/200 runs/b …

The benchmarks are those of `feature_texts.py`, 20 samples each, of at most 240 characters. The score of a checkpoint
on a sample is the log-likelihood of its second half given its first. A benchmark's measured redundancy is how well a
few random samples rank the checkpoints as all of them do (`evaluation.answer_redundancy`). It is compared, by
Spearman's correlation over the benchmarks, with the redundancy of features at the last token and with that of word
3-grams, and with each without what the other explains. The result is stored in docs/results/feature-uses.json, as the
part `answers` of the bundled model.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from environment import environment
from feature_uses import RESULTS, rounded, write_lines

import steerling_jax as sj
from steerling_jax.attribution.sae.file_features import read_file_features
from steerling_jax.attribution.sae.options import load_reader
from steerling_jax.evaluation.answer_redundancy import partial_rank_correlation, rank_correlation, ranking_agreement
from steerling_jax.evaluation.coverage import redundancy
from steerling_jax.evaluation.intervals import bootstrap
from steerling_jax.evaluation.likelihood import log_likelihoods
from steerling_jax.evaluation.sparse_tables import sample_counts
from steerling_jax.io.json_files import read_json_object

NGRAM, SEED = 3, 0
LONGEST = 240  # characters of a sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--autoencoder", required=True)
    parser.add_argument("--layer", type=int, required=True)
    parser.add_argument("--checkpoints", nargs="+", required=True)
    args = parser.parse_args()
    began = time.time()
    benchmarks = {
        file.stem: [json.loads(line)["text"][:LONGEST] for line in file.read_text(encoding="utf-8").splitlines()]
        for file in sorted(args.texts.glob("*.jsonl"))
    }
    scores = np.stack([likelihoods(path, benchmarks) for path in args.checkpoints])
    rows = by_features(benchmarks, args)
    keys = jax.random.split(jax.random.key(SEED), len(rows))
    for number, (row, key) in enumerate(zip(rows, keys, strict=True)):
        row["answers"] = ranking_agreement(scores[:, number], key)
    models = [{"mean": float(one.mean())} for one in scores]
    figures = {"benchmarks": rows, "checkpoints": models, "correlations": correlations(rows)}
    figures |= {"environment": environment(), "seconds": round(time.time() - began)}
    stored = read_json_object(RESULTS) if RESULTS.is_file() else {}
    write_lines(stored | {"bundled": stored.get("bundled", {}) | {"answers": rounded(figures)}})


def likelihoods(path: str, benchmarks: dict[str, list[str]]) -> np.ndarray:
    """Log-likelihoods (benchmarks, samples) of the second half of each sample's words, given the first."""
    bundle = sj.load(path, dtype="float32")
    halves = []
    for texts in benchmarks.values():
        for text in texts:
            middle = text.index(" ", len(text) // 2) if " " in text[len(text) // 2 :] else len(text) // 2
            halves.append((text[:middle], text[middle:]))
    values = np.array(log_likelihoods(bundle, halves, samples=1, seed=SEED), np.float64)
    print(path, f"{values.mean():.1f} nats a sample", flush=True)
    return values.reshape(len(benchmarks), -1)


def by_features(benchmarks: dict[str, list[str]], args: argparse.Namespace) -> list[dict[str, Any]]:
    """For each benchmark, its redundancy by features and by word n-grams."""
    bundle, (autoencoder,) = load_reader(args.model, args.autoencoder, None, [args.layer])
    rows = []
    for name, texts in benchmarks.items():
        features = read_file_features(bundle, [autoencoder], texts, NGRAM)
        by_latent = redundancy(sample_counts(features.layers[0].last), len(texts))
        _, counts = np.unique(np.concatenate(features.ngrams), return_counts=True)
        by_ngram = redundancy(counts, len(texts))
        rows.append({"name": name, "samples": len(texts), "features": by_latent.share, "value": by_latent.value,
                     "ngrams": by_ngram.share, "ngram_value": by_ngram.value})  # fmt: skip
    return rows


def correlations(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Spearman's correlations over the benchmarks, with 95 % bootstrap intervals over these."""
    columns = {name: np.array([row[name] for row in rows]) for name in ("answers", "features", "value", "ngrams",
                                                                        "ngram_value")}  # fmt: skip
    key = jax.random.key(SEED)

    def over(statistic: Any, *names: str) -> dict[str, float]:
        estimate = bootstrap(lambda at: statistic(*(columns[name][at] for name in names)), len(rows), key)
        return {"mean": estimate.mean, "low": estimate.low, "high": estimate.high}

    return {
        "points": len(rows),
        "features": over(rank_correlation, "features", "answers"),
        "value": over(rank_correlation, "value", "answers"),
        "ngrams": over(rank_correlation, "ngrams", "answers"),
        "features_without_ngrams": over(partial_rank_correlation, "features", "answers", "ngrams"),
        "ngrams_without_features": over(partial_rank_correlation, "ngrams", "answers", "features"),
        "features_and_ngrams": over(rank_correlation, "features", "ngrams"),
    }


if __name__ == "__main__":
    main()
