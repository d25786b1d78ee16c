"""The training-data index: build speed, size per chunk, and the latency of a query at 10⁵ and 10⁶ chunks.

    python benchmarks/index.py CORPUS [--chunks 2000] [--sizes 100000 1000000]

CORPUS is a corpus store with the bundled model's vocabulary. Building is measured on its first chunks. Queries run on
synthetic vectors (D 512, 64 entries per signature, units of 46,000 chunks) and, for verbatim matches, on copies of one
unit of real text (2 M tokens). Latencies are medians in milliseconds after a warm-up, one query at a time; influence is
the time to rank 20 candidates, with gradients computed for the query and with stored ones.

Reference machine: two idle cores of an Intel Xeon; results in docs/results/training-data.md. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

import steerling_jax as sj
from steerling_jax.attribution.index.build_unit import build_unit, passage_of, unit_gradients
from steerling_jax.attribution.index.influence import influence
from steerling_jax.attribution.index.retrieval import best_rows, best_signatures, shard_block, shard_rows
from steerling_jax.attribution.index.settings import QUERY_MASKING, IndexSettings
from steerling_jax.attribution.index.signatures import ENTRIES
from steerling_jax.attribution.index.suffixes import longest_matches, suffix_array
from steerling_jax.io.corpus.store import CorpusStore

WIDTH, UNIT, ROUNDS, QUERY = 512, 46_000, 7, 64
UNIT_TOKENS = IndexSettings().unit_tokens


def median_ms(query: Callable[[], Any]) -> float:
    """Median milliseconds of a call, after one that is not counted."""
    query()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        query()
        times.append(1000 * (time.perf_counter() - start))
    return round(statistics.median(times), 1)


def building(corpus: CorpusStore, bundle: sj.Bundle, chunks: int) -> dict[str, Any]:
    """Chunks per second and bytes per chunk of building a unit of the first documents, compiled programs warm."""
    spans = corpus.read("chunk_documents", 0, chunks)
    documents, settings = range(int(spans[-1])), IndexSettings()

    def make() -> dict[str, np.ndarray]:
        return build_unit(corpus, documents, bundle, settings, lambda stage, done, total: None)

    make()
    start = time.perf_counter()
    arrays = make()
    seconds, count = time.perf_counter() - start, len(arrays["chunk_starts"])
    sizes = {name: round(array.nbytes / count, 1) for name, array in arrays.items()}
    return {"chunks": count, "chunks_a_second": round(count / seconds, 1), "bytes_a_chunk": sizes,
            "bytes_a_chunk_in_all": round(sum(sizes.values()))}  # fmt: skip


def questions(size: int, text: np.ndarray, suffixes: np.ndarray, n_concepts: int) -> dict[str, float]:
    """Milliseconds of one query over `size` chunks, by score; `text` and `suffixes` are those of one unit."""
    draw, units = np.random.default_rng(0), -(-size // UNIT)
    rows = [shard_rows(draw.standard_normal((UNIT, WIDTH), np.float32)) for _ in range(units)]
    query = draw.standard_normal(WIDTH).astype(np.float32)
    latencies = {"representation_ms": median_ms(partial(best_rows, rows, query, 20))}
    rows.clear()
    narrow = np.uint16 if n_concepts < 1 << 16 else np.uint32
    signatures = [
        shard_block([draw.integers(0, n_concepts, (UNIT, ENTRIES)).astype(narrow),
               draw.integers(0, 256, (UNIT, ENTRIES)).astype(np.uint8)])
        for _ in range(units)
    ]  # fmt: skip
    weights = draw.random(n_concepts + 1).astype(np.float32)
    latencies["signature_ms"] = median_ms(partial(best_signatures, signatures, weights, 20))
    signatures.clear()
    texts = [(text.copy(), suffixes.copy()) for _ in range(units)]
    request = np.concatenate([text[1000 : 1000 + QUERY // 2], text[9000 : 9000 + QUERY // 2]])
    latencies["verbatim_ms"] = median_ms(lambda: [longest_matches(*unit, request) for unit in texts])
    return latencies


def gradients(corpus: CorpusStore, bundle: sj.Bundle) -> dict[str, float]:
    """Milliseconds to rank 20 candidates by influence: with gradients computed for the query, and with stored ones of
    side 16."""
    passages = []
    for number in range(100, 121):
        chunk = corpus.chunk(number)
        document = corpus.documents[chunk.document]
        tokens = corpus.tokens(document.start, chunk.end).astype(np.int32)
        passages.append(passage_of(tokens, chunk.start - document.start, len(tokens), 64))

    def query(settings: IndexSettings) -> np.ndarray:
        return unit_gradients(bundle, passages[:1], settings, QUERY_MASKING)

    def chunks(settings: IndexSettings) -> np.ndarray:
        return unit_gradients(bundle, passages[1:], settings, settings.gradient_masking)

    default, storing = IndexSettings(), IndexSettings(gradient_side=16)
    stored = chunks(storing)
    return {
        "influence_computed_ms": median_ms(lambda: influence(query(default), chunks(default))),
        "influence_kept_ms": median_ms(lambda: influence(query(storing), stored)),
        "features_kept": stored.shape[1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("--chunks", type=int, default=2000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--concepts", type=int, default=904, help="134928: the published model's")
    parser.add_argument("--matmul-dtype", default="bfloat16")
    args = parser.parse_args()
    corpus, bundle = CorpusStore(args.corpus), sj.load(matmul_dtype=args.matmul_dtype)
    built = building(corpus, bundle, args.chunks)
    report: dict[str, Any] = {"devices": [str(d) for d in jax.devices()], "build": built}
    report["influence"] = gradients(corpus, bundle)
    text = corpus.tokens(0, UNIT_TOKENS).astype(np.int32)
    suffixes = suffix_array(text)
    report["questions"] = {str(size): questions(size, text, suffixes, args.concepts) for size in args.sizes}
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
