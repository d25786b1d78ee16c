"""Pages of features as one HTML file without script, which loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from steerling_jax.attribution.features.terminal import about

if TYPE_CHECKING:
    from steerling_jax.explain.features.pages import FeaturePage, Passage

_STYLE = """
:root { color-scheme: light dark; --strong: 40, 110, 220; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
section { border-top: 1px solid #8888; padding-top: 1rem; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem 0; }
.passage { white-space: pre-wrap; overflow-wrap: anywhere; margin: .5rem 0; }
.passage b { outline: 1px solid rgb(var(--strong)); font-weight: inherit; }
small { opacity: .7; } svg { max-width: 100%; } rect { fill: rgb(var(--strong)); }
"""
_WIDTH, _HEIGHT = 360, 80  # of a histogram, in CSS pixels


def make_page(pages: Sequence[FeaturePage], places: Sequence[str], title: str) -> str:
    """The page of some features. places: where each text is from."""
    index = " ".join(f'<a href="#f{page.feature}">#{page.feature}</a>' for page in pages)
    sections = "\n".join(_section(page, places) for page in pages)
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1><nav>{index}</nav>\n{sections}\n</body></html>\n"
    )


def _section(page: FeaturePage, places: Sequence[str]) -> str:
    near = ", ".join(f"#{feature} (cosine {cosine:.2f})" for feature, cosine in page.nearest)
    facts = {
        "Active": f"at {page.density:.3%} of {page.tokens:,} tokens; latent {page.mean:.3g} on average, at most "
        f"{page.largest:.3g}",
        "Promotes": _tokens(page.promoted, page.promoted_logits),
        "Suppresses": _tokens(page.suppressed, page.suppressed_logits),
        "Nearest features": near,
        "Latents, where it is active": _histogram(page.latents),
    }
    listed = "".join(
        f"<dt>{name}</dt><dd>{value if value.startswith('<') else escape(value)}</dd>" for name, value in facts.items()
    )
    passages = "".join(_passage(one, page.largest, places[one.text]) for one in page.passages)
    return (
        f'<section id="f{page.feature}"><h2>Feature {page.feature}</h2><p>{escape(about(page.entry))}</p>'
        f"<dl>{listed}</dl><h3>Strongest passages</h3>{passages or '<p>It is active at no token.</p>'}</section>"
    )


def _tokens(pieces: Sequence[str], logits: Sequence[float]) -> str:
    return ", ".join(f"“{piece.strip()}” {logit:+.2f}" for piece, logit in zip(pieces, logits, strict=True))


def _passage(passage: Passage, largest: float, place: str) -> str:
    spans = []
    for at, (piece, value) in enumerate(passage.pieces):
        text = escape(piece)
        if value > 0:
            share = min(1.0, value / max(largest, 1e-12))
            colour = f"rgba(var(--strong), {0.1 + 0.6 * share:.2f})"
            text = f'<span style="background: {colour}" title="{value:.3g}">{text}</span>'
        spans.append(f"<b>{text}</b>" if at == passage.at else text)
    return f'<p class="passage">{"".join(spans)} <small>{passage.value:.3g}, {escape(place)}</small></p>'


def _histogram(bars: Sequence[tuple[float, int]]) -> str:
    """Bars of a histogram as SVG, with the range below them."""
    if not bars:
        return "none"
    most, width = max(count for _, count in bars), _WIDTH / len(bars)
    drawn = "".join(
        f'<rect x="{i * width:.1f}" y="{_HEIGHT - _HEIGHT * count / most:.1f}" width="{max(width - 1, 0.5):.1f}" '
        f'height="{_HEIGHT * count / most:.1f}"><title>{middle:.3g}: {count}</title></rect>'
        for i, (middle, count) in enumerate(bars)
    )
    about = f"from {bars[0][0]:.3g} to {bars[-1][0]:.3g}, at most {most} tokens a bar"
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="Histogram of latents, {about}">{drawn}</svg><br><small>{about}</small>'
    )
