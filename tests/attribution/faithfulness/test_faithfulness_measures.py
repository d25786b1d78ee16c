"""The inputs, concepts and outputs parts on a tiny model: all figures exist, bounds hold, exact figures are exact."""

from __future__ import annotations

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from steerling_jax.attribution.faithfulness.concepts import effects
from steerling_jax.attribution.faithfulness.concepts.measure import measure as measure_concepts
from steerling_jax.attribution.faithfulness.concepts.settings import ConceptSettings
from steerling_jax.attribution.faithfulness.figures import text_table
from steerling_jax.attribution.faithfulness.inputs import perturbations, prompt_figures, weight_randomisation
from steerling_jax.attribution.faithfulness.inputs.measure import measure as measure_inputs
from steerling_jax.attribution.faithfulness.inputs.settings import InputSettings
from steerling_jax.attribution.faithfulness.outputs import text_figures, text_sets
from steerling_jax.attribution.faithfulness.outputs.measure import OWN_TEXT
from steerling_jax.attribution.faithfulness.outputs.measure import measure as measure_outputs
from steerling_jax.attribution.faithfulness.outputs.settings import OutputSettings
from steerling_jax.attribution.index.evidence import Score
from steerling_jax.bundle import Bundle
from steerling_jax.cli.console import plain
from steerling_jax.errors import UserError
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.models.steerling.config import DictionaryConfig
from tests.worlds.dictionary_world import make_params
from tests.worlds.topic_world import config as topic_config
from tests.worlds.training_world import FakeTokenizer

MEASURES = {"inputs": measure_inputs, "concepts": measure_concepts, "outputs": measure_outputs}


def figures(result: dict) -> dict[tuple[str, str], dict]:
    json.dumps(plain(result), allow_nan=False)
    assert len(text_table(result)) == len(result["figures"]) + 1
    for figure in result["figures"]:
        if figure["mean"] is not None:
            assert figure["low"] - 1e-9 <= figure["mean"] <= figure["high"] + 1e-9 or figure["n"] < 4
    return {(figure["figure"], figure["of"]): figure for figure in result["figures"]}


def test_inputs(topic_bundle: Bundle, topic_store: CorpusStore):
    settings = InputSettings(prompts=2, targets=1, features=3, randomised=2)
    found = figures(measure_inputs(topic_bundle, topic_store, settings))
    for figure in ("comprehensiveness, normalised", "sufficiency, normalised"):
        for method in (
            *prompt_figures.METHODS,
            prompt_figures.IG_OF_LOGIT,
            perturbations.RANDOM,
            prompt_figures.SHAPLEY,
        ):
            assert -1e-9 <= found[figure, method]["mean"] <= 1 + 1e-9
    assert (
        found["comprehensiveness, nats", "worst order"]["mean"]
        <= found["comprehensiveness, nats", "best order"]["mean"]
    )
    last = "largest change of a log-probability by other tokens in"
    assert found[last, "later attention blocks"]["mean"] < 1e-5
    assert found[last, "the prompt"]["mean"] > 1e-3
    assert {of for figure, of in found if figure.startswith("rank correlation")} == set(weight_randomisation.CASCADE)


@pytest.fixture(scope="module")
def strict_bundle(topic_store: CorpusStore) -> Bundle:
    """A random strict model for the corpus: a dictionary of full rank, and no epsilon."""
    published = topic_config().concept
    assert published is not None
    concept = dataclasses.replace(
        published,
        factorize_unknown=False,
        unknown_topk=6,
        use_epsilon_correction=False,
        dictionary=DictionaryConfig(),
    )
    config = dataclasses.replace(topic_config(), concept=concept)
    return Bundle(config, make_params(config), FakeTokenizer(), name="strict")


def test_concepts_of_a_strict_model(strict_bundle: Bundle, topic_store: CorpusStore):
    """All figures exist, and what is exact is exact: nothing restores what is removed from the head."""
    settings = ConceptSettings(prompts=2, blocks=1, seq_len=64, most_tokens=1024)
    found = figures(measure_concepts(strict_bundle, topic_store, settings))
    for head in ("known", "discovered"):
        for rule in ("frozen", "published"):
            for shares, quantity in (("share", "logit"), ("centred share", "centred logit")):
                exact = f"{shares} and {quantity}, removed in the head, {rule} ({head}, tokens)"
                assert found["correlation", exact]["mean"] == pytest.approx(1, abs=1e-3)
                assert found["slope", exact]["mean"] == pytest.approx(1, abs=1e-2)
        for shares in ("centred share and centred logit", "log-probability share and log-probability"):
            for control in ("", "shuffled "):
                name = (
                    f"{control}{shares.replace(' and', 's and') if control else shares}, in the pass ({head}, tokens)"
                )
                assert np.isfinite(found["correlation", name]["mean"])
    assert found["loss more, nats a token", "epsilon removed"]["mean"] == 0
    mass = {name: f["mean"] for (figure, name), f in found.items() if figure.startswith("mass removed")}
    assert set(mass) == {"known concepts", "as many discovered concepts"}
    assert all(value > 0 for value in mass.values())
    shown = [f for (figure, _), f in found.items() if "whose top 5" in figure]
    assert len(shown) == 3
    assert all(0 < f["mean"] <= 1 for f in shown)


def test_concepts(topic_bundle: Bundle, topic_store: CorpusStore):
    result = measure_concepts(topic_bundle, topic_store, ConceptSettings(prompts=2, seq_len=64, most_tokens=1024))
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


def test_outputs(topic_bundle: Bundle, topic_store: CorpusStore):
    # An untrained model is repetitive: with a share above 1 its texts count as good.
    settings = OutputSettings(prompts=3, everyday=False, repeated_share=2.0)

    def evidence(tokens: np.ndarray, start: int, end: int) -> dict[Score, tuple[float, float]]:
        return {"verbatim": (float(start), 9.0)}

    result = measure_outputs(topic_bundle, topic_store, settings, evidence=evidence)
    found = figures(result)
    assert result["settings"]["texts"][text_sets.GOOD] == 3
    assert result["settings"]["texts"][text_sets.OFF_TOPIC] == 3
    for texts in (text_sets.GOOD, OWN_TEXT):
        assert found["evidence: best verbatim", texts]["mean"] == settings.prompt_tokens
        assert found["evidence: verbatim above its threshold", texts]["mean"] == 1
    for figure in (*text_figures.ATTRIBUTION, *text_figures.BASELINES):
        assert found[figure, text_sets.GOOD]["n"] == 3
    shares = [found[f"net share, {name}", text_sets.GOOD]["mean"] for name in ("known", "discovered", "epsilon")]
    assert sum(shares) == pytest.approx(1, abs=1e-3)


def test_evidence_at_its_threshold_is_not_above_it():
    values: dict[Score, tuple[float, float]] = {
        "verbatim": (2.0, 2.0),
        "signature": (2.5, 2.0),
        "influence": (1.0, 2.0),
    }
    found = text_figures.evidence_figures(lambda tokens, start, end: values, np.arange(5), 1)
    above = {score: found[f"evidence: {score} above its threshold"] for score in values}
    assert above == {"verbatim": 0.0, "signature": 1.0, "influence": 0.0}


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_bad_input(measure, topic_bundle: Bundle, topic_store: CorpusStore):
    with pytest.raises(UserError, match="was made with another tokenizer than this model's"):
        measure(dataclasses.replace(topic_bundle, tokenizer=FakeTokenizer("1" * 64)), topic_store)
    broken = dict(topic_bundle.params, tok_emb={"weight": jnp.full((64, 32), jnp.nan)})
    with pytest.raises(UserError, match="planted: tok_emb/weight contains NaN"):
        measure(dataclasses.replace(topic_bundle, params=broken), topic_store)


@pytest.mark.parametrize("measure", [measure_concepts, measure_outputs])
def test_bare_backbone(measure, topic_bundle: Bundle, topic_store: CorpusStore):
    bare = dataclasses.replace(topic_bundle.config, concept=None, interpretable=False)
    with pytest.raises(UserError, match="bare backbone"):
        measure(dataclasses.replace(topic_bundle, config=bare), topic_store)
