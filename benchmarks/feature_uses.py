"""What features are good for: the figures of docs/results/feature-uses.md, by the commands that a reader can run.

    python benchmarks/feature_texts.py texts --gsm8k … --wikitext … --packages node_modules
    python benchmarks/feature_uses.py texts bundled --model MODEL --autoencoder runs/sae_pydocs/export --layer 2
    python benchmarks/feature_uses.py texts smollm2 --model runs/attach/export --parts compare mixtures …
    python benchmarks/feature_uses.py texts smollm2_middle --model GGUF --autoencoder SAE --unexplained 0.135 --parts …
    python -m benchmarks.feature_uses_report

A call runs `steerling sae compare` on the benchmarks and on the mixtures, `steerling sae classify` on each table of the
texts, and `steerling steer-eval` from docstrings to code and to sentences that oblige, or those of --parts, with seed
0. Each result is stored at once in docs/results/feature-uses.json, under the name of the model. Without --autoencoder,
features are those of the model's bottleneck, by which nothing can be steered: leave these parts out.

--unexplained is the held-out unexplained variance of the autoencoder, as the evaluation of its training gave it. It is
stored with the figures, so that those of two autoencoders of one layer can be distinguished.

The part `mixing` is steering away from English after Korean prompts that end with English words; it needs a model that
writes Korean, such as Gemma 3 270M (the name `languages`). `spanish` is steering away from Spanish after English
prompts that end with Spanish words, and `problems` from an encyclopedia to problems of school mathematics.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from environment import environment

from steerling_jax.io.atomic import atomic_path
from steerling_jax.io.json_files import read_json_object

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "feature-uses.json"
SIZE = 20  # samples of a subset: half of the 40 of each benchmark
COMPARISONS = ("compare", "mixtures")
TABLES = ("code", "mathematics", "mmlu", "languages", "bad_words")
# Steering: the folder of the texts, and the options.
CASES = {
    "steering": ("--strengths", "1,2,4,8"),
    "problems": ("--strengths", "1,2,4,8"),
    "obligation": ("--strengths", "2,4", "--concept-strengths", "2,4,8", "--max-new-tokens", "24"),
    "mixing": ("--strengths", "1,2,4,8", "--away", "--script", "Latin"),
    "spanish": ("--strengths", "1,2,4,8", "--away"),
}
ALL = (*COMPARISONS, *TABLES, "steering", "obligation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path)
    parser.add_argument("name", choices=("bundled", "smollm2", "smollm2_middle", "languages"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--autoencoder")
    parser.add_argument("--layer", help="of the comparison")
    parser.add_argument("--unexplained", type=float, help="unexplained variance of the autoencoder, to be stored")
    parser.add_argument("--strengths", metavar="X,Y", help="of steering by features, in place of those of the part")
    parser.add_argument("--parts", nargs="+", choices=(*ALL, "mixing", "spanish", "problems"), default=ALL)
    args = parser.parse_args()
    reader = ["--model", args.model, *(["--autoencoder", args.autoencoder] if args.autoencoder else [])]
    for part in args.parts:
        began = time.time()
        if part in COMPARISONS:
            files = sorted(map(str, (args.texts / part).glob("*.jsonl")))
            layer = ["--layer", args.layer] if args.layer else []
            figures = without_samples(steerling("sae", "compare", *files, *reader, *layer, "--size", str(SIZE)))
        elif part in CASES:
            files = [word for name in ("positive", "negative", "prompts")
                     for word in (f"--{name}", str(args.texts / part / f"{name}.jsonl"))]  # fmt: skip
            picture = RESULTS.with_name(f"feature-uses-{args.name}-{part}.svg")
            options = [*CASES[part], "--plot", str(picture)]
            if args.strengths:
                options += ["--strengths", args.strengths]
            figures = without_texts(steerling("steer-eval", *files, *reader, *options))
        else:
            groups = ["--positive", "bad", "--group", "language"] if part == "bad_words" else []
            figures = steerling("sae", "classify", str(args.texts / "classify" / f"{part}.csv"), *reader, *groups)
        if args.unexplained is not None:
            figures["unexplained_variance"] = args.unexplained
        figures |= {"environment": environment(), "seconds": round(time.time() - began)}
        stored = read_json_object(RESULTS) if RESULTS.is_file() else {}
        write_lines(stored | {args.name: stored.get(args.name, {}) | {part: figures}})


def write_lines(results: dict[str, Any]) -> None:
    """Writes the results with a line for each part of a model."""
    models = []
    for name, parts in results.items():
        lines = ",\n".join(f"  {json.dumps(part)}: {json.dumps(figures)}" for part, figures in parts.items())
        models.append(f" {json.dumps(name)}: {{\n{lines}\n }}")
    with atomic_path(RESULTS) as path:
        path.write_text("{\n" + ",\n".join(models) + "\n}\n", encoding="utf-8")


def steerling(*words: str) -> dict[str, Any]:
    """The JSON that a command prints."""
    line = [sys.executable, "-m", "steerling_jax.cli.main", *words, "--seed", "0", "--json"]
    return rounded(json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout))


def without_samples(report: dict[str, Any]) -> dict[str, Any]:
    """The report with counts in place of the lists of samples."""
    for one in report["benchmarks"]:
        one["adds_nothing"], one["cover"] = len(one["adds_nothing"]), len(one["cover"])
    return report


def without_texts(report: dict[str, Any]) -> dict[str, Any]:
    """The report with the number of texts in place of the texts."""
    for arm in (*report["tuning"], *report["arms"]):
        arm["texts"] = len(arm["texts"])
    return report


def rounded(value: Any) -> Any:
    """Numbers with four decimals, which is more than so few samples support."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items() if name != "values"}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
