"""The stable Python names: load a model, then ask it things."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from steerling_jax.catalogue import Catalogue
from steerling_jax.config import Compute, ModelConfig
from steerling_jax.errors import UserError
from steerling_jax.io import hub, weights
from steerling_jax.io.catalogue import model_catalogue, read_catalogue
from steerling_jax.io.tokenizer import SpecialIds, Tokenizer, load_tokenizer


@dataclass(frozen=True)
class Bundle:
    """A model ready to use. `concept_names[i]` names known concept i, where the model's folder says so."""

    config: ModelConfig
    params: weights.Params
    tokenizer: Tokenizer
    compute: Compute = field(default_factory=Compute)
    name: str = ""
    extras: weights.PublishedExtras = field(default_factory=weights.PublishedExtras)
    concept_names: tuple[str, ...] | None = None
    folder: Path | None = None

    @cached_property
    def concepts(self) -> Catalogue:
        """The catalogue of the model's concepts, read when it is first asked for. Raises `UserError` for a backbone."""
        return model_catalogue(self.folder, self.config)


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
        from steerling_jax.io import checkpoint  # Orbax takes a second to import

        info = checkpoint.read_run_info(folder)
        config, params = checkpoint.load_checkpoint_params(folder, dtype=dtype, sharding=sharding)
        extras = weights.PublishedExtras(info.layout, info.carried, str(params["tok_emb"]["weight"].dtype))
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
    )


def special_ids(config: ModelConfig) -> SpecialIds:
    """The config's special ids, as tokenizers want them."""
    return SpecialIds(
        mask_id=config.mask_token_id,
        endofchunk_id=config.endofchunk_token_id,
        bos_id=config.bos_token_id,
        pad_id=config.pad_token_id,
        eos_id=config.eos_token_id,
        eot_id=config.eot_id,
    )


def read_concept_names(folder: Path, config: ModelConfig) -> tuple[str, ...] | None:
    """Names of the known concepts from the folder's `concepts.json` (see `io.catalogue`); None without one."""
    path = folder / "concepts.json"
    if config.concept is None or not path.is_file():
        return None
    found = read_catalogue(path, config)
    return tuple(found.get(i).name for i in range(found.known))
