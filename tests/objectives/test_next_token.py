"""The next-token objective: what each position sees and predicts, and what it trains."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steerling_jax.errors import UserError
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import ConceptConfig, ModelConfig
from steerling_jax.models.steerling.model import compiled_forward, init_params
from steerling_jax.objectives.next_token import NextTokenObjective
from steerling_jax.objectives.objective import Draws

MASK, LENGTH = 31, 12
CONFIG = ModelConfig(
    n_layers=2,
    n_head=2,
    n_kv_heads=1,
    n_embd=16,
    block_size=16,
    diff_block_size=4,
    vocab_size=32,
    pad_token_id=27,
    bos_token_id=28,
    eos_token_id=29,
    endofchunk_token_id=30,
    mask_token_id=MASK,
    interpretable=False,
    concept=None,
)
KEY = jax.random.key(0)
TOKENS = jax.random.randint(KEY, (4, LENGTH), 0, 27)


def drawn_and_loss(objective: NextTokenObjective):
    params, progress = init_params(CONFIG, KEY), jnp.zeros(())
    drawn = objective.draw({"tokens": TOKENS}, KEY, progress, CONFIG)
    return drawn, objective.loss(params, drawn, progress, config=CONFIG, compute=Compute())


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_each_position_predicts_from_the_tokens_up_to_it(share: float) -> None:
    """Against a model whose blocks are single tokens, run on every prefix: nothing after a position reaches it."""
    causal = dataclasses.replace(CONFIG, diff_block_size=1)
    params = init_params(CONFIG, KEY)
    drawn, (loss, metrics) = drawn_and_loss(NextTokenObjective(masked=share))
    noisy = np.asarray(drawn.sequences["noisy"])
    expected: dict[str, list[float]] = {"next": [], "own": []}
    for row in range(len(noisy)):
        for i in range(LENGTH):
            logits = compiled_forward(params, noisy[row : row + 1, : i + 1], config=causal).logits[0, i]
            log_p = np.asarray(jax.nn.log_softmax(logits))
            if noisy[row, i] == MASK:
                expected["own"].append(-log_p[TOKENS[row, i]])
            elif i + 1 < LENGTH:
                expected["next"].append(-log_p[TOKENS[row, i + 1]])
    assert len(expected["own"]) > 0 or share == 0
    for name, nats in expected.items():
        assert float(metrics[name]) == pytest.approx(np.mean(nats) if nats else 0.0, rel=1e-4)
    assert float(loss) == pytest.approx(np.mean(expected["next"] + expected["own"]), rel=1e-4)


def test_micro_batches_add_up_to_the_batch() -> None:
    objective = NextTokenObjective(masked=0.3)
    drawn, whole = drawn_and_loss(objective)
    parts = drawn.split(2)
    params, progress = init_params(CONFIG, KEY), jnp.zeros(())
    losses = [
        objective.loss(params, Draws(part, drawn.shared), progress, config=CONFIG, compute=Compute())
        for part in (jax.tree.map(lambda leaf, m=m: leaf[m], parts) for m in range(2))
    ]
    chex.assert_trees_all_close(jax.tree.map(jnp.add, *losses), whole, rtol=1e-5)


def test_the_backbone_is_trained_and_concept_heads_are_not() -> None:
    concept = ConceptConfig(
        n_concepts=8, n_unknown_concepts=16, concept_dim=16, factorize_rank=16, unknown_topk=4, inject_layer=1
    )
    config = dataclasses.replace(CONFIG, interpretable=True, concept=concept)
    objective, progress = NextTokenObjective(), jnp.zeros(())
    drawn = objective.draw({"tokens": TOKENS}, KEY, progress, config)
    params = init_params(config, KEY)
    grads = jax.grad(lambda p: objective.loss(p, drawn, progress, config=config, compute=Compute())[0])(params)
    sizes = {name: max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree)) for name, tree in grads.items()}
    assert sizes["known_head"] == sizes["unknown_head"] == 0.0
    assert min(sizes[name] for name in ("tok_emb", "blocks", "ln_f")) > 0.0


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(UserError, match=r"objective\.masked is .*at least 0 and below 1"):
        NextTokenObjective(masked=share)
