"""A small decoder with autoencoders of two of its blocks, in memory and on disk, whose features have names."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import steerling_jax as sj
from steerling_jax.autoencoders.weights import Settings
from steerling_jax.concepts.concept import Concept
from tests.worlds.autoencoders import make_autoencoder
from tests.worlds.chat_model import chat_config, write_chat_model

RIVERS = Concept(5, "rivers", "water that flows", head="feature", largest=4.0, density=0.1)
LATENTS = 64


def small_autoencoders() -> tuple[sj.Autoencoder, sj.Autoencoder]:
    """Of blocks 0 and 1 of the model of `chat_model`; block 1 is its last. Feature 5 of block 0 is called rivers."""
    made = make_autoencoder(Settings("topk", 6, subtract_b_dec=True), width=chat_config().width, size=LATENTS)
    inner, outer = (dataclasses.replace(made, layer=layer, name=f"layers.{layer}") for layer in (0, 1))
    return dataclasses.replace(inner, features=(RIVERS,)), outer


def write_feature_world(folder: Path) -> tuple[Path, list[Path]]:
    """Writes the model and its autoencoders; returns their folders."""
    model, paths = write_chat_model(folder / "model"), []
    for one in small_autoencoders():
        paths.append(folder / f"layers.{one.layer}")
        sj.save_autoencoder(one, paths[-1], format="sparsify")
    return model, paths
