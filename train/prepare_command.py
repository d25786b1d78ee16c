"""`steerling prepare`: makes a corpus store from documents."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steerling_jax.train.prepare.config import CorpusInputs

HELP = """\
Make a corpus store from documents: tokens, chunks, concept labels.

examples:
  steerling prepare --out ./corpus
  steerling prepare --out ./my-corpus --input ./my-texts --vocab-size 8192 --workers 8
  steerling prepare --out ./my-corpus --input './dump/*.parquet' --tokenizer ./small-model
  steerling prepare --check my-concepts.toml my-source.toml
  steerling prepare --out ./my-corpus --source my-source.toml --concepts bundled my-concepts.toml
  steerling prepare --out gs://bucket/corpus --input 'gs://bucket/raw/*.jsonl' --tokenizer ./small-model \\
    --runner DataflowRunner --runner-options project=P region=R temp_location=gs://bucket/tmp
"""

_NAMED_FILES = 8  # of those that are left out


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", default="corpus", metavar="FOLDER", help="local folder or gs://… address to create (default: corpus)")
    add(
        "--input",
        nargs="+",
        default=[],
        metavar="FILES",
        help="folders, files or patterns of .txt, .jsonl, .ndjson or .parquet files, also .gz, .bz2, .xz and .zst, "
        "local or remote "
        "(default: the documentation of this Python installation)",
    )
    add(
        "--source",
        nargs="+",
        default=[],
        metavar="FILE",
        help="TOML files that describe sources (docs/guide/corpus.md)",
    )
    add(
        "--concepts",
        nargs="*",
        default=["bundled"],
        metavar="FILE",
        help="TOML files or folders that define concepts, numbered in this order; `bundled` stands for the bundled "
        "concepts (default: bundled); without a value, only the concepts of --labels are used",
    )
    add("--labels", nargs="+", default=[], metavar="FILE", help="TOML files that describe tables of labels")
    add(
        "--embeddings",
        default="",
        metavar="MODEL",
        help="learn concepts that are defined by examples over this model's embeddings (default: over hashed words)",
    )
    add(
        "--vocab-size",
        type=int,
        default=4096,
        metavar="N",
        help="number of token ids of the vocabulary that is trained (default: %(default)s)",
    )
    add("--tokenizer", metavar="MODEL", help="use this model's vocabulary instead of training one")
    add("--chunk-tokens", type=int, default=64, metavar="N", help="maximum tokens of a chunk (default: %(default)s)")
    add(
        "--heldout-share",
        type=float,
        default=0.04,
        metavar="X",
        help="share of the documents that is held out (default: %(default)s)",
    )
    add("--seed", type=int, default=0, metavar="N", help="seed of the documents' order (default: %(default)s)")
    add(
        "--part-bytes",
        type=int,
        default=0,
        metavar="N",
        help="bytes of text that a worker reads at a time; fewer need less memory (default: 4 to 64 MiB by total size)",
    )
    add("--workers", type=int, default=1, metavar="N", help="local processes (default: %(default)s)")
    add(
        "--runner",
        metavar="NAME",
        help="an Apache Beam runner: DirectRunner, DataflowRunner, FlinkRunner, SparkRunner (default: local processes)",
    )
    add(
        "--runner-options",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="Beam pipeline options without leading dashes: project=P region=R",
    )
    add("--check", nargs="+", metavar="FILE", help="only check TOML files of concepts, sources and labels")
    add("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> None:
    if args.check:
        _check(args)
        return
    from steerling_jax.cli.console import note, print_json, stages
    from steerling_jax.io.stages.staged_work import RunnerConfig
    from steerling_jax.train.corpus.input_files import left_out_files
    from steerling_jax.train.corpus.sources import TextSource
    from steerling_jax.train.prepare.config import PrepareConfig
    from steerling_jax.train.prepare.prepare import prepare

    # The numbers are validated before any file is read.
    config = PrepareConfig(
        vocab_size=args.vocab_size,
        chunk_tokens=args.chunk_tokens,
        seed=args.seed,
        heldout_share=args.heldout_share,
        part_bytes=args.part_bytes,
        embeddings=args.embeddings,
    )
    runner = RunnerConfig(args.workers, args.runner, args.runner_options)
    inputs = _inputs(args)
    if left_out := left_out_files([*inputs.sources, *(TextSource(table.files) for table in inputs.tables)]):
        note(_left_out_note(left_out))
    with stages() as progress:
        store = prepare(args.out, inputs, config, runner, progress)
    counts = store.manifest["counts"]
    if args.json:
        print_json({"folder": args.out, "vocab_size": store.vocab_size, "counts": counts})
        return
    for split, count in counts.items():
        note(f"{split}: {count['documents']:,} documents, {count['chunks']:,} chunks, {count['tokens']:,} tokens")
    if store.manifest["source"]["near_duplicates"] != "one side":
        note("The text is too large to search for near-duplicates: each document's own hash decides its split.")
    note(f"The corpus is in {args.out}.")
    if not counts["heldout"]["documents"]:
        note(
            "No document is held out, so `steerling train` and `evaluate` will refuse this corpus: prepare it again "
            f"with a larger --heldout-share than {args.heldout_share:g}, or with more documents."
        )


def _left_out_note(files: Sequence[str]) -> str:
    names = ", ".join(files[:_NAMED_FILES]) + (f" and {len(files) - _NAMED_FILES} more" * (len(files) > _NAMED_FILES))
    return f"Left out, because their format is not supported: {len(files)} files: {names}."


def _check(args: argparse.Namespace) -> None:
    from steerling_jax.cli.console import print_json, stdout
    from steerling_jax.train.corpus.check import check_files

    rows = check_files(args.check)
    if args.json:
        print_json(rows)
        return
    for row in rows:
        text = f"{row['file']}: {row['kind']} {row['name']}: {row['found']}"
        stdout().print(text, markup=False, soft_wrap=True)


def _inputs(args: argparse.Namespace) -> CorpusInputs:
    """The inputs that the options name; without --input and --source, this Python's documentation."""
    from steerling_jax.train.corpus.label_table import read_table_settings
    from steerling_jax.train.corpus.ontology import read_concepts
    from steerling_jax.train.corpus.python_documents import python_documents
    from steerling_jax.train.corpus.sources import TextSource, read_sources
    from steerling_jax.train.prepare.config import CorpusInputs
    from steerling_jax.train.prepare.model_tokenizer import model_tokenizer

    concepts = read_concepts(args.concepts)
    tables = [table for path in args.labels for table in read_table_settings(path)]
    sources = [*([TextSource(tuple(args.input))] if args.input else []), *read_sources(*args.source)]
    return CorpusInputs(
        sources=sources,
        documents=None if sources else python_documents(),
        concepts=concepts,
        tables=tables,
        tokenizer=None if args.tokenizer is None else model_tokenizer(args.tokenizer),
    )
