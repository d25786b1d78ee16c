"""Finds and loads the config of a run: one of the installed configs by name, or a `.py` file."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
from pathlib import Path
from types import ModuleType

from steerling_jax.errors import UserError
from steerling_jax.train.autoencoders.run_config import AutoencoderRun
from steerling_jax.train.rollouts.run_config import RolloutRun
from steerling_jax.train.run.run_config import RunConfig


def load_config(name: str | Path) -> RunConfig:
    """The run that trains a model: `config()` of `steerling_jax.configs.NAME`, or of a .py file.

    Raises `UserError` where there is no such config, or its `config()` does not return a `RunConfig`.
    """
    run = load_any_config(name)
    if not isinstance(run, RunConfig):
        what = "autoencoders" if isinstance(run, AutoencoderRun) else "by rollouts"
        raise UserError(f"{name} trains {what}, which only `steerling train` takes; give a config of a model.")
    return run


def load_any_config(name: str | Path) -> RunConfig | AutoencoderRun | RolloutRun:
    """As `load_config`, for a run that trains a model on text or by rollouts, or autoencoders."""
    module = _load_file(Path(name)) if str(name).endswith(".py") else _load_named(str(name))
    make = getattr(module, "config", None)
    run = make() if callable(make) else None
    if not isinstance(run, RunConfig | AutoencoderRun | RolloutRun):
        raise UserError(
            f"{name} has no function config() that returns a RunConfig, an AutoencoderRun or a RolloutRun; see "
            "configs/tiny.py, configs/sae_pydocs.py and configs/rollouts_pydocs.py for examples."
        )
    return run


def config_names() -> list[str]:
    """Names of the installed configs, sorted."""
    configs = importlib.import_module("steerling_jax.configs")  # by name: the configs import this package
    return sorted(module.name for module in pkgutil.iter_modules(configs.__path__) if not module.name.startswith("_"))


def _load_named(name: str) -> ModuleType:
    known = config_names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3) or known
        raise UserError(f"There is no config {name!r}; did you mean {' or '.join(near)}, or a path to a .py file?")
    return importlib.import_module(f"steerling_jax.configs.{name}")


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path) if path.is_file() else None
    if spec is None or spec.loader is None:
        names = ", ".join(config_names())
        raise UserError(f"There is no config file {path}; give a path to a .py file, or one of {names}.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
