"""Instruction tuning of a published decoder: its chat template makes the prompts, and only answers are scored."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.cli.console import plain
from steerling_jax.cli.main import main
from steerling_jax.errors import UserError
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.tokenizer import NO_ID
from steerling_jax.train.corpus.documents import Document
from steerling_jax.train.data.batches import Batches
from steerling_jax.train.data.conversations import Conversations
from steerling_jax.train.prepare.config import CorpusInputs, PrepareConfig
from steerling_jax.train.prepare.model_tokenizer import model_tokenizer
from steerling_jax.train.prepare.prepare import prepare
from steerling_jax.train.run.run_config import DataConfig
from tests.worlds.chat_model import IDS, chat_config, write_chat_model
from tests.worlds.small_decoder import small_run

TALK = [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "A <|im_end|>."}]
CONFIG = """
from steerling_jax.models.lora import LoraConfig
from steerling_jax.train.run.run_config import DataConfig
from tests.worlds.chat_model import chat_config
from tests.worlds.small_decoder import small_run

def config():
    data = DataConfig(vocab_size=272, seq_len=64, batch_size=2, messages={messages!r})
    return small_run(chat_config(), data=data, steps=2, eval_every=2, start_from={model!r}, lora=LoraConfig(rank=2))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture(scope="module")
def corpus(model: Path) -> CorpusStore:
    """Python-like documents in the tokens of the model, which has no ids for starts of documents and ends of chunks."""
    texts = [f"{word} jumps over the dog, {i} times\n" * 6 for i, word in enumerate(["the fox", "a cat"] * 10)]
    documents = [Document(f"d{i}", "code", text) for i, text in enumerate(texts)]
    inputs = CorpusInputs(documents=documents, tokenizer=model_tokenizer(model))
    return prepare(model.parent / "corpus", inputs, PrepareConfig(heldout_share=0.3))


@pytest.fixture(scope="module")
def messages(model: Path) -> Path:
    path = model.parent / "talk.jsonl"
    path.write_text((json.dumps({"messages": TALK}) + "\n") * 3)
    return path


def test_the_template_makes_the_prompt_and_the_answer_is_scored(model: Path, messages: Path) -> None:
    tokenizer = sj.load(model).tokenizer
    example = Conversations(messages, tokenizer, seq_len=64, block=1)[0]  # type: ignore[arg-type]
    tokens, scored = example["tokens"], example["answer"] >= 0
    first = int(np.argmax(scored))
    assert tokens[:first].tolist() == tokenizer.chat_prompt(TALK[:1])  # type: ignore[attr-defined]
    answer = tokens[scored].tolist()
    assert tokenizer.decode(answer) == "A <|im_end|>.", "a special token in a message is text"
    assert answer.count(IDS["<|im_end|>"]) == 1
    assert answer[-1] == IDS["<|im_end|>"]
    assert scored[first : first + len(answer)].all()
    assert tokens[first + len(answer) :].min() >= 0  # padding is ids, too


def test_a_corpus_in_the_tokens_of_another_model(corpus: CorpusStore, model: Path) -> None:
    special = corpus.special
    assert (special.bos_id, special.endofchunk_id, special.mask_id) == (NO_ID,) * 3
    tokens = corpus.tokens(*corpus.split("train"))
    assert int(tokens.max()) == special.eos_id == IDS["<|im_end|>"]
    documents = [d for d in corpus.documents if d.split == "train"]
    assert int((tokens == special.eos_id).sum()) == len(documents)
    text = model_tokenizer(model).decode(corpus.tokens(documents[0].start, documents[0].end))
    assert text.startswith(("the fox jumps", "a cat jumps"))


def test_tuning_with_the_command(
    corpus: CorpusStore, model: Path, messages: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "tune.py"
    config.write_text(CONFIG.format(messages=str(messages), model=str(model)))
    out = tmp_path / "out"
    assert main(["train", "--config", str(config), "--corpus", str(corpus.folder), "--out", str(out), "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["step"] == 2
    assert result["evaluation"]["bits_per_byte"] > 0
    before, after = sj.load(model), sj.load(out / "export")
    assert isinstance(after.config, DecoderConfig)
    assert after.tokenizer.chat_prompt(TALK[:1]) == before.tokenizer.chat_prompt(TALK[:1])  # type: ignore[attr-defined]
    same = jax.tree.map(np.array_equal, after.params, before.params)
    assert same["embed_tokens"]["weight"]
    assert not same["layers"]["0"]["mlp"]["down_proj"]["weight"]


def test_conversations_need_a_chat_template(
    corpus: CorpusStore, messages: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = write_chat_model(tmp_path / "plain", template=None)
    data = DataConfig(vocab_size=272, seq_len=64, batch_size=2, messages=str(messages))
    run = small_run(chat_config(), data=data, start_from=str(model))
    with pytest.raises(UserError, match=r"talk\.jsonl, but the model .*plain has no chat template, .* add its "):
        Batches(run, corpus)
    config = tmp_path / "tune.py"
    config.write_text(CONFIG.format(messages=str(messages), model=str(model)))
    out = tmp_path / "out"
    assert main(["train", "--config", str(config), "--corpus", str(corpus.folder), "--out", str(out)]) == 2
    assert "has no chat template" in plain(capfd.readouterr().err)
    assert not (out / "run.json").exists()
