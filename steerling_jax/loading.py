"""`load`: a model ready to use, from a folder, a checkpoint, a bundled name or a Hub id."""

from __future__ import annotations

from pathlib import Path

from steerling_jax.bundle import Bundle, special_ids
from steerling_jax.errors import UserError
from steerling_jax.io import hub
from steerling_jax.io.catalogue import model_catalogue, read_concept_names
from steerling_jax.io.tokenizers.load import load_tokenizer
from steerling_jax.io.weights import published as weights
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.published_config import PublishedExtras


def load(
    path_or_name: str | Path | None = None,
    *,
    dtype: str | None = "float32",
    matmul_dtype: str | None = None,
    sharding: weights.Shardings | None = None,
) -> Bundle:
    """Loads a published folder, one of our checkpoints, a bundled model by name (None: the first) or a Hub id.

    dtype: "float32" or "bfloat16" for parameters and activations; None takes the stored type.
    matmul_dtype: of the operands of matrix products, None as `dtype`. sharding: a parameter's path to its sharding.
    Raises `UserError` when nothing is found or a file is bad.
    """
    for label, value in (("dtype", dtype), ("matmul_dtype", matmul_dtype)):
        if value not in (None, "float32", "bfloat16"):
            raise UserError(f"{label} is {value!r}, but it must be 'float32', 'bfloat16' or None.")
    folder = hub.resolve(path_or_name)
    if (folder / "run.json").is_file():
        from steerling_jax.io.checkpoints import parameters as checkpoint  # Orbax takes a second to import

        info = checkpoint.read_run_info(folder)
        config, params = checkpoint.load_checkpoint_params(folder, dtype=dtype, sharding=sharding)
        extras = PublishedExtras(info.layout, info.carried, str(params["tok_emb"]["weight"].dtype))
    else:
        config, params, extras = weights.read_published(folder, dtype=dtype, sharding=sharding)
    stored = extras.dtype if extras.dtype in ("float32", "bfloat16") else "float32"
    return Bundle(
        config=config,
        params=params,
        tokenizer=load_tokenizer(folder, special_ids(config), config.vocab_size),
        compute=Compute(dtype=dtype or stored, matmul_dtype=matmul_dtype),
        name=folder.name if path_or_name is None else str(path_or_name),
        extras=extras,
        concept_names=read_concept_names(folder, config),
        folder=folder,
        catalogue=None if config.concept is None else model_catalogue(folder, config),
    )
