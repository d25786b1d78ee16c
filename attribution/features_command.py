"""`steerling features`: features behind each token of a text, a feature's page, and features that tell texts apart."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerling_jax.cli.arguments import add_model_option, number_in_range
from steerling_jax.errors import UserError

if TYPE_CHECKING:
    from steerling_jax.autoencoders.autoencoder import Autoencoder
    from steerling_jax.bundle import Bundle
    from steerling_jax.explain.feature_contributions import FeatureContributions
    from steerling_jax.explain.feature_texts import FeatureContrast, FeaturePage

HELP = """\
Show features: those behind a text's tokens, what one is about, or those that tell texts apart.

examples:
  steerling features "The capital of France is Paris." --model ./runs/smollm2/export
  steerling features "The capital of France is" --model ./runs/smollm2/export --max-new-tokens 12
  steerling features --feature 17 --feature 204 --text texts.txt --model ./runs/smollm2/export
  steerling features --positive polite.txt --negative rude.txt --model MODEL --autoencoder ./runs/sae/export/layers.3
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add, count = parser.add_argument, number_in_range(int, 1)
    add("prompt", nargs="?", metavar="TEXT", help="a text that comes apart into features; needs a bottleneck")
    add_model_option(parser)
    add("--autoencoder", metavar="PATH", help="an autoencoder of the model's layers (default: the model's bottleneck)")
    add("--k", type=count, metavar="N", help="features of a token, where the autoencoder's files do not say it")
    add("--layer", type=number_in_range(int, 0), metavar="N", help="the block that the autoencoder reads, from 0")
    add("--max-new-tokens", type=count, metavar="N", help="continue TEXT first, greedily")
    add("--feature", type=number_in_range(int, 0), action="append", metavar="ID", help="show this feature's page")
    add("--text", metavar="FILE", help="texts, one a line, in which the page looks for passages")
    add("--positive", metavar="FILE", help="texts, one a line, in which the wanted features fire")
    add("--negative", metavar="FILE", help="texts, one a line, in which they do not")
    add("--limit", type=count, metavar="N", help="features of a token (3), passages (5) or ranked features (10) shown")
    add("--words", type=count, default=4, metavar="N", help="tokens shown of a feature (default: %(default)s)")
    add(
        "--reference",
        choices=("model", "raw"),
        default="model",
        help="split the logit minus its mean under the model, or the logit itself (default: %(default)s)",
    )
    add("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> None:
    import steerling_jax as sj
    from steerling_jax.autoencoders.bottleneck import bottleneck_of
    from steerling_jax.autoencoders.model_fit import check_fits
    from steerling_jax.cli.console import print_json

    uses = [args.prompt is not None, bool(args.feature), bool(args.positive or args.negative)]
    if sum(uses) != 1:
        raise UserError("Give one of TEXT, --feature with --text, and --positive with --negative.")
    for given, missing, name in (
        (args.feature, args.text, "--feature needs --text, a file of texts"),
        (args.positive, args.negative, "--positive needs --negative, a file of texts"),
        (args.negative, args.positive, "--negative needs --positive, a file of texts"),
    ):
        if given and not missing:
            raise UserError(f"{name}.")
    bundle = sj.load(args.model)
    if args.prompt is not None:
        if args.autoencoder is not None:
            raise UserError("TEXT comes apart into the features of a bottleneck; leave --autoencoder out.")
        parts = _contributions(bundle, args)
        return print_json(contributions_as_json(parts)) if args.json else show_contributions(parts, args.limit or 3)
    if args.autoencoder is None:
        autoencoder = bottleneck_of(bundle)
    else:
        autoencoder = sj.load_autoencoder(args.autoencoder, k=args.k, layer=args.layer)
        check_fits(autoencoder, bundle)
    if args.feature:
        pages = _pages(bundle, autoencoder, args)
        return print_json({"pages": [page_as_json(page) for page in pages]}) if args.json else show_pages(pages)
    contrast = _contrast(bundle, autoencoder, args)
    return print_json({"features": contrast_as_json(contrast)}) if args.json else show_contrast(contrast)


def _contributions(bundle: Bundle, args: argparse.Namespace) -> FeatureContributions:
    import steerling_jax as sj

    text: Any = args.prompt
    if args.max_new_tokens:
        config = sj.GenerationConfig(max_new_tokens=args.max_new_tokens, temperature=0.0)
        text = sj.generate(bundle, text, config).tokens
    return sj.feature_contributions(bundle, text, reference=args.reference, words=args.words)


def _pages(bundle: Bundle, autoencoder: Autoencoder, args: argparse.Namespace) -> list[FeaturePage]:
    from steerling_jax.cli.console import stages
    from steerling_jax.explain.feature_texts import feature_pages

    with stages() as progress:
        return feature_pages(bundle, autoencoder, args.feature, _lines(args.text), passages=args.limit or 5,
                             words=max(args.words, 8), progress=progress)  # fmt: skip


def _contrast(bundle: Bundle, autoencoder: Autoencoder, args: argparse.Namespace) -> FeatureContrast:
    from steerling_jax.cli.console import stages
    from steerling_jax.explain.feature_texts import contrast_features

    with stages() as progress:
        return contrast_features(bundle, autoencoder, _lines(args.positive), _lines(args.negative),
                                 count=args.limit or 10, words=args.words, progress=progress)  # fmt: skip


def _lines(path: str) -> list[str]:
    """The texts of a file, one a line, without empty lines."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}; give a file with a text in each line.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; give a file with a text in each line.") from error
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise UserError(f"{path} has no texts; write one in each line.")
    return texts


def contributions_as_json(parts: FeatureContributions) -> dict[str, Any]:
    """All parts: for each token its logit, its bias, and every feature with its latent and contribution."""
    tokens = []
    for i in range(len(parts)):
        order = (-parts.contributions[i]).argsort(kind="stable")
        features = [
            {"feature": parts.features[i, j], "value": parts.values[i, j], "contribution": parts.contributions[i, j]}
            for j in order
            if parts.values[i, j] > 0
        ]
        tokens.append(
            {
                "position": parts.positions[i],
                "token_id": parts.token_ids[i],
                "token": parts.pieces[i],
                "probability": parts.probabilities[i],
                "logit": parts.logits[i],
                "reference_logit": parts.reference_logits[i],
                "bias": parts.bias[i],
                "error": parts.error[i],
                "features": features,
            }
        )
    return {"reference": parts.reference, "tokens": tokens, "promoted": dict(parts.promoted)}


def page_as_json(page: FeaturePage) -> dict[str, Any]:
    """A page, with each passage as a list of tokens and latents."""
    passages = [
        {
            "text": one.text,
            "value": one.value,
            "at": one.at,
            "tokens": [{"token": piece, "value": value} for piece, value in one.pieces],
        }
        for one in page.passages
    ]
    names = ("feature", "density", "mean", "largest", "promoted", "suppressed")
    return {name: getattr(page, name) for name in names} | {"passages": passages}


def contrast_as_json(contrast: FeatureContrast) -> list[dict[str, Any]]:
    """A value for each ranked feature."""
    return [
        {
            "feature": contrast.features[i],
            "difference": contrast.difference[i],
            "positive": contrast.positive[i],
            "negative": contrast.negative[i],
            "strength": contrast.strength[i],
            "promoted": contrast.promoted[i],
        }
        for i in range(len(contrast.features))
    ]


def show_contributions(parts: FeatureContributions, limit: int) -> None:
    """Prints a table with a row for each token."""
    from rich.text import Text

    from steerling_jax.cli.console import stdout

    table = _table("token", ("p", "logit", "bias"), "features that raise it, with the words that each promotes")
    for i in range(len(parts)):
        shown = [
            f"{part:+.1f} #{feature} {_words(parts.promoted.get(feature, ()))}".rstrip()
            for feature, part in parts.strongest(i, limit)
        ]
        numbers = (f"{parts.probabilities[i]:.2f}", f"{parts.logits[i]:.1f}", f"{parts.bias[i]:+.1f}")
        table.add_row(Text(parts.pieces[i]), *numbers, Text("\n".join(shown)))
    stdout().print(table)
    k, worst = parts.features.shape[1], float(parts.error.max())
    stdout().print(f"Each logit is the sum of its bias and at most {k} features; largest error {worst:.1e}.")


def show_pages(pages: list[FeaturePage]) -> None:
    """Prints a page for each feature."""
    from rich.text import Text

    from steerling_jax.cli.console import stdout

    for page in pages:
        stdout().print(
            f"#{page.feature}: density {page.density:.2%} of the tokens, latent {page.mean:.2f} on average and "
            f"{page.largest:.2f} at most"
        )
        stdout().print(Text(f"  promotes    {_words(page.promoted)}\n  suppresses  {_words(page.suppressed)}"))
        for passage in page.passages:
            text = Text(f"  {passage.value:6.2f}  ")
            for place, (piece, value) in enumerate(passage.pieces):
                style = "bold reverse" if place == passage.at else "bold" if value > 0 else ""
                text.append(piece.replace("\n", "↵"), style)
            stdout().print(text)


def show_contrast(contrast: FeatureContrast) -> None:
    """Prints a table with a row for each feature."""
    from rich.text import Text

    from steerling_jax.cli.console import stdout

    table = _table("feature", ("difference", "positive", "negative", "strength"), "promotes")
    for i, feature in enumerate(contrast.features):
        shares = (contrast.difference[i], contrast.positive[i], contrast.negative[i])
        numbers = (*(f"{share:.2f}" for share in shares), f"{contrast.strength[i]:.2f}")
        table.add_row(f"#{feature}", *numbers, Text(_words(contrast.promoted[i])))
    stdout().print(table)


def _table(first: str, numbers: tuple[str, ...], last: str) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column(first)
    for title in numbers:
        table.add_column(title, justify="right")
    table.add_column(last)
    return table


def _words(pieces: tuple[str, ...]) -> str:
    return " ".join(piece.strip() for piece in pieces)
