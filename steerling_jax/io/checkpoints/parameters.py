"""Checkpoints of parameters (Orbax v1), and the parameters of a training run's latest step.

    FOLDER/run.json          kind "weights", format version, the model's config, its published layout
    FOLDER/params            the parameters
    FOLDER/tokenizer.model … whatever else belongs to the model

A training run's folder (`training_checkpoint`) has a `run.json` of kind "training" and `checkpoints/STEP/state`.
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

from steerling_jax.errors import UserError, first_line
from steerling_jax.io.atomic import atomic_path
from steerling_jax.io.checkpoints.digests import damage_for_anyone
from steerling_jax.io.disk import disk_trouble
from steerling_jax.io.weights.published import Params, Shardings, copy_files, dump_json, put_leaf, sharding_of
from steerling_jax.io.weights.published_layout import expected_tensors, read_config, read_json
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.published_config import Layout, config_from_dict, config_to_dict

FORMAT_VERSION = 2  # 1 had the projections fused
RUN_FILE = "run.json"


@dataclass(frozen=True)
class RunInfo:
    """What `run.json` says of a checkpoint's model."""

    kind: str
    config: ModelConfig
    layout: Layout = "package"
    carried: Mapping[str, Any] = field(default_factory=dict)


def read_run_info(folder: str | Path) -> RunInfo:
    """Reads `run.json`, of either kind. Raises `UserError` where it is missing, damaged or of another format."""
    path = Path(folder) / RUN_FILE
    if not path.is_file():
        raise UserError(f"{folder} has no {RUN_FILE}; give the folder of a checkpoint or of a training run.")
    raw = read_json(path)
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
    config, _, _ = config_from_dict({"model_type": "causal_diffusion", **model}, str(path))
    return RunInfo(kind, config, raw.get("layout", "package"), raw.get("carried", {}))


def save_params_checkpoint(
    folder: str | Path,
    config: ModelConfig,
    params: Params,
    *,
    layout: Layout = "package",
    carried: Mapping[str, Any] | None = None,
    files: Iterable[str | Path] = (),
) -> None:
    """Writes a checkpoint of `params`, whole or not at all, replacing one that is there; `files` are copied along.

    `layout` and `carried` are the published folder's, for the way back. Raises `UserError` when the disk is full.
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
            reason = disk_trouble(error)
            if reason is None:
                raise
            raise UserError(f"Cannot write {folder}: {reason}. Choose another place or free some space.") from error
        dump_json(scratch / RUN_FILE, run | {"sizes": _sizes(scratch)})


def _sizes(folder: Path) -> dict[str, int]:
    files = sorted(path for path in (folder / "params").rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def read_model_config(folder: Path) -> ModelConfig:
    """Of a checkpoint, a training run or a published folder. Raises `UserError` for another folder."""
    return read_run_info(folder).config if (folder / RUN_FILE).is_file() else read_config(folder)[0]


def _check_sizes(folder: Path) -> None:
    """An incomplete copy is told by the file that is short, before Orbax tells of it in its own way."""
    there = _sizes(folder)
    for name, size in read_json(folder / RUN_FILE).get("sizes", {}).items():
        if there.get(name) != size:
            have = "is missing" if name not in there else f"has {there[name]} bytes instead of {size}"
            raise UserError(f"{folder / name} {have}; copy the checkpoint again.")


def load_checkpoint_params(
    folder: str | Path, *, step: int | None = None, dtype: str | None = None, sharding: Shardings | None = None
) -> tuple[ModelConfig, Params]:
    """The config and parameters of a checkpoint, or of a training run's `step` (None: its latest).

    `dtype` None keeps the stored types; `sharding` as in `read_published`. Raises `UserError` where there is no such
    step, the files are damaged, or the parameters are another config's.
    """
    folder = Path(folder).absolute()
    info = read_run_info(folder)
    if info.kind == "weights":
        if step is not None:
            raise UserError(f"{folder} holds weights without steps; leave the step out.")
        _check_sizes(folder)
        path, inside = folder / "params", False
    else:
        path, inside = folder / "checkpoints" / str(_choose_step(folder, step)), True
        if trouble := damage_for_anyone(path):
            raise UserError(f"{path} is damaged: {trouble}; choose another step, or copy the checkpoint again.")
    with _readable(path):
        stored: Any = ocp.metadata(str(path), checkpointable_name="state").metadata
        if stored is None:  # so Orbax tells of metadata that it could not read
            raise ValueError("its metadata is damaged")
        stored = stored["params"] if inside else stored
    wanted = _abstract_params(info.config, stored, dtype, sharding, folder)
    context = ocp.Context()
    context.pytree.loading.partial_load = inside  # leave the optimiser's state on the disk
    with _readable(path), context:
        found: Any = ocp.load(str(path), {"params": wanted} if inside else wanted, checkpointable_name="state")
    return info.config, found["params"] if inside else found


def _choose_step(folder: Path, step: int | None) -> int:
    found = [path for path in (folder / "checkpoints").glob("[0-9]*") if path.name.isdigit()]
    steps = sorted(int(path.name) for path in found if ocp.is_orbax_checkpoint(str(path)))
    if not steps:
        raise UserError(f"{folder} has no finished checkpoint yet; let the training run save one first.")
    if step is not None and step not in steps:
        raise UserError(f"{folder} has no checkpoint of step {step}; it has {', '.join(map(str, steps))}.")
    return steps[-1] if step is None else step


def _abstract_params(
    config: ModelConfig, stored: Any, dtype: str | None, sharding: Shardings | None, folder: Path
) -> Params:
    """What to restore, as ShapeDtypeStructs; `stored` is the checkpoint's own metadata tree."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted: Params = {}
    for expected in expected_tensors(config):
        for piece in () if expected.layer else expected.pieces:  # of a stack, the first layer tells the shape
            shape = piece.shape if expected.layer is None else (config.n_layers, *piece.shape)
            leaf: Any = stored
            for key in piece.path:
                leaf = leaf.get(key) if isinstance(leaf, Mapping) else None
            if leaf is None or tuple(leaf.shape) != shape:
                raise UserError(
                    f"{folder}: parameter {'.'.join(piece.path)} is missing or misshapen for the config in {RUN_FILE}; "
                    "restore the folder."
                )
            target = leaf.dtype if dtype is None else jnp.dtype(dtype)
            place = sharding_of(sharding, piece.path) or here
            put_leaf(wanted, piece.path, jax.ShapeDtypeStruct(shape, target, sharding=place))
    return wanted


@contextmanager
def _quiet() -> Iterator[None]:
    """Orbax logs a failure with its traceback before it raises; the person gets a sentence instead."""
    loggers = {logger: logger.level for logger in map(logging.getLogger, ("absl", "asyncio"))}
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    except Exception:
        gc.collect()  # what is left of Orbax's parallel reads complains when it is collected: let it, unheard
        raise  # and its threads may complain later still: the loggers stay quiet
    for logger, level in loggers.items():
        logger.setLevel(level)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        with _quiet():
            yield
    except Exception as error:  # whatever damage does: missing files, bad JSON, failed decoding
        raise UserError(f"{path} cannot be read ({first_line(error)}); copy the checkpoint again.") from error
