"""Targets and other methods than integrated gradients, against dense passes, finite differences and plain loops."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.decoding.trace import Trace
from steerling_jax.explain.inputs.perturbation import perturbed_values
from steerling_jax.explain.inputs.targets import (
    TOKEN_LOGIT,
    AttributionTarget,
    ConceptActivation,
    TokenContrast,
    TokenLogit,
    TokenLogProbability,
)
from steerling_jax.models.steerling import model
from steerling_jax.models.steerling.backbone import lm_head_weight

OTHER, KNOWN, DISCOVERED = 17, 41, 7
TARGETS: dict[str, AttributionTarget] = {
    "logit": TokenLogit(),
    "log-probability": TokenLogProbability(),
    "contrast": TokenContrast(OTHER),
    "known": ConceptActivation(KNOWN),
    "known weight": ConceptActivation(KNOWN, form="weight"),
    "discovered": ConceptActivation(DISCOVERED, "discovered"),
}


@pytest.fixture(scope="module")
def base(golden):
    """A model and a text sampled from it."""
    bundle = sj.load(golden / "base")
    settings = sj.GenerationConfig(max_new_tokens=16, seed=3)
    return bundle, sj.generate(bundle, [5, 6, 7, 8, 9, 10, 11, 5], settings).trace


@pytest.fixture(scope="module")
def dense(base):
    """Embeddings (T, D) through the whole model."""
    bundle, _ = base
    return jax.jit(lambda x: model.forward(bundle.params, None, config=bundle.config, embeds=x[None], dense=True))


def read(name: str, out: sj.inference.ForwardResult, position: int, token: int) -> jax.Array:
    """A target by its definition, from a dense forward pass."""
    logits, d = out.logits[0, position], out.decomposition
    if name.startswith(("known", "discovered")):
        dense, concept = (d.known_logits, KNOWN) if name.startswith("known") else (d.unknown_logits, DISCOVERED)
        logit = dense[0, position, concept]
        return jax.nn.sigmoid(logit) if name.endswith("weight") else logit
    if name == "log-probability":
        return jax.nn.log_softmax(logits)[token]
    return logits[token] - logits[OTHER] if name == "contrast" else logits[token]


@pytest.mark.parametrize("name", TARGETS)
def test_values_and_gradients(base, dense, name):
    """Values equal those of dense passes, and gradient × input equals the finite difference towards each token."""
    bundle, trace = base
    ours = sj.attribute_inputs(bundle, trace, method="gradient-x-input", target=TARGETS[name], sample=2)
    step = 0.02
    table = bundle.params["tok_emb"]["weight"]
    for row, (order, position, token) in enumerate(
        zip(ours.target_orders, ours.target_positions, ours.target_token_ids, strict=True)
    ):
        canvas = trace.snapshot(trace.commits[order].step)
        x, base_x = table[canvas], jnp.broadcast_to(table[trace.mask_id], (len(canvas), table.shape[1]))
        assert ours.path_logits[row] == pytest.approx(float(read(name, dense(x), position, token)), abs=1e-4)
        assert ours.baseline_logits[row] == pytest.approx(float(read(name, dense(base_x), position, token)), abs=1e-4)
        for at in (0, 4, int(np.flatnonzero(canvas != trace.mask_id)[-1])):
            direction = jnp.zeros_like(x).at[at].set(x[at] - base_x[at])
            up, down = (read(name, dense(x + sign * step * direction), position, token) for sign in (1, -1))
            slope = float(up - down) / (2 * step)
            assert ours.attributions[row, at] == pytest.approx(slope, abs=2e-3 + 0.02 * abs(slope))


@pytest.mark.parametrize("name", ["log-probability", "known weight", "discovered"])
def test_integrated_gradients_of_any_target_add_up(base, name):
    bundle, trace = base
    ours = sj.attribute_inputs(bundle, trace, target=TARGETS[name], sample=4)
    assert ours.converged.all()
    total = ours.attributions.sum(axis=1)
    np.testing.assert_allclose(total, ours.path_logits - ours.baseline_logits, atol=0.02, rtol=0.01)


def test_each_position_may_have_its_own_target(base):
    bundle, trace = base
    first, second = (trace.commits[i].positions[0] for i in (3, 9))
    targets = [TokenContrast(4), TokenContrast(9), ConceptActivation(KNOWN), TOKEN_LOGIT]
    at = [first, first, second, second]
    ours = sj.attribute_inputs(bundle, trace, positions=at, target=targets, nodes=2)
    for row, (position, target) in enumerate(zip(at, targets, strict=True)):
        alone = sj.attribute_inputs(bundle, trace, positions=[position], target=target, nodes=2)
        np.testing.assert_allclose(ours.attributions[row], alone.attributions[0], rtol=0, atol=2e-5)
        assert ours.targets[row] == target


def test_guided_targets(base):
    """Logits of both branches make the guided log-probability; a concept is the conditional branch's."""
    bundle, _ = base
    settings = sj.GenerationConfig(max_new_tokens=16, seed=3, cfg_scale=1.5)
    trace = sj.generate(bundle, [5, 6, 7, 8, 9, 10, 11, 5], settings).trace
    values = {name: sj.attribute_inputs(bundle, trace, method="recency", target=TARGETS[name], sample=3)
              for name in ("log-probability", "known")}  # fmt: skip
    for row in range(3):
        order, position, token = (
            int(getattr(values["known"], f"target_{field}")[row]) for field in ("orders", "positions", "token_ids")
        )
        canvas = trace.snapshot(trace.commits[order].step)
        blind = np.where(np.arange(len(canvas)) < trace.prompt_length, trace.mask_id, canvas)
        seen, unseen = (sj.forward(bundle, ids, dense=True) for ids in (canvas, blind))
        guided = unseen.logits + 2.5 * (seen.logits - unseen.logits)
        expected = float(jax.nn.log_softmax(guided[0, position])[token])
        assert values["log-probability"].path_logits[row] == pytest.approx(expected, abs=1e-4)
        assert values["known"].path_logits[row] == pytest.approx(float(read("known", seen, position, token)), abs=1e-4)


@pytest.mark.parametrize("steered", [False, True])
def test_leave_one_out_is_a_plain_loop(base, steered):
    bundle, trace = base
    extra: dict[str, Any] = {}
    if steered:
        steering = sj.SteeringConfig.injection([3, 5], 2.0, inject_layer=1)
        settings = sj.GenerationConfig(max_new_tokens=16, seed=3)
        trace = sj.generate(bundle, [5, 6, 7, 8, 9, 10, 11, 5], settings, steering).trace
    ours = sj.attribute_inputs(bundle, trace, method="leave-one-out", sample=3)
    for row, order in enumerate(ours.target_orders):
        commit = trace.commits[order]
        canvas = trace.snapshot(commit.step)
        if steered:  # injected where the snapshot had it, also where a token is masked
            table = trace.injected(commit.step, bundle.config.n_layers, bundle.config.n_embd)[0]
            extra = {"injection": np.where((canvas == trace.mask_id)[:, None], table[-1], 0.0), "inject_layer": 1}

        def logit(ids: np.ndarray, commit=commit, extra=extra) -> float:
            return float(sj.forward(bundle, ids, **extra).logits[0, commit.positions[0], commit.token_ids[0]])

        for at in range(len(canvas)):
            without = np.where(np.arange(len(canvas)) == at, trace.mask_id, canvas)
            assert ours.attributions[row, at] == pytest.approx(logit(canvas) - logit(without), abs=2e-4)
    assert not ours.nodes.any()


def test_controls_do_not_look_through_attention(base):
    bundle, trace = base
    similar, recent = (
        sj.attribute_inputs(bundle, trace, method=method) for method in ("embedding-similarity", "recency")
    )
    table = np.asarray(bundle.params["tok_emb"]["weight"])
    for row, (step, position, token, _) in enumerate(trace.flat()):
        canvas = trace.snapshot(step)
        seen = (canvas != trace.mask_id) & (np.arange(len(canvas)) < (position // 16 + 1) * 16)
        expected = (table[canvas] - table[trace.mask_id]) @ table[token]  # this model's lm_head is its embedding
        np.testing.assert_allclose(similar.attributions[row], np.where(seen, expected, 0.0), rtol=0, atol=1e-4)
        distance = np.abs(np.arange(len(canvas)) - position)
        np.testing.assert_allclose(recent.attributions[row], np.where(seen, 1 / (1 + distance), 0.0), rtol=1e-6)
    assert similar.path_logits == pytest.approx(similar.target_logits, abs=1e-4)
    reported: list[tuple[str, int, int]] = []
    sj.attribute_inputs(bundle, trace, method="recency", sample=3, progress=lambda *event: reported.append(event))
    assert reported == [("recency", done, 3) for done in range(4)]


def test_values_of_partial_snapshots(base):
    bundle, trace = base
    ours = sj.attribute_inputs(bundle, trace, nodes=1, sample=3)
    keep = np.zeros((3, 3, len(trace.tokens)), np.float32)
    keep[:, 1], keep[:, 2, 4:] = 1.0, 1.0
    values = perturbed_values(bundle, trace, keep, sample=3)
    np.testing.assert_allclose(values[:, 0], ours.baseline_logits, atol=1e-5)
    np.testing.assert_allclose(values[:, 1], ours.path_logits, atol=1e-5)
    for row, order in enumerate(ours.target_orders):
        commit = trace.commits[order]
        canvas = trace.snapshot(commit.step)
        canvas[:4] = trace.mask_id
        logits = sj.forward(bundle, canvas).logits[0, commit.positions[0]]
        assert values[row, 2] == pytest.approx(float(logits[commit.token_ids[0]]), abs=1e-4)
    with pytest.raises(sj.UserError, match="keep has the shape"):
        perturbed_values(bundle, trace, keep[:2], sample=3)


def test_without_the_correction_lm_head_reads_the_hidden_row(golden):
    """As in the published package; the explained value then differs from the recorded logit."""
    bundle = sj.load(golden / "no_epsilon")
    trace = sj.generate(bundle, [5, 6, 7], sj.GenerationConfig(max_new_tokens=16, seed=1)).trace
    ours = sj.attribute_inputs(bundle, trace, method="recency")
    assert np.abs(ours.path_logits - ours.target_logits).max() > 0.1
    hidden = np.asarray(trace.hidden)
    rows = np.asarray(lm_head_weight(bundle.params))[ours.target_token_ids]
    np.testing.assert_allclose(ours.path_logits, (hidden * rows).sum(axis=1), atol=1e-4)


def test_models_without_such_concepts(golden, base):
    backbone = sj.load(golden / "backbone")
    trace = Trace(np.asarray([1], np.int32), np.asarray([1, 2], np.int32), base[1].commits[:0], 299)
    written = dataclasses.replace(trace, commits=(base[1].commits[0]._replace(positions=(1,), token_ids=(2,)),))
    with pytest.raises(sj.UserError, match="no known concepts"):
        sj.attribute_inputs(backbone, written, target=ConceptActivation(0))
    known_only = sj.load(golden / "known_only")
    with pytest.raises(sj.UserError, match="no discovered concepts"):
        sj.attribute_inputs(known_only, written, target=ConceptActivation(0, "discovered"))
    with pytest.raises(sj.UserError, match="kind is 'unknown'"):
        sj.attribute_inputs(known_only, written, target=ConceptActivation(0, "unknown"))  # type: ignore[arg-type]
