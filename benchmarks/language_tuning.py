"""Tuning against changes of language, beside its controls; writes docs/results/feature-tuning.json.

    python benchmarks/language_texts.py OUT/texts --packages packages
    steerling prepare --out OUT/corpus --input OUT/texts/pages --vocab-size 6144 --heldout-share 0.02 --concepts
    steerling train --config benchmarks/language_model.py --corpus OUT/corpus --out OUT/model
    steerling train --config benchmarks/language_autoencoders.py --start-from OUT/model/export --text OUT/texts/pages \
      --out OUT/sae
    steerling sae languages OUT/texts/parallel.csv --model OUT/model/export --autoencoder OUT/sae/export \
      --save OUT/languages.json
    python benchmarks/language_tuning.py OUT
    python -m benchmarks.language_tuning_report

Tunes all parameters of the model on the same conversations with each penalty of `LanguageObjective` and each seed, as
`steerling train --config language_tuning` does, in one process, so that a penalty is compiled once. Each tuned model,
and the model before tuning, continues the same held-out prompts by sampling at temperature 1. Each result is stored at
once, and a stopped call goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from environment import environment

import steerling_jax as sj
from steerling_jax.evaluation.exact_likelihood import exact_scores
from steerling_jax.evaluation.scripts import switching
from steerling_jax.io.atomic import atomic_path
from steerling_jax.io.json_files import read_json_object
from steerling_jax.io.language_features_file import read_language_features
from steerling_jax.io.text_files import read_text
from steerling_jax.objectives.language_tuning import LanguageObjective
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.objectives.training_step import Recipe, init_state, update
from steerling_jax.train.data.conversations import Conversations
from steerling_jax.train.data.pipeline import shuffled_batches

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "feature-tuning.json"
TEMPLATE = "{% for m in messages %}{{ m.content }}{{ '\\n' if m.role == 'user' else eos_token }}{% endfor %}"
STEPS, BATCH, LENGTH, RATE = 40, 8, 80, 1e-3
PROMPTS, WRITTEN = 32, 32  # prompts of a language, and tokens of a continuation
TOGETHER = 32  # texts that are written together
# Name of the arm: penalty and weight. The paper's weight is 1e-3.
ARMS: dict[str, tuple[Any, float]] = {
    "plain": ("none", 0.0),
    "features 1": ("features", 1.0),
    "random features 1": ("random_features", 1.0),
    "script tokens 1": ("script_tokens", 1.0),
    "features 0.001": ("features", 1e-3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    args = parser.parse_args()
    bundle = sj.load(chat_folder(args.out), dtype="float32")
    features = read_language_features(args.out / "languages.json")
    talks = [json.loads(line) for line in read_text(args.out / "texts" / "held-out.jsonl").splitlines()]
    stored = read_json_object(RESULTS) if RESULTS.is_file() else {"runs": []}
    stored |= {"settings": settings(args.out, features), "environment": environment()}
    done = {(run["arm"], run["seed"]) for run in stored["runs"]}

    def store(run: dict[str, Any]) -> None:
        stored["runs"].append(run)
        write(stored)

    if ("before", 0) not in done:
        store({"arm": "before", "seed": 0} | figures(bundle, bundle.params, features, talks, seed=0))
    examples = Conversations(
        args.out / "texts" / "conversations.jsonl",
        bundle.tokenizer,  # type: ignore[arg-type]
        seq_len=LENGTH,
        block=1,
        languages=features.languages,
    )
    steps: dict[str, Any] = {}
    for seed in range(args.seeds):
        for arm in args.arms:
            if (arm, seed) in done:
                continue
            began = time.process_time()
            penalty, weight = ARMS[arm]
            objective = LanguageObjective(features=features, penalty=penalty, weight=weight)
            recipe = Recipe(bundle.config, STEPS, compute=bundle.compute, objective=objective,
                            optimizer=OptimizerConfig(peak_rate=RATE, warmup_steps=5))  # fmt: skip
            step = steps.setdefault(arm, jax.jit(partial(update, recipe=recipe)))
            params, lines = tune(bundle.params, recipe, step, examples, seed)
            run = {"arm": arm, "seed": seed, "penalty": penalty, "weight": weight, "first": lines[0], "last": lines[-1]}
            run |= figures(bundle, params, features, talks, seed=seed)
            store(run | {"processor_seconds": round(time.process_time() - began)})


def settings(out: Path, features: Any) -> dict[str, Any]:
    """What the runs share, and the features."""
    names = features.languages
    rows = [
        [kind, names[one.language], one.layer, one.feature, round(one.monolinguality, 4),
         *(round(float(mean), 3) for mean in one.means)]
        for kind in ("monolingual", "random") for one in getattr(features, kind)
    ]  # fmt: skip
    evaluation = read_json_object(out / "model" / "result.json") if (out / "model" / "result.json").is_file() else {}
    return {"steps": STEPS, "batch": BATCH, "length": LENGTH, "rate": RATE, "prompts": PROMPTS, "written": WRITTEN,
            "languages": list(names), "features": rows, "model": evaluation}  # fmt: skip


def chat_folder(out: Path) -> Path:
    """A copy of the trained model with a chat template: a line for the user, and the answer up to the end token."""
    folder = out / "chat"
    if not folder.is_dir():
        with atomic_path(folder) as scratch:
            # Without the SentencePiece file, so that the vocabulary is read from tokenizer.json, with its template.
            shutil.copytree(out / "model" / "export", scratch, ignore=shutil.ignore_patterns("tokenizer.model"))
            (scratch / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def tune(params: Any, recipe: Recipe, step: Any, examples: Conversations, seed: int) -> tuple[Any, list[Any]]:
    """(tuned parameters, metrics of every step)."""
    state = init_state(recipe, jax.random.key(seed)).replace(params=params)  # type: ignore[attr-defined]
    batches: Iterator[Any] = iter(shuffled_batches(examples, batch_size=BATCH, seed=seed))
    lines = []
    for _ in range(recipe.steps):
        state, metrics = step(state, next(batches), jax.random.key(seed))
        lines.append({name: round(float(metrics[name]), 4) for name in ("loss", "next", "penalty")})
    return state.params, lines


def figures(bundle: sj.Bundle, params: Any, features: Any, talks: list[Any], *, seed: int) -> dict[str, Any]:
    """For each language: which texts switched, the share of letters in other scripts, bits a byte of the answers."""
    tuned = sj.Bundle(bundle.config, params, bundle.tokenizer, compute=bundle.compute)
    tokenizer: Any = bundle.tokenizer
    result: dict[str, Any] = {"switched": {}, "other": {}, "bits_per_byte": {}, "examples": {}}
    config = sj.GenerationConfig(max_new_tokens=WRITTEN, temperature=1.0)
    for number, language in enumerate(features.languages):
        own = [talk["messages"] for talk in talks if talk["language"] == language]
        prompts = tokenizer.chat_prompts([messages[:1] for messages in own])
        room = bundle.config.context_length - WRITTEN
        asked = [prompt[-room:] for prompt in prompts[:PROMPTS]]
        seeds = [1000 * seed + i for i in range(len(asked))]
        made = sj.generate_many(tuned, asked, config, seeds=seeds, rows=TOGETHER, record_hidden=False)
        texts = [tokenizer.decode(one.tokens[len(prompt) :]) for one, prompt in zip(made, asked, strict=True)]
        kept = switching(texts, [features.scripts[number]] * len(texts))
        result["switched"][language] = "".join("01"[switched] for switched in kept.switched)
        result["other"][language] = round(float(np.mean(kept.other)), 4)
        result["examples"][language] = texts[:2]
        answers = [messages[1]["content"] for messages in own]
        pairs = [(prompt, tokenizer.answer(text)) for prompt, text in zip(prompts, answers, strict=True)]
        nats = -sum(score.log_likelihood for score in exact_scores(tuned, pairs, batch_size=16))
        bytes_ = sum(len(text.encode()) for text in answers)
        result["bits_per_byte"][language] = round(float(nats / np.log(2) / bytes_), 4)
    return result


def write(stored: dict[str, Any]) -> None:
    """Writes the results with a line for each run."""
    lines = ",\n".join(f"  {json.dumps(run, ensure_ascii=False)}" for run in stored["runs"])
    rest = {name: value for name, value in stored.items() if name != "runs"}
    head = json.dumps(rest, ensure_ascii=False)[:-1]
    with atomic_path(RESULTS) as path:
        path.write_text(f'{head},\n "runs": [\n{lines}\n ]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
