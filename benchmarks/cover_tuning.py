"""Tuning on texts that cover missing features, beside tuning on as many others: docs/results/feature-uses.md.

    python benchmarks/cover_tuning.py runs/cover smollm2 --tune MODEL --model runs/attach/export

The folder is that of `feature_cover.py`: `run` has the examples of `steerling sae cover`, `pool.jsonl` natural texts.
An autoregressive model (--tune) is tuned with LoRA adapters on each of

- the kept examples;
- as many texts that the same generator wrote for random other features;
- as many random texts of the pool,

for the same number of steps, with several seeds of the draws and of the adapters. Measured is the next-token loss on
the texts of the pool that no arm was tuned on, apart for those in which a missed target fires and for the others: nats
a token less than before the tuning, means over seeds and texts, with a 95 % bootstrap interval over the texts.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from environment import environment
from feature_uses import RESULTS, rounded, write_lines

import steerling_jax as sj
from steerling_jax.attribution.sae.options import load_model_and_autoencoder
from steerling_jax.bundle import Bundle
from steerling_jax.evaluation.intervals import bootstrap_mean
from steerling_jax.explain.text_features import read_text_features
from steerling_jax.io.json_files import read_json_object
from steerling_jax.io.text_tables import read_text_table
from steerling_jax.models.lora import LoraConfig
from steerling_jax.objectives.next_token import NextTokenObjective
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.objectives.training_step import Recipe, init_state, model_params, update

LENGTH, ROWS = 96, 4  # tokens of a text, texts of a batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("name", choices=("bundled", "smollm2"))
    parser.add_argument("--tune", required=True, metavar="MODEL", help="the model that is tuned")
    parser.add_argument("--model", required=True, help="the model whose features are read")
    parser.add_argument("--autoencoder")
    parser.add_argument("--layer", type=int)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    began = time.time()
    sets, pool, fires = read(args)
    count = min(len(texts) for texts in sets.values())
    drawn = [np.random.default_rng(seed).permutation(len(pool))[:count] for seed in range(args.seeds)]
    held_out = np.setdiff1d(np.arange(len(pool)), np.concatenate(drawn))
    bundle = sj.load(args.tune, dtype="float32")
    rows = encoded(bundle, [pool[i] for i in held_out])
    recipe = Recipe(bundle.config, args.steps, objective=NextTokenObjective(masked=0.0),
                    optimizer=OptimizerConfig(peak_rate=args.rate, warmup_steps=1), lora=LoraConfig())  # fmt: skip
    before = losses(bundle, bundle.params, rows)
    gains: dict[str, list[np.ndarray]] = {}
    for seed in range(args.seeds):
        rng = np.random.default_rng([seed, 1])
        for name, texts in (*sets.items(), ("random texts of the pool", [pool[i] for i in drawn[seed]])):
            chosen = texts if len(texts) == count else [texts[i] for i in rng.permutation(len(texts))[:count]]
            params = tuned(bundle, recipe, encoded(bundle, chosen), seed)
            gains.setdefault(name, []).append(before - losses(bundle, params, rows))
            print(f"seed {seed}, {name}: {gains[name][-1].mean():+.4f}", flush=True)
    having = fires[held_out]
    figures = {
        "settings": {"tune": bundle.name, "steps": args.steps, "rate": args.rate, "seeds": args.seeds,
                     "rows": ROWS, "length": LENGTH},
        "held_out": {"with_targets": int(having.sum()), "without_targets": int((~having).sum())},
        "before": {"with_targets": float(before[having].mean()), "without_targets": float(before[~having].mean())},
        "arms": {name: {"texts": count, **gain(values, having)} for name, values in gains.items()},
        "environment": environment(),
        "seconds": round(time.time() - began),
    }  # fmt: skip
    stored = read_json_object(RESULTS)
    write_lines(stored | {args.name: stored[args.name] | {"tuning": rounded(figures)}})


def read(args: argparse.Namespace) -> tuple[dict[str, list[str]], list[str], np.ndarray]:
    """The generator's two sets of texts, the pool, and in which of its texts (N,) a missed target fires."""
    calls = [json.loads(line) for line in (args.folder / "run" / "calls.jsonl").read_text("utf-8").splitlines()]
    valid = ("kept", "silent")
    sets = {
        "kept examples": [one["text"] for one in calls if one["arm"] == "targets" and one["outcome"] == "kept"],
        "texts for other features": [
            one["text"] for one in calls if one["arm"] == "other features" and one["outcome"] in valid
        ],
    }
    pool = read_text_table(args.folder / "pool.jsonl").texts
    reading = argparse.Namespace(model=args.model, autoencoder=args.autoencoder, k=None, layer=args.layer)
    bundle, autoencoder = load_model_and_autoencoder(reading)
    missing = [feature for feature, _ in read_json_object(args.folder / "run" / "run.json")["missing_targets"]]
    (found,) = read_text_features(bundle, [autoencoder], pool)
    return sets, pool, (found.strongest[:, missing].toarray() > 0).any(axis=1)


def encoded(bundle: Bundle, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """tokens (N, T), and in `answer` −1 where a row is padded, so that nothing has to predict the padding."""
    ids = [[*bundle.tokenizer.prefix, *bundle.tokenizer.encode(text)][:LENGTH] for text in texts]
    tokens, answer = np.zeros((len(ids), LENGTH), np.int32), np.full((len(ids), LENGTH), -1, np.int32)
    for row, one in enumerate(ids):
        tokens[row, : len(one)] = answer[row, : len(one)] = one
    return {"tokens": tokens, "answer": answer}


def tuned(bundle: Bundle, recipe: Recipe, rows: Mapping[str, np.ndarray], seed: int) -> Any:
    """The parameters after the steps on random batches of the rows."""
    key, rng = jax.random.key(seed), np.random.default_rng([seed, 2])
    state, base = init_state(recipe, key), bundle.params
    for _ in range(recipe.steps):
        chosen = rng.choice(len(rows["tokens"]), ROWS)
        state, _ = _step(
            state, {name: jnp.asarray(values[chosen]) for name, values in rows.items()}, key, base=base, recipe=recipe
        )
    return model_params(recipe, state.params, base)


_step = jax.jit(update, static_argnames="recipe")


def losses(bundle: Bundle, params: Any, rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """The mean next-token loss of each row, (N,) nats a token."""
    found = []
    for tokens, answer in zip(rows["tokens"], rows["answer"], strict=True):
        found.append(
            float(_loss(params, jnp.asarray(tokens[None]), jnp.asarray(answer[None]), backbone=bundle.backbone))
        )
    return np.array(found)


@partial(jax.jit, static_argnames="backbone")
def _loss(params: Any, tokens: jax.Array, answer: jax.Array, *, backbone: Any) -> jax.Array:
    hidden = backbone.run(params, backbone.embed(params, tokens)).hidden
    chances = jax.nn.log_softmax(backbone.logits(params, hidden).astype(jnp.float32), axis=-1)
    own = jnp.take_along_axis(chances[:, :-1], tokens[:, 1:, None], axis=-1)[..., 0]
    counted = answer[:, 1:] >= 0
    return -jnp.sum(own * counted) / jnp.sum(counted)


def gain(values: Sequence[np.ndarray], having: np.ndarray) -> dict[str, Any]:
    """The mean over seeds of what tuning gained on each text, for texts with a target and for the others."""
    mean, key = np.mean(values, axis=0), jax.random.key(0)
    parts = {"with_targets": mean[having], "without_targets": mean[~having]}
    return {name: estimate._asdict() for name, part in parts.items() if (estimate := bootstrap_mean([part], key))}


if __name__ == "__main__":
    main()
