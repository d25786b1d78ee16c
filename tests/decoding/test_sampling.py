"""Sampling by distribution, and its published definitions on small cases.

Each chi-square test fails by chance once in 10⁴ seeds; seeds are fixed, so a failure is a change of behaviour.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.decoding.policies import Greedy, Nucleus, Policies, RepetitionPenalty, StepView, choice_of
from steerling_jax.decoding.sampling import confidence, entropy_temperature, in_nucleus

DRAWS = 20_000
ERROR_RATE = 1e-4
LOGITS = jnp.log(jnp.array([0.4, 0.05, 0.25, 0.0, 0.2, 0.1]))


def view(logits: jax.Array, positions, seed: int = 0) -> StepView:
    """The same logits (V,) at each of `positions`."""
    positions = jnp.asarray(positions, jnp.int32)
    n, V = len(positions), logits.shape[-1]
    rows = jnp.broadcast_to(logits, (n, V)) if logits.ndim == 1 else logits
    zeros = jnp.zeros(n, jnp.int32)
    return StepView(rows, zeros == 0, positions, jnp.zeros(V, jnp.int32), jnp.int32(0), jnp.uint32(seed), zeros)


def draws(choice, logits=LOGITS, seed=0) -> np.ndarray:
    """How often each token comes, over positions 0, 1, 2, …"""
    tokens = jax.jit(choice)(view(logits, range(DRAWS), seed))
    return np.bincount(np.asarray(tokens), minlength=logits.shape[0])


def check_distribution(counts: np.ndarray, wanted: np.ndarray) -> None:
    """Pearson's chi-square at `ERROR_RATE`."""
    possible = wanted > 0
    assert counts[~possible].sum() == 0
    if (freedom := possible.sum() - 1) == 0:
        return
    expected = DRAWS * wanted[possible] / wanted.sum()
    statistic = ((counts[possible] - expected) ** 2 / expected).sum()
    assert statistic < chi_square_limit(freedom, z=3.719)  # the normal quantile of 1 - ERROR_RATE


def chi_square_limit(freedom: int, z: float) -> float:
    """What a chi-square statistic exceeds as rarely as a normal one exceeds z (Wilson and Hilferty)."""
    return freedom * (1 - 2 / (9 * freedom) + z * math.sqrt(2 / (9 * freedom))) ** 3


def nucleus_by_hand(probs: np.ndarray, top_p: float) -> np.ndarray:
    kept, before = np.zeros_like(probs), 0.0
    for i in np.argsort(-probs):
        if before <= top_p or before == 0:
            kept[i] = probs[i]
        before += probs[i]
    return kept


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("top_p", [0.5, 0.9, 1.0])
def test_nucleus(temperature: float, top_p: float):
    probs = np.asarray(jax.nn.softmax(LOGITS / temperature))
    check_distribution(draws(Nucleus(temperature, top_p)), nucleus_by_hand(probs, top_p))


def test_entropy_sampling():
    temperature = float(entropy_temperature(LOGITS, 0.8))
    probs = np.asarray(jax.nn.softmax(LOGITS / temperature))
    check_distribution(draws(Nucleus(0.0, 0.8)), nucleus_by_hand(probs, 0.8))


def test_entropy_temperature_by_hand():
    p = np.array([0.4, 0.05, 0.25, 0.2, 0.1])
    entropy = -(p * np.log(p + 1e-10)).sum()
    # cumulative mass 0.4, 0.65, 0.85: two are at most 0.8, so k is 3
    assert float(entropy_temperature(LOGITS, 0.8)) == pytest.approx(0.3 + 0.4 * min(1, entropy / math.log(3)), abs=1e-6)
    sure = jnp.array([0.0, -100.0, -100.0])
    assert float(entropy_temperature(sure, 0.8)) == pytest.approx(0.3, abs=1e-6)


def test_the_first_token_is_always_in_the_nucleus():
    order, keep = in_nucleus(LOGITS, 0.0)
    assert int(order[0]) == 0
    assert keep.tolist() == [True] + [False] * 5


def test_draws_depend_on_seed_and_position_alone():
    choice = Nucleus(1.0, 1.0)
    one = [int(choice(view(LOGITS, [p], 7))[0]) for p in range(40)]
    again = choice(view(LOGITS, range(40), 7)).tolist()
    other = choice(view(LOGITS, range(40), 8)).tolist()
    assert one == again
    assert one != other


def test_rounding_that_swaps_ranks_does_not_swap_tokens():
    flat = jnp.zeros(50)
    nudged = flat + 1e-6 * jnp.asarray(np.random.default_rng(0).standard_normal(50), jnp.float32)
    choice = Nucleus(1.0, 1.0)
    assert choice(view(flat, range(50))).tolist() == choice(view(nudged, range(50))).tolist()


def test_the_repetition_penalty_holds_down_what_is_on_the_canvas():
    before = view(jnp.array([[-0.5, 3.0, 3.0, 9.0]]), [0])
    before = dataclasses.replace(before, counts=jnp.array([2, 1, 0, 1]))
    assert RepetitionPenalty(2.0)(before).tolist() == [[-1.0, 1.5, 3.0, 4.5]]


def test_confidence_is_the_largest_probability():
    rows = jnp.stack([LOGITS, jnp.zeros(6)])
    np.testing.assert_allclose(confidence(rows), [0.4, 1 / 6], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "choice"),
    [
        ({}, Nucleus(0.0, 0.8)),
        ({"use_entropy_sampling": False}, Nucleus(1.2, 0.8)),
        ({"use_entropy_sampling": False, "temperature": 0.0}, Greedy()),
        ({"use_entropy_sampling": False, "top_p": 0.0}, Greedy()),
    ],
)
def test_the_choice_follows_the_configuration(changes, choice):
    found = choice_of(GenerationConfig(**changes))
    assert type(found) is type(choice)
    np.testing.assert_allclose(jax.tree.leaves(found), jax.tree.leaves(choice), rtol=1e-6)


def test_policies_fill_their_empty_places_from_the_configuration():
    mine = Policies(choice=Greedy()).completed(GenerationConfig(max_new_tokens=32, steps=6), 16, 2, None)
    assert isinstance(mine.choice, Greedy)
    assert mine.schedule is not None
    views = [dataclasses.replace(view(LOGITS, [0]), step=jnp.int32(step)) for step in range(3)]
    taken = [int(mine.schedule(one)) for one in views]
    assert taken == [6, 5, 5]


def test_policies_of_two_classes_are_two_trees() -> None:
    """Else a program compiled for one might be run for the other: to JAX dataclasses with like fields are equal."""

    @struct.dataclass
    class First:
        def __call__(self, view: StepView) -> jax.Array:
            return -view.position

    @struct.dataclass
    class Last:
        def __call__(self, view: StepView) -> jax.Array:
            return view.position

    assert jax.tree.structure(Policies(order=First())) != jax.tree.structure(Policies(order=Last()))
    assert jax.tree.structure(Policies(order=First())) == jax.tree.structure(Policies(order=First()))
