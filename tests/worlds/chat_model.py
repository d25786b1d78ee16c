"""A folder of a small Qwen3 with a byte-level tokenizer and a chat template, as Hugging Face models are published."""

from __future__ import annotations

import json
from pathlib import Path

import jax

from steerling_jax.io.tokenizers.library_tokenizer import byte_of_character
from steerling_jax.io.weights.decoder_writer import write_decoder
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.families import init_params
from tests.worlds.small_decoder import small_config

START, END, STOP = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IDS = {STOP: 256, START: 257, END: 258}


def chat_config() -> DecoderConfig:
    """The model's configuration: bytes, three special tokens, and rows of the embedding that no token uses."""
    return small_config(vocab_size=272, bos_token_id=None, eos_token_id=IDS[END], pad_token_id=None)


def write_chat_model(folder: Path, *, template: str | None = TEMPLATE) -> Path:
    """Writes the folder."""
    vocabulary = byte_of_character()
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    content = {
        "version": "1.0",
        **dict.fromkeys(("truncation", "padding", "normalizer", "post_processor")),
        "added_tokens": [{"id": id, "content": text, **flags} for text, id in IDS.items()],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
    config = chat_config()
    write_decoder(folder, config, init_params(config, jax.random.key(5)))
    (folder / "tokenizer.json").write_text(json.dumps(content))
    settings = {"eos_token": END} | ({} if template is None else {"chat_template": template})
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
