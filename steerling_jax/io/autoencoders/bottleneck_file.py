"""The folder of an attached bottleneck: an autoencoder in the format of sparsify, and what it belongs to.

FOLDER/sae.safetensors, cfg.json   the autoencoder; `sj.load_autoencoder` reads it by itself
FOLDER/bottleneck.json             the model that it was made for, and what it costs that model
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.errors import UserError
from steerling_jax.io.atomic import atomic_path
from steerling_jax.io.autoencoders.save import save_autoencoder
from steerling_jax.io.json_files import read_json_object, write_model_json

BOTTLENECK_FILE = "bottleneck.json"
_VERSION, _HOOK = 1, "final_norm"


@dataclass(frozen=True)
class BottleneckOrigin:
    """What a bottleneck belongs to.

    model: what `sj.load` takes; a path is absolute. fingerprint: of the model's weights. evaluation: figures on
    held-out text, such as the cost in nats a token.
    """

    model: str
    fingerprint: str
    evaluation: Mapping[str, Any] = field(default_factory=dict)


def save_bottleneck(autoencoder: Autoencoder, folder: str | Path, origin: BottleneckOrigin) -> None:
    """Writes the folder, replacing an existing one once it is complete. Raises `UserError` if it cannot be written."""
    with atomic_path(folder, folder=True) as scratch:
        save_autoencoder(autoencoder, scratch, format="sparsify")
        head = {"format_version": _VERSION, "kind": "bottleneck", "hook_point": _HOOK}
        write_model_json(scratch / BOTTLENECK_FILE, head | asdict(origin))


def is_bottleneck_folder(folder: Path) -> bool:
    """Whether a folder holds an attached bottleneck."""
    return (folder / BOTTLENECK_FILE).is_file()


def read_origin(folder: Path) -> BottleneckOrigin:
    """What the bottleneck in a folder belongs to. Raises `UserError` for another version, hook point or content."""
    path = folder / BOTTLENECK_FILE
    values = read_json_object(path)
    for key, expected in (("format_version", _VERSION), ("hook_point", _HOOK)):
        if values.get(key) != expected:
            raise UserError(
                f"{path}: {key} is {values.get(key)!r}, but this version reads {expected!r}; update steerling-jax, or "
                "make the bottleneck again."
            )
    for key in ("model", "fingerprint"):
        if not isinstance(values.get(key), str):
            raise UserError(f"{path} has no text in {key!r}; restore the file, or make the bottleneck again.")
    evaluation = values.get("evaluation")
    return BottleneckOrigin(values["model"], values["fingerprint"], evaluation if isinstance(evaluation, dict) else {})
