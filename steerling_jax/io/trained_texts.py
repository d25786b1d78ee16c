"""What a model was trained on, as the `documents.json` in its folder names it."""

from __future__ import annotations

from pathlib import Path

from steerling_jax.errors import UserError
from steerling_jax.io.weights.published_layout import read_json


def trained_texts(folder: Path | None) -> dict[str, str] | None:
    """Names of the training documents by the hash of their text; None where the folder does not say. Raises
    `UserError` for a file that is no such list."""
    path = None if folder is None else folder / "documents.json"
    if path is None or not path.is_file():
        return None
    try:
        return {entry["sha256"]: entry["name"] for entry in read_json(path)["documents"] if entry["split"] == "train"}
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} does not list documents ({error}); take it away or make it again.") from None
