"""`steerling concepts`: a model's concepts, or features of an autoencoder, and the tokens that each one promotes."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from steerling_jax.cli.arguments import add_model_option, number_in_range
from steerling_jax.errors import UserError

if TYPE_CHECKING:
    from steerling_jax.concepts.concept import Concept

HELP = """\
Find a model's concepts by name, with the tokens that each one promotes.

examples:
  steerling concepts "regular expressions"
  steerling concepts group:syntax --limit 50
  steerling concepts --head discovered --limit 5 --tokens 12
  steerling concepts email --json
  steerling concepts rivers --model MODEL --autoencoder ./runs/sae/export/layers.3
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "query",
        nargs="?",
        default="",
        metavar="QUERY",
        help="words of a name or description, an id, or group:NAME (default: all concepts)",
    )
    add_model_option(parser)
    add("--head", choices=("known", "discovered", "feature"), help="default: known; with --autoencoder, feature")
    add("--autoencoder", metavar="PATH", help="an autoencoder of one of the model's blocks, whose features are listed")
    add(
        "--limit",
        type=number_in_range(int, 1),
        default=20,
        metavar="N",
        help="number of concepts shown (default: %(default)s)",
    )
    add(
        "--tokens",
        type=number_in_range(int, 0),
        default=8,
        metavar="N",
        help="number of promoted tokens of each (default: %(default)s)",
    )
    add("--catalogue", metavar="FILE", help="concept names to use in place of the model's (JSON or Parquet)")
    add("--json", action="store_true", help="print the concepts as JSON")


def run(args: argparse.Namespace) -> None:
    import steerling_jax as sj
    from steerling_jax.cli.console import note, print_json
    from steerling_jax.cli.steering_options import with_catalogue
    from steerling_jax.explain.feature_texts import promoted_tokens_of
    from steerling_jax.explain.promoted_tokens import promoted_pieces

    head = args.head or ("known" if args.autoencoder is None else "feature")
    if head == "feature" and args.autoencoder is None:
        raise UserError("--head feature needs --autoencoder, whose features are listed; give its path.")
    bundle = with_catalogue(sj.load(args.model), args.catalogue)
    autoencoder = None if args.autoencoder is None else sj.load_autoencoder(args.autoencoder)
    catalogue = (bundle if autoencoder is None else sj.with_features(bundle, autoencoder)).concepts
    if not catalogue.count(head):
        raise UserError(f"This model has no {head} concepts.")
    matches = catalogue.find(args.query, head)
    shown = matches[: args.limit]
    ids = [one.id for one in shown]
    if head != "feature":
        pieces = promoted_pieces(bundle, ids, args.tokens, head)
    elif args.tokens and autoencoder is not None:
        pieces = promoted_tokens_of(bundle, autoencoder, ids, args.tokens)
    else:
        pieces = [[] for _ in ids]
    if args.json:
        print_json([dataclasses.asdict(one) | {"promotes": row} for one, row in zip(shown, pieces, strict=True)])
        return
    if not matches:
        near = ", ".join(repr(name) for name in catalogue.near(args.query, head))
        hint = f"similar names are {near}" if near else "without a query, all are listed"
        if head == "known" and (others := catalogue.find(args.query, "discovered")):
            hint = f"--head discovered has {len(others)}, such as {others[0].name!r}"
        kind = "feature" if head == "feature" else f"{head} concept"
        raise UserError(f"No {kind} has {args.query!r} in its name or description; {hint}.")
    show(shown, pieces)
    if len(matches) > len(shown):
        note(f"{len(shown)} of {len(matches)}; --limit shows more.")


def show(concepts: list[Concept], pieces: list[list[str]]) -> None:
    """Prints a table of concepts with the tokens that they promote."""
    from rich.table import Table
    from rich.text import Text

    from steerling_jax.cli.console import stdout

    table = Table(box=None, pad_edge=False)
    table.add_column("id", justify="right")
    for title in ("name", "group", "description", "promotes"):
        table.add_column(title)
    for one, row in zip(concepts, pieces, strict=True):
        flags = f" [{', '.join(one.flags)}]" if one.flags else ""
        promoted = " ".join(piece.strip() for piece in row)
        table.add_row(*map(Text, (str(one.id), one.name, one.group, _about(one) + flags, promoted)))
    stdout().print(table)


def _about(concept: Concept) -> str:
    """The description; of a name that was found in texts, how well it says where the concept is active."""
    if concept.description or concept.quality is None:
        return concept.description
    quality = concept.quality
    others = "" if quality.others is None else f", other names {quality.others:.2f}"
    return f"AUC {quality.auc:.2f}{others}"
