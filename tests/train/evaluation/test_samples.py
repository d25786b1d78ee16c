"""Figures of samples, and invalid options of `steerling evaluate`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.cli.main import main
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.progress import no_progress
from steerling_jax.tokenizer import IdsOnlyTokenizer
from steerling_jax.train import evaluate_command
from steerling_jax.train.corpus import python_documents
from steerling_jax.train.corpus.documents import Document
from steerling_jax.train.evaluation import sample_measures
from steerling_jax.train.evaluation.sample_measures import RUN, measures
from steerling_jax.train.evaluation.samples import Sample
from steerling_jax.train.prepare.config import CorpusInputs, PrepareConfig
from steerling_jax.train.prepare.prepare import prepare
from steerling_jax.train.run.config_files import load_config
from tests.worlds.training_world import make_corpus


class Letters(IdsOnlyTokenizer):
    """Two ids make a word of two letters, the same for equal ids."""

    def decode(self, ids) -> str:
        return " ".join(chr(97 + int(i) // 26) + chr(97 + int(i) % 26) for i in ids if int(i) not in self._names)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> CorpusStore:
    return CorpusStore(make_corpus(tmp_path_factory.mktemp("corpus") / "store"))


def test_measures(store: CorpusStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sample_measures, "_SLICE", 1000)  # so that runs cross the seams of slices
    tokens = store.tokens(0, 3000).astype(int).tolist()
    special = set(store.special.names())
    at = next(i for i in range(995, 3000) if not special & set(tokens[i : i + 12]))
    copied, invented = tokens[at : at + 12], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    bundle = SimpleNamespace(tokenizer=Letters(store.special, store.vocab_size))
    figures = measures([Sample("a", 0, "", "", copied, invented)], bundle, store)  # type: ignore[arg-type]
    assert figures["samples"]["copied"] == 1.0
    assert figures["reference"]["copied"] == 0.0
    assert figures["samples"]["known_words"] == figures["reference"]["known_words"] == 1.0
    assert figures["reference"]["distinct_2"] == pytest.approx(1 / 11)


def test_hashes_of_runs_do_not_collide():
    tokens = np.random.default_rng(0).integers(0, 4096, 50_000)
    assert len(np.unique(sample_measures._runs(tokens))) == 50_000 - RUN + 1
    assert len(sample_measures._runs(tokens[: RUN - 1])) == 0


def test_without_a_corpus_the_held_out_documents_are_those_of_the_bundled_models_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """That is, of the corpus that `steerling train --config pydocs` prepares: with half of the code."""
    texts = [f"Open the file number {i} and read what is in it, line by line.\n" for i in range(60)]
    documents = [Document(f"{i}", ("code", "docstring", "reference")[i % 3], text) for i, text in enumerate(texts)]
    monkeypatch.setattr(python_documents, "python_documents", lambda: iter(documents))
    made = evaluate_command.documentation_corpus(tmp_path / "store", sj.load(), no_progress)
    run = load_config("pydocs")
    settings = PrepareConfig(chunk_tokens=run.data.chunk_tokens, seed=run.seed, shares=run.data.sources or {})
    inputs = CorpusInputs(documents=documents, tokenizer=sj.load().tokenizer)
    expected = prepare(tmp_path / "expected", inputs, settings)
    assert [(d.sha256, d.split) for d in made.documents] == [(d.sha256, d.split) for d in expected.documents]
    kinds = [d.source for d in made.documents]
    assert 0 < kinds.count("code") < kinds.count("docstring") == 20


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["evaluate", "no-such/model"], "no-such/model"),
        (["evaluate", "--levels", "0"], "--levels has 0"),
        (["evaluate", "--samples", "-1"], "--samples is -1, but it must be a whole number of at least 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input(args, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "there").mkdir()
    assert main(args) == 2
    errors = capsys.readouterr().err
    assert words in errors
    assert errors.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
