"""Golden decoders on meshes of eight devices: prints how far logits and gradients are from one device's, as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import steerling_jax as sj
from steerling_jax.models.decoder.parameters import param_shardings
from steerling_jax.parallel.sharding import MeshShape, batch_sharding, make_mesh

GOLDEN = Path(__file__).parents[1] / "golden_decoders"
MESHES = [MeshShape(data=8, fsdp=1), MeshShape(fsdp=4, tensor=2), MeshShape(data=2, fsdp=1, tensor=4)]


def main() -> None:
    differences = {}
    for name in ("gemma2", "qwen3_moe", "qwen3_5"):
        bundle = sj.load(GOLDEN / name)
        tokens = jnp.asarray(np.random.default_rng(0).integers(0, 64, (8, 24)), jnp.int32)
        expected = jax.jit(values, static_argnames="backbone")(bundle.params, tokens, backbone=bundle.backbone)
        for shape in MESHES:
            mesh = make_mesh(shape)
            sharded = sj.load(GOLDEN / name, sharding=param_shardings(bundle.config, mesh))
            with jax.set_mesh(mesh):
                placed = jax.device_put(tokens, batch_sharding(mesh))
                found = jax.jit(values, static_argnames="backbone")(sharded.params, placed, backbone=bundle.backbone)
            pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
            differences[f"{name} {shape}"] = max(difference(*pair) for pair in pairs)
    print(json.dumps(differences))


def values(params: Any, tokens: jax.Array, *, backbone: Any) -> Any:
    """Logits, and the gradients of a loss of them."""

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        logits = backbone.logits(params, backbone.run(params, backbone.embed(params, tokens)).hidden)
        scores = jax.nn.log_softmax(logits[:, :-1])
        return -jnp.mean(jnp.take_along_axis(scores, tokens[:, 1:, None], axis=-1)), logits

    (_, logits), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    return logits, gradients


def difference(found: jax.Array, expected: jax.Array) -> float:
    a, b = np.asarray(found), np.asarray(expected)
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-2))


if __name__ == "__main__":
    main()
