r"""Features that a data set misses, covered by a generator: figures of docs/results/feature-uses.md.

    python benchmarks/feature_texts.py texts --gsm8k … --wikitext … --packages node_modules
    steerling serve --model SmolLM2-135M-Instruct.Q4_1.gguf --port 8000 --rows 1 --warm-up 0
    python benchmarks/feature_cover.py texts smollm2 --model runs/attach/export --out runs/cover
    steerling serve --model steerling-pydocs --port 8001 --rows 1 --warm-up 0
    python benchmarks/feature_cover.py texts bundled --model steerling-pydocs --autoencoder runs/sae_pydocs/export \
        --layer 2 --only code docstrings --each 40 --server http://127.0.0.1:8001 --continue --out runs/cover_bundled
    python -m benchmarks.feature_uses_report

The data set has 40 paragraphs of WikiText-2. The other benchmarks' texts are cut in two halves at random: passages,
from which features are chosen, named and shown, and the pool, from which natural texts are drawn. Targets are random
ones of the features that fire in at least two passages and in no text of the data set. `steerling sae cover` then asks
the server for them, with the controls, and the result is stored under the name of the model. It continues where it
stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from environment import environment
from feature_uses import RESULTS, steerling, write_lines

import steerling_jax as sj
from steerling_jax.attribution.sae.options import load_model_and_autoencoder
from steerling_jax.evaluation.sparse_tables import sample_counts
from steerling_jax.explain.text_features import read_text_features
from steerling_jax.io.json_files import read_json_object
from steerling_jax.io.text_tables import read_text_table

DATA, LEAST = "wikitext", 2  # the data set, and passages in which a target fires


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path)
    parser.add_argument("name", choices=("bundled", "smollm2"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--autoencoder")
    parser.add_argument("--layer", type=int)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--server", default="http://127.0.0.1:8000")
    parser.add_argument("--targets", type=int, default=12)
    parser.add_argument("--budget", type=int, default=24)
    parser.add_argument("--each", type=int, default=20, help="texts of each benchmark")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="benchmarks for passages and pool (default: all)")
    parser.add_argument("--continue", action="store_true", dest="continuation",
                        help="the server's model has no chat template and continues the prompt")  # fmt: skip
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    began = time.time()
    files = halves(args)
    features = choose(args, files)
    reader = ["--model", args.model, *(["--autoencoder", args.autoencoder] if args.autoencoder else []),
              *(["--layer", str(args.layer)] if args.layer is not None else [])]  # fmt: skip
    ask = f"{sys.executable} {Path(__file__).with_name('ask_server.py')} {args.server} --seed {{call}}"
    ask += " --continue" * args.continuation
    figures = steerling(
        "sae", "cover", str(args.texts / "compare" / f"{DATA}.jsonl"), *reader,
        *(word for one in features for word in ("--feature", str(one))),
        "--passages", str(files[0]), "--pool", str(files[1]), "--controls", "--budget", str(args.budget),
        "--generator", ask, "--time-limit", "600", "--out", str(args.out / "run"),
    )  # fmt: skip
    del figures["settings"]["file"]  # a path of this machine
    figures |= {"environment": environment(), "seconds": round(time.time() - began)}
    stored = read_json_object(RESULTS)
    write_lines(stored | {args.name: stored[args.name] | {"cover": figures}})


def halves(args: argparse.Namespace) -> tuple[Path, Path]:
    """Files of passages and of the pool: random halves of some texts of all benchmarks but the data set's."""
    files = [file for file in sorted((args.texts / "compare").glob("*.jsonl")) if file.stem != DATA]
    chosen = [file for file in files if not args.only or file.stem in args.only]
    rows = [text for file in chosen for text in read_text_table(file).texts[: args.each]]
    order = np.random.default_rng(0).permutation(len(rows))
    paths = args.out / "passages.jsonl", args.out / "pool.jsonl"
    for path, numbers in zip(paths, np.array_split(order, 2), strict=True):
        path.write_text("".join(json.dumps({"text": rows[i]}) + "\n" for i in numbers), encoding="utf-8")
    return paths


def choose(args: argparse.Namespace, files: tuple[Path, Path]) -> list[int]:
    """The targets, by seed 0; stored, so that a run that continues has the same."""
    path = args.out / "targets.json"
    if path.is_file():
        return read_json_object(path)["features"]
    reading = argparse.Namespace(model=args.model, autoencoder=args.autoencoder, k=None, layer=args.layer)
    bundle, autoencoder = load_model_and_autoencoder(reading)
    counts = []
    for file in (files[0], args.texts / "compare" / f"{DATA}.jsonl"):
        texts = read_text_table(file).texts
        (read,) = read_text_features(bundle, [autoencoder], texts)
        counts.append(sample_counts(read.strongest))
    candidates = np.flatnonzero((counts[0] >= LEAST) & (counts[1] == 0))
    if len(candidates) < args.targets:
        raise sj.UserError(f"Only {len(candidates)} features fire in the passages alone; give a smaller --targets.")
    features = sorted(np.random.default_rng(0).choice(candidates, args.targets, replace=False).tolist())
    path.write_text(json.dumps({"features": features, "candidates": len(candidates)}), encoding="utf-8")
    return features


if __name__ == "__main__":
    main()
