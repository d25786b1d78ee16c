"""`steerling index`: makes the index in which training data behind a text is searched."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steerling_jax.cli.arguments import add_model_option

HELP = """\
Index a corpus store for a model, to find the training data behind a text.

examples:
  steerling index ./corpus ./index
  steerling index ./corpus ./index --model ./runs/tiny --gradients 8
  steerling index ./corpus ./index --scores verbatim
  steerling index ./corpus ./index --process-index 1 --process-count 4

Run the same command again to continue after an interruption, or to add new documents of the corpus.
`steerling search ./index "TEXT" --corpus ./corpus` searches the index.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("corpus", type=Path, metavar="CORPUS", help="a corpus store, made by `steerling prepare`")
    add("index", type=Path, metavar="INDEX", help="the folder of the index; an existing index is continued")
    add_model_option(parser)
    add(
        "--split",
        choices=("train", "heldout", "all"),
        default="train",
        help="split of the corpus to index (default: %(default)s)",
    )
    add("--context", type=int, default=64, metavar="N", help="tokens read before a chunk (default: %(default)s)")
    add("--level", type=float, default=0.5, metavar="T", help="share of masked tokens (default: %(default)s)")
    add("--draws", type=int, default=2, metavar="N", help="maskings of a chunk (default: %(default)s)")
    add("--unit-tokens", type=int, default=1 << 19, metavar="N", help="tokens of a unit of work (default: %(default)s)")
    add(
        "--gradients",
        type=int,
        default=0,
        metavar="SIDE",
        help="store every chunk's gradient, projected to SIDE x SIDE features per matrix, and compare a query with all "
        "of them (default: compute gradients of candidates only)",
    )
    add(
        "--scores",
        choices=("all", "quick", "verbatim"),
        default="all",
        help="quick: all but influence; verbatim: equal wording alone, for which the model is not run (default: "
        "%(default)s)",
    )
    add("--nulls", type=int, default=100, metavar="N", help="random texts for each threshold (default: %(default)s)")
    add("--process-index", type=int, default=0, metavar="I", help="which of several processes this is, from 0")
    add("--process-count", type=int, default=1, metavar="N", help="number of processes that divide the units")
    add("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> None:
    from steerling_jax.attribution.index.passages import Masking
    from steerling_jax.cli.console import note, print_json, stages
    from steerling_jax.io.corpus.store import SPLITS, CorpusStore

    corpus = CorpusStore(args.corpus)
    note("Loading JAX and the model …")
    import steerling_jax as sj
    from steerling_jax.attribution.index.build import build_index
    from steerling_jax.attribution.index.settings import IndexSettings

    settings = IndexSettings(
        context=args.context,
        masking=Masking(args.level, args.draws),
        unit_tokens=args.unit_tokens,
        splits=SPLITS if args.split == "all" else (args.split,),
        gradient_side=args.gradients,
        nulls=args.nulls,
        verbatim=args.scores == "verbatim",
        influence=args.scores != "quick",
    )
    bundle = sj.load(args.model)
    with stages() as progress:
        report = build_index(
            corpus,
            bundle,
            args.index,
            settings,
            process_index=args.process_index,
            process_count=args.process_count,
            progress=progress,
        )
    if args.json:
        print_json(report)
    else:
        _print_report(report)


def _print_report(report: Mapping[str, Any]) -> None:
    from steerling_jax.cli.console import note

    size = sum(report["bytes_a_chunk"].values())
    note(
        f"{report['documents']:,} documents, {report['chunks']:,} chunks, {size:,.0f} bytes per chunk; "
        f"{report['units_made_now']} of {report['units']} units built now."
    )
    coverage = report["coverage"]
    if coverage is None:
        note("The model does not record which documents it was trained on.")
    else:
        note(
            f"{coverage['indexed']:,} of {coverage['trained_on']:,} training documents of the model are indexed; "
            f"{coverage['not_trained_on']:,} indexed documents are not among them."
        )
        if coverage["absent"]:
            named = ", ".join(coverage["absent_names"][:5])
            note(f"Not in this corpus: {named}{' …' if coverage['absent'] > 5 else ''}; --json lists more.")
    if not report["finished"]:
        remaining = report["units"] - report["units_done"]
        note(f"{remaining} units are left to other processes; the last process finishes the index.")
        return
    for score, table in report["thresholds"].items():
        values = ", ".join(f"{value:.3g} at {length:.0f}" for length, value in zip(table["lengths"], table["values"]))
        note(f"{score}: 1 in 100 random texts reaches {values} tokens")
    note(f"The index is in {report['index']}.")
