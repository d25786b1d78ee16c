"""Files of figures in docs/results, which benchmarks write part by part."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steerling_jax.io.atomic import atomic_path


def rounded(value: Any) -> Any:
    """Numbers with four decimals, which is more than so few texts support."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


def write_parts(path: Path, parts: Mapping[str, Any]) -> None:
    """Writes the figures as JSON, a line for each part."""
    lines = ",\n".join(f" {json.dumps(part)}: {json.dumps(figures)}" for part, figures in parts.items())
    with atomic_path(path) as scratch:
        scratch.write_text("{\n" + lines + "\n}\n", encoding="utf-8")
