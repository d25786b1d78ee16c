"""`steerling evaluate`: figures of a model on held-out documents."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerling_jax.cli.arguments import add_model, number_in_range

if TYPE_CHECKING:
    from steerling_jax.bundle import Bundle
    from steerling_jax.io.corpus.store import CorpusStore
    from steerling_jax.progress import Progress

HELP = """\
Evaluate a model on held-out documents.

examples:
  steerling evaluate
  steerling evaluate ./runs/tiny --quick
  steerling evaluate ./small-model --corpus ./corpus --samples 20 --json
"""

DEFAULT_SEQ_LEN = 256  # at most; the context may be much longer than the sequences of training


def configure(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--corpus",
        type=Path,
        metavar="FOLDER",
        help="a corpus store (default: the run's, else the config pydocs' from the documentation of this Python)",
    )
    parser.add_argument("--quick", action="store_true", help="use a part of the documents, without baselines")
    parser.add_argument(
        "--seq-len",
        type=int,
        metavar="N",
        help="tokens per sequence (default: as in training; unknown: at most 256)",
    )
    parser.add_argument(
        "--levels",
        type=float,
        nargs="+",
        metavar="T",
        help="shares of masked tokens to detect concepts at (default: 0.5)",
    )
    parser.add_argument(
        "--samples",
        type=number_in_range(int, 0),
        default=0,
        metavar="N",
        help="generate and measure N samples",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> None:
    import steerling_jax as sj
    from steerling_jax.cli.console import print_json, stages
    from steerling_jax.errors import UserError

    levels = tuple(args.levels or (0.5,))
    for level in levels:
        if not 0 < level <= 1:
            raise UserError(f"--levels has {level:g}, but a share of masked tokens must be above 0 and at most 1.")
    bundle = sj.load(args.model)
    seq_len = sequence_length(args.seq_len, bundle)
    with _open_corpus(args.corpus, bundle) as store, stages() as progress:
        from steerling_jax.train.evaluation.evaluate import QUICK_TOKENS, EvaluationConfig, evaluate_full

        config = EvaluationConfig(
            seq_len=seq_len,
            draws=1 if args.quick else 2,
            levels=levels,
            baselines=not args.quick,
            max_tokens=QUICK_TOKENS if args.quick else None,
        )
        figures: dict[str, Any] = {"model": bundle.name, "trained_on": _count_trained_on(bundle, store)}
        figures |= evaluate_full(
            bundle.params,
            bundle.config,
            bundle.compute,
            store,
            config,
            tokenizer=bundle.tokenizer,
            progress=progress,
        )
        if args.samples:
            figures["samples"] = _generate_samples(bundle, store, args.samples, progress)
    if args.json:
        print_json(figures)
    else:
        _print(figures)


def sequence_length(seq_len: int | None, bundle: Bundle) -> int:
    """`seq_len` if given, else that of the model's training, else a default, which a note on standard error names."""
    from steerling_jax.cli.console import note
    from steerling_jax.errors import UserError
    from steerling_jax.io.json_files import read_json_object

    context = bundle.config.context_length
    if seq_len is not None:
        if not 1 <= seq_len <= context:
            raise UserError(f"--seq-len is {seq_len}, but it must be from 1 to the model's context of {context}.")
        return seq_len
    if bundle.folder is not None and (path := bundle.folder / "run.json").is_file():
        trained = read_json_object(path).get("run", {}).get("data", {}).get("seq_len")
        if isinstance(trained, int):
            return trained
    if context <= DEFAULT_SEQ_LEN:
        return context
    note(
        f"The sequence length in training of {bundle.name} is not recorded: using {DEFAULT_SEQ_LEN} tokens, of a "
        f"context of {context}; set another one with --seq-len."
    )
    return DEFAULT_SEQ_LEN


@contextmanager
def _open_corpus(corpus: Path | None, bundle: Bundle) -> Iterator[CorpusStore]:
    """The store at `corpus`, or that of the run, or a temporary one as the config pydocs prepares it."""
    from steerling_jax.cli.console import note, stages
    from steerling_jax.errors import UserError
    from steerling_jax.io.corpus.store import CorpusStore
    from steerling_jax.tokenizer import IdsOnlyTokenizer

    run_corpus = None if bundle.folder is None else bundle.folder / "corpus"
    if corpus is None and run_corpus is not None and run_corpus.is_dir():
        corpus = run_corpus
    if corpus is not None:
        store = CorpusStore(corpus)
        store.check_tokenizer(bundle.tokenizer.sha256)
        yield store
        return
    if isinstance(bundle.tokenizer, IdsOnlyTokenizer):
        raise UserError(f"{bundle.name} has no tokenizer for text: give a corpus of its token ids with --corpus.")
    note("Using the documentation of this Python; choose another corpus with --corpus.")
    with tempfile.TemporaryDirectory() as folder:
        with stages() as progress:
            store = documentation_corpus(Path(folder) / "corpus", bundle, progress)
        yield store


def documentation_corpus(folder: Path, bundle: Bundle, progress: Progress) -> CorpusStore:
    """Prepares the corpus of the config pydocs in `folder`, in the tokens of `bundle`.

    The bundled model was trained with this config: on the same Python the held-out documents are those of its card.
    """
    from steerling_jax.train.corpus.python_documents import python_documents
    from steerling_jax.train.prepare.config import CorpusInputs, PrepareConfig
    from steerling_jax.train.prepare.prepare import prepare
    from steerling_jax.train.run.config_files import load_config

    run = load_config("pydocs")
    settings = PrepareConfig(chunk_tokens=run.data.chunk_tokens, seed=run.seed, shares=run.data.sources or {})
    inputs = CorpusInputs(documents=python_documents(), tokenizer=bundle.tokenizer)
    return prepare(folder, inputs, settings, progress=progress)


def _count_trained_on(bundle: Bundle, store: CorpusStore) -> int | None:
    """The number of held-out documents that the model was trained on, by the hashes in its folder; None without these.

    It is not 0 for the documentation of another Python version, whose documents are split differently.
    """
    from steerling_jax.cli.console import note
    from steerling_jax.io.training_documents import read_training_documents

    known = read_training_documents(bundle.folder)
    if known is None:
        return None
    count = sum(d.split == "heldout" and d.sha256 in known for d in store.documents)
    if count:
        note(f"The model was trained on {count} of the held-out documents: the figures are too good.")
    return count


def _generate_samples(bundle: Bundle, store: CorpusStore, count: int, progress: Progress) -> dict[str, Any]:
    from steerling_jax.train.evaluation.sample_measures import measures
    from steerling_jax.train.evaluation.samples import samples

    written = []
    for sample in samples(bundle, store, count):
        written.append(sample)
        progress("samples", len(written), count)
    texts = [{"document": s.document, "seed": s.seed, "prompt": s.prompt, "text": s.text} for s in written]
    return {"measures": measures(written, bundle, store), "texts": texts}


def _print(figures: Mapping[str, Any]) -> None:
    from rich.table import Table

    from steerling_jax.cli.console import stdout

    table = Table("figure", "value", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for name, value in _rows(figures):
        table.add_row(name, value)
    stdout().print(table)
    for sample in figures.get("samples", {}).get("texts", []):
        stdout().rule(f"{sample['document']}, seed {sample['seed']}", align="left")
        stdout().print(sample["prompt"], style="dim", end="", markup=False, soft_wrap=True)
        stdout().print(sample["text"], markup=False, soft_wrap=True)


_LABELS = {"concept_share": "concept share, true token", "best_concept_share": "concept share, likeliest token"}


def _rows(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields (name, value) of nested figures. Figures by concept and texts are only in the JSON output."""
    for name, value in figures.items():
        if name in ("by_concept", "texts"):
            continue
        label = prefix + _LABELS.get(name, name.replace("_", " "))
        if isinstance(value, Mapping):
            yield from _rows(value, f"{label}: ")
        elif value is not None:
            yield (
                label,
                value if isinstance(value, str) else f"{value:,.4f}" if isinstance(value, float) else f"{value:,}",
            )
