"""The JAX side of the comparison in `training.py`: exports weights, batch and noise, runs the PyTorch reference, and
checks that losses and gradients agree.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.io.weights.published_layout import expected_tensors
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.objectives.optimizer import decay_mask, learning_rate
from steerling_jax.objectives.pretraining import loss_fn
from steerling_jax.objectives.training_step import TrainState
from steerling_jax.train.run.run_config import RunConfig
from steerling_jax.train.run.step import init_state, train_step

Batch = dict[str, jax.Array]
FIRST = 250  # step of the run: the presence loss has half of its gradient to the backbone there, so that is compared
STEPS = 4
DRAWN = (
    "noisy",
    "levels",
    "masked",
    "drop_epsilon",
    "drop_known",
    "drop_discovered",
    "use_labels",
    "use_residual",
    "progress",
)
GRADIENTS_WITHIN, LOSSES_WITHIN = 1e-4, 1e-3  # losses after `STEPS` updates, which amplify differences


def export(run: RunConfig, batch: Batch, folder: Path) -> None:
    """Writes the weights, the batch, the draws of `STEPS` steps and the settings, which the reference reads."""
    params = init_state(run).params
    np.savez(folder / "params.npz", allow_pickle=False, **_published(run.model, params))
    np.savez(folder / "batch.npz", allow_pickle=False, **{name: np.asarray(a) for name, a in batch.items()})
    draws = [_draw(run, batch, FIRST + number) for number in range(STEPS)]
    stacked = {name: np.stack([draw[name] for draw in draws]) for name in draws[0]}
    np.savez(folder / "draws.npz", allow_pickle=False, **stacked)
    rate = learning_rate(run.optimizer, run.steps)
    masks = jax.tree.map(lambda leaf, decays: np.full(leaf.shape, decays), params, decay_mask(params))
    decayed = [name for name, decays in _published(run.model, masks).items() if decays.all()]
    settings = run.to_json() | {"rates": np.asarray(rate(np.arange(1000))).tolist(), "decayed": decayed}
    (folder / "run.json").write_text(json.dumps(settings))


def _published(config: ModelConfig, tree: Any) -> dict[str, np.ndarray]:
    """A tree with the structure of the parameters, as arrays under their published names."""
    arrays = {}
    for tensor in expected_tensors(config):
        pieces = []
        for piece in tensor.pieces:
            leaf = tree
            for key in piece.path:
                leaf = leaf[key]
            whole = np.asarray(leaf)
            pieces.append((whole if tensor.layer is None else whole[tensor.layer]).reshape(-1, *tensor.shape[1:]))
        arrays[tensor.name.removeprefix("transformer.")] = np.concatenate(pieces).reshape(tensor.shape)
    return arrays


def _draw(run: RunConfig, batch: Batch, step: int) -> dict[str, np.ndarray]:
    """The random draws of the objective in this step: noise, dropout and forcing."""
    key, progress = jax.random.fold_in(jax.random.key(run.seed), step), jnp.float32(step / run.steps)
    drawn = run.objective.draw(batch, key, progress, run.model)
    arrays = {**drawn.sequences, **drawn.shared, "progress": progress}
    return {name: np.asarray(arrays[name]) for name in DRAWN}


class Reference:
    """The PyTorch reference in a process of its own, with the files that `export` wrote to `folder`."""

    def __init__(self, python: str, folder: Path):
        script = Path(__file__).with_name("training_reference.py")
        self.folder = folder
        self._process = subprocess.Popen(
            [python, str(script), str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.about = self._answer()

    def __enter__(self) -> Reference:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def send(self, **request: Any) -> dict[str, Any]:
        """Sends a request and returns the answer."""
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._answer()

    def timer(self, operands: str) -> Callable[[], float]:
        """A timer of one step; bfloat16 operands use autocast."""
        return lambda: self.send(do="time", steps=1, autocast=operands == "bfloat16")["seconds"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit("The reference process ended; its error is printed above.")
        return json.loads(line)


def check_agreement(run: RunConfig, batch: Batch, reference: Reference) -> dict[str, float]:
    """Ends the program unless losses, gradients and the losses of a few updates agree, in float32."""
    run = dataclasses.replace(run, compute=Compute())
    start = init_state(run)
    start = dataclasses.replace(start, step=jnp.int32(FIRST))
    theirs = reference.send(do="check")
    grads, ours = _our_gradients(run, start, batch)
    terms = {name: abs(value / ours[name] - 1) for name, value in theirs.items()}
    gradients = _differences(grads, dict(np.load(reference.folder / "gradients.npz")))
    learned = np.array(reference.send(do="learn", steps=STEPS)["losses"])
    step, losses = jax.jit(partial(train_step, run=run)), []
    for _ in range(STEPS):
        start, metrics = step(start, batch)
        losses.append(float(metrics["loss"]))
    after = float(np.max(np.abs(learned / np.array(losses) - 1)))
    apart = {name: value for name, value in (terms | gradients).items() if value > GRADIENTS_WITHIN}
    if apart or after > LOSSES_WITHIN:
        sys.exit(f"The reference does not agree (relative differences): {apart}; after {STEPS} updates {after}.")
    return {
        "losses": max(terms.values()), "gradients": max(gradients.values()), f"loss_after_{STEPS}_updates": after
    }  # fmt: skip


def _our_gradients(run: RunConfig, state: TrainState, batch: Batch) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    key = jax.random.fold_in(jax.random.key(run.seed), FIRST)
    loss = partial(loss_fn, config=run.model, compute=run.compute, objective=run.objective)
    gradient = jax.jit(jax.grad(loss, has_aux=True))
    grads, metrics = gradient(state.params, batch, key, jnp.float32(FIRST / run.steps))
    return _published(run.model, grads), {name: float(value) for name, value in metrics.items()}


def _differences(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, float]:
    """The norm of the difference over the norm, of each parameter."""
    return {name: float(np.linalg.norm(mine - theirs[name]) / np.linalg.norm(mine)) for name, mine in ours.items()}
