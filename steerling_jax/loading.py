"""`load`: reads a model from a folder, a checkpoint, a bundled name or a Hub id."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from steerling_jax.autoencoders.bottleneck import attach_bottleneck
from steerling_jax.bundle import Bundle, special_ids
from steerling_jax.errors import UserError
from steerling_jax.io import hub
from steerling_jax.io.autoencoders.bottleneck_file import BOTTLENECK_FILE, is_bottleneck_folder, read_origin
from steerling_jax.io.autoencoders.load import load_autoencoder
from steerling_jax.io.catalogue import model_catalogue, read_concept_names
from steerling_jax.io.checkpoints.location import RUN_FILE, locate_checkpoint
from steerling_jax.io.strengths import read_strengths
from steerling_jax.io.tokenizers.gguf_vocabulary import gguf_tokenizer
from steerling_jax.io.tokenizers.load import load_decoder_tokenizer, load_tokenizer
from steerling_jax.io.weights.decoder_reader import is_decoder_folder, read_decoder, read_gguf_decoder
from steerling_jax.io.weights.parameter_tree import Shardings
from steerling_jax.io.weights.published_layout import Headers
from steerling_jax.io.weights.published_reader import read_published
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.families import AnyConfig
from steerling_jax.models.steerling.fingerprint import fingerprint
from steerling_jax.models.steerling.published_config import PublishedExtras


def load(
    path_or_name: str | Path | None = None,
    *,
    dtype: str | None = "auto",
    matmul_dtype: str | None = None,
    sharding: Shardings | None = None,
) -> Bundle:
    """Loads a model: its config, parameters, tokenizer and concept catalogue.

    Args:
        path_or_name: a folder in one of the published layouts or, for other families, of Hugging Face transformers; a
            checkpoint, a training run of this package or one of its steps, `RUN/checkpoints/STEP`; a GGUF file; the
            name of a bundled model; or a Hugging Face Hub id such as `guidelabs/steerling-8b`, or a GGUF file there
            (`owner/name/file.gguf`), which is downloaded through `huggingface_hub` and its cache; or the address of a
            folder in a bucket (`gs://…`, `s3://…`), whose weights are read tensor by tensor without a download. The
            export of `steerling attach` gives its model with the bottleneck in place. A folder takes precedence over a
            name. None loads the first bundled model.
        dtype: "float32" or "bfloat16", of parameters and activations; None takes the stored dtype. "auto" is "float32"
            for Steerling models and the stored dtype for other families. Quantised weights count as float32.
        matmul_dtype: "float32" or "bfloat16", of the operands of matrix products; None takes `dtype`.
        sharding: a mesh, over which the parameters are sharded by the family's table; or the sharding of each
            parameter, as a nested dict like the parameters or as a function of a parameter's path, a tuple of keys.
            None places all parameters on the default device.

    Returns:
        A `Bundle`, which the other functions of this package take as their first argument.

    Raises:
        UserError: nothing is found under that name, the download fails, a file is damaged or does not belong to the
            model, or a dtype is not one of those above.

    Example:
        >>> import steerling_jax as sj
        >>> bundle = sj.load("steerling-pydocs", dtype="bfloat16")
        >>> bundle.config.n_layers
        4
        >>> made = sj.generate(bundle, "The zip function", sj.GenerationConfig(max_new_tokens=32))
    """
    for label, value in (("dtype", None if dtype == "auto" else dtype), ("matmul_dtype", matmul_dtype)):
        if value not in (None, "float32", "bfloat16"):
            raise UserError(f"{label} is {value!r}, but it must be 'float32', 'bfloat16' or None.")
    folder, headers = _find_model(path_or_name)
    name = folder.name if path_or_name is None else str(path_or_name)
    if folder.is_file():
        return _load_gguf(folder, name, None if dtype == "auto" else dtype, matmul_dtype, sharding)
    if is_bottleneck_folder(folder):
        return _load_bottlenecked(folder, name, dtype, matmul_dtype, sharding)
    folder, step = locate_checkpoint(folder)
    if not (folder / RUN_FILE).is_file() and is_decoder_folder(folder):
        return _load_decoder(folder, name, None if dtype == "auto" else dtype, matmul_dtype, sharding, headers)
    dtype = "float32" if dtype == "auto" else dtype
    if (folder / RUN_FILE).is_file():
        from steerling_jax.io.checkpoints import parameters as checkpoint  # Orbax takes a second to import

        info = checkpoint.read_run_info(folder)
        config, params = checkpoint.load_checkpoint_params(folder, step=step, dtype=dtype, sharding=sharding)
        if isinstance(config, DecoderConfig):
            return _decoder_bundle(folder, name, config, params, dtype, matmul_dtype)
        extras = PublishedExtras(info.layout, info.carried, str(params["tok_emb"]["weight"].dtype))
    else:
        config, params, extras = read_published(folder, dtype=dtype, sharding=sharding, headers=headers)
    stored = extras.dtype if extras.dtype in ("float32", "bfloat16") else "float32"
    return Bundle(
        config=config,
        params=params,
        tokenizer=load_tokenizer(folder, special_ids(config), config.vocab_size),
        compute=Compute(dtype=dtype or stored, matmul_dtype=matmul_dtype),
        name=name,
        extras=extras,
        concept_names=read_concept_names(folder, config),
        folder=folder,
        catalogue=None if config.concept is None else model_catalogue(folder, config),
        strengths=read_strengths(folder),
    )


def read_config(path_or_name: str | Path | None = None) -> AnyConfig:
    """The configuration of a model that `load` would load from there, except of a GGUF file, without its weights.

    Raises `UserError` as `load` does.
    """
    folder, _ = _find_model(path_or_name)
    if folder.is_file():
        raise UserError(f"{folder} is a GGUF file, whose configuration is read with its weights; use `load`.")
    from steerling_jax.io.checkpoints.parameters import read_model_config  # Orbax takes a second to import

    return read_model_config(locate_checkpoint(folder)[0])


def _find_model(path_or_name: str | Path | None) -> tuple[Path, Headers | None]:
    """The folder or GGUF file of a model, and its weight files if they are not in the folder."""
    if "://" in str(path_or_name):
        from steerling_jax.io.bucket_model import open_bucket_model  # fsspec takes a moment to import

        return open_bucket_model(str(path_or_name))
    return hub.resolve(path_or_name, gguf=True), None


def _load_bottlenecked(
    folder: Path, name: str, dtype: str | None, matmul_dtype: str | None, sharding: Shardings | None
) -> Bundle:
    origin = read_origin(folder)
    try:
        bundle = load(origin.model, dtype=dtype, matmul_dtype=matmul_dtype, sharding=sharding)
    except UserError as error:
        raise UserError(
            f"{folder} is a bottleneck of the model {origin.model}, which does not load: {error} If it has moved, "
            f"correct 'model' in {folder / BOTTLENECK_FILE}."
        ) from error
    found = fingerprint(bundle.params, bundle.config)
    if found != origin.fingerprint:
        raise UserError(
            f"{folder} is a bottleneck of a model with the fingerprint {origin.fingerprint}, but {origin.model} has "
            f"{found}; restore that model, or make a new bottleneck with `steerling attach`."
        )
    return dataclasses.replace(attach_bottleneck(bundle, load_autoencoder(folder)), name=name)


def _load_decoder(
    folder: Path,
    name: str,
    dtype: str | None,
    matmul_dtype: str | None,
    sharding: Shardings | None,
    headers: Headers | None,
) -> Bundle:
    config, params, stored = read_decoder(folder, dtype=dtype, sharding=sharding, headers=headers)
    # Activations in float16 would overflow: such weights are computed with in float32.
    compute_dtype = dtype or (stored if stored == "bfloat16" else "float32")
    return _decoder_bundle(folder, name, config, params, compute_dtype, matmul_dtype, stored)


def _decoder_bundle(
    folder: Path,
    name: str,
    config: DecoderConfig,
    params: Params,
    dtype: str | None,
    matmul_dtype: str | None,
    stored: str = "float32",
) -> Bundle:
    return Bundle(
        config=config,
        params=params,
        tokenizer=load_decoder_tokenizer(folder, special_ids(config), config.vocab_size),
        compute=Compute(dtype=dtype or stored, matmul_dtype=matmul_dtype),
        name=name,
        extras=PublishedExtras(dtype=stored),
        folder=folder,
    )


def _load_gguf(
    path: Path, name: str, dtype: str | None, matmul_dtype: str | None, sharding: Shardings | None
) -> Bundle:
    config, params, stored, header = read_gguf_decoder(path, dtype=dtype, sharding=sharding)
    return Bundle(
        config=config,
        params=params,
        tokenizer=gguf_tokenizer(header, config.vocab_size),
        compute=Compute(dtype=dtype or (stored if stored == "bfloat16" else "float32"), matmul_dtype=matmul_dtype),
        name=name,
        extras=PublishedExtras(dtype=stored),
    )
