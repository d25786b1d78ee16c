"""Run by test_encoding.py in a process with eight devices: encoding on a mesh, beside encoding on one device.

Prints, for each activation, "equal" or the largest difference, as JSON.
"""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.autoencoders.encoding import count_active, encode_rows
from steerling_jax.autoencoders.weights import Settings
from steerling_jax.parallel.sharding import MeshShape, make_mesh
from tests.worlds.autoencoders import WIDTH, make_autoencoder

CASES = {
    "topk": make_autoencoder(Settings("topk", 5, subtract_b_dec=True, rescale_by_decoder_norm=True)),
    "JumpReLU": make_autoencoder(Settings("threshold"), threshold=3.0),
    "group-max": make_autoencoder(Settings("groupmax", 8)),
}


def main() -> None:
    """Encodes eight rows with latents over four devices and rows over two."""
    x = jnp.asarray(np.random.default_rng(4).normal(0, 2, (8, WIDTH)), jnp.float32)
    found = {}
    for name, autoencoder in CASES.items():
        values, indices = autoencoder.encode(x)
        k = values.shape[1]
        with jax.set_mesh(make_mesh(MeshShape(data=2, fsdp=1, tensor=4))):
            on_mesh, where = encode_rows(autoencoder.weights, x, k)
            counts = count_active(autoencoder.weights, x)
        active = np.asarray(values) > 0
        error = np.abs(np.asarray(on_mesh) - values).max()
        same = np.array_equal(np.asarray(where)[active], np.asarray(indices)[active])
        if name == "JumpReLU":
            same = same and np.array_equal(counts, active.sum(axis=1))
        found[name] = "equal" if same and error <= 1e-5 * np.abs(values).max() else float(error)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
