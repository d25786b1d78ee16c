"""Training phases: micro-batches, adapters, steering training and instruction tuning, with their gradients."""

from __future__ import annotations

import dataclasses
import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steerling_jax.errors import UserError
from steerling_jax.io.tokenizers.sentencepiece import SentencePieceTokenizer
from steerling_jax.io.tokenizers.vocabulary import train_sentencepiece
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.lora import LoraConfig, init_adapters, merge_adapters, with_adapters
from steerling_jax.models.steerling.model import forward, init_params
from steerling_jax.objectives.instruction import InstructionObjective
from steerling_jax.objectives.noise import NoiseConfig
from steerling_jax.objectives.objective import Objective
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.objectives.pretraining import ObjectiveConfig, loss_fn
from steerling_jax.objectives.steering import SteeringObjective
from steerling_jax.objectives.training_step import Recipe, TrainState, init_state, update
from steerling_jax.steering.config import SteeringConfig
from steerling_jax.steering.plan import prepare_steering
from steerling_jax.tokenizer import SpecialIds
from steerling_jax.train.data.conversations import Conversations, read_conversations
from steerling_jax.train.data.steering_examples import with_concepts
from steerling_jax.train.run.run_config import DataConfig, RunConfig, instruct_ids
from steerling_jax.train.run.turn_tokens import add_turn_tokens
from tests.objectives.test_objective import CONFIG, batch

KEY = jax.random.key(0)
LIFTED = np.full((10, 3), -1, np.int32)
LIFTED[:8] = np.arange(24).reshape(8, 3)  # concepts 8 and 9 have none
PRETRAINING = ObjectiveConfig(rows=0.7, epsilon_dropout=(0.5, 0.5), unknown_dropout=0.2, unknown_forcing=(0.5, 0.5))
STEERING = SteeringObjective(noise=NoiseConfig(clean_context=True), pushed=0.7, rows=0.9)


@pytest.fixture(scope="module")
def params() -> Params:
    return jax.jit(partial(init_params, CONFIG))(KEY)


def steering_batch(sequences: int = 4) -> dict[str, jax.Array]:
    plain = {name: np.asarray(value) for name, value in batch(sequences).items()}
    (made,) = with_concepts([{**plain, "sequence": np.arange(sequences)}], LIFTED, seed=0, first=7)
    return {name: jnp.asarray(value) for name, value in made.items()}


def answer_batch(sequences: int = 4, length: int = 32) -> dict[str, jax.Array]:
    answer = np.full((sequences, length), -1, np.int32)
    for row in range(sequences):
        begin, end = 5 + row, 20 + row
        answer[row, begin:end] = np.arange(end - begin) // CONFIG.diff_block_size
    return {"tokens": batch(sequences, length)["tokens"], "answer": jnp.asarray(answer)}


def gradients(params: Params, objective: Objective, given: dict[str, jax.Array]) -> tuple[Params, dict[str, jax.Array]]:
    loss = partial(loss_fn, config=CONFIG, compute=Compute(), objective=objective)
    return jax.jit(jax.grad(loss, has_aux=True))(params, given, KEY, jnp.float32(0.5))


def begin(recipe: Recipe) -> TrainState:
    return jax.jit(partial(init_state, recipe))(KEY)


def largest(tree: Any) -> float:
    return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


# Gradient accumulation.


@pytest.mark.parametrize(
    ("objective", "given"),
    [
        (dataclasses.replace(PRETRAINING, token_weight="inverse_t", epsilon_independence_weight=1.0), batch(4)),
        (STEERING, steering_batch()),
        (InstructionObjective(), answer_batch()),
    ],
)
def test_parts_add_up_to_the_batch(params: Params, objective: Objective, given: dict[str, jax.Array]) -> None:
    drawn = objective.draw(given, KEY, jnp.float32(0.5), CONFIG)
    loss = jax.jit(partial(objective.loss, params, progress=jnp.float32(0.5), config=CONFIG, compute=Compute()))
    whole = loss(drawn)[1]
    split = drawn.split(2)
    parts = [dataclasses.replace(drawn, sequences=jax.tree.map(lambda leaf, i=i: leaf[i], split)) for i in range(2)]
    found = [loss(part)[1] for part in parts]
    assert float(whole["diffusion"]) > 1
    for name in whole.keys() - {"independence", "epsilon_independence", "loss"}:
        total = sum(float(values[name]) for values in found)
        assert total == pytest.approx(float(whole[name]), rel=2e-5), name
    for name in whole.keys() & {"independence", "epsilon_independence"}:  # these are not sums over sequences
        total = sum(float(values[name]) for values in found)
        assert abs(total / float(whole[name]) - 1) > 1e-3


def test_micro_batches_give_the_gradients_of_the_batch() -> None:
    # Gradients read off the first moments, which they fill; clipping would only hide a difference in scale.
    optimizer = OptimizerConfig(clip_norm=1e6, b1=0.0)
    objective = dataclasses.replace(PRETRAINING, independence_weight=0.0)
    found = []
    for parts in (1, 2):
        recipe = Recipe(CONFIG, 10, objective=objective, optimizer=optimizer, accumulate=parts)
        new, metrics = jax.jit(partial(update, recipe=recipe))(begin(recipe), batch(4), KEY)
        found.append((metrics, new.opt_state[1][0].mu))
    (whole, moments), (metrics, others) = found
    for name in ("loss", "presence", "residual", "gradient_norm"):
        np.testing.assert_allclose(metrics[name], whole[name], rtol=2e-5, err_msg=name)
    chex.assert_trees_all_close(others, moments, atol=2e-5 * largest(moments))


# Adapters.


def perturbed(adapters: Params) -> Params:
    leaves, tree = jax.tree.flatten(adapters)
    noise = [0.1 * jax.random.normal(jax.random.fold_in(KEY, i), leaf.shape) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(tree, [leaf + extra for leaf, extra in zip(leaves, noise)])


def test_merged_adapters_compute_the_same(params: Params) -> None:
    lora = LoraConfig(rank=4, alpha=8.0)
    adapters = init_adapters(CONFIG, lora, KEY)
    tokens = batch()["tokens"]
    logits = jax.jit(partial(forward, tokens=tokens, config=CONFIG))
    chex.assert_trees_all_equal(logits(with_adapters(params, adapters, lora)).logits, logits(params).logits)
    adapters = perturbed(adapters)
    beside = logits(with_adapters(params, adapters, lora)).logits
    merged = logits(merge_adapters(params, adapters, lora)).logits
    assert float(jnp.abs(merged - logits(params).logits).max()) > 0.1
    np.testing.assert_allclose(beside, merged, atol=2e-5)
    assert jax.tree.structure(merge_adapters(params, adapters, lora)) == jax.tree.structure(params)


def test_adapters_alone_are_trained(params: Params) -> None:
    lora = LoraConfig(rank=2, modules=("attn/c_kv", "mlp/c_fc"))
    recipe = Recipe(CONFIG, 10, lora=lora, optimizer=OptimizerConfig(warmup_steps=0))
    state = begin(recipe)
    assert {leaf.shape for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim > 2} == {
        leaf.shape for leaf in jax.tree.leaves(state.params)
    }
    step = jax.jit(partial(update, recipe=recipe))
    once, _ = step(state, batch(), KEY, base=params)
    twice, metrics = step(once, batch(), KEY, base=params)
    assert np.isfinite(metrics["loss"])
    for name in ("lora_down", "lora_up"):  # downs move as soon as ups are not zero any more
        before, after = (s.params["blocks"]["mlp"]["c_fc"][name] for s in (state, twice))
        assert float(jnp.abs(after - before).max()) > 1e-5
    whole = merge_adapters(params, twice.params, lora)
    unchanged = {"attn": ("c_q", "c_proj"), "mlp": ("c_proj",)}
    for branch, names in unchanged.items():
        for name in names:
            chex.assert_trees_all_equal(whole["blocks"][branch][name], params["blocks"][branch][name])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"rank": 0}, "lora.rank is 0"),
        ({"alpha": 0.0}, "lora.alpha is 0.0"),
        ({"modules": ()}, "lora.modules is empty"),
        (
            {"modules": ("attn/c_attn",)},
            "lora.modules has 'attn/c_attn', which is not a projection of this model; did you mean attn/c_",
        ),
    ],
)
def test_impossible_adapters(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LoraConfig(**setting).modules_of(CONFIG)


# Steering training.


def test_gradients_of_steering_training(params: Params) -> None:
    grads, metrics = gradients(params, STEERING, steering_batch())
    for part in ("blocks", "tok_emb", "ln_f"):
        assert largest(grads[part]) > 0, part
    assert largest(grads["known_head"]["concept_predictor"]) > 0
    assert largest(grads["known_head"]["concept_embedding"]) == 0, "the direction is held fixed"
    assert largest(grads["unknown_head"]) == 0
    assert float(metrics["respond"]) > 0
    assert float(metrics["express"]) > 0


def test_steering_training_injects_as_decoding_does(params: Params) -> None:
    objective = dataclasses.replace(STEERING, strength=(3.0, 3.0), pushed=1.0)
    drawn = objective.draw(steering_batch(), KEY, jnp.float32(0.0), CONFIG)
    made = objective.injection(params, drawn.sequences, CONFIG, Compute())
    first = SteeringConfig().first_layer(CONFIG.n_layers)
    np.testing.assert_array_equal(made.layers, np.arange(1, CONFIG.n_layers + 1) >= first)
    given = {name: np.asarray(value) for name, value in drawn.sequences.items()}
    for row, position in np.ndindex(given["tokens"].shape):
        chunk = given["chunk_index"][row, position]
        concept = -1 if chunk < 0 else given["concept"][row, chunk]
        found = np.asarray(made.push)[0, row, position]
        masked = given["noisy"][row, position] == CONFIG.mask_token_id
        assert given["pushed"][row, position] == (masked and concept >= 0)
        if not given["pushed"][row, position]:
            assert not found.any()
            continue
        plan = prepare_steering(params, SteeringConfig((int(concept),), 3.0), config=CONFIG, compute=Compute())
        np.testing.assert_allclose(found, plan.parts[0].alpha * plan.parts[0].direction, atol=1e-5)


def test_respond_and_express_equal_a_plain_loop(params: Params) -> None:
    """Against a plain loop over pushed positions, with one noisy copy and the injection through `forward`."""
    objective = dataclasses.replace(STEERING, noise=NoiseConfig(), rows=1.0)
    drawn = objective.draw(steering_batch(), KEY, jnp.float32(0.0), CONFIG)
    _, metrics = objective.loss(params, drawn, jnp.float32(0.0), config=CONFIG, compute=Compute())
    given = {name: np.asarray(value) for name, value in drawn.sequences.items()}
    injection = objective.injection(params, drawn.sequences, CONFIG, Compute())
    run = jax.jit(partial(forward, config=CONFIG, dense=True))
    out = run(params, drawn.sequences["noisy"], edits=[injection])
    log_p = np.asarray(jax.nn.log_softmax(out.logits), np.float64)
    assert out.decomposition.known_logits is not None
    k = np.asarray(jax.nn.sigmoid(out.decomposition.known_logits), np.float64)
    respond, express = [], []
    for row, position in np.argwhere(given["pushed"]):
        concept = given["concept"][row, given["chunk_index"][row, position]]
        respond.append(-np.log(k[row, position, concept]))
        express.append(-np.log(np.exp(log_p[row, position, LIFTED[concept]]).sum()))
    assert len(respond) > 10
    assert float(metrics["respond"]) == pytest.approx(np.mean(respond), rel=1e-4)
    assert float(metrics["express"]) == pytest.approx(np.mean(express), rel=1e-4)


def test_concepts_without_lifted_tokens_are_never_pushed() -> None:
    made = steering_batch(16)
    labels = np.asarray(batch(16)["chunk_labels"])
    for row, chunk in np.ndindex(made["concept"].shape):
        concept = int(made["concept"][row, chunk])
        usable = [label for label in labels[row, chunk] if 0 <= label < 8]
        assert concept in usable if usable else concept == -1
        np.testing.assert_array_equal(made["lifted"][row, chunk], LIFTED[concept] if concept >= 0 else -1)
    assert len(np.unique(made["concept"])) > 4


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"strength": (0.0, 2.0)}, "objective.strength"),
        ({"strength": (4.0, 2.0)}, "objective.strength"),
        ({"pushed": 0.0}, "objective.pushed"),
        ({"support": 0}, "objective.support"),
    ],
)
def test_impossible_steering_objectives(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SteeringObjective(**setting)


# Instruction tuning.


@pytest.fixture(scope="module")
def tokenizer() -> SentencePieceTokenizer:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=5)) for _ in range(400)]
    model = train_sentencepiece([f"the quick fox {word}: hello, it jumps over\n" for word in words], 400)
    special = dataclasses.replace(SpecialIds.last_of(400), eot_id=402)
    return SentencePieceTokenizer(model, special, 403)


def write_lines(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


TALK = {
    "messages": [
        {"role": "system", "content": "say little"},
        {"role": "user", "content": "the quick fox?"},
        {"role": "assistant", "content": "it jumps over the lazy dog"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hello."},
    ]
}


def test_an_answer_follows_the_prompt_of_decoding(tokenizer: SentencePieceTokenizer, tmp_path: Path) -> None:
    made = Conversations(write_lines(tmp_path / "talk.jsonl", TALK, ""), tokenizer, seq_len=200, block=8)
    assert (len(made), made.too_long) == (2, 0)
    messages = TALK["messages"]
    for example, turn in zip((made[0], made[1]), (2, 4)):
        prompt = tokenizer.chat_prompt(messages[:turn])
        text = tokenizer.encode(messages[turn]["content"])
        ids = [*prompt, *text, tokenizer.special.endofchunk_id, 402]
        assert example["tokens"][: len(ids)].tolist() == ids
        learned = np.flatnonzero(example["answer"] >= 0)
        np.testing.assert_array_equal(learned, np.arange(len(prompt), len(ids)))
        np.testing.assert_array_equal(example["answer"][learned], (learned - len(prompt)) // 8)


def test_what_does_not_fit_is_left_out(tokenizer: SentencePieceTokenizer, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "talk.jsonl", TALK)
    prompt = len(tokenizer.chat_prompt(TALK["messages"][:2]))
    made = Conversations(path, tokenizer, seq_len=prompt + 9, block=8)
    assert (len(made), made.too_long) == (1, 1)
    assert np.flatnonzero(made[0]["answer"] >= 0).tolist() == list(range(prompt, prompt + 8))
    with pytest.raises(UserError, match=r"No prompt of .* leaves room"):
        Conversations(path, tokenizer, seq_len=12, block=8)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ('{"text": "hello"}', "line 2 has no list of messages"),
        ('{"messages": []}', "line 2 has no list of messages"),
        ({"messages": [{"role": "user"}]}, "line 2, message 1 has no text"),
        ({"messages": [{"role": "bot", "content": "hi"}]}, "line 2, message 1 has role 'bot'"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "line 2 has no turn of the assistant"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, "no message before it to answer"),
        ({"messages": [*TALK["messages"], TALK["messages"][0]]}, "message 6 has role 'system'"),
    ],
)
def test_bad_conversations_are_named(tmp_path: Path, line: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(read_conversations(write_lines(tmp_path / "talk.jsonl", TALK, line)))


def test_missing_conversations(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Cannot read the conversations"):
        list(read_conversations(tmp_path / "absent.jsonl"))


def test_the_loss_is_of_the_masked_tokens_of_one_block_of_the_answer(params: Params) -> None:
    """Against a plain loop that runs, for each sequence, the canvas that decoding would have."""
    objective, given = InstructionObjective(epsilon_dropout=0.0, floor=0.8), answer_batch(2)
    drawn = objective.draw(given, KEY, jnp.float32(0.0), CONFIG)
    _, metrics = objective.loss(params, drawn, jnp.float32(0.0), config=CONFIG, compute=Compute())
    W, mask = CONFIG.diff_block_size, CONFIG.mask_token_id
    nats = []
    for row in range(2):
        tokens, answer = np.asarray(given["tokens"][row]), np.asarray(given["answer"][row])
        masked = np.asarray(drawn.sequences["masked"][row])
        (block,) = {int(number) for number in answer[masked]}
        prompt = int(np.flatnonzero(answer >= 0)[0])
        begin = prompt + block * W
        # Decoding: what is before the sampler block is written, and all after it is masks.
        canvas = np.full(len(tokens), mask, np.int32)
        canvas[:begin] = tokens[:begin]
        inside = np.flatnonzero(answer == block)
        canvas[inside] = np.where(masked[inside], mask, tokens[inside])
        np.testing.assert_array_equal(drawn.sequences["canvas"][row], canvas)
        end = -(-(begin + W) // W) * W  # the decoder computes no further than the attention block of its last position
        logits = jax.jit(partial(forward, config=CONFIG))(params, jnp.asarray(canvas[None, :end])).logits
        log_p = jax.nn.log_softmax(logits[0])
        nats += [-float(log_p[at, tokens[at]]) for at in np.flatnonzero(masked)]
    assert len(nats) > 5
    assert float(metrics["diffusion"]) == pytest.approx(np.mean(nats), rel=1e-4)


def test_only_answers_have_a_loss(params: Params) -> None:
    given, objective = answer_batch(), InstructionObjective()
    loss = jax.jit(partial(loss_fn, config=CONFIG, compute=Compute(), objective=objective))
    expected, _ = loss(params, given, KEY, jnp.float32(0.0))
    changed = np.asarray(given["tokens"]).copy()
    changed[:, 24:] = 3  # what follows the answer does not matter
    same, _ = loss(params, {**given, "tokens": jnp.asarray(changed)}, KEY, jnp.float32(0.0))
    assert float(same) == float(expected)
    changed[:, 6] = 3  # what precedes it does
    other, _ = loss(params, {**given, "tokens": jnp.asarray(changed)}, KEY, jnp.float32(0.0))
    assert float(other) != float(expected)
    drawn = objective.draw(given, KEY, jnp.float32(0.0), CONFIG)
    assert not np.asarray(drawn.sequences["masked"])[np.asarray(given["answer"]) < 0].any()


def test_late_turn_tokens_begin_as_their_likes(params: Params) -> None:
    grown = add_turn_tokens(params, CONFIG)
    table = grown["tok_emb"]["weight"]
    assert table.shape == (53, 32)
    likes = [CONFIG.bos_token_id, CONFIG.endofchunk_token_id, CONFIG.eos_token_id]
    np.testing.assert_array_equal(table[50:], params["tok_emb"]["weight"][np.array(likes)])


# Runs.


def a_run(**fields: Any) -> RunConfig:
    return RunConfig(name="phase", model=CONFIG, data=DataConfig(50, 32, 4), steps=3, **fields)


def test_impossible_phases() -> None:
    with pytest.raises(UserError, match=r"accumulate is 3, but it must divide data\.batch_size"):
        a_run(accumulate=3)
    with pytest.raises(UserError, match="lora trains adapters on top of existing parameters"):
        a_run(lora=LoraConfig())
    with pytest.raises(UserError, match="belong together"):
        a_run(objective=InstructionObjective())
    talk = DataConfig(50, 32, 4, messages="talk.jsonl")
    with pytest.raises(UserError, match="needs a model with turn tokens"):
        dataclasses.replace(a_run(), objective=InstructionObjective(), data=talk)
    model = dataclasses.replace(CONFIG, vocab_size=53, **instruct_ids(53))
    tuned = RunConfig(name="t", model=model, data=talk, steps=3, objective=InstructionObjective())
    assert tuned.to_json()["objective"]["kind"] == "instruction"
    with pytest.raises(UserError, match="and the 3 turn tokens must equal"):
        dataclasses.replace(tuned, data=dataclasses.replace(talk, vocab_size=53))


@pytest.mark.parametrize(("objective", "kind"), [(PRETRAINING, "pretraining"), (STEERING, "steering")])
def test_run_json_names_the_phase(objective: Objective, kind: str) -> None:
    told = a_run(objective=objective, start_from="x", lora=LoraConfig(rank=2)).to_json()
    assert told["objective"]["kind"] == kind
    assert told["lora"]["rank"] == 2
