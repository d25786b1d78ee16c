"""Readers of the formats: what each configuration file means, as `Settings`, and where its arrays are.

Sources of the semantics: SAELens 6, eai-sparsify 1.3, dictionary_learning 0.1, Gemma Scope 1 and 2, Qwen-Scope.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.autoencoders.weights import Settings
from steerling_jax.errors import UserError, error_summary, require
from steerling_jax.io.autoencoders import tables
from steerling_jax.io.autoencoders.hook_points import layer_of, one_layer
from steerling_jax.io.autoencoders.torch_file import read_torch_file
from steerling_jax.io.json_files import read_json_object
from steerling_jax.io.weights.safetensors_format import read_header


@dataclass(frozen=True)
class Request:
    """What is to be read: the file of arrays, and what the user said. k and layer: None for what the files say."""

    file: Path
    k: int | None
    layer: int | None

    def config(self, name: str) -> dict[str, Any]:
        """The JSON configuration beside the file of arrays."""
        return read_json_object(self.file.parent / name)

    def layer_from(self, **said: int | None) -> int | None:
        """The layer, from the user and from what the files say; they must agree."""
        return one_layer({"the argument": self.layer, **said}, str(self.file))


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    return {name: tensor.map() for name, tensor in read_header(path).items()}


def read_saelens(request: Request) -> Autoencoder:
    """SAELens 6: `cfg.json` and `sae_weights.safetensors`."""
    cfg, name = request.config("cfg.json"), str(request.file.parent)
    architecture = cfg.get("architecture", "standard")
    supported = ("standard", "topk", "jumprelu")  # a BatchTopK is saved as jumprelu
    require(architecture in supported, f"{name}: the architecture {architecture!r} is not supported; these are: "
            f"{', '.join(supported)}.")  # fmt: skip
    normalise = cfg.get("normalize_activations", "none")
    require(normalise in ("none", "layer_norm"), f"{name}: normalize_activations {normalise!r} is not supported; "
            "'none' and 'layer_norm' are.")  # fmt: skip
    reshape = cfg.get("reshape_activations", "none")
    require(reshape == "none", f"{name}: reshape_activations {reshape!r} is not supported; only 'none' is.")
    metadata = cfg.get("metadata") or {}
    hook = metadata.get("hook_name") or cfg.get("hook_name")
    topk = architecture == "topk"
    settings = Settings(
        "topk" if topk else "threshold",
        (request.k or cfg.get("k") or (cfg.get("activation_fn_kwargs") or {}).get("k")) if topk else request.k,
        subtract_b_dec=bool(cfg.get("apply_b_dec_to_input", True)),
        rescale_by_decoder_norm=topk and bool(cfg.get("rescale_acts_by_decoder_norm", False)),
        normalise=normalise,
    )
    rows = (*tables.ENCODER, tables.THRESHOLD) if architecture == "jumprelu" else tables.ENCODER
    weights = tables.to_weights(rows, _safetensors(request.file), settings, name)
    layer = request.layer_from(**{"cfg.json": layer_of(hook, name) if hook else None})
    return Autoencoder(weights, layer, name, "saelens", cfg)


def read_sparsify(request: Request) -> Autoencoder:
    """EleutherAI sparsify: `cfg.json` and `sae.safetensors`, in a folder named after its hook point."""
    cfg, name = request.config("cfg.json"), str(request.file.parent)
    activation = cfg.get("activation", "topk")
    require(activation in ("topk", "groupmax"), f"{name}: the activation {activation!r} is not supported; 'topk' and "
            "'groupmax' are.")  # fmt: skip
    tensors = _safetensors(request.file)
    transcoder = bool(cfg.get("transcode", False))
    # Whether b_dec is subtracted does not depend on `normalize_decoder`, though its name suggests so.
    settings = Settings(activation, request.k or cfg.get("k"), subtract_b_dec=not transcoder)
    rows = (*tables.SPARSIFY, tables.SKIP) if cfg.get("skip_connection") else tables.SPARSIFY
    weights = tables.to_weights(rows, tensors, settings, name)
    D, S = weights.W_enc.shape
    stated = cfg.get("num_latents") or D * cfg.get("expansion_factor", 0)
    require(stated == S, f"{name}: cfg.json says {stated} latents, but encoder.weight has {S}.")
    hook = request.file.parent.name
    said = layer_of(hook, name) if hook.startswith(("layers.", "model.")) else None
    return Autoencoder(weights, request.layer_from(**{"the folder's name": said}), name, "sparsify", cfg)


DICTIONARIES: dict[str, tuple[tables.Row, ...]] = {
    "AutoEncoderTopK": (*tables.LINEAR, tables.Row("b_dec", "b_dec", "D")),
    "BatchTopKSAE": (*tables.LINEAR, tables.Row("b_dec", "b_dec", "D"), tables.Row("threshold", "threshold", "1")),
    "JumpReluAutoEncoder": (*tables.ENCODER, tables.THRESHOLD),
    "AutoEncoder": (*tables.LINEAR, tables.Row("bias", "b_dec", "D")),
}


def read_dictionary_learning(request: Request) -> Autoencoder:
    """dictionary_learning: `ae.pt` and `config.json`."""
    config, name = request.config("config.json"), str(request.file.parent)
    trainer = config.get("trainer") or {}
    kind = trainer.get("dict_class")
    require(kind in DICTIONARIES, f"{name}: the class {kind!r} is not supported; these are: "
            f"{', '.join(DICTIONARIES)}.")  # fmt: skip
    submodule = trainer.get("submodule_name")
    require(submodule is None or "resid_post" in submodule, f"{name} reads the hook point {submodule!r}; only the "
            "outputs of blocks are supported, such as 'resid_post_layer_3'.")  # fmt: skip
    tensors = read_torch_file(request.file)
    topk = kind == "AutoEncoderTopK"
    scalars = {key: tensors.pop(key).item() for key in ("k", "threshold") if key in tensors and tensors[key].size == 1}
    if kind == "BatchTopKSAE":
        # Trained with a batch's k largest; encodes by the threshold that it learned.
        require("threshold" in scalars, f"{name} has no tensor 'threshold'; is it complete?")
        tensors["threshold"] = np.asarray(scalars["threshold"], np.float32)
    k = request.k or scalars.get("k") or trainer.get("k")
    settings = Settings("topk" if topk else "threshold", k if topk else request.k,
                        subtract_b_dec=kind != "JumpReluAutoEncoder")  # fmt: skip
    weights = tables.to_weights(DICTIONARIES[str(kind)], tensors, settings, name)
    layer = request.layer_from(**{"config.json": trainer.get("layer")})
    return Autoencoder(weights, layer, name, "dictionary-learning", config | {"scalars": scalars})


def read_gemma_scope(request: Request) -> Autoencoder:
    """Gemma Scope 1: `params.npz`, in a folder of which one part is `layer_N`."""
    name = str(request.file)
    for part in request.file.absolute().parts:
        other = re.search(r"-(att|mlp)\b|transcoder|^embedding$", part)
        require(not other, f"{name} reads another place than the output of a block ({part}), which is not supported.")
    try:
        with np.load(request.file) as arrays:  # without pickles, which is NumPy's default
            tensors = {key: arrays[key] for key in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{name} is not a readable .npz file ({error_summary(error)}); get it again.") from error
    weights = tables.to_weights(tables.GEMMA_SCOPE, tensors, Settings("threshold", request.k), name)
    return Autoencoder(weights, request.layer_from(**{"the path": _layer_in(request.file)}), name, "gemma-scope")


def read_gemma_scope_2(request: Request) -> Autoencoder:
    """Gemma Scope 2: `config.json` and `params.safetensors`."""
    config, name = request.config("config.json"), str(request.file.parent)
    architecture = config.get("architecture", "jump_relu")
    require(architecture == "jump_relu", f"{name}: the architecture {architecture!r} is not supported; 'jump_relu' is.")
    affine = config.get("affine_connection")
    require(not affine, f"{name} has an affine connection, which is not supported.")
    hook_in, hook_out = config.get("hf_hook_point_in"), config.get("hf_hook_point_out")
    require(hook_in == hook_out, f"{name} is a transcoder from {hook_in!r} to {hook_out!r}, which is not supported.")
    weights = tables.to_weights(
        tables.GEMMA_SCOPE_2, _safetensors(request.file), Settings("threshold", request.k), name
    )
    said = layer_of(hook_in, name) if hook_in else None
    return Autoencoder(weights, request.layer_from(**{"config.json": said}), name, "gemma-scope-2", config)


def read_qwen_scope(request: Request) -> Autoencoder:
    """Qwen-Scope: `layerN.sae.pt`. No file says k; a folder's name does, as in `SAE-Res-Qwen3-1.7B-Base-W32K-L0_50`."""
    found = re.search(r"L0_(\d+)", str(request.file.absolute().parent))
    k = request.k or (int(found[1]) if found else None)
    weights = tables.to_weights(
        tables.QWEN_SCOPE, read_torch_file(request.file), Settings("topk", k), str(request.file)
    )
    layer = re.fullmatch(r"layer(\d+)\.sae\.pt", request.file.name)
    said = int(layer[1]) if layer else None
    return Autoencoder(weights, request.layer_from(**{"the file's name": said}), str(request.file), "qwen-scope")


def _layer_in(path: Path) -> int | None:
    """The last `layer_N` of a path."""
    found = re.findall(r"layer_(\d+)", str(path.absolute()))
    return int(found[-1]) if found else None


@dataclass(frozen=True)
class Format:
    """A format: the pattern of its file of arrays, the configuration file beside it, its reader."""

    arrays: str
    config: str | None
    read: Callable[[Request], Autoencoder]


FORMATS: Mapping[str, Format] = {
    "saelens": Format("sae_weights.safetensors", "cfg.json", read_saelens),
    "sparsify": Format("sae.safetensors", "cfg.json", read_sparsify),
    "dictionary-learning": Format("ae.pt", "config.json", read_dictionary_learning),
    "gemma-scope": Format("params.npz", None, read_gemma_scope),
    "gemma-scope-2": Format("params.safetensors", "config.json", read_gemma_scope_2),
    "qwen-scope": Format("*.sae.pt", None, read_qwen_scope),
}
