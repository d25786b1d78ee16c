"""Compares the configuration of a saved run with the current one, to refuse a resume that would not be the same run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

# A resumed run may change these: the computation does not depend on them, except for the order of floating-point sums
# (the mesh, unrolled layers). A corpus may move to another folder; its content is compared separately
# (`run_folder.corpus_identity`).
FREE_FIELDS = frozenset(
    {
        "log_every",
        "eval_every",
        "checkpoint_every",
        "checkpoint_minutes",
        "keep",
        "keep_every",
        "data.corpus",
        "data.messages",
        "compute.unroll",
        "mesh.data",
        "mesh.fsdp",
        "mesh.tensor",
    }
)


def first_difference(saved: Mapping[str, Any], current: Mapping[str, Any]) -> str | None:
    """The first field whose value differs, as `data.seq_len is 128, was 256`; None where both are the same run.

    Both arguments are values of `RunConfig.to_json`. Fields in `FREE_FIELDS` are not compared.
    """
    old, new = dict(flatten(saved)), dict(flatten(current))
    for name in [*new, *(name for name in old if name not in new)]:
        if name not in FREE_FIELDS and old.get(name) != new.get(name):
            return f"{name} is {json.dumps(new.get(name))}, was {json.dumps(old.get(name))}"
    return None


def flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted name, value) for each leaf of a nested mapping."""
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from flatten(item, f"{prefix}{key}.")
        else:
            yield prefix + key, item
