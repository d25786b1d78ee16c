"""`save_autoencoder`: writes an autoencoder in the format of another library.

A format that has no subtraction of b_dec, or always has it, gets an encoder bias that gives the same latents:
(x − b) W + c = x W + (c − b W). What a format cannot say otherwise is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.autoencoders.weights import Weights
from steerling_jax.errors import require
from steerling_jax.io.atomic import atomic_path
from steerling_jax.io.autoencoders import tables
from steerling_jax.io.autoencoders.readers import DICTIONARIES, FORMATS
from steerling_jax.io.autoencoders.torch_file import write_torch_file
from steerling_jax.io.catalogue import features_file, write_entries
from steerling_jax.io.json_files import write_model_json
from steerling_jax.io.weights.safetensors_format import TensorToWrite, write_file


def save_autoencoder(autoencoder: Autoencoder, folder: str | Path, *, format: str) -> None:
    """Writes an autoencoder as the library of `format` does, replacing an existing folder once it is complete.

    What is known of its features goes into `features.json` beside it.

    Args:
        autoencoder: what to write, in float32.
        folder: the folder to write. Sparsify and Gemma Scope 1 keep the layer in a folder's name, so call it `layers.3`
            or `layer_3` for those.
        format: "qwen-scope", "saelens", "sparsify", "dictionary-learning", "gemma-scope" or "gemma-scope-2".

    Raises:
        UserError: the format cannot express this autoencoder, or the folder cannot be written.
    """
    require(format in FORMATS, f"There is no format {format!r}; these are: {', '.join(FORMATS)}.", "format")
    own = dict(autoencoder.carried) if autoencoder.format == format else {}
    tensors, config = _CONTENTS[format](autoencoder, own)
    with atomic_path(folder, folder=True) as scratch:
        if format == "qwen-scope":
            write_torch_file(scratch / f"layer{autoencoder.layer}.sae.pt", tensors)
        elif format == "dictionary-learning":
            write_torch_file(scratch / "ae.pt", tensors)
        elif format == "gemma-scope":
            np.savez(scratch / "params.npz", allow_pickle=False, **tensors)
        else:
            arrays = [TensorToWrite(name, a.dtype, a.shape, lambda a=a: a) for name, a in tensors.items()]
            write_file(scratch / FORMATS[format].arrays, arrays)
        if FORMATS[format].config is not None:
            write_model_json(scratch / str(FORMATS[format].config), config)
        if autoencoder.features:
            arrays_file = FORMATS[format].arrays.replace("*", f"layer{autoencoder.layer}")
            write_entries(features_file(scratch / arrays_file), autoencoder.features)


Contents = tuple[dict[str, np.ndarray], Mapping[str, Any]]


def _saelens(autoencoder: Autoencoder, own: dict[str, Any]) -> Contents:
    weights, settings = autoencoder.weights, autoencoder.weights.settings
    _refuse("saelens", groupmax=settings.activation == "groupmax", skip=weights.W_skip is not None)
    topk, jumprelu = settings.activation == "topk", weights.threshold is not None
    config = {
        "architecture": "topk" if topk else "jumprelu" if jumprelu else "standard",
        "d_in": autoencoder.width,
        "d_sae": autoencoder.n_latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": settings.subtract_b_dec,
        "normalize_activations": settings.normalise,
        "reshape_activations": "none",
    }
    if topk:
        config |= {"k": settings.k, "rescale_acts_by_decoder_norm": settings.rescale_by_decoder_norm}
    if autoencoder.layer is not None:
        layer = autoencoder.layer
        config["metadata"] = {"hook_name": f"blocks.{layer}.hook_resid_post", "hf_hook_name": f"model.layers.{layer}"}
    rows = (*tables.ENCODER, tables.THRESHOLD) if jumprelu else tables.ENCODER
    return tables.to_tensors(rows, weights), config | own | ({"k": settings.k} if topk else {})


def _sparsify(autoencoder: Autoencoder, own: dict[str, Any]) -> Contents:
    settings = autoencoder.weights.settings
    _refuse("sparsify", threshold=settings.activation == "threshold", normalise=settings.normalise != "none")
    skip = autoencoder.weights.W_skip is not None
    transcoder = skip or bool(own.get("transcode"))
    weights = _unit_scale(_with_subtraction(autoencoder.weights, not transcoder))
    config = {
        "activation": settings.activation,
        "expansion_factor": 0,
        "normalize_decoder": True,
        "num_latents": autoencoder.n_latents,
        "multi_topk": False,
        "skip_connection": skip,
        "transcode": transcoder,
        "d_in": autoencoder.width,
    }
    rows = (*tables.SPARSIFY, tables.SKIP) if skip else tables.SPARSIFY
    return tables.to_tensors(rows, weights), config | own | {"k": settings.k}


def _dictionary_learning(autoencoder: Autoencoder, own: dict[str, Any]) -> Contents:
    weights, settings = autoencoder.weights, autoencoder.weights.settings
    _refuse("dictionary-learning", groupmax=settings.activation == "groupmax", skip=weights.W_skip is not None,
            normalise=settings.normalise != "none")  # fmt: skip
    scalars = own.pop("scalars", {})
    one_threshold = weights.threshold is not None and bool((weights.threshold == weights.threshold[0]).all())
    if settings.activation == "topk":
        kind = "AutoEncoderTopK"
    elif weights.threshold is None:
        kind = "AutoEncoder"
    else:
        kind = "BatchTopKSAE" if one_threshold and settings.subtract_b_dec else "JumpReluAutoEncoder"
    weights = _unit_scale(_with_subtraction(weights, kind != "JumpReluAutoEncoder"))
    tensors = tables.to_tensors(DICTIONARIES[kind], weights)
    k = settings.k or scalars.get("k")
    if kind in ("AutoEncoderTopK", "BatchTopKSAE"):
        # A BatchTopK encodes by its threshold; k is what it was trained with, if that is known.
        tensors["k"] = np.asarray(k or 1, np.int32)
    if kind == "AutoEncoderTopK":
        tensors["threshold"] = np.asarray(scalars.get("threshold", -1.0), np.float32)
    trainer = {
        "dict_class": kind,
        "activation_dim": autoencoder.width,
        "dict_size": autoencoder.n_latents,
        "layer": autoencoder.layer,
        "submodule_name": None,
    } | ({"k": k} if k else {})
    return tensors, {"trainer": trainer} | own


def _gemma_scope(autoencoder: Autoencoder, own: dict[str, Any]) -> Contents:
    return tables.to_tensors(tables.GEMMA_SCOPE, _jumprelu(autoencoder, "gemma-scope")), own


def _gemma_scope_2(autoencoder: Autoencoder, own: dict[str, Any]) -> Contents:
    config: dict[str, Any] = {"architecture": "jump_relu", "width": autoencoder.n_latents, "affine_connection": False}
    if autoencoder.layer is not None:
        hook = f"model.layers.{autoencoder.layer}.output"
        config |= {"hf_hook_point_in": hook, "hf_hook_point_out": hook}
    return tables.to_tensors(tables.GEMMA_SCOPE_2, _jumprelu(autoencoder, "gemma-scope-2")), config | own


def _qwen_scope(autoencoder: Autoencoder, own: dict[str, Any]) -> Contents:
    weights, settings = autoencoder.weights, autoencoder.weights.settings
    _refuse("qwen-scope", skip=weights.W_skip is not None, normalise=settings.normalise != "none",
            threshold=settings.activation == "threshold", groupmax=settings.activation == "groupmax")  # fmt: skip
    require(autoencoder.layer is not None, "Qwen-Scope names its files after the layer, and this autoencoder has none; "
            "use dataclasses.replace(autoencoder, layer=…).")  # fmt: skip
    return tables.to_tensors(tables.QWEN_SCOPE, _unit_scale(_with_subtraction(weights, False))), own


_CONTENTS = {
    "saelens": _saelens,
    "sparsify": _sparsify,
    "dictionary-learning": _dictionary_learning,
    "gemma-scope": _gemma_scope,
    "gemma-scope-2": _gemma_scope_2,
    "qwen-scope": _qwen_scope,
}

_TRAITS = {
    "groupmax": "the group-max activation",
    "skip": "a skip connection",
    "normalise": "layer normalisation of the input",
    "threshold": "an activation by threshold",
    "topk": "a fixed number of latents for each row",
}


def _refuse(format: str, **traits: bool) -> None:
    """Raises `UserError` if the autoencoder has a trait that the format cannot express."""
    for trait, present in traits.items():
        require(not present, f"The format {format} cannot express {_TRAITS[trait]}; use another format.", "format")


def _jumprelu(autoencoder: Autoencoder, format: str) -> Weights:
    """Weights with thresholds and without subtraction."""
    weights, settings = autoencoder.weights, autoencoder.weights.settings
    _refuse(format, topk=settings.activation != "threshold", skip=weights.W_skip is not None,
            normalise=settings.normalise != "none")  # fmt: skip
    weights = _with_subtraction(weights, False)
    return (
        weights
        if weights.threshold is not None
        else dataclasses.replace(weights, threshold=jnp.zeros_like(weights.b_enc))
    )


def _with_subtraction(weights: Weights, subtract: bool) -> Weights:
    """The same autoencoder with or without the subtraction of b_dec; in float64, so that one rounding remains."""
    if weights.settings.subtract_b_dec == subtract:
        return weights
    moved = np.asarray(weights.b_dec, np.float64) @ np.asarray(weights.W_enc, np.float64)
    bias = np.asarray(weights.b_enc, np.float64) + (moved if subtract else -moved)
    settings = dataclasses.replace(weights.settings, subtract_b_dec=subtract)
    return dataclasses.replace(weights, b_enc=jnp.asarray(bias, jnp.float32), settings=settings)


def _unit_scale(weights: Weights) -> Weights:
    """The same autoencoder without the factor of the decoder rows' norms: the encoder takes it, and the rows get norm
    1."""
    scale = weights.latent_scale()
    if scale is None:
        return weights
    settings = dataclasses.replace(weights.settings, rescale_by_decoder_norm=False)
    return dataclasses.replace(weights, W_enc=weights.W_enc * scale[None], b_enc=weights.b_enc * scale,
                           W_dec=weights.W_dec / scale[:, None], settings=settings)  # fmt: skip
