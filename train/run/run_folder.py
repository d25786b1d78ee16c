"""The files in a run's folder, and the checks that a run may use it: same run, same corpus, matching model.

OUT/run.json           the run, its model and the identity of its corpus (io/checkpoints/training_folder.py)
OUT/corpus/            the corpus store, unless another one is named
OUT/tokenizer.model (or *.tiktoken), concepts.json, documents.json     of the corpus, for the export
OUT/tokenizer.json, tokenizer_config.json, …    of a decoder, for Hugging Face transformers
OUT/checkpoints/, metrics.jsonl, tensorboard/, profile/, compiled/
OUT/nonfinite.json     the data of steps whose numbers stayed non-finite (loss_monitor.py)
OUT/export/            the finished model in the published layout
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steerling_jax.bundle import special_ids
from steerling_jax.errors import UserError
from steerling_jax.io import hub
from steerling_jax.io.atomic import atomic_path
from steerling_jax.io.checkpoints.location import RUN_FILE
from steerling_jax.io.checkpoints.training import CHECKPOINTS
from steerling_jax.io.checkpoints.training_folder import read_run, write_run
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.json_files import read_json_array, read_json_object, write_json
from steerling_jax.io.tokenizers.huggingface import TOKENIZER_FILE, TOKENIZER_FILES
from steerling_jax.io.tokenizers.load import vocabulary_file
from steerling_jax.io.tokenizers.sentencepiece_json import sentencepiece_as_json, tokenizer_settings
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.train.run.config_difference import first_difference
from steerling_jax.train.run.run_config import RunConfig

SPECIAL_NAMES = ("pad_id", "bos_id", "eos_id", "endofchunk_id", "mask_id")


def corpus_identity(store: CorpusStore) -> dict[str, str]:
    """What must not change during a run: the vocabulary, and the documents and their order."""
    return {"tokenizer_sha256": store.manifest["tokenizer_sha256"], "documents_sha256": store.documents_sha256}


def check_corpus(run: RunConfig, store: CorpusStore) -> None:
    """Raises `UserError` unless the vocabulary, special ids and number of concepts of the model are the corpus's."""
    where = f"The corpus {store.folder}"
    tokenizer = vocabulary_file(store.folder)
    if tokenizer is not None:
        store.check_tokenizer(hashlib.sha256(tokenizer.read_bytes()).hexdigest())
    if store.vocab_size != run.data.vocab_size:
        raise UserError(
            f"{where} has a vocabulary of {store.vocab_size}, but config {run.name!r} one of {run.data.vocab_size}: "
            "it was prepared with another tokenizer; give another corpus with --corpus, or prepare it again."
        )
    ours = special_ids(run.model)
    # A decoder has no ids for masks and ends of chunks, and padding has no loss.
    names = ("bos_id", "eos_id") if isinstance(run.model, DecoderConfig) else SPECIAL_NAMES
    for name in names:
        if getattr(ours, name) != getattr(store.special, name):
            raise UserError(
                f"{where} has {name.replace('_id', '_token_id')} {getattr(store.special, name)}, but the config "
                f"{getattr(ours, name)}; correct it."
            )
    if isinstance(run.model, DecoderConfig):
        return
    concepts = len(store.concepts)
    if run.model.concept is not None and run.model.concept.n_concepts != concepts:
        raise UserError(
            f"{where} has {concepts} known concepts, but config {run.name!r} has n_concepts "
            f"{run.model.concept.n_concepts}: set concept.n_concepts to {concepts}, or give another with --corpus."
        )


def open_folder(run: RunConfig, store: CorpusStore, out: Path) -> None:
    """Writes run.json to a new folder, or checks that `out` is the folder of this run.

    Raises `UserError` that names the first field, or the part of the data, that differs.
    """
    identity = corpus_identity(store)
    if run.data.messages is not None:
        identity["messages_sha256"] = _sha256(Path(run.data.messages))
    saved = read_run(out)
    check_same_run(None if saved is None else saved["run"], run.to_json(), out)
    if saved is None:
        _write_companions(store, out)
        if isinstance(run.model, DecoderConfig):
            _write_tokenizer(run, store, out)
        write_run(out, run=run.to_json(), corpus=identity)
        return
    if saved["corpus"] != identity:
        if saved["corpus"].get("messages_sha256") != identity.get("messages_sha256"):
            raise UserError(f"{out} contains a run on other conversations: give its own, or choose another --out.")
        retokenized = saved["corpus"]["tokenizer_sha256"] != identity["tokenizer_sha256"]
        other = "another tokenizer" if retokenized else "other documents"
        raise UserError(
            f"{out} contains a run on a corpus with {other} than {store.folder}: give its corpus with --corpus, or "
            "choose another --out."
        )
    _check_concepts(store, out)


def check_same_run(saved: Mapping[str, Any] | None, current: Mapping[str, Any], out: Path) -> None:
    """Raises `UserError` that names the first field in which the run saved in `out` differs from the current one, both
    as JSON values. saved: None where there is no run.json, and then there may be no checkpoints."""
    if saved is None:
        if (out / CHECKPOINTS).exists():
            raise UserError(f"{out} has checkpoints but no {RUN_FILE}; choose another folder with --out.")
        return
    difference = first_difference(saved, current)
    if difference is not None:
        raise UserError(
            f"{out} contains a run with another config: {difference}. Undo the change, or choose another --out."
        )


def has_run(
    out: Path,
    run: Mapping[str, Any],
    weights: Mapping[str, str] | None = None,
    earlier: Mapping[str, Any] | None = None,
) -> bool:
    """Whether an earlier start of a run without a corpus wrote it to `out` (`write_model_run`).

    run: as JSON values. weights: what identifies the model's weights, if the run depends on their being the same.
    earlier: fields that runs of earlier versions lack, with their values. Raises `UserError` for another run, or one on
    other weights.
    """
    saved = read_json_object(out / RUN_FILE) if (out / RUN_FILE).is_file() else None
    check_same_run(None if saved is None else {**(earlier or {}), **saved.get("run", {})}, run, out)
    if saved is not None and weights is not None and saved.get("model") != weights:
        raise UserError(
            f"{out} has a run on other weights of {run['model']}; restore the model, or choose another --out."
        )
    return saved is not None


def write_model_run(out: Path, run: Mapping[str, Any], weights: Mapping[str, str] | None = None) -> None:
    """Writes `run.json` of a run without a corpus; arguments as those of `has_run`."""
    head = {"kind": run["kind"], "format_version": 1, "run": run}
    write_json(out / RUN_FILE, head if weights is None else {**head, "model": weights})


def _check_concepts(store: CorpusStore, out: Path) -> None:
    """Labels are concept numbers, which mean something else where the list of concepts differs."""
    if read_json_array(out / "concepts.json") != store.concepts:
        raise UserError(
            f"{out} contains a run on a corpus with other concepts, or in another order, than {store.folder}: give its "
            "corpus with --corpus, or choose another --out."
        )


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"Cannot read the conversations {path}: {error.strerror}; correct data.messages.") from error


def discard_new_run(out: Path) -> None:
    """Removes what `open_folder` wrote to `out`: a run that never began would refuse a mended corpus or config."""
    for path in (out / RUN_FILE, *companions(out)):
        path.unlink(missing_ok=True)


def has_checkpoints(out: Path) -> bool:
    """Whether the run in this folder has saved a checkpoint."""
    return any(path.name.isdigit() for path in (out / CHECKPOINTS).glob("*"))


def _write_companions(store: CorpusStore, out: Path) -> None:
    """Copies what the export needs of the corpus, which may move: vocabulary, concepts and document hashes."""
    vocabulary = vocabulary_file(store.folder)
    if vocabulary is not None:
        with atomic_path(out / vocabulary.name) as path:
            shutil.copyfile(vocabulary, path)
    write_json(out / "concepts.json", store.concepts)
    documents = [{"name": d.name, "source": d.source, "sha256": d.sha256, "split": d.split} for d in store.documents]
    head: dict[str, Any] = {
        "format_version": 1,
        "tokenizer_sha256": store.manifest["tokenizer_sha256"],
        "source": store.manifest["source"],
    }
    rows = ",\n".join(json.dumps(document, ensure_ascii=False) for document in documents)  # a document a line
    with atomic_path(out / "documents.json") as path:
        text = json.dumps(head, ensure_ascii=False)[:-1] + f', "documents": [\n{rows}\n]}}\n'
        path.write_text(text, encoding="utf-8")


def _write_tokenizer(run: RunConfig, store: CorpusStore, out: Path) -> None:
    """Writes what a Hugging Face folder has of its tokenizer: the files of the model that the run starts from, or the
    corpus's vocabulary as a `tokenizer.json`."""
    origin = None if run.start_from is None else hub.resolve(run.start_from)
    if origin is not None and (origin / TOKENIZER_FILE).is_file():
        for name in (TOKENIZER_FILE, *TOKENIZER_FILES):
            if (origin / name).is_file():
                with atomic_path(out / name) as path:
                    shutil.copyfile(origin / name, path)
        return
    vocabulary = vocabulary_file(store.folder)
    if vocabulary is not None and vocabulary.suffix == ".model":
        write_json(out / TOKENIZER_FILE, sentencepiece_as_json(vocabulary.read_bytes(), store.special))
        write_json(out / "tokenizer_config.json", tokenizer_settings(store.special, vocabulary.name))


def companions(out: Path) -> list[Path]:
    """The files that are exported with the model."""
    named = [vocabulary_file(out), out / "concepts.json", out / "documents.json"]
    named += [out / name for name in (TOKENIZER_FILE, *TOKENIZER_FILES)]
    return list(dict.fromkeys(path for path in named if path is not None and path.is_file()))
