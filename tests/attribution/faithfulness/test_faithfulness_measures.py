"""The three measures on a tiny model: every figure is there, bounds hold, and what must be exact is."""

from __future__ import annotations

import dataclasses
import json
from typing import cast

import jax.numpy as jnp
import numpy as np
import pytest

from steerling_jax.attribution.faithfulness import outputs
from steerling_jax.attribution.faithfulness.concepts import concepts, effects
from steerling_jax.attribution.faithfulness.figures import table
from steerling_jax.attribution.faithfulness.inputs import inputs, randomised
from steerling_jax.attribution.index.reader import Index
from steerling_jax.bundle import Bundle
from steerling_jax.cli.console import plain
from steerling_jax.errors import UserError
from steerling_jax.io.corpus.store import CorpusStore
from tests.worlds.training_world import FakeTokenizer

MEASURES = {"inputs": inputs.measure, "concepts": concepts.measure, "outputs": outputs.measure}


def figures(result: dict) -> dict[tuple[str, str], dict]:
    json.dumps(plain(result), allow_nan=False)
    assert len(table(result)) == len(result["figures"]) + 1
    for figure in result["figures"]:
        if figure["mean"] is not None:
            assert figure["low"] - 1e-9 <= figure["mean"] <= figure["high"] + 1e-9 or figure["n"] < 4
    return {(figure["figure"], figure["of"]): figure for figure in result["figures"]}


def test_inputs(topic_bundle: Bundle, topic_store: CorpusStore):
    found = figures(inputs.measure(topic_bundle, topic_store, prompts=2, targets=1, features=3, randomised=2))
    for figure in ("comprehensiveness, normalised", "sufficiency, normalised"):
        for method in (*inputs.METHODS, inputs.OF_LOGIT, inputs.RANDOM, inputs.SHAPLEY):
            assert -1e-9 <= found[figure, method]["mean"] <= 1 + 1e-9
    assert (
        found["comprehensiveness, nats", "worst order"]["mean"]
        <= found["comprehensiveness, nats", "best order"]["mean"]
    )
    last = "largest change of a log-probability by other tokens in"
    assert found[last, "later attention blocks"]["mean"] < 1e-5
    assert found[last, "the prompt"]["mean"] > 1e-3
    assert {of for figure, of in found if figure.startswith("rank correlation")} == set(randomised.CASCADE)


def test_concepts(topic_bundle: Bundle, topic_store: CorpusStore):
    result = concepts.measure(topic_bundle, topic_store, prompts=2, seq_len=64, most_tokens=1024)
    found = figures(result)
    for head in ("known", "discovered"):
        exact = f"share and logit, removed in the head, frozen ({head}, tokens)"
        assert found["correlation", exact]["mean"] == pytest.approx(1, abs=1e-3)
        assert found["slope", exact]["mean"] == pytest.approx(1, abs=1e-2)
    refilled = "share and logit, removed in the head, published (discovered, tokens)"
    assert abs(found["mean effect (nothing else to compare)", refilled]["mean"]) < 1e-4
    injected = f"concept → concept, {effects.STRENGTHS[0]:g} embeddings injected"
    assert found["correlation", injected]["mean"] > 0.95
    parts = [found["net share of logit mass", name]["mean"] for name in ("known", "discovered", "epsilon")]
    assert sum(parts) == pytest.approx(1, abs=1e-3)
    for part in ("epsilon", "known", "discovered"):
        assert np.isfinite(found["loss more, nats a token", f"{part} removed"]["mean"])


def test_outputs(topic_bundle: Bundle, topic_store: CorpusStore, monkeypatch):
    monkeypatch.setattr(outputs, "REPEATED", 2.0)  # a model that has learned nothing repeats itself
    monkeypatch.setattr(outputs, "best_values", lambda index, tokens, start, end: {"verbatim": (float(start), 9.0)})
    result = outputs.measure(topic_bundle, topic_store, prompts=3, everyday=False, index=cast(Index, object()))
    found = figures(result)
    assert result["settings"]["texts"][outputs.GOOD] == 3
    assert result["settings"]["texts"][outputs.OFF_TOPIC] == 3
    for texts in (outputs.GOOD, outputs.OWN_TEXT):
        assert found["evidence: best verbatim", texts]["mean"] == outputs.PROMPT_TOKENS
        assert found["evidence: verbatim above its threshold", texts]["mean"] == 1
    for figure in (*outputs.ATTRIBUTION, *outputs.PLAIN):
        assert found[figure, outputs.GOOD]["n"] == 3
    shares = [found[f"net share, {name}", outputs.GOOD]["mean"] for name in ("known", "discovered", "epsilon")]
    assert sum(shares) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_bad_input(measure, topic_bundle: Bundle, topic_store: CorpusStore):
    with pytest.raises(UserError, match="was made with another tokenizer than this model's"):
        measure(dataclasses.replace(topic_bundle, tokenizer=FakeTokenizer("1" * 64)), topic_store)
    broken = dict(topic_bundle.params, tok_emb={"weight": jnp.full((64, 32), jnp.nan)})
    with pytest.raises(UserError, match="planted: tok_emb/weight contains NaN"):
        measure(dataclasses.replace(topic_bundle, params=broken), topic_store)


@pytest.mark.parametrize("measure", [concepts.measure, outputs.measure])
def test_bare_backbone(measure, topic_bundle: Bundle, topic_store: CorpusStore):
    bare = dataclasses.replace(topic_bundle.config, concept=None, interpretable=False)
    with pytest.raises(UserError, match="bare backbone"):
        measure(dataclasses.replace(topic_bundle, config=bare), topic_store)
