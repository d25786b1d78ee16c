"""`steerling sae compare`: collections of texts, such as benchmarks, by the features that fire in them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from steerling_jax.attribution.sae.options import add_output_options, add_reading_options, load_model_and_autoencoders
from steerling_jax.cli.arguments import number_in_range
from steerling_jax.errors import UserError

if TYPE_CHECKING:
    from steerling_jax.attribution.sae.compare import Collection, Comparison

HELP = """\
Compare benchmarks by the features that fire at the last token of each sample; no answers are needed.

A file is .jsonl, .ndjson, .csv or .tsv with a column of texts, or has a text in each line.
docs/guide/comparing-benchmarks.md describes the figures.

examples:
  steerling sae compare gsm8k.jsonl mmlu.jsonl --column question --autoencoder ./runs/sae_pydocs/export --layer 2
  steerling sae compare one.txt two.txt three.txt --limit 500 --json --plot overlap.svg > comparison.json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add, count = parser.add_argument, number_in_range(int, 1)
    add("files", nargs="+", type=Path, metavar="FILE", help="the samples of a benchmark; two or more are also compared")
    add_reading_options(parser)
    add("--layer", type=number_in_range(int, 0), metavar="N",
        help="the block whose autoencoder is used, from 0 (default: the middle one of those found)")  # fmt: skip
    add("--column", default="text", metavar="NAME", help="the column of the texts (default: %(default)s)")
    add("--limit", type=number_in_range(int, 4), metavar="N", help="use N random samples of each file (default: all)")
    add("--size", type=number_in_range(int, 2), metavar="N",
        help="samples of the subsets of one size (default: half of the smallest file)")  # fmt: skip
    add("--draws", type=count, default=200, metavar="N", help="random subsets (default: %(default)s)")
    add("--ngram", type=count, default=3, metavar="N",
        help="words of the n-grams whose overlap is shown beside (default: %(default)s)")  # fmt: skip
    add_output_options(parser)


def run(args: argparse.Namespace) -> None:
    collections = read_collections(args.files, args.column, args.limit, args.seed)
    size = subset_size(collections, args.size)
    from steerling_jax.attribution.sae.compare import as_json, compare
    from steerling_jax.attribution.sae.plots import plot_comparison
    from steerling_jax.cli.console import print_json, stages
    from steerling_jax.io.pictures import check_plot

    if args.plot is not None:
        check_plot(args.plot)
    bundle, autoencoders = load_model_and_autoencoders(args, None if args.layer is None else [args.layer])
    autoencoder = autoencoders[len(autoencoders) // 2]
    with stages() as progress:
        comparison = compare(bundle, autoencoder, collections, size=size, ngram=args.ngram, draws=args.draws,
                             seed=args.seed, progress=progress)  # fmt: skip
    if args.plot is not None:
        layer = "its bottleneck" if autoencoder.layer is None else f"layer {autoencoder.layer}"
        plot_comparison(comparison, args.plot, f"{bundle.name}, {layer}: subsets of {size} samples, seed {args.seed}")
    if args.json:
        settings = {"column": args.column, "limit": args.limit, "ngram": args.ngram, "seed": args.seed}
        reader = {"layer": autoencoder.layer, "latents": autoencoder.n_latents, "k": autoencoder.k}
        print_json({"model": bundle.name, "autoencoder": reader, "settings": settings} | as_json(comparison))
    else:
        show(comparison)


def read_collections(files: list[Path], column: str, limit: int | None, seed: int) -> list[Collection]:
    """The texts of each file, or `limit` random ones of them in the file's order."""
    import numpy as np

    from steerling_jax.attribution.sae.compare import Collection
    from steerling_jax.io.text_tables import read_text_table

    if len(set(files)) < len(files):
        raise UserError("A file is named twice; name each benchmark once.")
    stems = [file.stem for file in files]
    names = stems if len(set(stems)) == len(stems) else [str(file) for file in files]
    collections = []
    for number, (file, name) in enumerate(zip(files, names, strict=True)):
        texts = read_text_table(file, column).texts
        if len(texts) < 4:
            count = "one sample" if len(texts) == 1 else f"{len(texts)} samples"
            raise UserError(f"{file} has {count}, but a benchmark needs at least four, for two subsets of two.")
        if limit is not None and limit < len(texts):
            chosen = np.random.default_rng([seed, number]).choice(len(texts), limit, replace=False)
            texts = [texts[i] for i in sorted(chosen.tolist())]
        collections.append(Collection(name, texts))
    return collections


def subset_size(collections: list[Collection], requested: int | None) -> int:
    """The number of samples of the subsets that are compared; two of them must fit into every collection."""
    smallest = min(collections, key=lambda one: len(one.texts))
    most = len(smallest.texts) // 2
    size = most if requested is None else requested
    if size > most:
        raise UserError(
            f"--size is {size}, but {smallest.name} has {len(smallest.texts)} samples; give at most {most}, "
            "so that it has two subsets without a common sample."
        )
    return size


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
