"""Training and encoding of TopK autoencoders beside EleutherAI's sparsify, on a CPU.

    make smollm2
    python benchmarks/autoencoders.py --reference-python PATH/TO/python [--out FILE]

PATH is a Python with `eai-sparsify`, its dependencies and torch. Both packages take turns step by step on the same
cores, each in a process of its own, so that they meet the same machine. Reported ratios are sparsify's time over ours,
of wall time and of processor time (all threads), the median over the steps with the quartiles.

- Training: outputs of the middle layer of SmolLM2 on the documentation of this Python (rows of extreme norm left out,
  as `steerling train` does), 9,216 latents, k 50, 4,096 rows a step, Adam with the same rates, 32 steps from one start.
  In a second arm a tenth of the latents is dead, so that AuxK runs. The unexplained variances of both are compared at
  every step, and on rows that neither saw.
- Encoding: 1,024 rows of width 2,048, 32,768 latents, k 50, beside sparsify's encoder and the bare product x · W_enc.
- Memory: the temporaries of the compiled encoding of 1,024 rows with 131,072 latents. Nothing is run for it.

Reference machine: two virtual CPU cores; results in docs/results/autoencoders.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from environment import environment
from reference_process import ReferenceProcess

import steerling_jax as sj
from steerling_jax.autoencoders.encoding import encode_rows
from steerling_jax.autoencoders.metrics import reconstruction
from steerling_jax.autoencoders.training_step import AutoencoderRecipe, init_state, learning_rate, update
from steerling_jax.autoencoders.weights import Settings, Weights
from steerling_jax.configs import sae_smollm2
from steerling_jax.io.atomic import atomic_path
from steerling_jax.train.autoencoders.activations import Activations
from steerling_jax.train.autoencoders.text_tokens import open_tokens

STEPS, ROWS, LATENTS, K = 32, 4096, 9216, 50
WARM_UP = 2  # steps that are not timed
DEAD_SHARE = 0.1
DEAD_ENCODER = 0.01  # the factor of a dead latent's encoder: too small for the k largest, large enough for AuxK
ENCODED = {"width": 2048, "latents": 32_768, "rows": 1024, "k": K}
WIDEST = 131_072
CLOCKS = ("seconds", "cpu_seconds")

Times = list[dict[str, float]]


def captured_rows(folder: Path) -> np.ndarray:
    """(STEPS / 2 + 1, ROWS, 576) float32: rows of the middle layer, each at most 6 times as long as the median one."""
    run = sae_smollm2.config()
    batches = STEPS // 2 + 1
    # A few rows more, for those that are left out.
    run = dataclasses.replace(run, visits=1, buffer_rows=(batches + 1) * ROWS, max_tokens=None, held_out=run.seq_len)
    run = dataclasses.replace(run, max_tokens=run.buffer_rows + run.held_out)
    bundle = sj.load(run.model, dtype="float32")
    tokens, _ = open_tokens(run, bundle, folder, encoded=False)
    activations = Activations(run, bundle, tokens)
    rows = np.concatenate([activations.batch(step)[run.layers[0]] for step in range(batches + 1)])
    norms = np.linalg.norm(rows, axis=1)
    return rows[norms <= 6 * np.median(norms)][: batches * ROWS].reshape(batches, ROWS, -1)


def timed(run: Callable[..., Any], *arguments: Any) -> tuple[dict[str, float], Any]:
    """Seconds, and processor seconds of all threads, that a call takes; and its result."""
    begun, processor = time.perf_counter(), time.process_time()
    result = jax.block_until_ready(run(*arguments))
    return {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - processor}, result


def ratios(slower: Times, faster: Times) -> dict[str, Any]:
    """The median and the quartiles of the ratios of two sides that took turns."""
    report = {}
    for clock in CLOCKS:
        values = [a[clock] / b[clock] for a, b in zip(slower, faster, strict=True)]
        report[clock] = {"median": statistics.median(values), "quartiles": statistics.quantiles(values, n=4)[::2]}
    return report


def medians(times: Times) -> dict[str, float]:
    return {clock: statistics.median(one[clock] for one in times) for clock in CLOCKS}


def training(reference: ReferenceProcess, rows: np.ndarray, dead_share: float, folder: Path) -> dict[str, Any]:
    """Times of both sides, and their unexplained variances. rows: the last batch is for the comparison at the end."""
    recipe = AutoencoderRecipe(n_latents=LATENTS, k=K, steps=STEPS, batch_rows=ROWS, learning_rate=1e-3)
    batches = np.concatenate([rows[:-1], rows[:-1]])[:STEPS]
    state = jax.jit(partial(init_state, recipe))(jnp.asarray(rows[0]), jax.random.key(0))
    dead = jnp.arange(LATENTS) < round(dead_share * LATENTS)
    encoder = jnp.where(dead[:, None], DEAD_ENCODER, 1.0) * state.trained.encoder
    state = dataclasses.replace(
        state,
        trained=dataclasses.replace(state.trained, encoder=encoder),
        silent=jnp.where(dead, recipe.dead_after, 0).astype(jnp.int32),
    )
    start = {field.name: getattr(state.trained, field.name) for field in dataclasses.fields(state.trained)}
    arrays = {name: np.asarray(a) for name, a in start.items()} | {"silent": np.asarray(state.silent, np.int64)}
    np.savez(folder / "start.npz", allow_pickle=False, rows=batches, **arrays)
    reference(
        start=str(folder / "start.npz"),
        k=K,
        rates=np.asarray(learning_rate(recipe)(np.arange(STEPS))).tolist(),
        aux_weight=recipe.aux_weight,
        dead_after=recipe.dead_after,
    )
    step = jax.jit(partial(update, recipe=recipe), donate_argnums=0).lower(state, jnp.asarray(rows[0])).compile()
    ours, theirs, apart = [], [], []
    metrics: dict[str, jax.Array] = {}
    for number in range(STEPS):
        theirs.append(reference(step=number))
        times, (state, metrics) = timed(step, state, jnp.asarray(batches[number]))
        ours.append(times)
        apart.append(float(metrics["unexplained"]) / theirs[-1]["unexplained"] - 1)
    np.save(folder / "unseen.npy", rows[-1])
    unseen = reference(variance_of=str(folder / "unseen.npy"))["unexplained"]
    own = reconstruction(sj.Autoencoder(state.trained.weights(K)), rows[-1]).unexplained
    ours, theirs = ours[WARM_UP:], theirs[WARM_UP:]
    return {
        "dead_share": dead_share,
        "still_dead": float(metrics["dead"]),
        "ours": medians(ours) | {"tokens_per_second": ROWS / medians(ours)["seconds"]},
        "sparsify": medians(theirs) | {"tokens_per_second": ROWS / medians(theirs)["seconds"]},
        "ratio": ratios(theirs, ours),
        "unexplained": {"ours": own, "sparsify": unseen, "largest_difference_of_a_step": max(map(abs, apart))},
    }


def encoding(reference: ReferenceProcess, rounds: int) -> dict[str, Any]:
    """Times of encoding, of sparsify's encoding, and of the bare product."""
    D, S = ENCODED["width"], ENCODED["latents"]
    keys = jax.random.split(jax.random.key(0), 2)
    x, W = jax.random.normal(keys[0], (ENCODED["rows"], D)), jax.random.normal(keys[1], (D, S)) * D**-0.5
    settings = Settings("topk", K, subtract_b_dec=True)
    weights = Weights(W, jnp.zeros((S, D)), jnp.zeros(S), jnp.zeros(D), settings=settings)
    product = jax.jit(partial(jnp.dot, precision=jax.lax.Precision.HIGHEST))
    sides: dict[str, Callable[[], dict[str, float]]] = {
        "ours": lambda: timed(encode_rows, weights, x, K)[0],
        "product": lambda: timed(product, x, W)[0],
        "sparsify": lambda: reference(encode=ENCODED),
    }
    times: dict[str, Times] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            one = side()
            if number:  # the first round compiles
                times[name].append(one)
    return {name: medians(of_side) for name, of_side in times.items()} | {
        "ratio_to_sparsify": ratios(times["sparsify"], times["ours"]),
        "share_of_product": ratios(times["product"], times["ours"]),
    }


def temporaries(latents: int) -> float:
    """Megabytes of temporaries of encoding 1,024 rows of width 2,048, as compiled."""

    def shape(*sizes: int) -> Any:
        return jax.ShapeDtypeStruct(sizes, jnp.float32)

    D = ENCODED["width"]
    settings = Settings("topk", K, subtract_b_dec=True)
    weights = Weights(shape(D, latents), shape(latents, D), shape(latents), shape(D), settings=settings)
    analysis = encode_rows.lower(weights, shape(ENCODED["rows"], D), K).compile().memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes / 1e6


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference-python", metavar="PATH", required=True, help="a Python with eai-sparsify")
    parser.add_argument("--rounds", type=int, default=9, help="of encoding (default %(default)s)")
    parser.add_argument("--rows", type=Path, metavar="FILE.npy", help="the captured rows; written if it is not there")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the report to this file")
    args = parser.parse_args(arguments)
    report: dict[str, Any] = environment()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = args.rows or folder / "rows.npy"
        if not path.is_file():
            np.save(path, captured_rows(folder))
        rows = np.load(path)
        report["temporaries_MB"] = {str(S): temporaries(S) for S in (ENCODED["latents"], WIDEST)}
        with ReferenceProcess(args.reference_python, "autoencoders_reference.py") as reference:
            report["reference"] = reference(about=True)
            for key, dead in (("training", 0.0), ("training_tenth_dead", DEAD_SHARE)):
                report[key] = training(reference, rows, dead, folder)
                print(key, json.dumps(report[key]), file=sys.stderr)
            report["encoding"] = encoding(reference, args.rounds)
    report["load_after"] = environment()["load"]
    text = json.dumps(report, indent=1)
    if args.out is not None:
        with atomic_path(args.out) as scratch:
            scratch.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
