"""Checkpoints of parameters (Orbax v1), and the parameters of a training run's latest step.

    FOLDER/run.json          kind "weights", format version, the model's config, its published layout, the files' sizes
    FOLDER/params            the parameters
    FOLDER/tokenizer.model … other files of the model

A training run's folder (`checkpoints/training.py`) has a `run.json` of kind "training" and `checkpoints/STEP/state`.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from steerling_jax.errors import UserError, error_summary
from steerling_jax.io.atomic import atomic_path
from steerling_jax.io.checkpoints.digests import gather_damage
from steerling_jax.io.checkpoints.location import RUN_FILE
from steerling_jax.io.disk_errors import disk_error_reason
from steerling_jax.io.json_files import read_json_object, write_model_json
from steerling_jax.io.weights.decoder_reader import is_decoder_folder, read_decoder_config
from steerling_jax.io.weights.parameter_tree import (
    ParamPath,
    ShardingByPath,
    Shardings,
    get_leaf,
    put_leaf,
    resolve_shardings,
    sharding_of,
)
from steerling_jax.io.weights.published_layout import expected_tensors, read_config
from steerling_jax.io.weights.published_writer import copy_files
from steerling_jax.models.backbone import Params
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.decoder.parameters import parameter_shapes
from steerling_jax.models.decoder.published_config import decoder_config, is_decoder
from steerling_jax.models.families import AnyConfig
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.published_config import Layout, config_from_dict, config_to_dict

FORMAT_VERSION = 2  # version 1 stored the projections fused


@dataclass(frozen=True)
class RunInfo:
    """The fields of `run.json` that describe a checkpoint's model."""

    kind: str
    config: AnyConfig
    layout: Layout = "package"
    carried: Mapping[str, Any] = field(default_factory=dict)


def read_run_info(folder: str | Path) -> RunInfo:
    """Reads `run.json` of either kind. Raises `UserError` if it is missing, damaged or of another format version."""
    path = Path(folder) / RUN_FILE
    if not path.is_file():
        raise UserError(f"{folder} has no {RUN_FILE}; give the folder of a checkpoint or of a training run.")
    raw = read_json_object(path)
    kind, version, model = raw.get("kind"), raw.get("format_version"), raw.get("model")
    if kind not in ("weights", "training") or version != FORMAT_VERSION or not isinstance(model, dict):
        raise UserError(
            f"{path} is of kind {kind!r}, format {version!r}, not a checkpoint of format {FORMAT_VERSION}; it was "
            "written by another version: export it with that one and import it here."
        )
    if (raw.get("run") or {}).get("lora") is not None:
        raise UserError(
            f"{folder} holds adapters to other weights, not a whole model; give {Path(folder) / 'export'}, where they "
            "are merged."
        )
    model = {"model_type": "causal_diffusion", **model}
    config = decoder_config(model, str(path)) if is_decoder(model, str(path)) else config_from_dict(model, str(path))[0]
    return RunInfo(kind, config, raw.get("layout", "package"), raw.get("carried", {}))


def read_model_config(folder: Path) -> AnyConfig:
    """The config of a checkpoint, a training run, a published folder or a Hugging Face folder of a decoder. Raises
    `UserError` for any other folder."""
    if (folder / RUN_FILE).is_file():
        return read_run_info(folder).config
    return read_decoder_config(folder) if is_decoder_folder(folder) else read_config(folder)[0]


def save_params_checkpoint(
    folder: str | Path,
    config: ModelConfig,
    params: Params,
    *,
    layout: Layout = "package",
    carried: Mapping[str, Any] | None = None,
    files: Iterable[str | Path] = (),
) -> None:
    """Writes a checkpoint of `params` atomically, replacing an existing one; `files` are copied into it.

    `layout` and `carried` describe the published folder, for a later export. Raises `UserError` when the disk is full.
    """
    run = {
        "kind": "weights",
        "format_version": FORMAT_VERSION,
        "model": config_to_dict(config),
        "layout": layout,
        "carried": dict(carried or {}),
    }
    with atomic_path(Path(folder).absolute(), folder=True) as scratch:
        copy_files(files, scratch)
        try:
            with _quiet():
                ocp.save(str(scratch / "params"), params)
        except Exception as error:
            reason = disk_error_reason(error)
            if reason is None:
                raise
            raise UserError(f"Cannot write {folder}: {reason}. Choose another location or free some space.") from error
        write_model_json(scratch / RUN_FILE, run | {"sizes": _sizes(scratch)})


def _sizes(folder: Path) -> dict[str, int]:
    files = sorted(path for path in (folder / "params").rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _check_sizes(folder: Path) -> None:
    """Raises `UserError` naming a file that an incomplete copy left short; Orbax's own error would not name it."""
    actual = _sizes(folder)
    for name, size in read_json_object(folder / RUN_FILE).get("sizes", {}).items():
        if actual.get(name) != size:
            problem = "is missing" if name not in actual else f"has {actual[name]} bytes instead of {size}"
            raise UserError(f"{folder / name} {problem}; copy the checkpoint again.")


def load_checkpoint_params(
    folder: str | Path, *, step: int | None = None, dtype: str | None = None, sharding: Shardings | None = None
) -> tuple[AnyConfig, Params]:
    """Reads the config and the parameters of a checkpoint, or of a step of a training run.

    Args:
        folder: a checkpoint's or a training run's folder.
        step: the training run's step; None takes its latest.
        dtype: the dtype of the parameters; None keeps the stored ones.
        sharding: the sharding of each parameter, as for `read_published`.

    Raises:
        UserError: there is no such step, files are damaged, or the parameters do not match the config.
    """
    folder = Path(folder).absolute()
    info = read_run_info(folder)
    if info.kind == "weights":
        if step is not None:
            raise UserError(f"{folder} holds weights without steps; omit the step.")
        _check_sizes(folder)
        path, is_training = folder / "params", False
    else:
        path, is_training = folder / "checkpoints" / str(_choose_step(folder, step)), True
        if problem := gather_damage(path):
            raise UserError(f"{path} is damaged: {problem}; choose another step, or copy the checkpoint again.")
    with _readable(path):
        stored: Any = ocp.metadata(str(path), checkpointable_name="state").metadata
        if stored is None:  # Orbax's result, without an exception, for metadata that it could not read
            raise ValueError("its metadata is damaged")
        stored = stored["params"] if is_training else stored
    target = _abstract_params(info.config, stored, dtype, resolve_shardings(sharding, info.config), folder)
    context = ocp.Context()
    # Load the parameters alone: a training state also holds the optimiser's moments, two or three times as large.
    context.pytree.loading.partial_load = is_training
    with _readable(path), context:
        loaded: Any = ocp.load(str(path), {"params": target} if is_training else target, checkpointable_name="state")
    return info.config, loaded["params"] if is_training else loaded


def _choose_step(folder: Path, step: int | None) -> int:
    candidates = [path for path in (folder / "checkpoints").glob("[0-9]*") if path.name.isdigit()]
    steps = sorted(int(path.name) for path in candidates if ocp.is_orbax_checkpoint(str(path)))
    if not steps:
        raise UserError(f"{folder} has no finished checkpoint yet; let the training run save one first.")
    if step is not None and step not in steps:
        raise UserError(f"{folder} has no checkpoint of step {step}; it has {', '.join(map(str, steps))}.")
    return steps[-1] if step is None else step


def _abstract_params(
    config: AnyConfig, stored: Any, dtype: str | None, sharding: ShardingByPath | None, folder: Path
) -> Params:
    """The parameters to restore, as ShapeDtypeStructs; `stored` is the checkpoint's own tree of metadata."""
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target: Params = {}
    for path, shape in _shapes(config).items():
        leaf = get_leaf(stored, path)
        if leaf is None or tuple(leaf.shape) != shape:
            raise UserError(
                f"{folder}: parameter {'.'.join(path)} is missing or has another shape than the config in "
                f"{RUN_FILE}; restore the folder."
            )
        leaf_dtype = leaf.dtype if dtype is None else jnp.dtype(dtype)
        placement = sharding_of(sharding, path) or default
        put_leaf(target, path, jax.ShapeDtypeStruct(shape, leaf_dtype, sharding=placement))
    return target


def _shapes(config: AnyConfig) -> dict[ParamPath, tuple[int, ...]]:
    """The shape of every parameter by its path."""
    if isinstance(config, DecoderConfig):
        return parameter_shapes(config)
    return {
        piece.path: piece.shape if expected.layer is None else (config.n_layers, *piece.shape)
        for expected in expected_tensors(config)
        for piece in (() if expected.layer else expected.pieces)  # a stack of layers is described by its first layer
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences Orbax's loggers, which print the traceback of a failure before it is raised and becomes a message."""
    loggers = {logger: logger.level for logger in map(logging.getLogger, ("absl", "asyncio"))}
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    except Exception:
        # Unfinished coroutines of Orbax's parallel reads log a warning when they are collected, and its threads may log
        # later still: collect them now, and leave the loggers silenced.
        gc.collect()
        raise
    for logger, level in loggers.items():
        logger.setLevel(level)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Converts what reading a damaged checkpoint raises into `UserError`: missing files, bad JSON, failed decoding."""
    try:
        with _quiet():
            yield
    except Exception as error:
        raise UserError(f"{path} cannot be read ({error_summary(error)}); copy the checkpoint again.") from error
