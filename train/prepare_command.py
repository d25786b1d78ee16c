"""`steerling prepare`: documents to a corpus store."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steerling_jax.train.corpus.sources import TextSource

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


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", default="corpus", metavar="FOLDER", help="here or gs://… (default: corpus)")
    add(
        "--input",
        nargs="+",
        default=[],
        metavar="FILES",
        help="folders, files or patterns, of .txt, .jsonl (also .jsonl.gz) or .parquet, here or by address "
        "(default: the documentation that this Python carries)",
    )
    add("--source", nargs="+", default=[], metavar="FILE", help="sources described in TOML files (docs/corpus.md)")
    add(
        "--concepts",
        nargs="*",
        default=["bundled"],
        metavar="FILE",
        help="TOML files or folders with concepts, numbered in this order; `bundled` names those that come along "
        "(default: bundled); with nothing behind it, there are those of --labels alone",
    )
    add("--labels", nargs="+", default=[], metavar="FILE", help="tables of labels described in TOML files")
    add(
        "--embeddings",
        default="",
        metavar="MODEL",
        help="learn concepts that have examples over this model's embeddings (default: over hashed words)",
    )
    add("--vocab-size", type=int, default=4096, metavar="N", help="token ids (default: %(default)s)")
    add("--tokenizer", metavar="MODEL", help="a model whose vocabulary to use, in place of making one")
    add("--chunk-tokens", type=int, default=64, metavar="N", help="longest (default: %(default)s)")
    add("--heldout-share", type=float, default=0.04, metavar="X", help="of the documents (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of the order (default: %(default)s)")
    add(
        "--part-bytes",
        type=int,
        default=0,
        metavar="N",
        help="text that a worker reads at a time; less takes less memory (default: by size, 4 to 64 MiB)",
    )
    add("--workers", type=int, default=1, metavar="N", help="processes on this machine (default: %(default)s)")
    add(
        "--runner",
        metavar="NAME",
        help="an Apache Beam runner: DirectRunner, DataflowRunner, FlinkRunner, SparkRunner (default: no Beam)",
    )
    add(
        "--runner-options",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="Beam's pipeline options, without their dashes: project=P region=R",
    )
    add("--check", nargs="+", metavar="FILE", help="only check files of concepts, sources and labels")
    add("--json", action="store_true", help="print what was made as JSON")


def run(args: argparse.Namespace) -> None:
    from steerling_jax.cli.console import note, print_json, stages, stdout

    if args.check:
        from steerling_jax.train.corpus.check import check_files

        found = check_files(args.check)
        if args.json:
            print_json(found)
            return
        for line in found:
            text = f"{line['file']}: {line['kind']} {line['name']}: {line['found']}"
            stdout().print(text, markup=False, soft_wrap=True)
        return
    _check_numbers(args)
    from steerling_jax.train.corpus.documents import python_documents
    from steerling_jax.train.corpus.label_table import read_table_settings
    from steerling_jax.train.corpus.ontology import read_concepts
    from steerling_jax.train.data.model_tokenizer import model_tokenizer
    from steerling_jax.train.prepare.prepare import prepare

    concepts = read_concepts(args.concepts)
    tables = [table for path in args.labels for table in read_table_settings(path)]
    inputs = _inputs(args)
    with stages() as tell:
        store = prepare(
            args.out,
            documents=None if inputs else python_documents(),
            inputs=inputs,
            vocab_size=args.vocab_size,
            chunk_tokens=args.chunk_tokens,
            seed=args.seed,
            concepts=concepts,
            tables=tables,
            tokenizer=None if args.tokenizer is None else model_tokenizer(args.tokenizer),
            embeddings=args.embeddings,
            heldout_share=args.heldout_share,
            part_bytes=args.part_bytes,
            workers=args.workers,
            runner=args.runner,
            runner_options=args.runner_options,
            progress=tell,
        )
    counts = store.manifest["counts"]
    if args.json:
        print_json({"folder": args.out, "vocab_size": store.vocab_size, "counts": counts})
        return
    for split, count in counts.items():
        note(f"{split}: {count['documents']:,} documents, {count['chunks']:,} chunks, {count['tokens']:,} tokens")
    if store.manifest["source"]["near_duplicates"] != "one side":
        note("So much text is not searched for near-duplicates: each document's hash alone decides its split.")
    note(f"The corpus is in {args.out}.")


def _check_numbers(args: argparse.Namespace) -> None:
    from steerling_jax.errors import require

    for name, least in (("chunk_tokens", 1), ("workers", 1), ("part_bytes", 0)):
        value, option = getattr(args, name), f"--{name.replace('_', '-')}"
        require(value >= least, f"{option} is {value}, but it must be at least {least}.")
    share = args.heldout_share
    require(0 <= share < 1, f"--heldout-share is {share}, but it must be from 0 to below 1.")
    require(
        args.runner is None or args.workers == 1,
        "--workers is for this machine's own processes: tell the --runner its number by --runner-options.",
    )
    require(args.runner is not None or not args.runner_options, "--runner-options are for a --runner: name one.")


def _inputs(args: argparse.Namespace) -> list[TextSource]:
    from steerling_jax.train.corpus.sources import TextSource, read_sources

    return [*([TextSource(tuple(args.input))] if args.input else []), *read_sources(*args.source)]
