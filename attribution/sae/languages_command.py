"""`steerling sae languages`: the features that are most active in one language, from parallel texts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerling_jax.attribution.sae.options import add_layer_option, add_reading_options, load_model_and_autoencoders
from steerling_jax.cli.arguments import number_in_range
from steerling_jax.errors import UserError

if TYPE_CHECKING:
    from steerling_jax.autoencoders.language_features import LanguageFeature, LanguageFeatures

HELP = """\
Find the features that are most active in one language, from texts that say the same in several languages.

FILE is .csv, .tsv, .jsonl or .ndjson with a column of texts and one of languages. --save writes the features for
instruction tuning that keeps a model from changing the language (docs/guide/language-tuning.md).

examples:
  steerling sae languages parallel.csv --model ./model --autoencoder ./runs/sae/export --layer 26 --layer 27
  steerling sae languages parallel.csv --model ./model --autoencoder ./runs/sae/export --language ko --language zh
  steerling sae languages parallel.csv --model ./model --autoencoder ./runs/sae/export --save languages.json --json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add, count = parser.add_argument, number_in_range(int, 1)
    add("file", type=Path, metavar="FILE", help="parallel texts with their languages")
    add_reading_options(parser)
    add_layer_option(parser, several=True)
    add("--text-column", default="text", metavar="NAME", help="the column of the texts (default: %(default)s)")
    add("--language-column", default="language", metavar="NAME",
        help="the column of the languages (default: %(default)s)")  # fmt: skip
    add("--language", action="append", metavar="NAME", help="use this language; can be repeated (default: all in FILE)")
    add("--count", type=count, default=2, metavar="K",
        help="features of each language and layer (default: %(default)s)")  # fmt: skip
    add(
        "--save", type=Path, metavar="FILE", help="write the features, with as many random ones, for instruction tuning"
    )
    add("--seed", type=number_in_range(int, 0), default=0, metavar="N",
        help="seed of the random features (default: %(default)s)")  # fmt: skip
    add("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> None:
    from steerling_jax.cli.console import note, print_json, stages
    from steerling_jax.explain.language_features import find_language_features
    from steerling_jax.io.atomic import resolve_output
    from steerling_jax.io.language_features_file import write_language_features

    if args.autoencoder is None:
        raise UserError("Features of languages are read from outputs of blocks; name autoencoders with --autoencoder.")
    if args.save is not None:
        resolve_output(args.save)
    texts, languages = _texts(args)
    bundle, autoencoders = load_model_and_autoencoders(args)
    with stages() as progress:
        found = find_language_features(
            bundle, autoencoders, texts, languages, count=args.count, seed=args.seed, progress=progress
        )
    if args.save is not None:
        write_language_features(args.save, found, bundle.name)
        note(f"Wrote {args.save}; docs/guide/language-tuning.md says how to tune with it.")
    if args.json:
        settings = {
            "count": args.count,
            "seed": args.seed,
            "texts": {name: languages.count(name) for name in found.languages},
        }
        print_json({"model": bundle.name, "settings": settings} | as_json(found))
    else:
        show(found)


def as_json(found: LanguageFeatures) -> dict[str, Any]:
    """The features for JSON, without their encoder columns."""
    names = found.languages

    def rows(features: Sequence[LanguageFeature]) -> list[dict[str, Any]]:
        return [
            {
                "language": names[one.language],
                "layer": one.layer,
                "feature": one.feature,
                "monolinguality": one.monolinguality,
                "mean_pre_activations": dict(zip(names, one.means.tolist(), strict=True)),
            }
            for one in features
        ]

    return {
        "autoencoders": [one._asdict() for one in found.autoencoders],
        "languages": {name: sorted(own) for name, own in zip(names, found.scripts, strict=True)},
        "monolingual": rows(found.monolingual),
        "random": rows(found.random),
    }


def show(found: LanguageFeatures) -> None:
    """Prints a row for each feature."""
    from rich.table import Table

    from steerling_jax.cli.console import stdout

    table = Table(title="mean pre-activations by language", title_justify="left", box=None, pad_edge=False)
    table.add_column("language")
    for name in ("layer", "feature", "monolinguality", *found.languages):
        table.add_column(name, justify="right")
    for one in sorted(found.monolingual, key=lambda one: (one.language, one.layer, -one.monolinguality)):
        means = (f"{value:.2f}" for value in one.means.tolist())
        table.add_row(
            found.languages[one.language], str(one.layer), str(one.feature), f"{one.monolinguality:.3f}", *means
        )
    stdout().print(table)


def _texts(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """(texts, languages) of the file, of those that --language names."""
    from steerling_jax.io.text_tables import read_text_table

    table = read_text_table(args.file, args.text_column, [args.language_column])
    languages = table.columns[args.language_column]
    chosen = args.language or sorted(set(languages))
    for name in chosen:
        if name not in languages:
            raise UserError(
                f"{args.file} has no text in the language {name!r}; its languages are "
                f"{', '.join(sorted(set(languages))[:12])}."
            )
    if len(set(chosen)) < 2:
        raise UserError(
            f"Features are compared between languages, but only {chosen[0]!r} of {args.file} is used; give texts in at "
            "least two languages."
        )
    rows = [i for i, language in enumerate(languages) if language in chosen]
    return [table.texts[i] for i in rows], [languages[i] for i in rows]
