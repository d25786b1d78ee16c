"""Reads and writes catalogues of concepts and of features: a JSON array of objects, or the same columns in Parquet.

Fields: `id` (within its head) and `name`; optionally `description`, `head` ("known", the default, or "discovered"),
`group` and `flags` (a list of strings). `steerling name` adds `words` and `examples` (lists of strings) and `quality`
(`{"auc": 0.9, "error": 0.01, "others": 0.5, "active": 120, "texts": 2400}`); a concept with `words` needs no name.
`steerling calibrate` adds the strengths `amplify` and `suppress`. Other fields are ignored.

The features of an autoencoder have the head "feature", which is the default in their file, and need no name; their
`density` and `largest` latent are numbers (`concepts.concept.Concept`).
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from steerling_jax.concepts.catalogue import Catalogue
from steerling_jax.concepts.concept import KINDS, Concept, Kind, NameQuality, no_name, unnamed
from steerling_jax.errors import UserError, error_summary
from steerling_jax.io.json_files import read_json_array, write_json
from steerling_jax.io.text_files import replace_surrogates
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.steering.rules import check_strength

FILES = ("concepts.json", "concepts.parquet")  # in a model's folder; the first that exists is read


def model_catalogue(folder: Path | None, config: ModelConfig) -> Catalogue:
    """The catalogue in a model's folder; one without names if the folder has none."""
    for path in [] if folder is None else [folder / name for name in FILES]:
        if path.is_file():
            return read_catalogue(path, config)
    return make_catalogue([], config, "")


def read_concept_names(folder: Path, config: ModelConfig) -> tuple[str, ...] | None:
    """Names of the known concepts from the folder's `concepts.json`; None if there is no such file."""
    path = folder / "concepts.json"
    if config.concept is None or not path.is_file():
        return None
    catalogue = read_catalogue(path, config)
    return tuple(catalogue.get(i).name for i in range(catalogue.known))


def read_catalogue(path: str | Path, config: ModelConfig) -> Catalogue:
    """Reads a catalogue. Raises `UserError` if it is invalid or has ids that this model does not have."""
    path = Path(path)
    # A lone surrogate in a name could be neither printed nor written.
    entries = _read_parquet(path) if path.suffix.lower() == ".parquet" else read_json_array(path)
    return make_catalogue(replace_surrogates(entries), config, str(path))


def write_catalogue(path: str | os.PathLike[str], catalogue: Catalogue) -> None:
    """Writes a catalogue as JSON, atomically: known concepts first, by id, without fields that are empty."""
    write_entries(path, catalogue.concepts)


def write_entries(path: str | os.PathLike[str], entries: Iterable[Concept]) -> None:
    """Writes concepts or features as JSON, atomically: by head, then by id, without fields that are empty."""
    write_json(path, [_entry(one) for one in sorted(entries, key=lambda one: (KINDS.index(one.head), one.id))])


def features_file(arrays: Path) -> Path:
    """The file about the features of an autoencoder, beside its file of arrays: `features.json`, or where the arrays of
    several layers are in one folder, `layer12.features.json` for `layer12.sae.pt`."""
    layer, extension, _ = arrays.name.partition(".sae.pt")
    return arrays.with_name(f"{layer}.features.json" if extension else "features.json")


def read_features(path: str | Path, count: int) -> tuple[Concept, ...]:
    """The entries of a file about an autoencoder with `count` features.

    Raises `UserError` if it is invalid or has ids that the autoencoder does not have.
    """
    return _entries(replace_surrogates(read_json_array(Path(path))), {"feature": count}, str(path))


def _entry(concept: Concept) -> dict[str, Any]:
    """What `make_catalogue` reads as this concept."""
    entry: dict[str, Any] = {"id": concept.id}
    if concept.is_named:
        entry["name"] = concept.name
    if concept.head != "known":
        entry["head"] = concept.head
    for name in ("group", "description", "flags", "words", "quality", "examples", *_NUMBERS):
        value = getattr(concept, name)
        if value not in ("", (), None):
            entry[name] = dataclasses.asdict(value) if isinstance(value, NameQuality) else value
    return entry


def make_catalogue(entries: Sequence[Any], config: ModelConfig, source: str) -> Catalogue:
    """A catalogue from parsed entries; errors name `source`."""
    concept = config.concept
    if concept is None:
        raise UserError("A catalogue needs a model with concepts; this one is a bare backbone.")
    counts: dict[Kind, int] = {
        "known": concept.n_concepts,
        "discovered": (concept.n_unknown_concepts or 0) if concept.use_unknown else 0,
    }
    return Catalogue(_entries(entries, counts, source), counts["known"], counts["discovered"])


def _entries(entries: Sequence[Any], counts: Mapping[Kind, int], source: str) -> tuple[Concept, ...]:
    """Parsed entries, each once; counts: of the heads that they can have, the first one the default."""
    concepts: dict[tuple[str, int], Concept] = {}
    for entry in entries:
        parsed = _concept(entry, counts, source)
        if (parsed.head, parsed.id) in concepts:
            kind = "feature" if parsed.head == "feature" else f"{parsed.head} concept"
            raise UserError(f"{source}: the {kind} {parsed.id} is listed twice; give each id once.")
        concepts[parsed.head, parsed.id] = parsed
    return tuple(concepts.values())


def _concept(entry: Any, counts: Mapping[Kind, int], source: str) -> Concept:
    if not isinstance(entry, dict):
        raise UserError(f"{source}: {entry!r} is not a concept; give an object with id and name.")
    number, name, head = entry.get("id"), entry.get("name"), entry.get("head") or next(iter(counts))
    if head not in counts:
        raise UserError(f"{source}: the head of {name!r} is {head!r}; give {' or '.join(map(repr, counts))}.")
    lists = {key: _texts(entry.get(key), key, name, source) for key in ("flags", "words", "examples")}
    is_named = isinstance(name, str) and bool(name.strip())
    # Words that do not predict a concept well stand for its name; a feature may have neither.
    complete = is_named or (not name and (bool(lists["words"]) or head == "feature"))
    if type(number) is not int or not 0 <= number < counts[head] or not complete:
        owner, kind = ("autoencoder", "feature") if head == "feature" else ("model", f"{head} concept")
        advice = f"give an id below {counts[head]} and a name" if counts[head] else f"remove it, the {owner} has none"
        raise UserError(f"{source}: {_short(entry)} is not a {kind} of this {owner}; {advice}.")
    texts = {key: entry.get(key) or "" for key in ("description", "group")}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise UserError(f"{source}: {key} of {name!r} is {value!r}; give a string.")
    numbers: dict[str, Any] = {key: _number(entry.get(key), key, name or number, source) for key in _NUMBERS}
    return Concept(
        number,
        str(name).strip() if is_named else no_name(number, lists["words"]) if lists["words"] else unnamed(number, head),
        texts["description"],
        head,
        texts["group"],
        **lists,
        quality=_quality(entry.get("quality"), name, source),
        is_named=is_named,
        **numbers,
    )


_NUMBERS = {"amplify": "strength of amplify", "suppress": "strength of suppress", "density": "density",
            "largest": "largest latent"}  # fmt: skip


def _texts(value: Any, key: str, name: Any, source: str) -> tuple[str, ...]:
    """A list of strings; a single string is a list of one."""
    values = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(values, list | tuple):
        raise UserError(f"{source}: {key} of {name!r} is {value!r}; give a list of strings.")
    for one in values:
        if not isinstance(one, str):
            raise UserError(f"{source}: {key} of {name!r} is {one!r}; give a string.")
    return tuple(values)


def _number(value: Any, key: str, name: Any, source: str) -> float | None:
    if isinstance(value, str):  # from an option, a text is a number; in a file, it is a mistake
        raise UserError(f"{source}: {key} of {name!r} is {value!r}; give a number that is not negative.")
    if key in ("amplify", "suppress") or value is None:
        return None if value is None else check_strength(value, f"{source}: {name!r}", _NUMBERS[key])
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise UserError(f"{source}: {name!r}: the {_NUMBERS[key]} is {value!r}; give a number that is not negative.")
    return float(value)


def _quality(value: Any, name: Any, source: str) -> NameQuality | None:
    if value is None:
        return None
    fields = [field.name for field in dataclasses.fields(NameQuality)]
    given: dict[str, Any] = {key: value.get(key) for key in fields} if isinstance(value, dict) else {}
    required = [given.get(key) for key in fields if key != "others" or given.get(key) is not None]
    if not all(isinstance(one, int | float) and type(one) is not bool and math.isfinite(one) for one in required):
        raise UserError(f"{source}: quality of {name!r} is {_short(value)}; give numbers for {', '.join(fields)}.")
    return NameQuality(**given)


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
        raise UserError(f"{path} requires pyarrow; `pip install pyarrow`, or give JSON.") from None
    try:
        return parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a valid Parquet file ({error_summary(error)}).") from error
