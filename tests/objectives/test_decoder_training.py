"""Next-token training of decoders: what is scored, adapters, and which parameters the optimizers treat how."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.errors import UserError
from steerling_jax.models.compute import Compute
from steerling_jax.models.families import init_params, model_backbone
from steerling_jax.models.lora import LoraConfig, init_adapters, merge_adapters, with_adapters
from steerling_jax.objectives.next_token import NextTokenObjective
from steerling_jax.objectives.objective import Draws
from steerling_jax.objectives.optimizer import decay_mask, muon_labels
from tests.worlds.decoders import GOLDEN_DECODERS
from tests.worlds.small_decoder import small_config, small_run

KEY, OBJECTIVE = jax.random.key(0), NextTokenObjective(masked=0.0)
PROGRESS = jnp.zeros(())


def nats_of(bundle: sj.Bundle, tokens: np.ndarray) -> np.ndarray:
    """−log p of each token but the first, (B, T − 1), from the logits of the public forward pass."""
    scores = jax.nn.log_softmax(sj.forward(bundle, tokens).logits[:, :-1])
    return -np.take_along_axis(np.asarray(scores), tokens[:, 1:, None], axis=-1)[..., 0]


def loss_of(bundle: sj.Bundle, batch: dict[str, Any]) -> float:
    drawn = OBJECTIVE.draw(batch, KEY, PROGRESS, bundle.config)
    loss, metrics = OBJECTIVE.loss(bundle.params, drawn, PROGRESS, config=bundle.config, compute=bundle.compute)
    assert float(metrics["next"]) == float(loss)
    return float(loss)


def test_every_token_is_predicted_from_those_before_it() -> None:
    bundle = sj.load(GOLDEN_DECODERS / "qwen3")
    tokens = np.random.default_rng(0).integers(0, 64, (2, 12)).astype(np.int32)
    nats = nats_of(bundle, tokens)
    assert loss_of(bundle, {"tokens": jnp.asarray(tokens)}) == pytest.approx(nats.mean(), rel=1e-5)


def test_only_tokens_of_the_answer_are_scored() -> None:
    bundle = sj.load(GOLDEN_DECODERS / "qwen3")
    tokens = np.random.default_rng(1).integers(0, 64, (2, 12)).astype(np.int32)
    answer = np.full((2, 12), -1, np.int32)
    answer[0, 3:6], answer[1, 8:12] = 0, 1  # any number from 0 on
    nats = nats_of(bundle, tokens)
    expected = np.concatenate([nats[0, 2:5], nats[1, 7:11]]).mean()
    batch = {"tokens": jnp.asarray(tokens), "answer": jnp.asarray(answer)}
    assert loss_of(bundle, batch) == pytest.approx(expected, rel=1e-5)


def test_long_sequences_in_chunks_have_the_loss_of_short_ones() -> None:
    """Above 512 positions the logits are computed in chunks; 600 is not a multiple of one."""
    config = dataclasses.replace(small_config(num_hidden_layers=1), max_position_embeddings=600)
    bundle = sj.Bundle(config, init_params(config, KEY), tokenizer=Any)  # type: ignore[arg-type]
    tokens = np.random.default_rng(2).integers(0, 59, (1, 600)).astype(np.int32)
    assert loss_of(bundle, {"tokens": jnp.asarray(tokens)}) == pytest.approx(nats_of(bundle, tokens).mean(), rel=1e-5)


def test_micro_batches_add_up_to_the_batch() -> None:
    config = small_config()
    params, tokens = init_params(config, KEY), jax.random.randint(KEY, (4, 12), 0, 59)
    answer = jnp.where(jnp.arange(12)[None] >= jnp.array([[3], [5], [7], [9]]), 0, -1)  # unequal parts
    drawn = OBJECTIVE.draw({"tokens": tokens, "answer": answer}, KEY, PROGRESS, config)
    loss = partial(OBJECTIVE.loss, params, progress=PROGRESS, config=config, compute=Compute())
    parts = drawn.split(2)
    losses = [loss(Draws(jax.tree.map(lambda leaf, m=m: leaf[m], parts), drawn.shared)) for m in range(2)]
    chex.assert_trees_all_close(jax.tree.map(jnp.add, *losses), loss(drawn), rtol=1e-5)


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_moe"])
def test_merged_adapters_compute_the_same(name: str) -> None:
    bundle = sj.load(GOLDEN_DECODERS / name)
    lora = LoraConfig(rank=2, alpha=8.0)
    adapters = init_adapters(bundle.config, lora, KEY)
    tokens = jnp.arange(8)[None]

    @jax.jit
    def hidden(params: Any) -> jax.Array:
        backbone = model_backbone(bundle.config, bundle.compute)
        return backbone.run(params, backbone.embed(params, tokens)).hidden

    plain = hidden(bundle.params)
    np.testing.assert_allclose(hidden(with_adapters(bundle.params, adapters, lora)), plain, atol=1e-6)
    adapters = jax.tree.map(lambda leaf: leaf + 0.05 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), adapters)
    beside = hidden(with_adapters(bundle.params, adapters, lora))
    merged = merge_adapters(bundle.params, adapters, lora)
    assert float(jnp.abs(beside - plain).max()) > 0.05
    np.testing.assert_allclose(hidden(merged), beside, atol=1e-3)
    assert jax.tree.structure(merged) == jax.tree.structure(bundle.params)


def test_adapters_are_for_projections_that_exist() -> None:
    lora = LoraConfig(modules=("self_attn/q_proj",))
    adapters = init_adapters(small_config(), lora, KEY)
    assert set(adapters["layers"]) == {"0", "1"}
    assert [list(layer) for layer in adapters["layers"].values()] == [["self_attn"], ["self_attn"]]
    with pytest.raises(
        UserError, match=r"'attn/c_q', which is not a projection of this model; did you mean mlp/down_proj or"
    ):
        small_run(start_from="model", lora=LoraConfig(modules=("attn/c_q",)))


def test_optimizers_know_the_parameters_of_decoders() -> None:
    """Gains, tables and filters have no weight decay; Muon is for maps between features alone."""
    config = sj.load(GOLDEN_DECODERS / "qwen3_5_moe").config
    params = jax.eval_shape(partial(init_params, config), KEY)
    layer = {"input_layernorm", "post_attention_layernorm"}
    flat = jax.tree_util.tree_leaves_with_path((decay_mask(params), muon_labels(params)))
    by_name: dict[str, list[Any]] = {}
    for path, value in flat:
        by_name.setdefault("/".join(str(key.key) for key in path[1:]), []).append(value)
    assert by_name["embed_tokens/weight"] == by_name["norm/weight"] == [False, "adamw"]
    for name, values in by_name.items():
        parts = set(name.split("/"))
        if parts & {*layer, "conv1d", "A_log", "dt_bias", "q_norm", "k_norm"} or name.endswith(
            "linear_attn/norm/weight"
        ):
            assert values == [False, "adamw"], name
        elif parts & {"gate", "shared_expert_gate", "lm_head"}:
            assert values == [True, "adamw"], name
        elif parts & {"layers"}:
            assert values == [True, "muon"], name
