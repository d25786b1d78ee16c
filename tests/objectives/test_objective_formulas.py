"""The objective of pre-training against its formulas in plain NumPy: every term, every gradient, and every draw."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steerling_jax.configs import midtrain_pydocs
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.denoise import denoise
from steerling_jax.models.steerling.model import init_params
from steerling_jax.objectives.noise import NoiseConfig, noise_levels
from steerling_jax.objectives.objective import Draws
from steerling_jax.objectives.pretraining import ObjectiveConfig
from tests.worlds.labelled_batch import MODEL, labelled_batch
from tests.worlds.numpy_objective import Values, losses, positions_with_rows, values_of

KEY = jax.random.key(0)
STEP = 1e-6  # of finite differences

# Every weight differs from 1 and from the others, and every draw goes either way.
ONE = ObjectiveConfig(
    token_weight="one",
    concept_weight=0.7,
    concept_warmup=0.5,
    residual_weight=1.7,
    independence_weight=2.3,
    epsilon_independence_weight=3.1,
    epsilon_dropout=(0.7, 0.7),
    known_dropout=0.3,
    unknown_dropout=0.3,
    rows=0.6,
)
INVERSE_T = dataclasses.replace(
    ONE, token_weight="inverse_t", rows=1.0, noise=NoiseConfig(distribution="gaussian", clean_context=True)
)
FORCING = [(labels, residual) for labels in (False, True) for residual in (False, True)]


@pytest.fixture(scope="module")
def params() -> Params:
    """Parameters with concept tables so large that features are about the size of the hidden states."""
    made = jax.jit(partial(init_params, MODEL))(KEY)
    for head in ("known_head", "unknown_head"):
        made[head] = jax.tree.map(lambda leaf: 15 * leaf, made[head])
    return made


@dataclasses.dataclass
class Compared:
    """The objective at one draw, as JAX and as NumPy compute it."""

    params: Params
    objective: ObjectiveConfig
    progress: float

    def __post_init__(self) -> None:
        self.progress_array = jnp.float32(self.progress)
        draw = jax.jit(partial(self.objective.draw, config=MODEL))
        self.drawn: Draws = draw(labelled_batch(), KEY, self.progress_array)

        def terms(params: Params, drawn: Draws) -> dict[str, jax.Array]:
            metrics = self.objective.loss(params, drawn, self.progress_array, config=MODEL, compute=Compute())[1]
            return {name: value for name, value in metrics.items() if name != "rows_dropped"}

        self.terms, self.jacobian = jax.jit(terms), jax.jit(jax.jacrev(terms))
        self.hidden_of = jax.jit(
            lambda params: denoise(
                params,
                self.drawn.sequences["tokens"],
                self.drawn.sequences["noisy"],
                config=MODEL,
                compute=Compute(),
                clean_context=self.objective.noise.clean_context,
            )
        )

        def moved_hidden(params: Params, direction: Params) -> jax.Array:
            hidden, pull = jax.vjp(self.hidden_of, params)
            return jax.vjp(lambda weights: pull(weights)[0], jnp.zeros_like(hidden))[1](direction)[0]

        # The derivative of the hidden states along a direction in the parameters, (B, T, D), as the transpose of a
        # transpose, because some of the model's functions have a backward rule alone.
        self.moved_hidden = jax.jit(moved_hidden)

    def forced(self, labels: bool, residual: bool) -> Draws:
        """The draw with given teacher forcing."""
        shared = {**self.drawn.shared, "use_labels": jnp.asarray(labels), "use_residual": jnp.asarray(residual)}
        return dataclasses.replace(self.drawn, shared=shared)

    def expected(self, now: Values, fixed: Values, drawn: Draws) -> dict[str, float]:
        """The terms in NumPy."""
        forcing = {name: drawn.shared[name] for name in ("use_labels", "use_residual")}
        arrays = {name: np.asarray(value) for name, value in {**drawn.sequences, **forcing}.items()}
        return losses(now, fixed, arrays, self.objective, self.progress, MODEL)

    def values(self) -> Values:
        """What the NumPy objective reads."""
        return values_of(self.hidden_of(self.params), self.params)


@pytest.fixture(scope="module", params=["one", "inverse_t"])
def compared(request: pytest.FixtureRequest, params: Params) -> Compared:
    """Within the warm-up of presence, and after it."""
    objective, progress = {"one": (ONE, 0.3), "inverse_t": (INVERSE_T, 0.8)}[request.param]
    return Compared(params, objective, progress)


@pytest.mark.parametrize(("labels", "residual"), FORCING)
def test_every_term_is_its_formula(compared: Compared, labels: bool, residual: bool) -> None:
    values, drawn = compared.values(), compared.forced(labels, residual)
    expected = compared.expected(values, values, drawn)
    found = compared.terms(compared.params, drawn)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert value > 1e-4, name
        assert float(found[name]) == pytest.approx(value, rel=1e-4), name


def direction_of(params: Params, seed: int, part: tuple[str, ...]) -> Params:
    """A random direction in the parameters under `part`, zero in the others."""
    random = np.random.default_rng(seed)

    def leaf(path: Any, value: jax.Array) -> jax.Array:
        names = tuple(key.key for key in path)
        inside = names[: len(part)] == part
        return jnp.asarray(random.normal(size=value.shape) * inside, jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, params)


PARTS = [
    ("blocks",),
    ("ln_f",),
    ("tok_emb",),
    ("known_head", "concept_predictor"),
    ("known_head", "concept_embedding"),
    ("unknown_head", "predictor_up"),
    ("unknown_head", "predictor_down"),
    ("unknown_head", "embedding_coef"),
    ("unknown_head", "embedding_basis"),
]


@pytest.mark.parametrize(("labels", "residual"), FORCING)
def test_gradients_flow_where_the_formulas_let_them(compared: Compared, labels: bool, residual: bool) -> None:
    """Every term's derivative along random directions, against finite differences in which stopped values are held."""
    drawn, fixed = compared.forced(labels, residual), compared.values()
    jacobian = compared.jacobian(compared.params, drawn)
    for seed, part in enumerate(PARTS):
        direction = direction_of(compared.params, seed, part)
        hidden = np.asarray(compared.moved_hidden(compared.params, direction), np.float64)

        def at(step: float, direction=direction, hidden=hidden) -> dict[str, float]:
            moved = jax.tree.map(lambda leaf, by: np.float64(leaf) + step * np.float64(by), compared.params, direction)
            return compared.expected(values_of(fixed.hidden + step * hidden, moved), fixed, drawn)

        above, below = at(STEP), at(-STEP)
        for name, gradient in jacobian.items():
            pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
            products = [np.asarray(g, np.float64) * np.asarray(d) for g, d in pairs]
            found, size = sum(p.sum() for p in products), sum(np.abs(p).sum() for p in products)
            expected = (above[name] - below[name]) / (2 * STEP)
            assert found == pytest.approx(expected, rel=1e-3, abs=1e-4 * size + 1e-6), (name, part)


def test_noise_and_counts_of_a_step(compared: Compared) -> None:
    """Rows are the first masked positions of each sequence, and a masked token stands for 1/t tokens."""
    drawn = {name: np.asarray(value) for name, value in compared.drawn.sequences.items()}
    rows = positions_with_rows(drawn["noisy"], MODEL.mask_token_id, compared.objective.rows)
    assert rows == [(int(b), int(t)) for b, t in np.argwhere(drawn["masked"])]
    all_masked = positions_with_rows(drawn["noisy"], MODEL.mask_token_id, 1.0)
    assert int(drawn["left_out"].sum()) == len(all_masked) - len(rows)
    chunks = {(b, drawn["chunk_index"][b, t]) for b, t in rows if drawn["chunk_index"][b, t] >= 0}
    shared = compared.drawn.shared
    assert (int(shared["rows"]), int(shared["chunks"])) == (len(rows), len(chunks))
    tokens = sum(1 / drawn["levels"][b, t // MODEL.diff_block_size] for b, t in rows)
    assert float(shared["tokens"]) == pytest.approx(tokens, rel=1e-5)


@pytest.mark.parametrize("progress", [0.25, 0.6])
def test_draws_have_the_scheduled_probabilities(progress: float) -> None:
    objective = ObjectiveConfig(
        epsilon_dropout=(0.1, 0.9),
        known_dropout=0.35,
        unknown_dropout=0.7,
        known_forcing=(0.0, 1.0),
        unknown_forcing=(0.8, 0.2),
    )
    draw = jax.vmap(lambda key: objective.draw(labelled_batch(), key, jnp.float32(progress), MODEL))
    drawn = jax.jit(draw)(jax.random.split(KEY, 4000))
    flags = {name: np.asarray(value) for name, value in {**drawn.sequences, **drawn.shared}.items()}
    expected = {
        "drop_epsilon": 0.1 + 0.8 * progress,
        "drop_known": 0.35,
        "drop_discovered": 0.7,
        "use_labels": 0.5 - 0.5 * math.cos(math.pi * progress),  # 0.15 after a quarter of the run
        "use_residual": 0.8 - 0.6 * progress,
    }
    for name, probability in expected.items():
        sigma = math.sqrt(probability * (1 - probability) / flags[name].size)
        assert flags[name].mean() == pytest.approx(probability, abs=4 * sigma), name
    # Each is drawn by itself.
    for names in (("drop_epsilon", "drop_known", "drop_discovered"), ("use_labels", "use_residual")):
        for i, one in enumerate(names):
            for other in names[:i]:
                both = expected[one] * expected[other]
                sigma = math.sqrt(both * (1 - both) / flags[one].size)
                assert (flags[one] & flags[other]).mean() == pytest.approx(both, abs=4 * sigma), (one, other)


@pytest.mark.parametrize(("progress", "centre"), [(0.0, 0.3), (0.25, 0.4), (1.0, 0.7)])
def test_gaussian_noise_moves_its_centre_over_training(progress: float, centre: float) -> None:
    """The levels are stratified, so each lies between two neighbouring quantiles of the distribution."""
    noise = NoiseConfig(distribution="gaussian", centre=(0.3, 0.7), sigma=0.05)
    levels = np.sort(np.asarray(noise_levels(KEY, (4, 8), jnp.float32(progress), noise), np.float64).reshape(-1))
    quantile = NormalDist(centre, noise.sigma).inv_cdf
    least = [quantile(max(stratum / 32, 1e-4)) for stratum in range(32)]
    most = [quantile(min((stratum + 1) / 32, 1 - 1e-4)) for stratum in range(32)]
    assert (levels >= np.array(least) - 1e-5).all()
    assert (levels <= np.array(most) + 1e-5).all()


def test_the_config_of_mid_training_forces_nothing() -> None:
    """At no point of the run, whatever is drawn: neither labels nor the residual replace what the heads give."""
    objective = midtrain_pydocs.config().objective
    draw = jax.jit(lambda key, progress: objective.draw(labelled_batch(), key, progress, MODEL).shared)
    for number, progress in enumerate((0.0, 0.5, 1.0)):
        drawn = draw(jax.random.key(number), jnp.float32(progress))
        assert not drawn["use_labels"]
        assert not drawn["use_residual"]
