"""The objective of a dictionary: each term against its formula in NumPy, and what gets a gradient."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steerling_jax.errors import UserError
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.denoise import denoise
from steerling_jax.objectives.dictionary import IDLE, USES, DictionaryObjective
from steerling_jax.objectives.dictionary_losses import offer_dead
from steerling_jax.objectives.noise import NoiseConfig
from steerling_jax.objectives.objective import Draws
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.objectives.training_step import Recipe, init_state, update
from tests.worlds.dictionary_world import MODEL, changed, make_params, tables
from tests.worlds.labelled_batch import labelled_batch
from tests.worlds.numpy_objective import positions_with_rows

KEY, B = jax.random.key(0), 4
DEAD = np.array([1, 4, 9, 20])
ALL = DictionaryObjective(
    noise=NoiseConfig(clean_context=True),
    backbone="trained",
    switch=0.5,
    diffusion=(0.5, 2.0),
    likeness=(0.7, 0.0),
    reconstruction=(1.1, 0.3),
    token_weight="inverse_t",
    known_weight=0.9,
    concept_weight=0.2,
    auxiliary_weight=0.4,
    discovered_dropout=0.3,
    auxiliary_concepts=2,
    dead_after=10,
    most_dead=8,
)


def drawn_step(objective: DictionaryObjective, progress: float) -> Draws:
    drawn = jax.jit(partial(objective.draw, config=MODEL))(labelled_batch(B), KEY, jnp.float32(progress))
    idle = jnp.zeros(21, jnp.int32).at[DEAD].set(objective.dead_after)
    return dataclasses.replace(drawn, shared={**drawn.shared, IDLE: idle})


@pytest.fixture(scope="module")
def params() -> Params:
    return make_params(MODEL)


@pytest.fixture(scope="module")
def solved(params: Params) -> Any:
    """A function from a part of the run to (draws, metrics, gradients by term and parameter)."""

    def terms(params: Params, drawn: Draws, progress: jax.Array) -> Any:
        return ALL.loss(params, drawn, progress, config=MODEL, compute=Compute())[1]

    found, jacobian = jax.jit(terms), jax.jit(jax.jacrev(terms))
    drawn = drawn_step(ALL, 0.2)
    return drawn, lambda p: found(params, drawn, jnp.float32(p)), jacobian(params, drawn, jnp.float32(0.2))


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def expected(params: Params, drawn: Draws) -> dict[str, float]:
    """The terms before the switch, in float64, from the hidden states."""
    batch = {name: np.asarray(value) for name, value in drawn.sequences.items()}
    clean, noisy = drawn.sequences["tokens"], drawn.sequences["noisy"]
    hidden = denoise(params, clean, noisy, config=MODEL, compute=Compute(), clean_context=True)
    b, t = np.array(positions_with_rows(batch["noisy"], MODEL.mask_token_id, 1.0)).T
    h = np.asarray(hidden, np.float64)[b, t]
    output = np.asarray(params["tok_emb"]["weight"], np.float64)
    keys, bias, embeddings = (table[:21] for table in tables(params))
    offset = np.asarray(params["unknown_head"]["offset"]["bias"], np.float64)
    known = {name: np.asarray(leaf["weight"], np.float64)[:6] for name, leaf in params["known_head"].items()}

    k = 1 / (1 + np.exp(-np.clip(h @ known["concept_predictor"].T, -15, 15)))
    k[k < np.sort(k, axis=1)[:, -3:-2]] = 0
    k_hat = k @ known["concept_embedding"]
    scores = h @ keys.T + bias
    z = np.where(scores >= np.sort(scores, axis=1)[:, -5:-4], np.maximum(scores, 0), 0)
    u_hat = z @ embeddings
    composed = k_hat + u_hat + offset
    variance = np.sum((h - h.mean(axis=0)) ** 2)

    left = h - composed
    estimate = np.zeros_like(left)
    for row in range(len(h)):
        for c in DEAD[np.argsort(-scores[row, DEAD])[:2]]:
            estimate[row] += max(scores[row, c], 0) * embeddings[c]
    drop = batch["drop_discovered"][b, t][:, None]
    read = np.where(drop, composed - u_hat, composed)
    nats = -np.log(softmax(read @ output.T)[np.arange(len(h)), batch["tokens"][b, t]])
    level = batch["levels"][b, t // 8]
    p, q = softmax(h @ output.T), softmax(composed @ output.T)
    assert 0 < drop.mean() < 1
    return {
        "reconstruction": float(np.sum(left**2) / variance),
        "known": float(np.sum((h - k_hat - offset) ** 2) / variance),
        "auxiliary": float(np.sum((left - estimate) ** 2) / np.sum(left**2)),
        "likeness": float(np.mean(np.sum(p * np.log(p / q), axis=1))),
        "diffusion": float(np.mean(nats)),
        "bound": float(np.sum(nats / level) / np.sum(1 / level)),
    }


def test_every_term_is_its_formula(params: Params, solved: Any) -> None:
    drawn, terms, _ = solved
    found, wanted = terms(0.2), expected(params, drawn)
    for name, value in wanted.items():
        assert float(found[name]) == pytest.approx(value, rel=2e-4), name
    assert abs(wanted["auxiliary"] - 1) > 5e-4  # dead concepts explain a part
    total = 0.5 * wanted["bound"] + 0.7 * wanted["likeness"] + 1.1 * wanted["reconstruction"]
    total += 0.9 * wanted["known"] + 0.2 * float(found["presence"]) + 0.4 * wanted["auxiliary"]
    assert float(found["loss"]) == pytest.approx(total, rel=2e-4)
    later = terms(0.7)
    assert float(later["likeness"]) == 0  # its weight is 0 after the switch, and it is not computed
    total = 2.0 * wanted["bound"] + 0.3 * wanted["reconstruction"] + 0.9 * wanted["known"]
    total += 0.2 * float(found["presence"]) + 0.4 * wanted["auxiliary"]
    assert float(later["loss"]) == pytest.approx(total, rel=2e-4)


def test_the_auxiliary_loss_trains_keys_and_embeddings_of_dead_concepts_alone(solved: Any) -> None:
    gradient = solved[2]["auxiliary"]
    head = gradient["unknown_head"]
    for module, leaf in (
        ("concept_predictor", "weight"),
        ("concept_predictor", "bias"),
        ("concept_embedding", "weight"),
    ):
        rows = np.abs(np.asarray(head[module][leaf]).reshape(24, -1)).sum(axis=1)
        assert (rows[DEAD] > 0).sum() >= 2, module
        assert not rows[np.setdiff1d(np.arange(24), DEAD)].any(), module
    for name in ("blocks", "tok_emb", "known_head"):
        assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient[name])), name


def test_known_embeddings_alone_are_trained_by_the_known_term(solved: Any) -> None:
    gradient = solved[2]["known"]
    assert np.asarray(gradient["known_head"].pop("concept_embedding")["weight"]).any()
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))


def test_a_strict_model_trains_its_backbone_through_the_dictionary(params: Params) -> None:
    """With no known embeddings the prediction reads the hidden state through the discovered concepts alone."""
    bare = {**params, "known_head": jax.tree.map(jnp.zeros_like, params["known_head"])}
    objective = dataclasses.replace(ALL, discovered_dropout=0.0)
    drawn = drawn_step(objective, 0.2)

    def diffusion(params: Params, config: Any) -> jax.Array:
        return objective.loss(params, drawn, jnp.float32(0.2), config=config, compute=Compute())[1]["diffusion"]

    gradient = jax.jit(jax.grad(partial(diffusion, config=MODEL)))(bare)
    assert np.abs(np.asarray(gradient["blocks"]["mlp"]["c_proj"]["weight"])).max() > 1e-5


def test_dead_concepts_take_turns_up_to_the_limit() -> None:
    idle = jnp.where(jnp.arange(50) % 2 == 0, 7, 3)
    turns = [offer_dead(idle, jax.random.uniform(jax.random.key(i), (50,)), 7, 4) for i in range(40)]
    assert all(ids.shape == (4,) and dead.all() and (ids % 2 == 0).all() for ids, dead in turns)
    assert len({int(i) for ids, _ in turns for i in ids}) == 25
    few = offer_dead(idle.at[1:].set(0), jnp.full(50, 0.5), 7, 4)
    assert few[1].tolist() == [True, False, False, False]
    assert few[0][0] == 0


def run(recipe: Recipe, state: Any, steps: int) -> tuple[Any, list[dict[str, float]]]:
    step = jax.jit(partial(update, key=KEY, recipe=recipe))
    metrics = []
    for _ in range(steps):
        state, found = step(state, labelled_batch(B))
        metrics.append(jax.device_get(found))
    return state, metrics


RECIPE = Recipe(MODEL, 40, objective=ALL, optimizer=OptimizerConfig(peak_rate=1e-2, warmup_steps=1))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_frozen_backbone_stays_and_embeddings_keep_their_length(kind: str) -> None:
    frozen = dataclasses.replace(
        RECIPE,
        model=changed(factorize_unknown=True, factorize_rank=6) if kind == "muon" else MODEL,
        objective=DictionaryObjective(),
        optimizer=dataclasses.replace(RECIPE.optimizer, kind=kind),
    )
    first = init_state(frozen, KEY)
    last, metrics = run(frozen, first, 12)
    assert metrics[-1]["reconstruction"] < metrics[0]["reconstruction"]
    for name, before in first.params.items():
        same = jax.tree.map(np.array_equal, before, last.params[name])
        assert all(jax.tree.leaves(same)) == (name not in ("known_head", "unknown_head")), name
    assert not any(
        "blocks" in jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(last.opt_state)
    )
    np.testing.assert_allclose(np.linalg.norm(tables(last.params)[2], axis=1), 1, atol=1e-5)
    assert USES not in metrics[-1]


def test_concepts_are_counted_and_parts_of_a_batch_add_up() -> None:
    """Idle steps count up where no row used a concept; in two parts a step computes what it does in one."""
    first = init_state(RECIPE, KEY)
    whole, (metrics,) = run(RECIPE, first, 1)
    halves, (in_parts,) = run(dataclasses.replace(RECIPE, accumulate=2), first, 1)
    idle = np.asarray(whole.idle)
    assert set(idle.tolist()) == {0, 1}
    np.testing.assert_array_equal(idle, halves.idle)
    for name in ("diffusion", "bound", "likeness", "presence"):
        assert in_parts[name] == pytest.approx(metrics[name], rel=1e-4), name


@pytest.mark.parametrize(
    ("field", "value"),
    [("backbone", "thawed"), ("initial", "none"), ("likeness", (1.0,)), ("switch", 1.5), ("most_dead", 0), ("rows", 0)],
)
def test_invalid_settings_are_named(field: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"objective.{field}"):
        DictionaryObjective(**{field: value})
