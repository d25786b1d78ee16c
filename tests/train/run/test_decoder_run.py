"""Training of decoders in the loop: stop and resume, the exported folder, other models' weights, bad input."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.errors import UserError
from steerling_jax.io.corpus.heldout import read_heldout
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.models.compute import Compute
from steerling_jax.models.families import param_shapes
from steerling_jax.models.lora import LoraConfig
from steerling_jax.objectives.next_token import NextTokenObjective
from steerling_jax.objectives.pretraining import ObjectiveConfig
from steerling_jax.train.evaluation.evaluate import evaluator
from steerling_jax.train.run.config_files import load_config
from steerling_jax.train.run.events import Evaluated, RunFinished
from steerling_jax.train.run.initial_weights import find_initial_weights
from steerling_jax.train.run.run_folder import check_corpus
from steerling_jax.train.train_command import _export
from tests.worlds.decoders import GOLDEN_DECODERS
from tests.worlds.small_decoder import SPECIAL, small_config, small_run
from tests.worlds.training_world import make_corpus, train_in


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> CorpusStore:
    return CorpusStore(make_corpus(tmp_path_factory.mktemp("store") / "corpus"))


@dataclasses.dataclass
class Trained:
    folder: Path
    figures: Any
    params: Any


@pytest.fixture(scope="module")
def trained(store: CorpusStore, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    out, run = tmp_path_factory.mktemp("trained"), small_run()
    events = list(train_in(out, run, store, evaluate=evaluator(run, store)))
    (figures,) = [event.results for event in events if isinstance(event, Evaluated)]
    assert isinstance(events[-1], RunFinished)
    _export(run, out, events[-1].params)
    return Trained(out, figures, jax.device_get(events[-1].params))


def test_a_stopped_run_is_continued_bit_for_bit(store: CorpusStore, trained: Trained, tmp_path: Path) -> None:
    stops = iter([False, True])
    list(train_in(tmp_path, small_run(), store, stop=lambda: next(stops)))
    *_, end = train_in(tmp_path, small_run(), store)
    assert isinstance(end, RunFinished)
    jax.tree.map(np.testing.assert_array_equal, end.params, trained.params)


def test_the_export_is_a_hugging_face_folder(trained: Trained) -> None:
    config = json.loads((trained.folder / "export/config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("qwen3", ["Qwen3ForCausalLM"])
    for folder in (trained.folder / "export", trained.folder):  # and the run itself loads, from its checkpoint
        bundle = sj.load(folder)
        assert bundle.config == small_config()
        jax.tree.map(np.testing.assert_array_equal, bundle.params, trained.params)
        made = sj.generate(bundle, [1, 2, 3], sj.GenerationConfig(max_new_tokens=2, temperature=0.0))
        assert len(made.tokens) <= 5


def test_held_out_bits_are_the_exact_likelihood(store: CorpusStore, trained: Trained) -> None:
    held = read_heldout(store, 32)
    bundle = sj.load(trained.folder / "export")
    nats = 0.0
    for tokens, valid in zip(held.tokens, held.valid, strict=True):
        text = np.concatenate([[SPECIAL.bos_id], tokens[valid]])
        scores = np.asarray(jax.nn.log_softmax(sj.forward(bundle, text[None]).logits[0, :-1]))
        nats -= scores[np.arange(len(text) - 1), text[1:]].sum()
    assert trained.figures["nats_per_token"] == pytest.approx(nats / held.token_count, rel=1e-5)
    assert trained.figures["tokens"] == held.token_count


def test_adapters_on_published_weights(store: CorpusStore, tmp_path: Path) -> None:
    bundle = sj.load(GOLDEN_DECODERS / "qwen3")
    model = dataclasses.replace(bundle.config, bos_token_id=SPECIAL.bos_id, eos_token_ids=(SPECIAL.eos_id,))
    lora = LoraConfig(rank=2, modules=("mlp/up_proj",))
    run = small_run(model, steps=2, lora=lora, start_from=str(GOLDEN_DECODERS / "qwen3"))
    *_, end = train_in(tmp_path, run, store)
    assert isinstance(end, RunFinished)
    same = jax.tree.map(np.array_equal, end.params, bundle.params)
    changed = {jax.tree_util.keystr(path) for path, equal in jax.tree_util.tree_leaves_with_path(same) if not equal}
    assert changed == {f"['layers']['{layer}']['mlp']['up_proj']['weight']" for layer in range(4)}
    with pytest.raises(UserError, match="holds adapters to other weights, not a whole model"):
        sj.load(tmp_path)


def test_runs_that_do_not_fit(store: CorpusStore) -> None:
    with pytest.raises(
        UserError, match=r"objective\.masked is 0\.15, but Qwen3 models have no mask token: set it to 0"
    ):
        small_run(objective=NextTokenObjective())
    with pytest.raises(UserError, match="A Qwen3 model is trained with a NextTokenObjective, not with a ObjectiveCon"):
        small_run(objective=ObjectiveConfig())
    with pytest.raises(UserError, match=r"compute\.attention is 'splash', which Qwen3 models do not have"):
        small_run(compute=Compute(attention="splash"))
    data = dataclasses.replace(small_run().data, messages="talk.jsonl")
    with pytest.raises(UserError, match=r"data\.messages needs a model with a chat template: name it with start_from"):
        small_run(data=data)
    with pytest.raises(UserError, match=r"data\.vocab_size \(64\) must equal the model's vocab_size \(65\)"):
        small_run(small_config(vocab_size=65))
    with pytest.raises(UserError, match=r"seq_len \(32\) must not exceed the model's max_position_embeddings \(16\)"):
        small_run(small_config(max_position_embeddings=16))
    with pytest.raises(UserError, match=r"has eos_token_id 59, but the config 3; correct it"):
        check_corpus(small_run(small_config(eos_token_id=3)), store)
    with pytest.raises(UserError, match="is a Llama model, but the model of config 'small_decoder' is a Qwen3 model"):
        find_initial_weights(small_run(start_from=str(GOLDEN_DECODERS / "llama")))
    with pytest.raises(
        UserError, match=r"has embed_tokens\.weight of shape \(64, 32\), but .* make the config's model"
    ):
        find_initial_weights(small_run(small_config(hidden_size=64), start_from=str(GOLDEN_DECODERS / "qwen3")))


def test_the_config_of_a_small_qwen3_is_for_the_bundled_corpus() -> None:
    run, bundled = load_config("qwen3_pydocs"), load_config("pydocs_diffusion")
    assert run.data.vocab_size == bundled.data.vocab_size
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(param_shapes(of.model))) for of in (run, bundled)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)
