"""Reading a catalogue of concepts: a JSON array of objects, or the same columns in Parquet.

Fields: `id` (within its head) and `name`; `description`, `head` ("known", the default, or "discovered"), `group` and
`flags` (a list of texts) where there are any. Others are left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steerling_jax.concepts.catalogue import HEADS, Catalogue, Concept
from steerling_jax.errors import UserError, error_summary
from steerling_jax.io.json_files import read_json_array
from steerling_jax.models.steerling.config import ModelConfig

FILES = ("concepts.json", "concepts.parquet")  # in a model's folder; the first that is there is read


def model_catalogue(folder: Path | None, config: ModelConfig) -> Catalogue:
    """The catalogue in a model's folder; one without names where the folder has none."""
    for path in [] if folder is None else [folder / name for name in FILES]:
        if path.is_file():
            return read_catalogue(path, config)
    return make_catalogue([], config, "")


def read_concept_names(folder: Path, config: ModelConfig) -> tuple[str, ...] | None:
    """Names of the known concepts from the folder's `concepts.json`; None where there is no such file."""
    path = folder / "concepts.json"
    if config.concept is None or not path.is_file():
        return None
    found = read_catalogue(path, config)
    return tuple(found.get(i).name for i in range(found.known))


def read_catalogue(path: str | Path, config: ModelConfig) -> Catalogue:
    """Reads `path`, whose ids must be those of this model. Raises `UserError` for what is wrong in it."""
    path = Path(path)
    entries = _read_parquet(path) if path.suffix == ".parquet" else read_json_array(path)
    return make_catalogue(entries, config, str(path))


def make_catalogue(entries: Sequence[Any], config: ModelConfig, source: str) -> Catalogue:
    """A catalogue of plain entries; `source` is what errors name."""
    concept = config.concept
    if concept is None:
        raise UserError("A catalogue needs a model with concepts; this one is a bare backbone.")
    counts = {
        "known": concept.n_concepts,
        "discovered": (concept.n_unknown_concepts or 0) if concept.use_unknown else 0,
    }
    seen: dict[tuple[str, int], Concept] = {}
    for entry in entries:
        one = _concept(entry, counts, source)
        if (one.head, one.id) in seen:
            raise UserError(f"{source}: the {one.head} concept {one.id} is there twice; give each id once.")
        seen[one.head, one.id] = one
    return Catalogue(tuple(seen.values()), counts["known"], counts["discovered"])


def _concept(entry: Any, counts: dict[str, int], source: str) -> Concept:
    if not isinstance(entry, dict):
        raise UserError(f"{source}: {entry!r} is not a concept; give an object with id and name.")
    number, name, head = entry.get("id"), entry.get("name"), entry.get("head") or "known"
    if head not in HEADS:
        raise UserError(f"{source}: the head of {name!r} is {head!r}; give 'known' or 'discovered'.")
    if type(number) is not int or not 0 <= number < counts[head] or not isinstance(name, str) or not name.strip():
        known = f"an id below {counts[head]} and a name" if counts[head] else "no such concepts, as it has none"
        raise UserError(f"{source}: {_short(entry)} is not a {head} concept of this model; give {known}.")
    texts = {key: entry.get(key) or "" for key in ("description", "group")}
    flags = entry.get("flags") or []
    flags = [flags] if isinstance(flags, str) else flags
    for key, value in (*texts.items(), *(("flags", flag) for flag in flags)):
        if not isinstance(value, str):
            raise UserError(f"{source}: {key} of {name!r} is {value!r}; give a text.")
    return Concept(number, name.strip(), texts["description"], head, texts["group"], tuple(flags))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"There is no file {path}; give a catalogue of concepts.")
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{path} needs pyarrow to be read; `pip install pyarrow`, or give JSON.") from None
    try:
        return parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} is not a Parquet file that can be read ({error_summary(error)}).") from error
