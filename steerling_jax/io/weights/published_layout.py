"""The published model folder: which tensors a config requires, and checks that the files hold exactly those.

Source: the "Weights" table of the published model (package `steerling` 0.2.0). Only `config.json`, the index and the
headers of the weight files are read here. Legend: D width, V vocabulary, F inner width, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steerling_jax.errors import UserError
from steerling_jax.io.json_files import read_json_object
from steerling_jax.io.weights.parameter_tree import ParamPath
from steerling_jax.io.weights.safetensors_format import StoredTensor, read_header, same_bytes
from steerling_jax.models.steerling.config import ConceptConfig, ModelConfig
from steerling_jax.models.steerling.published_config import Layout, config_from_dict
from steerling_jax.models.steerling.published_shapes import PIECES

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# From the name of a weight file to its tensors by name; None if there is no such file.
Headers = Callable[[str], dict[str, StoredTensor] | None]
# Other files of a model: its vocabulary, the names of its concepts, its card, the Hub's code for it.
COMPANIONS = (
    "tokenizer*",
    "*.tiktoken",
    "*.vocab",
    "vocab.*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "generation_config.json",
    "steering.json",
    "concepts.json",
    "concepts.parquet",
    "manifest.json",
    "documents.json",
    "*.md",
    "LICENSE*",
    "NOTICE*",
    "modeling_*.py",
    "configuration_*.py",
    "tokenization_*.py",
)


@dataclass(frozen=True)
class TensorPiece:
    """Consecutive rows of a published tensor that form the parameter at `path`, or one layer of it."""

    path: ParamPath
    shape: tuple[int, ...]


@dataclass(frozen=True)
class PublishedTensor:
    """One tensor of the published layout, and the pieces that its rows form, in order.

    layer: its index on the leading axis of a stacked parameter; None for a parameter that is not stacked.
    """

    name: str
    shape: tuple[int, ...]
    pieces: tuple[TensorPiece, ...]
    layer: int | None = None


def expected_tensors(config: ModelConfig) -> Iterator[PublishedTensor]:
    """All tensors of the published layout, in order. `lm_head.weight` is absent when tied to the embedding."""
    prefix = "" if config.concept is None else "transformer."
    D = config.n_embd

    def single(name: str, shape: tuple[int, ...], prefix: str = prefix) -> PublishedTensor:
        return PublishedTensor(prefix + name, shape, (TensorPiece(tuple(name.split(".")), shape),))

    yield single("tok_emb.weight", (config.vocab_size, D))
    if not config.weight_sharing:
        yield single("lm_head.weight", (config.vocab_size, D))
    layer_tensors = [(name, shape, _pieces(config, name, shape)) for name, shape in _layer_tensors(config)]
    for layer in range(config.n_layers):
        for name, shape, pieces in layer_tensors:
            yield PublishedTensor(f"{prefix}blocks.{layer}.{name}", shape, pieces, layer)
    for name, shape in _norm(config, "ln_f", D):
        yield single(name, shape)
    for name, shape in _head_tensors(config.concept, D):
        yield single(name, shape, "")


def _layer_tensors(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    D, d, F = config.n_embd, config.head_dim, config.mlp_width
    linears = {
        "attn.c_attn": (D + 2 * config.kv_heads * d, D),
        "attn.c_proj": (D, D),
        "mlp.c_fc": (2 * F if config.mlp_type == "swiglu" else F, D),
        "mlp.c_proj": (D, F),
    }
    for name, shape in linears.items():
        yield f"{name}.weight", shape
        if config.use_bias:
            yield f"{name}.bias", shape[:1]
    for name in ("attn.q_norm", "attn.k_norm") if config.use_qk_norm else ():
        yield from _norm(config, name, d)
    for name in ("ln_1", "ln_2"):
        yield from _norm(config, name, D)


def _pieces(config: ModelConfig, name: str, shape: tuple[int, ...]) -> tuple[TensorPiece, ...]:
    """The pieces of a layer's tensor; one piece unless it is a fused projection.

    Queries, keys and values, and gate and up projection, are fused in the published files. They are separate parameters
    here, so that each can be sharded along its own output axis.
    """
    *module, projection, kind = name.split(".")
    if projection not in PIECES:
        return (TensorPiece(("blocks", *module, projection, kind), shape),)
    F, kv = config.mlp_width, config.kv_heads * config.head_dim
    rows: dict[str, tuple[int, ...]] = {"c_q": (config.n_embd,), "c_kv": (2, kv), "c_fc": (shape[0] // F, F)}
    return tuple(
        TensorPiece(("blocks", *module, piece, kind), (*rows[piece], *shape[1:])) for piece in PIECES[projection]
    )


def _norm(config: ModelConfig, name: str, size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (size,)
    if not config.use_rms_norm:
        yield f"{name}.bias", (size,)


def _head_tensors(concept: ConceptConfig | None, D: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    if concept is None:
        return
    rows = concept.padded(concept.n_concepts)
    yield "known_head.concept_embedding.weight", (rows, D)
    yield _scorer("known_head", rows, D, concept.use_attention_known)
    if not concept.use_unknown:
        return
    rows, R = concept.padded(concept.n_unknown_concepts or 0), concept.factorize_rank
    if not concept.factorize_unknown:
        yield "unknown_head.concept_embedding.weight", (rows, D)
        yield _scorer("unknown_head", rows, D, concept.use_attention_unknown)
        yield from _dictionary_tensors(concept, rows, D)
        return
    yield "unknown_head.embedding_coef.weight", (rows, R)
    yield "unknown_head.embedding_basis.weight", (D, R)
    if concept.use_attention_unknown:
        yield _scorer("unknown_head", rows, D, True)
    else:
        yield "unknown_head.predictor_down.weight", (R, D)
        yield "unknown_head.predictor_up.weight", (rows, R)
        yield from _dictionary_tensors(concept, rows, D)


def _dictionary_tensors(concept: ConceptConfig, rows: int, D: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """What a dictionary has beyond the published head's tensors."""
    if concept.dictionary is None:
        return
    scorer = "predictor_up" if concept.factorize_unknown else "concept_predictor"
    yield f"unknown_head.{scorer}.bias", (rows,)
    if concept.dictionary.offset:
        yield "unknown_head.offset.bias", (D,)


def _scorer(head: str, rows: int, D: int, attention: bool) -> tuple[str, tuple[int, ...]]:
    if attention:
        return f"{head}.concept_query_projection.weight", (D, D)
    return f"{head}.concept_predictor.weight", (rows, D)


def read_config(folder: Path) -> tuple[ModelConfig, Layout, dict[str, Any]]:
    """Reads `config.json`: the config, the layout it is written in, and the fields that the model itself does not use.

    Raises `UserError` if it is missing or invalid.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}; give a folder with config.json and {SINGLE}.")
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} has no config.json; give a folder with config.json and {SINGLE}.")
    raw = read_json_object(path)
    if not isinstance(raw.get("concept", {}), dict | None):
        raise UserError(f"{path}: concept is {raw['concept']!r}, but it must be an object of fields.")
    return config_from_dict(raw, str(path))


def find_tensors(folder: Path, headers: Headers | None = None) -> dict[str, StoredTensor]:
    """All tensors of `model.safetensors`, or of the shards named by the index. Reads the headers only.

    headers: gives the tensors of a weight file, for weights in a bucket; the default reads those in `folder`. Raises
    `UserError` if a file is missing or damaged, or the index does not match the shards.
    """

    def local(name: str) -> dict[str, StoredTensor] | None:
        return read_header(folder / name) if (folder / name).is_file() else None

    headers = headers or local
    single = headers(SINGLE)
    if single is not None:
        return single
    index = folder / INDEX
    if not index.is_file():
        raise UserError(f"{folder} has no weights; it needs {SINGLE}, or shards with {INDEX}.")
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise UserError(f"{index} has no weight_map from tensor names to files; copy or download it again.")
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(weight_map.values())):
        # A name with a folder in it, such as `../x`, would read files outside the model.
        found = headers(shard) if Path(shard).name == shard else None
        if found is None:
            raise UserError(
                f"{index} names the shard {shard!r}, which is not in the folder; copy or download it again."
            )
        for name, tensor in found.items():
            if weight_map.get(name) != shard:
                raise UserError(
                    f"{tensor.file} holds tensor {name!r}, which {INDEX} does not place there; copy both again."
                )
            tensors[name] = tensor
    for name, shard in weight_map.items():
        if name not in tensors:
            raise UserError(f"{index} places tensor {name!r} in {shard}, which lacks it; copy both again.")
    return tensors


def match_tensors(
    config: ModelConfig, tensors: Mapping[str, StoredTensor], folder: Path
) -> dict[ParamPath, list[StoredTensor]]:
    """Groups the stored tensors, or their rows, by parameter; the layers of a stacked parameter in order.

    A tied model's `lm_head.weight` is absent from the published files; a copy of the embedding is accepted. Raises
    `UserError` that names a tensor that is missing, unknown or of another shape than the config requires.
    """
    groups: dict[ParamPath, list[StoredTensor]] = {}
    names = set()
    for expected in expected_tensors(config):
        tensor = tensors.get(expected.name)
        if tensor is None:
            raise UserError(
                f"{folder}: tensor {expected.name!r} is missing; use the config.json and the weights of one model."
            )
        if tensor.shape != expected.shape:
            raise UserError(
                f"{tensor.file}: tensor {expected.name!r} has shape {list(tensor.shape)} where config.json requires "
                f"{list(expected.shape)}; use the config.json and the weights of one model."
            )
        # Rows are contiguous in the file, so each piece is a tensor of its own at an offset: nothing is copied.
        offset = tensor.offset
        for piece in expected.pieces:
            rows = replace(tensor, shape=piece.shape, offset=offset)
            groups.setdefault(piece.path, []).append(rows)
            offset += rows.nbytes
        names.add(expected.name)
    tied = ("" if config.concept is None else "transformer.") + "lm_head.weight"
    for name in sorted(set(tensors) - names):
        if name != tied:
            raise UserError(f"{tensors[name].file}: tensor {name!r} is unknown; remove it or correct config.json.")
        if not same_bytes(tensors[name], groups["tok_emb", "weight"][0]):
            raise UserError(
                f"{tensors[name].file}: tensor {name!r} differs from the token embedding although config.json ties "
                "them; set weight_sharing to false or remove the tensor."
            )
    return groups


def companion_files(folder: str | Path) -> list[Path]:
    """The files of a model folder that are copied along with its weights: vocabulary, concept names, card."""
    folder = Path(folder)
    files = {path for pattern in COMPANIONS for path in folder.glob(pattern) if path.is_file()}
    return sorted(path for path in files if not path.name.startswith("."))
