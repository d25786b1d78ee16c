"""Programs of decoder models (Llama, Qwen3, Gemma, …) to compile for devices that need not exist.

Weights and activations are bfloat16. Legend: B rows, T positions, D width, S latents of an autoencoder.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from steerling_jax.autoencoders.encoding import encode_rows
from steerling_jax.autoencoders.sharding import abstract_state
from steerling_jax.autoencoders.training_step import AutoencoderRecipe, AutoencoderState, Metrics, update
from steerling_jax.autoencoders.weights import Settings, Weights
from steerling_jax.models.backbone import Backbone, Cache, Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.decoder.backbone import decoder_backbone, param_shapes
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.decoder.parameters import param_shardings
from steerling_jax.parallel.mesh import partition_spec
from steerling_jax.train.aot.depths import decoder_depths, first_layers

DecoderMode = Literal["forward", "decode", "autoencoder"]
DECODER_MODES: tuple[DecoderMode, ...] = ("forward", "decode", "autoencoder")
_COMPUTE = Compute(dtype="bfloat16")
_KEPT = 50  # latents of a position


@dataclass(frozen=True)
class DecoderProgram:
    """A program of a decoder.

    mode: `forward` is a pass over `seq_len` positions of `sequences` texts that returns the outputs of all layers and
    the last position's logits; `decode` is one greedy token of each text, with a cache of `seq_len` positions. latents:
    in `forward`, also encode the middle layer's output with an autoencoder of so many latents, float32, of which 50 are
    kept; 0 for none. `autoencoder` trains one of so many latents: a pass over the texts, and an update on the last
    layer's outputs, with AuxK and Adam; that layer is the most work, and grows with the depth in a straight line.
    """

    name: str
    mode: DecoderMode
    config: DecoderConfig
    sequences: int = 1
    seq_len: int = 2048
    latents: int = 0

    @property
    def layers(self) -> int:
        """Number of layers."""
        return self.config.n_layers

    @property
    def depths(self) -> tuple[int, int]:
        """Two numbers of layers from which a deeper model is extrapolated: the second adds a whole period of types."""
        return decoder_depths(self.config)

    def with_layers(self, layers: int) -> DecoderProgram:
        """The same program of a model with so many layers, the first ones."""
        return dataclasses.replace(self, config=first_layers(self.config, layers))

    def parameter_bytes(self, mesh: Mesh) -> tuple[int, float]:
        """(number of parameters, bytes of them on one device), without the autoencoder."""
        leaves = jax.tree.leaves(self._params(mesh))
        on_device = sum(np.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
        return sum(leaf.size for leaf in leaves), float(on_device)

    def compile(self, mesh: Mesh) -> jax.stages.Compiled:
        """Compiles the program for a mesh."""
        backbone = decoder_backbone(self.config, _COMPUTE)
        rows = partition_spec(("batch",), (self.sequences,), mesh)[0]

        def struct(shape: tuple[int, ...], dtype: Any, *axes: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

        with jax.set_mesh(mesh):
            if self.mode == "forward":
                tokens = struct((self.sequences, self.seq_len), jnp.int32, rows)
                weights = _autoencoder(self.config.width, self.latents, mesh) if self.latents else None
                # The decoder's weights stay on the device for steering, though encoding does not read them.
                program = jax.jit(_forward, static_argnames="backbone", keep_unused=True)
                return program.lower(self._params(mesh), weights, tokens, backbone=backbone).compile()
            if self.mode == "autoencoder":
                tokens = struct((self.sequences, self.seq_len), jnp.int32, rows)
                recipe = self.recipe
                state = abstract_state(recipe, self.config.width, mesh)
                new = jax.tree.map(lambda leaf: leaf.sharding, state), None
                program = jax.jit(
                    _train_autoencoder,
                    static_argnames=("backbone", "recipe"),
                    donate_argnums=1,
                    out_shardings=new,
                    keep_unused=True,  # the output projection stays on the device
                )
                return program.lower(self._params(mesh), state, tokens, backbone=backbone, recipe=recipe).compile()
            cache = jax.tree.map(
                lambda leaf: struct(leaf.shape, leaf.dtype, rows, *_cache_axes(leaf.shape, self.seq_len, mesh)),
                jax.eval_shape(partial(backbone.empty_cache, self.sequences, self.seq_len)),
            )
            program = jax.jit(_next_token, static_argnames="backbone", donate_argnums=1)
            tokens, at = struct((self.sequences, 1), jnp.int32, rows), struct((), jnp.int32)
            return program.lower(self._params(mesh), cache, tokens, at, backbone=backbone).compile()

    @property
    def recipe(self) -> AutoencoderRecipe:
        """That of the autoencoder which is trained: a step has the rows of a pass."""
        return AutoencoderRecipe(
            n_latents=self.latents, k=_KEPT, steps=10_000, batch_rows=self.sequences * self.seq_len
        )

    def _params(self, mesh: Mesh) -> Any:
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16, sharding=sharding),
            param_shapes(self.config),
            param_shardings(self.config, mesh),
        )


def _cache_axes(shape: tuple[int, ...], positions: int, mesh: Mesh) -> tuple[str | None, ...]:
    """The mesh axes of a cache entry's axes after its rows.

    Keys and values (B, G, S, d) are sharded over heads, or over positions where the heads cannot be divided: on eight
    devices each would otherwise hold the whole cache of a model with four heads. DeltaNet's states (B, H, d, d) are
    sharded over heads; its last inputs (B, taps, channels) are small, and every device has them.
    """
    devices = mesh.shape["tensor"]
    if len(shape) != 4:
        return ()
    if shape[1] % devices == 0:
        return ("tensor",)
    return (None, "tensor") if shape[2] == positions and positions % devices == 0 else ()


def _forward(params: Params, autoencoder: Weights | None, tokens: jax.Array, *, backbone: Backbone) -> Any:
    layers = tuple(range(backbone.n_layers))
    result = backbone.run(params, backbone.embed(params, tokens), capture=layers)
    logits = backbone.logits(params, result.hidden[:, -1])
    if autoencoder is None:
        return result.captured, logits
    middle = result.captured[backbone.n_layers // 2].reshape(-1, backbone.width).astype(jnp.float32)
    return result.captured, logits, encode_rows(autoencoder, middle, _KEPT)


def _train_autoencoder(
    params: Params, state: AutoencoderState, tokens: jax.Array, *, backbone: Backbone, recipe: AutoencoderRecipe
) -> tuple[AutoencoderState, Metrics]:
    last = backbone.n_layers - 1
    captured = backbone.run(params, backbone.embed(params, tokens), capture=(last,)).captured[last]
    return update(state, captured.reshape(-1, backbone.width), recipe=recipe)


def _next_token(
    params: Params, cache: Cache, tokens: jax.Array, position: jax.Array, *, backbone: Backbone
) -> tuple[jax.Array, Cache]:
    result = backbone.run(params, backbone.embed(params, tokens), start=position, cache=cache)
    return jnp.argmax(backbone.logits(params, result.hidden), axis=-1).astype(jnp.int32), result.cache


def _autoencoder(width: int, latents: int, mesh: Mesh) -> Weights:
    """An autoencoder's weights, with the latents sharded over `tensor`."""

    def struct(shape: tuple[int, ...], *axes: str | None) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

    over = "tensor" if latents % mesh.shape["tensor"] == 0 else None
    return Weights(
        W_enc=struct((width, latents), None, over),
        W_dec=struct((latents, width), over),
        b_enc=struct((latents,), over),
        b_dec=struct((width,)),
        settings=Settings(activation="topk", k=_KEPT),
    )
