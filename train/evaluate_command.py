"""`steerling evaluate`: a model's figures on held-out documents."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerling_jax.cli.arguments import add_model

if TYPE_CHECKING:
    from steerling_jax.bundle import Bundle
    from steerling_jax.io.corpus.store import CorpusStore

HELP = """\
Measure a model on held-out documents.

examples:
  steerling evaluate
  steerling evaluate ./runs/tiny --quick
  steerling evaluate ./small-model --corpus ./corpus --samples 20 --json
"""

UNKNOWN_SEQ_LEN = 256  # at most: a context may be far longer than what a model was trained on


def configure(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--corpus",
        type=Path,
        metavar="FOLDER",
        help="a corpus store (default: the run's own, else this Python's documentation)",
    )
    parser.add_argument("--quick", action="store_true", help="a part of the documents, and no baselines")
    parser.add_argument(
        "--seq-len", type=int, metavar="N", help="tokens of a sequence (default: as trained; unknown: at most 256)"
    )
    parser.add_argument(
        "--levels", type=float, nargs="+", metavar="T", help="shares of tokens masked to detect concepts (default: 0.5)"
    )
    parser.add_argument("--samples", type=int, default=0, metavar="N", help="write N samples too, and measure them")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> None:
    import steerling_jax as sj
    from steerling_jax.cli.console import print_json, stages
    from steerling_jax.errors import UserError

    levels = tuple(args.levels or (0.5,))
    for level in levels:
        if not 0 < level <= 1:
            raise UserError(f"--levels holds {level:g}, but a share of masked tokens is above 0 and at most 1.")
    if args.samples < 0:
        raise UserError(f"--samples is {args.samples}, but it must not be negative.")
    bundle = sj.load(args.model)
    seq_len = sequence_length(args.seq_len, bundle)
    with _store(args.corpus, bundle) as store, stages() as tell:
        from steerling_jax.train.evaluation.evaluate import QUICK_TOKENS, evaluate_full

        found: dict[str, Any] = {"model": bundle.name, "trained_on": _trained_on(bundle, store)}
        found |= evaluate_full(
            bundle.params,
            bundle.config,
            bundle.compute,
            store,
            seq_len=seq_len,
            draws=1 if args.quick else 2,
            levels=levels,
            baselines=not args.quick,
            most_tokens=QUICK_TOKENS if args.quick else None,
            tokenizer=bundle.tokenizer,
            progress=tell,
        )
        if args.samples:
            found["samples"] = _samples(bundle, store, args.samples, tell)
    if args.json:
        print_json(found)
    else:
        _print(found)


def sequence_length(asked: int | None, bundle: Bundle) -> int:
    """What was asked for, what the run was trained with, or a length that suits most models, which a note names."""
    from steerling_jax.cli.console import note
    from steerling_jax.errors import UserError
    from steerling_jax.io.json_files import read_json_object

    context = bundle.config.block_size
    if asked is not None:
        if not 1 <= asked <= context:
            raise UserError(f"--seq-len is {asked}, but it must be from 1 to the model's context of {context}.")
        return asked
    if bundle.folder is not None and (path := bundle.folder / "run.json").is_file():
        trained = read_json_object(path).get("run", {}).get("data", {}).get("seq_len")
        if isinstance(trained, int):
            return trained
    if context <= UNKNOWN_SEQ_LEN:
        return context
    note(
        f"{bundle.name} does not say how long the sequences were that it learned from: {UNKNOWN_SEQ_LEN} tokens here, "
        f"of a context of {context}; --seq-len chooses."
    )
    return UNKNOWN_SEQ_LEN


@contextmanager
def _store(corpus: Path | None, bundle: Bundle) -> Iterator[CorpusStore]:
    """The corpus asked for, the run's own, or this Python's documentation in a temporary store."""
    from steerling_jax.cli.console import note, stages
    from steerling_jax.errors import UserError
    from steerling_jax.io.corpus.store import CorpusStore
    from steerling_jax.tokenizer import IdsOnlyTokenizer

    own = None if bundle.folder is None else bundle.folder / "corpus"
    if corpus is None and own is not None and own.is_dir():
        corpus = own
    if corpus is not None:
        store = CorpusStore(corpus)
        store.check_tokenizer(bundle.tokenizer.sha256)
        yield store
        return
    if isinstance(bundle.tokenizer, IdsOnlyTokenizer):
        raise UserError(f"{bundle.name} has no tokenizer to read text with: give a corpus of its ids with --corpus.")
    from steerling_jax.train.corpus.python_documents import python_documents
    from steerling_jax.train.prepare.config import CorpusInputs
    from steerling_jax.train.prepare.prepare import prepare

    note("Reading this Python's documentation; --corpus takes a store instead.")
    with tempfile.TemporaryDirectory() as folder:
        inputs = CorpusInputs(documents=python_documents(), tokenizer=bundle.tokenizer)
        with stages() as progress:
            store = prepare(Path(folder) / "corpus", inputs, progress=progress)
        yield store


def _trained_on(bundle: Bundle, store: CorpusStore) -> int | None:
    """How many held-out documents the model was trained on, by the hashes that go along with it; None without them.

    Another Python's documentation may be split otherwise, and then its figures flatter the model.
    """
    from steerling_jax.cli.console import note
    from steerling_jax.io.training_documents import read_training_documents

    known = read_training_documents(bundle.folder)
    if known is None:
        return None
    count = sum(d.split == "heldout" and d.sha256 in known for d in store.documents)
    if count:
        note(f"{count} of the held-out documents were trained on: the figures flatter this model.")
    return count


def _samples(bundle: Bundle, store: CorpusStore, count: int, tell: Callable[[str, int, int], None]) -> dict[str, Any]:
    from steerling_jax.train.evaluation.samples import measures, samples

    written = []
    for sample in samples(bundle, store, count):
        written.append(sample)
        tell("samples", len(written), count)
    texts = [{"document": s.document, "seed": s.seed, "prompt": s.prompt, "text": s.text} for s in written]
    return {"measures": measures(written, bundle, store), "texts": texts}


def _print(found: Mapping[str, Any]) -> None:
    from rich.table import Table

    from steerling_jax.cli.console import stdout

    table = Table("figure", "value", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for name, value in _rows(found):
        table.add_row(name, value)
    stdout().print(table)
    for sample in found.get("samples", {}).get("texts", []):
        stdout().rule(f"{sample['document']}, seed {sample['seed']}", align="left")
        stdout().print(sample["prompt"], style="dim", end="", markup=False, soft_wrap=True)
        stdout().print(sample["text"], markup=False, soft_wrap=True)


def _rows(found: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested figures as rows of names and values; tables of single concepts and texts are left to --json."""
    for name, value in found.items():
        if name in ("by_concept", "texts"):
            continue
        label = f"{prefix}{name.replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from _rows(value, f"{label}: ")
        elif value is not None:
            yield (
                label,
                value if isinstance(value, str) else f"{value:,.4f}" if isinstance(value, float) else f"{value:,}",
            )
