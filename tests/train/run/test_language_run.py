"""Instruction tuning with language features by the command: what changes, what is recorded, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.cli.console import plain
from steerling_jax.cli.main import main
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.language_features_file import write_language_features
from steerling_jax.models.steerling.fingerprint import fingerprint
from steerling_jax.train.corpus.documents import Document
from steerling_jax.train.prepare.config import CorpusInputs, PrepareConfig
from steerling_jax.train.prepare.model_tokenizer import model_tokenizer
from steerling_jax.train.prepare.prepare import prepare
from tests.worlds.chat_model import write_chat_model
from tests.worlds.language_features import make_features

CONFIG = """
from steerling_jax.configs.language_tuning import config_for
from steerling_jax.models.lora import LoraConfig
from steerling_jax.train.run.run_config import DataConfig

def config():
    data = DataConfig(vocab_size=272, seq_len=64, batch_size=2, messages={messages!r})
    lora = LoraConfig(rank=2) if {adapters} else None
    return config_for({model!r}, {features!r}, penalty={penalty!r}, weight={weight}, data=data, lora=lora, steps=2,
                      accumulate=1, eval_every=2, log_every=1)
"""


class World:
    """A model, its corpus, conversations in three languages, and language features."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.model = write_chat_model(folder / "model")
        texts = [f"{word} jumps over the dog, {i} times\n" * 6 for i, word in enumerate(["the fox", "a cat"] * 10)]
        documents = [Document(f"d{i}", "code", text) for i, text in enumerate(texts)]
        inputs = CorpusInputs(documents=documents, tokenizer=model_tokenizer(self.model))
        self.corpus: CorpusStore = prepare(folder / "corpus", inputs, PrepareConfig(heldout_share=0.3))
        bundle = sj.load(self.model)
        self.fingerprint = fingerprint(bundle.params, bundle.config)
        self.params = bundle.params
        self.features("languages.json", self.fingerprint)
        self.talk("talk.jsonl", ["de", "en", "ko"])

    def features(self, name: str, model: str) -> None:
        write_language_features(self.folder / name, make_features(model, vocab_size=272), "model")

    def talk(self, name: str, languages: list[str | None]) -> None:
        messages = [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "A fox."}]
        lines = [{"messages": messages} | ({} if one is None else {"language": one}) for one in languages]
        (self.folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))

    def train(
        self,
        out: str,
        *,
        talk: str = "talk.jsonl",
        features: str = "languages.json",
        penalty: str = "features",
        weight: float = 1.0,
        adapters: bool = True,
    ) -> int:
        config = self.folder / f"{out}.py"
        values = {"messages": str(self.folder / talk), "features": str(self.folder / features), "weight": weight}
        config.write_text(CONFIG.format(model=str(self.model), penalty=penalty, adapters=adapters, **values))
        corpus = ["--corpus", str(self.corpus.folder)]
        return main(["train", "--config", str(config), *corpus, "--out", str(self.folder / out), "--json"])

    def losses(self, out: str) -> list[dict[str, float]]:
        lines = map(json.loads, (self.folder / out / "metrics.jsonl").read_text().splitlines())
        return [line for line in lines if line["kind"] == "step"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("languages"))


@pytest.mark.parametrize("adapters", [True, False])
def test_tuning_with_the_command(world: World, capfd: pytest.CaptureFixture[str], adapters: bool) -> None:
    out = f"tuned-{adapters}"
    assert world.train(out, adapters=adapters) == 0
    assert json.loads(capfd.readouterr().out)["step"] == 2
    for line in world.losses(out):
        assert line["penalty"] > 0
        assert line["loss"] == pytest.approx(line["next"] + line["penalty"], rel=1e-5)
    recorded = json.loads((world.folder / out / "run.json").read_text())["run"]["objective"]
    digest = make_features(world.fingerprint, vocab_size=272).digest
    expected = {"kind": "language", "masked": 0.0, "features": digest, "penalty": "features", "weight": 1.0}
    assert recorded == expected
    tuned = sj.load(world.folder / out / "export").params
    same = jax.tree.map(np.array_equal, tuned, world.params)
    assert same["embed_tokens"]["weight"] == adapters
    assert not same["layers"]["0"]["mlp"]["down_proj"]["weight"]
    # The same folder with other features is another run.
    world.features("others.json", "0" * 16)
    assert world.train(out, features="others.json", adapters=adapters) == 2
    assert "objective.features" in plain(capfd.readouterr().err)


def test_what_cannot_be_tuned(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    world.features("foreign.json", "0" * 16)
    world.talk("unknown.jsonl", ["de", "ja"])
    world.talk("without.jsonl", ["de", None])
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"features": "foreign.json"}, "made with another model than"),
        ({"talk": "unknown.jsonl"}, "line 2 is in the language 'ja', but the language features are of de, en, ko"),
        ({"talk": "without.jsonl"}, "line 2 has no language: add the key 'language' with one of de, en, ko"),
        ({"features": "absent.json"}, "Cannot read"),
    )
    for values, words in cases:
        assert world.train("refused", **values) == 2
        assert words in " ".join(plain(capfd.readouterr().err).split())
        assert not (world.folder / "refused" / "run.json").exists()
