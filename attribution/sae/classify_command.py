"""`steerling sae classify`: texts classified by the features that fire in them, beside controls."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerling_jax.attribution.sae.options import (
    add_layer_option,
    add_output_options,
    add_reading_options,
    add_stage_options,
    check_stage_options,
    load_model_and_autoencoders,
)
from steerling_jax.cli.arguments import number_in_range
from steerling_jax.errors import UserError

if TYPE_CHECKING:
    from steerling_jax.attribution.sae.classify import Classification
    from steerling_jax.attribution.sae.labelled_texts import LabelledTexts

HELP = """\
Classify texts by the features that fire more often in one class, beside probes, word counts and random features.

FILE is .csv, .tsv, .jsonl or .ndjson with a column of texts and one of labels; each label in turn is the positive
class, or the one of --positive. docs/guide/classifying-texts.md describes the methods, and what --save writes.

examples:
  steerling sae classify texts.csv --autoencoder ./runs/sae_pydocs/export
  steerling sae classify texts.csv --autoencoder ./runs/sae_pydocs/export --positive code --save code.json
  steerling sae classify texts.jsonl --label-column toxic --positive true --group language --json > figures.json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add, count = parser.add_argument, number_in_range(int, 1)
    add("file", metavar="FILE", help="texts with labels, a file or a quoted pattern of files")
    add_reading_options(parser)
    add_layer_option(parser, several=True)
    add("--text-column", default="text", metavar="NAME", help="the column of the texts (default: %(default)s)")
    add("--label-column", default="label", metavar="NAME", help="the column of the labels (default: %(default)s)")
    add("--positive", metavar="LABEL", help="the positive class (default: each label in turn)")
    add("--group", metavar="NAME",
        help="a column, such as the language: features of each group are also tested on all others")  # fmt: skip
    add("--test", metavar="FILE", help="texts to test on (default: a random part of FILE)")
    add("--share", type=number_in_range(float, 0.05, 0.95), default=0.5, metavar="X",
        help="share of FILE on which features are found, without --test (default: %(default)s)")  # fmt: skip
    add("--limit", type=count, metavar="N", help="use N random texts of each label and group (default: all)")
    add("--count", type=count, default=5, metavar="K",
        help="features of the saved classifier and of --group (default: %(default)s)")  # fmt: skip
    add("--save", type=Path, metavar="FILE", help="write the classifier of --positive, for `steerling serve`")
    add_stage_options(parser)
    add_output_options(parser)


def run(args: argparse.Namespace) -> None:
    check_stage_options(args)
    if args.save is not None and args.positive is None:
        raise UserError("--save writes a classifier of one class; name it with --positive.")
    if args.save is not None and (args.autoencoder is None or not Path(args.autoencoder).expanduser().exists()):
        raise UserError("--save needs --autoencoder, a local file or folder, which the classifier's file then names.")
    from steerling_jax.attribution.sae.classify import as_json, classify
    from steerling_jax.attribution.sae.labelled_texts import read_labelled_texts
    from steerling_jax.attribution.sae.plots import plot_scores
    from steerling_jax.attribution.sae.stages_of_commands import labelled_features
    from steerling_jax.cli.console import note, print_json, stages
    from steerling_jax.io.atomic import resolve_output
    from steerling_jax.io.pictures import check_plot

    if args.plot is not None:
        check_plot(args.plot)
    if args.save is not None:
        resolve_output(args.save)
    labelled = read_labelled_texts(args)
    bundle, autoencoders = load_model_and_autoencoders(args)
    with stages() as progress:
        layers = labelled_features(args, labelled, (bundle, autoencoders), progress)
        result = classify(layers, autoencoders, labelled, count=args.count, seed=args.seed, progress=progress)
    if args.save is not None:
        save(args, bundle, autoencoders, result)
        note(f"Wrote {args.save}; apply it with `steerling serve --classifier {args.save}`.")
    if args.plot is not None:
        scores = {one.label: {title(m.name, m.features): m.scores.f1 for m in one.methods} for one in result.classes}
        plot_scores(scores, args.plot, f"{bundle.name}: {len(labelled.test)} texts, seed {args.seed}")
    if args.json:
        print_json({"model": bundle.name, "settings": _settings(args, labelled)} | as_json(result, autoencoders))
    else:
        show(result, labelled)


def save(args: argparse.Namespace, bundle: Any, autoencoders: Sequence[Any], result: Classification) -> None:
    """Writes the classifier with the features of the best layer."""
    from steerling_jax.explain.feature_classifier import DecidingFeature, FeatureClassifier
    from steerling_jax.io.classifier_file import write_classifier
    from steerling_jax.models.steerling.fingerprint import fingerprint

    (one,) = result.classes
    rule = one.rule
    features = tuple(
        DecidingFeature(autoencoders[int(layer)].layer, int(feature), float(difference))
        for layer, feature, difference in zip(rule.layers, rule.features, rule.differences, strict=True)
    )
    used = tuple(autoencoders[int(layer)] for layer in sorted(set(rule.layers.tolist())))
    classifier = FeatureClassifier(one.label, fingerprint(bundle.params, bundle.config), features, used)
    figures = {field: estimate._asdict() for field, estimate in one.saved._asdict().items()}
    write_classifier(args.save, classifier, bundle, Path(args.autoencoder), figures)


def title(name: str, count: int | None) -> str:
    """A method's name with its number of features."""
    return name if count is None else f"{name}, K = {count}"


def show(result: Classification, labelled: LabelledTexts) -> None:
    """Prints a table for each class, and one for the groups."""
    from rich.table import Table

    from steerling_jax.cli.console import stdout

    stdout().print(f"{len(labelled.train)} texts to find features on, {len(labelled.test)} to test on")
    for one in result.classes:
        table = Table(title=f"{one.label} (layer {one.layer})", title_justify="left", box=None, pad_edge=False)
        table.add_column("method", no_wrap=True)
        for name in ("texts", "F1", "95 %", "AUC", "95 %"):
            table.add_column(name, justify="right")
        for m in one.methods:
            f1, area = m.scores.f1, m.scores.auc
            cells = (f"{value.mean:.3f}" for value in (f1, area))
            spreads = (f"{value.low:.3f}–{value.high:.3f}" for value in (f1, area))
            table.add_row(
                title(m.name, m.features), str(m.train), *(text for pair in zip(cells, spreads) for text in pair)
            )
        stdout().print(table)
        if one.transfer is not None:
            table = Table(title=f"{one.label}: F1 of features of the row's group in the column's", box=None,
                          title_justify="left", pad_edge=False)  # fmt: skip
            for name in ("", *result.groups):
                table.add_column(name, justify="right" if name else "left")
            for name, row in zip(result.groups, one.transfer[0], strict=True):
                table.add_row(name, *(f"{value:.2f}" for value in row))
            stdout().print(table)


def _settings(args: argparse.Namespace, labelled: LabelledTexts) -> dict[str, Any]:
    return {
        "train": len(labelled.train),
        "test": len(labelled.test),
        "count": args.count,
        "group": args.group,
        "limit": args.limit,
        "seed": args.seed,
    }
