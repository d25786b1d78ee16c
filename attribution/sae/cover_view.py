"""The tables of `steerling sae cover` in the terminal, from its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from steerling_jax.cli.console import stdout


def show(report: Mapping[str, Any], words: int) -> None:
    """Prints the targets with their coverage, and what a generator added. words: promoted tokens of a target."""
    least, every = report["least"], report["all_features"]
    needed = "" if least == 1 else f" in at least {least}"
    _print(
        f"{report['texts']} texts cover {report['covered']} of {len(report['targets'])} targets{needed}; "
        f"of all {every['features']} features {every['fired']} fire in any text."
    )
    table = _table("feature", "score", "texts", "share", "largest", right=range(1, 5))
    table.add_column("name, promotes", overflow="fold")
    for one in report["targets"]:
        score = "" if one["score"] is None else f"{one['score']:.2f}"
        texts = str(one["texts"]) if one["covered"] else f"[red]{one['texts']} missed[/red]"
        said = _escaped(": ".join(filter(None, (one["name"], _joined(one["promoted"], words)))))
        table.add_row(str(one["feature"]), score, texts, f"{one['share']:.3f}", f"{one['largest']:.2f}", said)
    stdout().print(table)
    if "synthesis" in report:
        _show_synthesis(report["synthesis"])


def _show_synthesis(figures: Mapping[str, Any]) -> None:
    features, calls = figures["features"], figures["calls"]
    if not features:
        _print("\nNothing is missed, so the generator was not asked.")
        return
    _print(f"\n{calls} calls of {figures['budget']} gave {figures['kept']} examples, which cover "
           f"{figures['covered']} of {len(features)} missed targets.")  # fmt: skip
    table = _table("feature", "needed", "calls", "hits", "examples", right=range(5))
    table.add_column("name", overflow="fold")
    for one in features:
        cells = (str(one[field]) for field in ("feature", "needed", "calls", "hits", "kept"))
        table.add_row(*cells, _escaped(one["name"] or ""))
    stdout().print(table)
    _print(f"\nMissed targets that fire in any of {calls} texts, and the difference of the shares (95 %):")
    table = _table("texts", "fire", "targets minus these", "outcomes", right=range(1, 3))
    for arm, own in figures["arms"].items():
        outcomes = ", ".join(f"{number} {name}" for name, number in own["outcomes"].items())
        table.add_row(arm, str(own["covered"]), _difference(figures["differences"].get(arm)), outcomes)
    if (natural := figures.get("natural")) is not None:
        spread = f"{natural['covered']:.1f} ({natural['low']:.0f}–{natural['high']:.0f})"
        outcomes = f"{natural['in_pool']} in all {natural['texts']}"
        table.add_row("natural texts", spread, _difference(figures["differences"]["natural texts"]), outcomes)
    stdout().print(table)


def _difference(one: Mapping[str, float] | None) -> str:
    return "" if one is None else f"{one['mean']:+.2f} ({one['low']:+.2f} to {one['high']:+.2f})"


def _table(*columns: str, right: Sequence[int]) -> Table:
    table = Table(box=None, pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number in right else "left")
    return table


def _joined(tokens: Sequence[str], words: int) -> str:
    return " ".join(token.strip() for token in tokens[:words] if token.strip())


def _print(text: str) -> None:
    stdout().print(text, markup=False, soft_wrap=True)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
