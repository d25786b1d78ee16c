"""What `steerling features` shows in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steerling_jax.concepts.concept import Concept
    from steerling_jax.explain.feature_contributions import FeatureContributions
    from steerling_jax.explain.feature_texts import FeatureContrast
    from steerling_jax.explain.features.activation import FeatureOnText
    from steerling_jax.explain.features.pages import FeaturePage
    from steerling_jax.explain.features.repetition import RepetitionFeatures
    from steerling_jax.explain.features.search import FeatureHit


def show_contributions(parts: FeatureContributions, limit: int) -> None:
    """Prints a table with a row for each token."""
    from rich.text import Text

    from steerling_jax.cli.console import stdout

    rest = ("residual",) if parts.residual.any() else ()
    table = _table("token", ("p", "logit", "bias", *rest), "features that raise it, with the words that each promotes")
    for i in range(len(parts)):
        shown = [
            f"{part:+.1f} #{feature} {_words(parts.promoted.get(feature, ()))}".rstrip()
            for feature, part in parts.strongest(i, limit)
        ]
        numbers = (f"{parts.probabilities[i]:.2f}", f"{parts.logits[i]:.1f}", f"{parts.bias[i]:+.1f}")
        numbers += (f"{parts.residual[i]:+.1f}",) if rest else ()
        table.add_row(Text(parts.pieces[i]), *numbers, Text("\n".join(shown)))
    stdout().print(table)
    k, worst = parts.features.shape[1], float(parts.error.max())
    also = ", and what the autoencoder leaves over (residual)" if rest else ""
    stdout().print(f"Each logit is the sum of its bias and at most {k} features{also}; largest error {worst:.1e}.")


def show_pages(pages: list[FeaturePage], places: Sequence[str]) -> None:
    """Prints a page for each feature. places: where each text is from."""
    from rich.text import Text

    from steerling_jax.cli.console import stdout

    for page in pages:
        stdout().print(
            f"#{page.feature}: density {page.density:.2%} of the tokens, latent {page.mean:.2f} on average and "
            f"{page.largest:.2f} at most"
        )
        stdout().print(Text(f"  {about(page.entry)}"))
        near = "  ".join(f"#{feature} {cosine:.2f}" for feature, cosine in page.nearest)
        stdout().print(
            Text(
                f"  promotes    {_words(page.promoted)}\n  suppresses  {_words(page.suppressed)}\n  nearest     {near}"
            )
        )
        for passage in page.passages:
            text = Text(f"  {passage.value:6.2f}  ")
            for place, (piece, value) in enumerate(passage.pieces):
                style = "bold reverse" if place == passage.at else "bold" if value > 0 else ""
                text.append(piece.replace("\n", "↵"), style)
            text.append(f"  {places[passage.text]}", "dim")
            stdout().print(text)


def about(entry: Concept) -> str:
    """The name of a feature with its quality, or what is known in its place."""
    if entry.quality is None:
        return "has no name, because it is active in too few of the passages"
    others = "" if entry.quality.others is None else f", those of other features {entry.quality.others:.2f}"
    said = f"“{entry.name}”" if entry.is_named else f"has no name; its words are “{' · '.join(entry.words)}”"
    return f"{said} (AUC {entry.quality.auc:.2f} on held-out passages{others})"


def show_activation(found: FeatureOnText, limit: int) -> None:
    """Prints the text with the tokens at which the feature is kept, and the tokens that the strongest came from."""
    from rich.text import Text

    from steerling_jax.cli.console import stdout

    text = Text()
    for at, (piece, value) in enumerate(zip(found.pieces, found.values, strict=True)):
        style = "bold reverse" if at == found.at else "bold" if value > 0 else ""
        text.append(piece.replace("\n", "↵"), style)
    stdout().print(text)
    if found.at is None:
        stdout().print(f"#{found.feature} is kept at no token of the text but its last.")
        return
    place = f"token {found.at}, {found.pieces[found.at]!r}"
    stdout().print(
        f"#{found.feature} is strongest at {place}: latent {found.values[found.at]:.2f}. Its pre-activation of "
        f"{found.pre_activation:.2f}, {found.baseline:.2f} without the text, came from:"
    )
    table = _table("token", ("part",), "")
    order = sorted(range(len(found.scores)), key=lambda i: -abs(found.scores[i]))
    for i in order[:limit]:
        table.add_row(Text(found.pieces[i]), f"{found.scores[i]:+.2f}", f"token {i}")
    stdout().print(table)
    stdout().print(f"The parts add up to the difference with an error of {found.error:.1e}.")


def show_counts(counts: dict[str, Any]) -> None:
    """Prints what a catalogue of features contains."""
    from steerling_jax.cli.console import note

    auc, others = counts["mean_auc"], counts["mean_others"]
    figures = "" if auc is None else f"; mean AUC {auc:.2f}, of other names {others:.2f}"
    note(
        f"{counts['catalogue']}: of {counts['features']:,} features {counts['active']:,} are active and "
        f"{counts['named']:,} have a name{figures}."
    )


def show_hits(hits: list[FeatureHit], places: Sequence[str]) -> None:
    """Prints a table with a row for each passage."""
    from rich.text import Text

    from steerling_jax.cli.console import stdout

    table = _table("place", ("score",), "passage")
    table.add_column("features, with their part of the score")
    for hit in hits:
        shared = " ".join(f"#{feature} {share:.0%}" for feature, share in hit.features)
        passage = " ".join(hit.passage.split())
        table.add_row(Text(places[hit.text]), f"{hit.score:.3f}", Text(passage[:160]), shared)
    stdout().print(table)


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


def show_repetition(found: RepetitionFeatures) -> None:
    """Prints a table with a row for each feature."""
    from rich.text import Text

    from steerling_jax.cli.console import stdout

    table = _table("feature", ("rise", "first", "last", "largest"), "promotes")
    for i, feature in enumerate(found.features):
        numbers = (f"{value[i]:.2f}" for value in (found.rise, found.first, found.last, found.largest))
        table.add_row(f"#{feature}", *numbers, Text(_words(found.promoted[i])))
    stdout().print(table)
    stdout().print(f"mean latents over {found.pairs} repeated tokens, at their first and last occurrences")


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
