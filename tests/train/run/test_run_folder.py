"""The folder of a run: another run, another corpus and a corpus that does not fit the model are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from steerling_jax.cli.main import main
from steerling_jax.errors import UserError
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.corpus.writer import corpus_writer
from steerling_jax.train.run.config_files import load_config
from steerling_jax.train.run.run_config import RunConfig, special_ids
from steerling_jax.train.run.run_folder import check_corpus, has_run, open_folder, write_model_run
from tests.worlds.training_world import CONFIG, FakeTokenizer, make_corpus


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    path = tmp_path_factory.mktemp("config") / "small.py"
    path.write_text(CONFIG)
    return load_config(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> CorpusStore:
    return CorpusStore(make_corpus(tmp_path_factory.mktemp("parts") / "corpus"))


def test_a_folder_of_another_run_is_refused(run: RunConfig, store: CorpusStore, tmp_path: Path) -> None:
    open_folder(run, store, tmp_path)
    open_folder(run, store, tmp_path)
    wider = dataclasses.replace(run, model=dataclasses.replace(run.model, n_layers=3))
    with pytest.raises(UserError, match=r"run with another config: model\.n_layers is 3, was 2"):
        open_folder(wider, store, tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run.json cannot be read"):
        open_folder(run, store, tmp_path)
    (tmp_path / "run.json").unlink()
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"has checkpoints but no run.json"):
        open_folder(run, store, tmp_path)


def test_a_run_on_a_model_is_that_of_its_settings_and_weights(tmp_path: Path) -> None:
    values, weights = {"kind": "attach", "model": "small", "k": 4, "visits": 1}, {"fingerprint": "1f"}
    assert not has_run(tmp_path, values, weights)
    write_model_run(tmp_path, values, weights)
    assert has_run(tmp_path, values, weights)
    assert has_run(tmp_path, values)
    with pytest.raises(UserError, match="has a run on other weights of small; restore the model"):
        has_run(tmp_path, values, {"fingerprint": "2e"})
    with pytest.raises(UserError, match="run with another config: k is 5, was 4"):
        has_run(tmp_path, values | {"k": 5}, weights)
    # A run of an earlier version lacks a field, and had one value of it.
    write_model_run(tmp_path, {name: value for name, value in values.items() if name != "visits"}, weights)
    assert has_run(tmp_path, values, weights, earlier={"visits": 1})
    with pytest.raises(UserError, match="visits is 2, was 1"):
        has_run(tmp_path, values | {"visits": 2}, weights, earlier={"visits": 1})


def test_another_corpus_is_refused(run: RunConfig, store: CorpusStore, tmp_path: Path) -> None:
    open_folder(run, store, tmp_path / "out")
    retokenized = CorpusStore(make_corpus(tmp_path / "retokenized", FakeTokenizer(sha256="1" * 64)))
    with pytest.raises(UserError, match=r"corpus with another tokenizer than .*retokenized"):
        open_folder(run, retokenized, tmp_path / "out")
    rewritten = CorpusStore(make_corpus(tmp_path / "rewritten", seed=1))
    with pytest.raises(UserError, match=r"corpus with other documents than .*rewritten"):
        open_folder(run, rewritten, tmp_path / "out")
    turned = CorpusStore(make_corpus(tmp_path / "turned"))
    turned.manifest["concepts"] = turned.concepts[::-1]
    with pytest.raises(UserError, match=r"corpus with other concepts, or in another order, than .*turned"):
        open_folder(run, turned, tmp_path / "out")


def test_a_start_that_fails_does_not_refuse_the_mended_corpus(
    run: RunConfig, store: CorpusStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))  # or the command would set one for the other tests
    (tmp_path / "small.py").write_text(CONFIG)
    with corpus_writer(
        tmp_path / "corpus", FakeTokenizer(), concepts=store.concepts, source={"kind": "test"}
    ) as writer:
        writer.add(name="one", source="test", sha256="1" * 64, split="train", chunks=[([1] * 30, [1])] * 40)
    config, out = str(tmp_path / "small.py"), tmp_path / "out"
    command = ["train", "--config", config, "--corpus", str(tmp_path / "corpus"), "--out", str(out), "--json"]
    assert main(command) == 2
    assert "The heldout split of" in capsys.readouterr().err
    assert not (out / "run.json").exists()
    open_folder(run, store, out)
    # A run that was there before the failure keeps its files.
    before = {path: path.read_bytes() for path in out.glob("*.*") if path.suffix}
    assert main([*command[:3], *command[5:], "--corpus", str(tmp_path / "corpus")]) == 2
    assert before
    assert {path: path.read_bytes() for path in before} == before


def test_a_corpus_that_does_not_fit_the_model_is_refused(run: RunConfig, store: CorpusStore, tmp_path: Path) -> None:
    check_corpus(run, store)
    larger = CorpusStore(make_corpus(tmp_path / "larger", FakeTokenizer(vocab_size=65)))
    with pytest.raises(
        UserError, match="has a vocabulary of 65, but config 'small' one of 64: it was prepared with another"
    ):
        check_corpus(run, larger)
    assert run.model.concept is not None
    fewer = dataclasses.replace(run.model, concept=dataclasses.replace(run.model.concept, n_concepts=7))
    with pytest.raises(UserError, match="has 8 known concepts, but config 'small' has n_concepts 7"):
        check_corpus(dataclasses.replace(run, model=fewer), store)
    moved = dataclasses.replace(run.model, mask_token_id=special_ids(64)["pad_token_id"])
    with pytest.raises(UserError, match="has mask_token_id 63, but the config"):
        check_corpus(dataclasses.replace(run, model=moved), store)
    altered = CorpusStore(make_corpus(tmp_path / "altered"))
    (altered.folder / "tokenizer.model").write_bytes(b"another")
    with pytest.raises(UserError, match="made with another tokenizer"):
        check_corpus(run, altered)
