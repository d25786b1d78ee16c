"""`Autoencoder`: a sparse autoencoder that reads features out of a model's hidden states, in one form for all formats.

    pre = (x − b_dec, where the file says so) W_enc + b_enc
    z   = what the activation keeps of pre
    x̂   = z W_dec + b_dec

Legend: N rows, D width of the hidden states, S latents (features), k latents kept of each row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.autoencoders.encoding import count_active, decode_rows, encode_dense_rows, encode_rows
from steerling_jax.autoencoders.weights import Weights, normalise_rows
from steerling_jax.concepts.concept import Concept
from steerling_jax.errors import UserError

# Rows of one compiled call: this number, or for fewer rows a power of two, so that few programs are compiled.
_ROWS = 1024
_FEWEST_ROWS = 16


@dataclass(frozen=True, repr=False)
class Autoencoder:
    """A sparse autoencoder on the output of one block of a model.

    Attributes:
        weights: its arrays and how they are used.
        layer: the block whose output it reads, counted from 0; None if its files do not say.
        name: what it was loaded as, for messages.
        format: the format of its files; empty for one made in memory.
        carried: what its configuration file says, to be written again in the same format.
        features: what is known of single features, their names, densities and largest latents, from the file
            `features.json` beside its arrays; empty without one.

    Example:
        >>> autoencoder = sj.load_autoencoder("layer12.sae.pt", k=50)
        >>> values, indices = autoencoder.encode(sj.hidden_states(bundle, "Some text", layers=[12])[12])
    """

    weights: Weights
    layer: int | None = None
    name: str = ""
    format: str = ""
    carried: Mapping[str, Any] = field(default_factory=dict)
    features: tuple[Concept, ...] = ()

    @property
    def k(self) -> int | None:
        """How many latents each row keeps; None where a threshold decides."""
        return self.weights.settings.k

    @property
    def n_latents(self) -> int:
        """S, the number of features."""
        return self.weights.W_enc.shape[1]

    @property
    def width(self) -> int:
        """D, the width of the hidden states."""
        return self.weights.W_enc.shape[0]

    def summary(self) -> dict[str, int | None]:
        """Its block, number of features and k, as reports in JSON name an autoencoder."""
        return {"layer": self.layer, "latents": self.n_latents, "k": self.k}

    def encode(self, x: Any, *, dense: bool = False) -> Any:
        """The latents of hidden states x (…, D).

        Returns (values, indices), float32 and int32 (…, k), the largest first; with `dense`, latents (…, S) float32.
        Where a threshold decides, k is the count of the row that keeps most, and other rows are padded with value 0.
        The work is done in pieces of rows, so that without `dense` no array of all rows and all latents exists.

        Raises `UserError` if x has another width or contains NaN.
        """
        rows, leading = self._rows(x)
        pieces = _pieces(rows)
        if dense:
            parts = [encode_dense_rows(self.weights, piece)[:count] for piece, count in pieces]
            return jnp.concatenate(parts).reshape(*leading, self.n_latents)
        k = size = self.k or 0
        if self.k is None:
            k = max(int(np.max(count_active(self.weights, piece)[:count], initial=1)) for piece, count in pieces)
            # A power of two, so that texts whose busiest rows differ share their programs.
            size = min(self.n_latents, 1 << (k - 1).bit_length())
        parts = [(encode_rows(self.weights, piece, size), count) for piece, count in pieces]
        values = jnp.concatenate([values[:count, :k] for (values, _), count in parts])
        indices = jnp.concatenate([indices[:count, :k] for (_, indices), count in parts])
        return values.reshape(*leading, k), indices.reshape(*leading, k)

    def decode(self, latents: Any) -> jax.Array:
        """The hidden states (…, D) float32 of latents: dense (…, S), or a pair (values, indices), each (…, k).

        Raises `UserError` for latents of another shape, and for an autoencoder whose output also depends on its input
        directly: `reconstruct` has that.
        """
        if self.weights.W_skip is not None or self.weights.settings.normalise != "none":
            reason = "has a skip connection" if self.weights.W_skip is not None else "normalises its input"
            raise UserError(f"{self.name or 'This autoencoder'} {reason}, so latents alone do not give its output; "
                            "use .reconstruct(x).")  # fmt: skip
        return self._decode(latents)

    def reconstruct(self, x: Any, latents: Any = None) -> jax.Array:
        """x̂ (…, D) float32 of hidden states x (…, D): encoded and decoded, with scale and skip connection if any.

        latents: those of x, where `encode` has given them already.
        Raises `UserError` if x has another width or contains NaN.
        """
        rows, leading = self._rows(x)
        out = self._decode(self.encode(rows) if latents is None else latents).reshape(rows.shape)
        _, mean, scale = normalise_rows(rows, self.weights.settings.normalise)
        out = out * scale + mean
        if self.weights.W_skip is not None:
            out = out + rows @ self.weights.W_skip.astype(jnp.float32)
        return out.reshape(*leading, self.width)

    def _decode(self, latents: Any) -> jax.Array:
        if isinstance(latents, tuple):
            values, indices = (jnp.asarray(part) for part in latents)
            if values.shape != indices.shape:
                raise UserError(f"values {values.shape} and indices {indices.shape} must have one shape.", "latents")
            *leading, k = values.shape
            rows = decode_rows(self.weights, values.astype(jnp.float32).reshape(-1, k), indices.reshape(-1, k))
        else:
            dense = jnp.asarray(latents, jnp.float32)
            *leading, size = dense.shape
            if size != self.n_latents:
                raise UserError(f"The latents have the shape {dense.shape}; give (…, {self.n_latents}).", "latents")
            scale = self.weights.latent_scale()
            dense = dense.reshape(-1, size) if scale is None else dense.reshape(-1, size) / scale[None]
            rows = dense @ self.weights.W_dec.astype(jnp.float32) + self.weights.b_dec[None]
        return rows.reshape(*leading, self.width)

    def _rows(self, x: Any) -> tuple[jax.Array, tuple[int, ...]]:
        """x as rows (N, D) float32, and its leading axes."""
        x = jnp.asarray(x, jnp.float32)
        if x.ndim == 0 or x.shape[-1] != self.width:
            label = self.name or "the autoencoder"
            raise UserError(f"The hidden states have the shape {x.shape}, but {label} reads (…, {self.width}).", "x")
        if not bool(jnp.isfinite(x).all()):
            raise UserError("The hidden states contain NaN or infinite values; check the model they come from.", "x")
        return x.reshape(-1, self.width), x.shape[:-1]

    def __repr__(self) -> str:
        rule = f"k={self.k}" if self.k else "JumpReLU" if self.weights.threshold is not None else "ReLU"
        layer = "" if self.layer is None else f", layer {self.layer}"
        return f"Autoencoder(width {self.width}, {self.n_latents:,} latents, {rule}{layer})"


def _pieces(rows: jax.Array) -> list[tuple[jax.Array, int]]:
    """rows (N, D) in pieces of at most `_ROWS`, each padded to a power of two with zeros, with their true lengths."""
    pieces = []
    for start in range(0, max(1, len(rows)), _ROWS):
        part = rows[start : start + _ROWS]
        size = max(_FEWEST_ROWS, 1 << max(0, len(part) - 1).bit_length())
        pieces.append((jnp.pad(part, ((0, size - len(part)), (0, 0))), len(part)))
    return pieces
