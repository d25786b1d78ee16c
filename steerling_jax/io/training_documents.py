"""The training documents of a model, from the `documents.json` in its folder."""

from __future__ import annotations

from pathlib import Path

from steerling_jax.errors import UserError
from steerling_jax.io.json_files import read_json_object


def read_training_documents(folder: Path | None) -> dict[str, str] | None:
    """Names of the training documents by the SHA-256 of their text; None if the folder has no `documents.json`.

    Raises `UserError` if the file does not list documents.
    """
    path = None if folder is None else folder / "documents.json"
    if path is None or not path.is_file():
        return None
    documents = read_json_object(path)
    try:
        return {entry["sha256"]: entry["name"] for entry in documents["documents"] if entry["split"] == "train"}
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} does not list documents ({error}); remove it or make it again.") from None
