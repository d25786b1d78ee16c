"""The tokenizer of a Hugging Face model folder: `tokenizer.json`, special ids and chat template."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steerling_jax.io.chat_template import ChatTemplate
from steerling_jax.io.json_files import read_json_object
from steerling_jax.io.text_files import read_text
from steerling_jax.io.tokenizers.library_tokenizer import LibraryTokenizer
from steerling_jax.io.tokenizers.sentencepiece_json import ORIGINAL

TOKENIZER_FILE = "tokenizer.json"
# What a model folder has of its tokenizer, beside `tokenizer.json`, and of its way to write.
TOKENIZER_FILES = (
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("chat_template.jinja", "chat_template.json", "generation_config.json"),
)


def huggingface_tokenizer(folder: str | Path, vocab_size: int, model_ids: Sequence[int] = ()) -> LibraryTokenizer:
    """The tokenizer of a model folder with a `tokenizer.json`.

    vocab_size: the number of rows of the model's embedding. model_ids: special ids in the model's config. Raises
    `UserError` if a file is missing or damaged, or the vocabulary is larger than the model's or lacks these ids.
    """
    folder = Path(folder)
    path = folder / TOKENIZER_FILE
    settings = _optional(folder / "tokenizer_config.json")
    texts = _special_texts(folder, settings)
    adds_bos = settings.get("add_bos_token")  # where it is missing, the post-processor of tokenizer.json decides
    return LibraryTokenizer(
        read_text(path),
        str(path),
        vocab_size,
        ids={f"{name}_id": texts[f"{name}_token"] for name in ("bos", "eos", "pad") if f"{name}_token" in texts},
        adds_bos=adds_bos if isinstance(adds_bos, bool) else None,
        model_ids=model_ids,
        chat_template=_chat_template(folder, settings, texts),
    )


def converted_from(folder: Path) -> str | None:
    """The name of the vocabulary file in a folder that its `tokenizer.json` was converted from by this package; None
    for all other folders."""
    name = _optional(folder / "tokenizer_config.json").get(ORIGINAL)
    return name if isinstance(name, str) and (folder / Path(name).name).is_file() else None


def _optional(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _special_texts(folder: Path, settings: dict[str, Any]) -> dict[str, str]:
    """The texts of special tokens by names such as `bos_token`."""
    merged = _optional(folder / "special_tokens_map.json") | settings
    texts = {}
    for name, value in merged.items():
        if isinstance(value, dict):  # a token with its flags
            value = value.get("content")
        if name.endswith("_token") and isinstance(value, str):
            texts[name] = value
    return texts


def _chat_template(folder: Path, settings: dict[str, Any], texts: dict[str, str]) -> ChatTemplate | None:
    """The template from its own file, else from `tokenizer_config.json`; of several the one named `default`."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return ChatTemplate(read_text(path), str(path), texts)
    source = _optional(folder / "chat_template.json").get("chat_template", settings.get("chat_template"))
    if isinstance(source, list):
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default")
    if not isinstance(source, str):
        return None
    return ChatTemplate(source, str(folder / "tokenizer_config.json"), texts)
