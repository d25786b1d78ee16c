"""The scaling study's arithmetic: fits of known laws, and runs of equal FLOPs. (`benchmarks/` is no package.)"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.train.run.config_files import load_config
from tests.worlds.paths import REPOSITORY
from tests.worlds.training_world import make_corpus


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def study() -> ModuleType:
    return script("scaling")


@pytest.fixture(scope="module")
def report() -> ModuleType:
    return script("scaling_report")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> CorpusStore:
    return CorpusStore(make_corpus(tmp_path_factory.mktemp("corpus") / "store"))


def test_a_power_law_is_found_and_seeds_give_its_interval(report: ModuleType):
    x = np.array([1e11, 1e12, 1e13, 1e14])
    random = np.random.default_rng(1)

    def losses(alpha: float, noise: float) -> list[np.ndarray]:
        return [50 * at**-alpha * np.exp(noise * random.standard_normal(3)) for at in x]

    exact = report.exponents({"a": x, "b": x}, {"a": losses(0.06, 0.0), "b": losses(0.09, 0.0)})
    assert exact["a"].alpha == pytest.approx(0.06)
    assert exact["difference"].alpha == pytest.approx(-0.03)
    assert exact["a"].residual == pytest.approx(0, abs=1e-12)
    noisy = report.exponents({"a": x, "b": x}, {"a": losses(0.06, 0.01), "b": losses(0.06, 0.01)})
    # The slope's deviation: noise / √3 over the root of Σ (log x − mean)², which is 5.15.
    expected = 2 * 1.96 * 0.01 / 3**0.5 / 5.15
    assert noisy["a"].high - noisy["a"].low == pytest.approx(expected, rel=0.4)
    assert noisy["difference"].low < 0 < noisy["difference"].high


def test_one_seed_a_size_gives_no_interval(report: ModuleType):
    x = np.array([1.0, 10.0, 100.0])
    found = report.exponents({"a": x, "b": x}, {arm: [np.array([at**-0.5]) for at in x] for arm in "ab"})
    assert found["a"].alpha == pytest.approx(0.5)
    assert np.isnan(found["a"].low)


def test_both_arms_of_a_size_get_the_same_flops(study: ModuleType, store: CorpusStore):
    for size in study.SIZES:
        used = [
            study.steps_of(size, arm, store) * study.flops_a_step(study.model_of(size, arm, store)).total
            for arm in (study.CONCEPTS, study.BARE)
        ]
        a_step = study.flops_a_step(study.model_of(size, study.BARE, store)).total
        assert used[0] == pytest.approx(used[1], abs=1.1 * a_step)


def test_the_config_that_is_written_is_the_run(study: ModuleType, store: CorpusStore, tmp_path: Path):
    size, arm, seed = next(study.planned())
    run = study.run_of(size, arm, seed, store)
    study.write_config(run, tmp_path / "run.py")
    assert load_config(tmp_path / "run.py") == run


def test_every_size_has_one_seed_before_any_has_two(study: ModuleType):
    runs = list(study.planned())
    assert len(set(runs)) == len(runs) == 2 * sum(len(size.seeds) for size in study.SIZES)
    assert {size.width for size, _, _ in runs[: 2 * len(study.SIZES)]} == {size.width for size in study.SIZES}
