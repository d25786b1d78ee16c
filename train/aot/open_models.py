"""Open models to compile for: their published shapes by name, and the run that trains one.

`models/` has the fields of the published `config.json` files that determine the programs.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from steerling_jax.errors import UserError
from steerling_jax.io.json_files import read_json_object
from steerling_jax.models.compute import Compute
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.decoder.published_config import decoder_config
from steerling_jax.objectives.next_token import NextTokenObjective
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.parallel.sharding import MeshShape
from steerling_jax.train.run.run_config import DataConfig, RunConfig


def model_shapes() -> dict[str, Path]:
    """The files of the shapes that are part of the package, by the model's name."""
    folder = Path(str(resources.files("steerling_jax.train.aot"))) / "models"
    return {path.name.removesuffix(".json"): path for path in sorted(folder.glob("*.json"))}


def read_model_shape(path_or_name: str) -> tuple[str, DecoderConfig]:
    """The name and the configuration of a decoder: from its config.json, its folder, or one of `model_shapes`.

    Raises `UserError` for another name, and for a file that does not describe a decoder.
    """
    path, shapes = Path(path_or_name), model_shapes()
    path = path / "config.json" if path.is_dir() else path
    if path_or_name in shapes and not path.exists():
        path = shapes[path_or_name]
    elif not path.is_file() and path.suffix != ".json":
        raise UserError(
            f"There is no folder {path_or_name}; give the folder or the config.json of a model, or one of "
            f"{', '.join(shapes)}."
        )
    name = path.parent.name if path.name == "config.json" else path.name.removesuffix(".json")
    return name or "model", decoder_config(read_json_object(path), str(path))


def training_run(name: str, model: DecoderConfig, sequences: int, seq_len: int) -> RunConfig:
    """The run whose step is compiled: next-token training in bfloat16 with AdamW, layers recomputed in the backward
    pass; parameters and moments are float32 and sharded over all devices."""
    return RunConfig(
        name=name,
        model=model,
        compute=Compute(dtype="bfloat16", remat=True),
        objective=NextTokenObjective(masked=0.0),
        optimizer=OptimizerConfig(peak_rate=1e-5),
        data=DataConfig(vocab_size=model.vocab_size, seq_len=seq_len, batch_size=sequences),
        mesh=MeshShape(data=1, fsdp=-1, tensor=1),
        steps=1000,
    )
