"""Steerling, the interpretable causal diffusion language model, in JAX: `import steerling_jax as sj; sj.load(...)`.

Names are imported when they are first used, so that importing the package alone imports no JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steerling_jax.api import Bundle as Bundle
    from steerling_jax.api import load as load
    from steerling_jax.config import ConceptConfig as ConceptConfig
    from steerling_jax.config import ModelConfig as ModelConfig
    from steerling_jax.errors import UserError as UserError

_HOME = {
    "Bundle": "api",
    "load": "api",
    "forward": "api",
    "generate": "api",
    "GenerationConfig": "api",
    "SteeringConfig": "api",
    "concept_contributions": "api",
    "rank_chunk": "api",
    "attribute_inputs": "api",
    "embed": "api",
    "log_likelihood": "api",
    "ModelConfig": "config",
    "ConceptConfig": "config",
    "UserError": "errors",
}

__all__ = list(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
