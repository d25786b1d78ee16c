"""Random small models against the published package itself: `make parity`, which installs both into one environment.

STEERLING_REFERENCE_PYTHON names another interpreter that has torch and the package; STEERLING_PARITY_COUNT (60) and
STEERLING_PARITY_SEED (0) choose the models.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")

import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.evaluation import likelihood
from tests.worlds.published_outputs import check

COUNT = int(os.environ.get("STEERLING_PARITY_COUNT", "60"))
SEED = os.environ.get("STEERLING_PARITY_SEED", "0")
REFERENCE = os.environ.get("STEERLING_REFERENCE_PYTHON") or (
    sys.executable if importlib.util.find_spec("steerling") and importlib.util.find_spec("torch") else None
)
pytestmark = pytest.mark.skipif(REFERENCE is None, reason="the published package is not here; run `make parity`")


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> Path:
    """A folder of models with what the published package returned for them."""
    folder = tmp_path_factory.mktemp("reference")
    script = Path(__file__).with_name("run_reference.py")
    subprocess.run([str(REFERENCE), str(script), str(folder), str(COUNT), SEED], check=True)
    return folder


def tied(case, config: sj.ModelConfig) -> np.ndarray:
    """Rows (B, T) without an order at the edge of what is kept: equal logits, or equal sigmoids in a dense head."""
    rows, concept = np.zeros(case["input_ids"].shape, bool), config.concept
    if concept is None:
        return rows
    edges = {"known": (concept.topk_known, concept.topk_known_features), "unknown": (concept.unknown_topk,)}
    for kind, counts in edges.items():
        if f"out.{kind}_logits" not in case.files:
            continue
        logits = np.sort(case[f"out.{kind}_logits"], axis=-1)[..., ::-1]
        weights = 1 / (1 + np.exp(-logits))
        for k in counts:
            if k is not None and k < logits.shape[-1]:
                rows |= logits[..., k - 1] - logits[..., k] < 2e-5
                rows |= weights[..., k - 1] - weights[..., k] < 2e-7
    return rows


@pytest.mark.parametrize("number", range(COUNT))
def test_random_model(cases, number):
    folder = cases / f"{number:03d}"
    case = np.load(folder / "forward.npz")
    settings = json.loads((folder / "forward.json").read_text())
    bundle = sj.load(folder)
    run = partial(sj.forward, bundle, case["input_ids"])
    logits, parts = run(dense=True)
    free = ~tied(case, bundle.config)
    assert free.any(), "every row is tied: smaller weights are needed"
    about = (folder / "config.json").read_text()

    def compare(name: str, ours, reference: np.ndarray) -> None:
        check(name, np.asarray(ours)[free], reference[free], about)

    compare("logits", logits, case["logits"])
    for key in (key for key in case.files if key.startswith("out.")):
        compare(key, getattr(parts, key.removeprefix("out.")), case[key])
    known, unknown = ({int(k): v for k, v in settings.get(kind, {}).items()} for kind in ("known", "unknown"))
    if "known.logits" in case.files:
        edited = run(intervene_known=known, positions=case["positions"])
        compare("known.logits", edited.logits, case["known.logits"])
        compare("known.features", edited.decomposition.known_features, case["known.features"])
    if "unknown.logits" in case.files:
        edited = run(intervene_unknown=unknown, positions=case["positions"])
        compare("unknown.logits", edited.logits, case["unknown.logits"])
        compare("unknown.features", edited.decomposition.unk_hat, case["unknown.features"])
        compare("both.logits", run(intervene_known=known, intervene_unknown=unknown).logits, case["both.logits"])
    if "injection" in case.files:
        where = {"inject_layer": settings["inject_layer"], "inject_alpha": settings["inject_alpha"]}
        compare("injected.logits", run(injection=case["injection"], **where).logits, case["injected.logits"])


@pytest.mark.parametrize("number", range(COUNT))
def test_likelihood(cases, number, monkeypatch):
    """Masked alike, a text gets the published score, with and without guidance."""
    case = np.load(cases / f"{number:03d}" / "likelihood.npz")
    bundle = sj.load(cases / f"{number:03d}")
    start = int(case["likelihood.start"])
    context, text = case["likelihood.ids"][:start], case["likelihood.ids"][start:]
    for name, scale in (("plain", 0.0), ("guided", 1.5)):
        masks = case[f"likelihood.{name}_masks"]
        monkeypatch.setattr(likelihood, "draw_masks", lambda *_, masks=masks: masks)
        found = sj.log_likelihood(bundle, context, text, samples=len(masks), cfg_scale=scale)
        assert found == pytest.approx(float(case[f"likelihood.{name}"]), rel=1e-4), name
