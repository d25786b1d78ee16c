"""Removing known concepts beside as many discovered ones of equal mass: the choice, the masses, and the losses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steerling_jax.evaluation.bound import masked_tokens
from steerling_jax.evaluation.equal_mass import equal_mass_sums, of_equal_mass
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.decompose import decompose
from tests.worlds.dictionary_world import MODEL, make_params, tables, tokens


def test_neighbours_whose_masses_add_up_to_the_target_are_chosen() -> None:
    masses = jnp.asarray([[5.0, 1.0, 4.0, 2.0, 3.0]] * 4)
    chosen = of_equal_mass(masses, jnp.asarray([4.9, 100.0, 0.0, 7.2]), 2)
    sums = np.where(np.asarray(chosen), np.asarray(masses), 0.0)
    assert [sorted(row[row > 0].tolist()) for row in sums] == [[2, 3], [4, 5], [1, 2], [3, 4]]
    assert np.asarray(of_equal_mass(masses, jnp.ones(4), 9)).all()


def test_sums_against_numpy() -> None:
    """Masses and losses of a strict model, from its tables, row by row."""
    params, text = make_params(MODEL), tokens()
    valid, key = np.ones(text.shape, bool), jax.random.key(4)
    found = equal_mass_sums(params, text, valid, key, config=MODEL, compute=Compute())
    at = masked_tokens(params, text, jnp.asarray(valid), key, MODEL, Compute())
    parts = decompose(params, at.rows, config=MODEL, compute=Compute())
    assert parts.discovered is not None
    output = np.asarray(params["tok_emb"]["weight"], np.float64)
    known = np.asarray(params["known_head"]["concept_embedding"]["weight"], np.float64)
    expected = dict.fromkeys(("full", "without_known", "without_discovered", "mass_known", "mass_discovered"), 0.0)

    def nats(row: np.ndarray, token: int) -> float:
        logits = output @ row
        return float(np.logaddexp.reduce(logits) - logits[token])

    for row in np.flatnonzero(np.asarray(at.valid)):
        composed, token, weight = (
            np.asarray(parts.composed[row], np.float64),
            int(at.target[row]),
            float(at.weight[row]),
        )
        vectors = {
            name: np.asarray(head.topk_weights[row], np.float64)[:, None] * table[np.asarray(head.topk_indices[row])]
            for name, head, table in (
                ("known", parts.known, known),
                ("discovered", parts.discovered, tables(params)[2]),
            )
        }
        size = {name: (vectors[name] @ output.T).std(axis=1) for name in vectors}
        order = np.argsort(-size["discovered"])
        n = len(size["known"])
        windows = [order[i : i + n] for i in range(len(order) - n + 1)]
        best = min(windows, key=lambda ids: abs(size["discovered"][ids].sum() - size["known"].sum()))
        expected["full"] += weight * nats(composed, token)
        expected["without_known"] += weight * nats(composed - vectors["known"].sum(axis=0), token)
        expected["without_discovered"] += weight * nats(composed - vectors["discovered"][best].sum(axis=0), token)
        expected["mass_known"] += size["known"].sum()
        expected["mass_discovered"] += size["discovered"][best].sum()
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-4), name
    assert float(found["masked"]) == float(at.valid.sum())
