"""Opens what a run reads and the folder that it writes to, and checks that they fit together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jax

from steerling_jax.cli.console import note, stages, stderr
from steerling_jax.errors import UserError, require
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.parallel.sharding import make_mesh
from steerling_jax.train.data.batches import Batches
from steerling_jax.train.data.conversations import Conversations
from steerling_jax.train.run.initial_weights import InitialWeights, find_initial_weights
from steerling_jax.train.run.parameter_table import parameter_rows, parameter_table
from steerling_jax.train.run.processes import ProcessShare, run_on_first_process
from steerling_jax.train.run.run_config import RunConfig
from steerling_jax.train.run.run_folder import check_corpus, has_checkpoints, open_folder


@dataclass(frozen=True)
class OpenRun:
    """What a run reads. initial: the weights to start from, not yet read; None for a random initialisation."""

    share: ProcessShare
    store: CorpusStore
    initial: InitialWeights | None
    batches: Batches


def open_run(run: RunConfig, corpus: str | None, out: Path, *, table: bool) -> OpenRun:
    """Opens the corpus (prepares one where there is none), the initial weights and the run's folder `out`.

    corpus: folder of a store, in place of the config's. table: print the table of parameters. Raises `UserError`,
    on all processes, where something does not fit; then nothing was written to `out` but a corpus.
    """
    if run.compute.attention == "splash" and jax.default_backend() != "tpu":
        raise UserError("compute.attention is 'splash', which needs TPUs, and there are none here: use 'xla'.")
    share = ProcessShare(make_mesh(run.mesh), run.data.batch_size, run.accumulate)
    # A checkpoint replaces the initial weights, so they may be gone; except under adapters, which are saved alone.
    initial = None if has_checkpoints(out) and run.lora is None else find_initial_weights(run)
    folder = _corpus_folder(corpus or run.data.corpus, out)
    batches: list[Batches] = []

    def prepare_folder() -> None:
        store = _open_corpus(run, folder, initial)
        check_corpus(run, store)
        if initial is not None:
            initial.check_corpus(store)
        batches.append(Batches(run, store))
        _note_left_out(batches[0].answers)
        open_folder(run, store, out)
        if table:
            stderr().print(parameter_table(parameter_rows(run, share.mesh)))

    # One process prepares and writes; the others open the corpus when it is complete.
    run_on_first_process(prepare_folder)
    store = CorpusStore(folder)
    return OpenRun(share, store, initial, batches[0] if batches else Batches(run, store))


def _open_corpus(run: RunConfig, folder: Path, initial: InitialWeights | None) -> CorpusStore:
    """Opens the store at `folder`. Where there is none, prepares one from the interpreter's documentation, with the
    tokenizer of the initial weights if there are any."""
    if folder.exists():
        return CorpusStore(folder)
    # Imported only here, as most runs have a corpus.
    from steerling_jax.train.corpus.python_documents import python_documents
    from steerling_jax.train.prepare.config import CorpusInputs, PrepareConfig
    from steerling_jax.train.prepare.model_tokenizer import model_tokenizer
    from steerling_jax.train.prepare.prepare import prepare

    inputs = CorpusInputs(
        documents=python_documents(), tokenizer=None if initial is None else model_tokenizer(initial.folder)
    )
    settings = PrepareConfig(
        vocab_size=run.data.vocab_size,
        chunk_tokens=run.data.chunk_tokens,
        seed=run.seed,
        shares=run.data.sources or {},
    )
    with stages() as progress:
        return prepare(folder, inputs, settings, progress=progress)


def _corpus_folder(corpus: str | None, out: Path) -> Path:
    require(
        corpus is None or "://" not in corpus,
        f"The corpus {corpus} is in a bucket, but training reads from a file system: mount the bucket and give the "
        "folder.",
    )
    return out / "corpus" if corpus is None else Path(corpus)


def _note_left_out(answers: Conversations | None) -> None:
    if answers is not None and answers.too_long:
        note(
            f"{answers.too_long} of {len(answers) + answers.too_long} answers are left out: after their prompts "
            "data.seq_len has no room for a block. Raise it to train on them."
        )
