"""`steerling sae compare`: collections of texts, such as benchmarks, by the features that fire in them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from steerling_jax.attribution.sae.options import (
    add_layer_option,
    add_output_options,
    add_reading_options,
    add_stage_options,
    check_stage_options,
)
from steerling_jax.cli.arguments import number_in_range

if TYPE_CHECKING:
    from steerling_jax.attribution.sae.compare import Comparison

HELP = """\
Compare benchmarks by the features that fire at the last token of each sample; no answers are needed.

A file is .jsonl, .ndjson, .csv or .tsv with a column of texts, or has a text in each line.
docs/guide/comparing-benchmarks.md describes the figures.

examples:
  steerling sae compare gsm8k.jsonl mmlu.jsonl --column question --autoencoder ./runs/sae_pydocs/export --layer 2
  steerling sae compare one.txt two.txt three.txt --limit 500 --json --plot overlap.svg > comparison.json
  steerling sae compare 'web-*.jsonl' 'books-*.jsonl' --sample 5000 --work ./features --workers 8
  steerling sae compare 'gs://bucket/web-*.jsonl' --sample 5000 --work gs://bucket/features --runner DataflowRunner \\
    --runner-options project=P region=R temp_location=gs://bucket/tmp
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add, count = parser.add_argument, number_in_range(int, 1)
    add(
        "files",
        nargs="+",
        metavar="FILE",
        help="the samples of a benchmark, a file or a quoted pattern of files; two or more are also compared",
    )
    add_reading_options(parser)
    add_layer_option(parser, several=False)
    add("--column", default="text", metavar="NAME", help="the column of the texts (default: %(default)s)")
    add(
        "--limit",
        type=number_in_range(int, 4),
        metavar="N",
        help="use N random samples of each benchmark (default: all)",
    )
    add(
        "--sample",
        type=number_in_range(int, 4),
        metavar="N",
        help="use N random samples for what needs each one's features; redundancy, growth and overlap are of all",
    )
    add(
        "--size",
        type=number_in_range(int, 2),
        metavar="N",
        help="samples of the subsets of one size (default: half of the smallest benchmark)",
    )
    add("--draws", type=count, default=200, metavar="N", help="random subsets (default: %(default)s)")
    add(
        "--ngram",
        type=count,
        default=3,
        metavar="N",
        help="words of the n-grams whose overlap is shown beside (default: %(default)s)",
    )
    add_stage_options(parser)
    add_output_options(parser)


def run(args: argparse.Namespace) -> None:
    check_stage_options(args)
    from steerling_jax.attribution.sae.collections import read_collections, read_in_stages
    from steerling_jax.attribution.sae.compare import as_json, compare
    from steerling_jax.attribution.sae.plots import plot_comparison
    from steerling_jax.cli.console import print_json, stages
    from steerling_jax.io.pictures import check_plot

    if args.plot is not None:
        check_plot(args.plot)
    with stages() as progress:
        read = (read_collections if args.work is None else read_in_stages)(args, progress)
        comparison = compare(read.collections, size=read.size, draws=args.draws, seed=args.seed, progress=progress)
    bundle, autoencoder = read.bundle, read.autoencoder
    if args.plot is not None:
        layer = "its bottleneck" if autoencoder.layer is None else f"layer {autoencoder.layer}"
        title = f"{bundle.name}, {layer}: subsets of {read.size} samples, seed {args.seed}"
        plot_comparison(comparison, args.plot, title)
    if args.json:
        fields = ("column", "limit", "sample", "ngram", "seed")
        settings = {field: getattr(args, field) for field in fields}
        about = {"model": bundle.name, "autoencoder": autoencoder.summary(), "settings": settings}
        print_json(about | as_json(comparison))
    else:
        show(comparison)


def show(comparison: Comparison) -> None:
    """Prints a table of the collections, and one of their overlaps."""
    from rich.table import Table

    from steerling_jax.cli.console import stdout

    table = Table(box=None, pad_edge=False)
    table.add_column("benchmark")
    for title in ("samples", "features", "redundancy", "share", "of subsets", "add nothing", "cover"):
        table.add_column(title, justify="right")
    for one in comparison.collections:
        r, m = one.redundancy, one.matched
        table.add_row(one.name, str(r.samples), str(r.features), f"{r.value:.3f}", f"{r.share:.3f}",
                      f"{m.mean:.3f}", str(len(one.adds_nothing)),
                      str(len(one.cover)))  # fmt: skip
    stdout().print(table)
    matched = comparison.matched
    stdout().print(
        f"\nShare of a row's features that fire in the column's benchmark, too; subsets of {matched.size} samples.\n"
        "On the diagonal two subsets of one benchmark; in brackets the same of n-grams."
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for one in comparison.collections:
        table.add_column(one.name, justify="right")
    for i, one in enumerate(comparison.collections):
        cells = zip(matched.mean.of_row[i], comparison.ngrams.mean.of_row[i], strict=True)
        table.add_row(one.name, *(f"{share:.2f} ({other:.2f})" for share, other in cells))
    stdout().print(table)
