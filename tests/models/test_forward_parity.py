"""`sj.forward` against the published outputs of thirteen model families, and the properties that these do not show."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.models.steerling import model
from steerling_jax.models.steerling.config import ConceptConfig, ModelConfig
from tests.worlds.published_outputs import check

FAMILIES = (
    "attention_heads",
    "backbone",
    "base",
    "dense_unknown_topk8of12",
    "hub_layout",
    "instruct",
    "known_only",
    "large_heads",
    "layernorm_relu",
    "no_epsilon",
    "no_topk_no_epsilon",
    "prenorm_mha_bias",
    "topk_on_logits",
)


@pytest.fixture(scope="module")
def bundle(golden):
    return sj.load(golden / "base")


@pytest.mark.parametrize("family", FAMILIES)
def test_golden_forward(golden, family):
    case = np.load(golden / family / "forward.npz")
    settings = json.loads((golden / family / "forward.json").read_text())
    bundle = sj.load(golden / family)
    run = partial(sj.forward, bundle, case["input_ids"], large_head_threshold=50 if family == "large_heads" else 50_000)
    logits, decomposition = run(dense=True)
    check("logits", logits, case["logits"])
    for key in (key for key in case.files if key.startswith("out.")):
        check(key, getattr(decomposition, key.removeprefix("out.")), case[key])
    if family == "backbone":
        check("hidden", decomposition.hidden, case["hidden"])
        return
    known, unknown = (
        {int(number): value for number, value in settings.get(f"intervene_{kind}", {}).items()}
        for kind in ("known", "unknown")
    )
    clamped = run(intervene_known=known, positions=case["intervene_positions"])
    check("known clamped", clamped.logits, case["intervene_known.logits"])
    check("known features", clamped.decomposition.known_features, case["intervene_known.known_features"])
    if "intervene_unknown.logits" in case.files:
        clamped = run(intervene_unknown=unknown, positions=case["intervene_positions"])
        check("discovered clamped", clamped.logits, case["intervene_unknown.logits"])
        check("discovered features", clamped.decomposition.unk_hat, case["intervene_unknown.unk_hat"])
        both = run(intervene_known=known, intervene_unknown=unknown)
        check("both clamped, everywhere", both.logits, case["intervene_both.logits"])
    injected = run(
        injection=case["injection"], inject_layer=settings["inject_layer"], inject_alpha=settings["inject_alpha"]
    )
    check("injected", injected.logits, case["injection.logits"])


def test_one_row_and_a_batch_agree(bundle, golden):
    ids = np.load(golden / "base" / "forward.npz")["input_ids"]
    batch = sj.forward(bundle, ids.tolist()).logits
    assert batch.shape == (2, 41, 300)
    check("row 1", sj.forward(bundle, ids[1]).logits[0], np.asarray(batch[1]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"token_ids": [1, 300]}, "the id 300, outside the vocabulary"),
        ({"token_ids": [-1]}, "the id -1, outside"),
        ({"token_ids": []}, "empty"),
        ({"token_ids": [[1, 2], [3]]}, "different lengths"),
        ({"token_ids": [0.5]}, "integer"),
        ({"token_ids": np.zeros((1, 1, 2), int)}, "shape"),
        ({"token_ids": [1] * 257}, "context of 256"),
        ({"intervene_known": {100: 1.0}}, "0 to 99"),
        ({"intervene_unknown": {-1: 1.0}}, "0 to 299"),
        ({"intervene_known": {1: "high"}}, "numbers"),
        ({"intervene_known": {1: 1.0}, "positions": [True]}, "shape"),
        ({"intervene_known": {1: 1.0}, "positions": [0, 2, 1]}, "booleans"),
        ({"injection": np.zeros((3, 5))}, "shape"),
        ({"epsilon": "melted"}, "'published' or 'frozen'"),
    ],
)
def test_invalid_arguments_raise_one_sentence(bundle, arguments, words):
    with pytest.raises(sj.UserError, match=words) as caught:
        sj.forward(bundle, **{"token_ids": [1, 2, 3], **arguments})
    assert "\n" not in str(caught.value)


def test_clamps_need_concepts(golden):
    for family, option in (("backbone", "intervene_known"), ("known_only", "intervene_unknown")):
        clamp: dict[str, Any] = {option: {0: 1.0}}
        with pytest.raises(sj.UserError, match=f"{option} needs a model with"):
            sj.forward(sj.load(golden / family), [1, 2], **clamp)


def test_a_frozen_epsilon_moves_composed_by_exactly_the_edit(bundle, golden):
    """The delta of concept c is (value − its weight) E_c, its weight being 0 where it was not selected."""
    ids = np.load(golden / "base" / "forward.npz")["input_ids"]
    plain = sj.forward(bundle, ids).decomposition
    edits = {"known": {3: 0.9, 7: 0.0}, "unknown": {5: 0.7}}
    edited = sj.forward(
        bundle, ids, epsilon="frozen", intervene_known=edits["known"], intervene_unknown=edits["unknown"]
    ).decomposition
    head = bundle.params["unknown_head"]
    tables = {
        "known": bundle.params["known_head"]["concept_embedding"]["weight"],
        "unknown": head["embedding_coef"]["weight"] @ head["embedding_basis"]["weight"].T,
    }
    expected = np.asarray(plain.composed)
    for kind, clamps in edits.items():
        kept, logits = (np.asarray(getattr(plain, f"{kind}_topk_{field}")) for field in ("indices", "logits"))
        for number, value in clamps.items():
            weight = np.where(kept == number, 1 / (1 + np.exp(-logits)), 0.0).sum(axis=-1)
            expected = expected + (value - weight)[..., None] * np.asarray(tables[kind][number])
    check("composed", edited.composed, expected)


def small(**changes) -> ModelConfig:
    """A model whose concept counts (1,003 and 2,011, padded to 1,008 and 2,016) turn up in no other dimension."""
    concept = ConceptConfig(
        n_concepts=1003,
        n_unknown_concepts=2011,
        concept_dim=48,
        topk_known=8,
        topk_known_features=8,
        unknown_topk=16,
        factorize_rank=16,
        block_size=changes.pop("concept_block", 128),
    )
    concept = dataclasses.replace(concept, **changes)
    return ModelConfig(
        n_layers=2,
        n_head=4,
        n_kv_heads=2,
        n_embd=48,
        block_size=64,
        diff_block_size=8,
        intermediate_size=64,
        vocab_size=100,
        pad_token_id=99,
        bos_token_id=98,
        eos_token_id=97,
        endofchunk_token_id=96,
        mask_token_id=95,
        concept=concept,
    )


def random_params(config: ModelConfig, scale: float = 6.0):
    """Weights large enough for concepts to differ."""
    shapes = model.param_shapes(config)
    random = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(0.02 * scale * random.standard_normal(s.shape), jnp.float32), shapes)


TOKENS = np.random.default_rng(1).integers(0, 100, (1, 24))


@pytest.mark.parametrize("changes", [{}, {"topk_known": None, "apply_topk_to_unknown": False}], ids=["top-k", "all"])
def test_streaming_and_one_matmul_agree(changes):
    """A head that fits in one block uses one matrix product, a larger one streams: same values, same gradients."""
    params = random_params(small())
    target = jnp.asarray(np.random.default_rng(2).standard_normal((1, 24, 48)), jnp.float32)

    def features(params, config):
        out = model.forward(params, jnp.asarray(TOKENS), config=config).decomposition
        return sum(
            jnp.sum(features * target) for features in (out.known_features, out.unk_hat) if features is not None
        ), out

    options = {"xla_backend_optimization_level": 0}
    program = jax.jit(jax.value_and_grad(features, has_aux=True), static_argnums=1, compiler_options=options)
    results = [program(params, small(concept_block=size, **changes)) for size in (128, 4096)]
    ((_, streamed), streamed_grads), ((_, whole), whole_grads) = results
    for field in ("known_features", "unk_hat", "known_topk_logits", "unknown_topk_logits"):
        check(field, getattr(streamed, field), np.asarray(getattr(whole, field)))
    np.testing.assert_array_equal(streamed.known_topk_indices, whole.known_topk_indices)
    for path, leaf in jax.tree_util.tree_leaves_with_path(whole_grads):
        ours = dict(jax.tree_util.tree_leaves_with_path(streamed_grads))[path]
        np.testing.assert_allclose(ours, leaf, rtol=0, atol=1e-4 * max(1.0, np.abs(leaf).max()), err_msg=str(path))


def computed_shapes(jaxpr):
    """(primitive, shape) of everything that a program computes, inner programs included."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield equation.primitive.name, variable.aval.shape
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from computed_shapes(inner)


@pytest.mark.parametrize("clamped", [False, True])
def test_no_array_has_an_axis_of_all_concepts(clamped):
    """Streaming builds no (N, C) and no (C, D) array, padded or not; `stop_gradient` copies nothing."""
    config = small()
    clamps = model.Clamps(jnp.asarray([3]), jnp.asarray([0.5]), jnp.ones(24, bool)) if clamped else None
    program = jax.make_jaxpr(
        lambda params: model.forward(
            params, jnp.asarray(TOKENS), config=config, known_clamps=clamps, discovered_clamps=clamps
        )
    )(model.param_shapes(config))
    computed = set(computed_shapes(program.jaxpr))
    tables = {shape for name, shape in computed if name != "stop_gradient" and {1003, 1008, 2011, 2016} & set(shape)}
    assert any(128 in shape for _, shape in computed), "a concept block was expected"
    assert not tables


def test_bfloat16(golden):
    """bfloat16 stays within 6 % of the largest logit, and skipping the heads changes about one argmax in a hundred."""
    bundle = sj.load(golden / "base", dtype="bfloat16")
    exact = np.load(golden / "base" / "forward.npz")
    ids = np.random.default_rng(0).integers(0, 290, (8, 128))
    skipped = sj.forward(bundle, ids)
    faithful = dataclasses.replace(bundle, compute=dataclasses.replace(bundle.compute, faithful_rounding=True))
    whole = sj.forward(faithful, ids)
    hidden = np.asarray(skipped.decomposition.hidden.reshape(-1, 64))
    bare = model.lm_logits(bundle.params, jnp.asarray(hidden), bundle.compute).argmax(-1)
    agreement = float((np.asarray(bare) == np.asarray(whole.logits.argmax(-1)).reshape(-1)).mean())
    assert agreement > 0.97
    logits = np.asarray(sj.forward(bundle, exact["input_ids"]).logits)
    assert logits.dtype == np.float32
    assert np.abs(logits - exact["logits"]).max() < 0.06 * np.abs(exact["logits"]).max()


def test_gradients_flow_backwards_only(bundle):
    """A hidden row depends on its own diffusion block and on earlier ones, all of them, and on nothing later."""
    config = bundle.config
    embeds = jnp.asarray(np.random.default_rng(0).standard_normal((1, 40, 64)), jnp.float32)
    at = 20  # in the block 16 … 31

    def value(x):
        return model.forward(bundle.params, None, embeds=x, config=config).logits[0, at].sum()

    reach = np.asarray(jnp.abs(jax.jit(jax.grad(value))(embeds)).sum(axis=-1)[0])
    assert (reach[:32] > 0).all()
    assert (reach[32:] == 0).all()


def test_large_heads_keep_their_features_when_clamped_to_the_present_activation(bundle):
    """The rule for large heads acts on the features: clamping to the present activation changes nothing there."""
    ids = [5, 6, 7]
    plain = sj.forward(bundle, ids, dense=True).decomposition
    assert plain.unknown_logits is not None
    weight = float(jax.nn.sigmoid(plain.unknown_logits[0, 1, 4]))
    only = [False, True, False]
    run = partial(sj.forward, bundle, ids, intervene_unknown={4: weight}, positions=only)
    check("above", run(large_head_threshold=50).decomposition.unk_hat, np.asarray(plain.unk_hat))
