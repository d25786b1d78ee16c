"""The steering evaluation's figures: means with intervals, tables for a terminal, one flat table for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text as Styled

from steerling_jax.evaluation.intervals import Estimate, bootstrap_mean
from steerling_jax.infer.steer_eval.jobs import (
    AGAIN,
    AMPLIFY,
    CONCEPT,
    DESCRIBED,
    NOTHING,
    RANDOM,
    SUPPRESS,
    SUPPRESSED,
    WORDS,
    Condition,
)
from steerling_jax.infer.steer_eval.measure import FIGURES, Text

_COLUMNS = {
    AMPLIFY: ("lifted_gain", "found", "score_gain", "own_change", "others_change", "nats_per_token", "repeated_3"),
    SUPPRESS: ("lifted_gain", "found", "still_found", "own_change", "others_change", "nats_per_token", "repeated_3"),
}
_HEADINGS = {
    "lifted_gain": "lifted\ngain",
    "score_gain": "score\ngain",
    "still_found": "still\nfound",
    "own_change": "own\nchange",
    "others_change": "others\nchange",
    "nats_per_token": "nats a\ntoken",
    "repeated_3": "3-grams\nrepeated",
}
_ORDER = (NOTHING, AGAIN, DESCRIBED, WORDS, CONCEPT, SUPPRESSED, RANDOM)


class ReportRow(NamedTuple):
    """One figure under one condition; concept is None for the mean of all concepts."""

    condition: Condition
    concept: int | None
    figure: str
    estimate: Estimate


def summarise(texts: Sequence[Text], seed: int) -> list[ReportRow]:
    """Every figure under every condition, over all concepts and for each, intervals by bootstrap over prompts."""
    values: dict[tuple[Condition, str], dict[int, list[float]]] = {}
    for text in texts:
        for figure, value in text.figures.items():
            by_concept = values.setdefault((text.job.condition, figure), {})
            by_concept.setdefault(text.job.concept, []).append(value)
    key, rows = jax.random.key(seed), []
    for (condition, figure), by_concept in values.items():
        groups = {concept: np.array(found) for concept, found in by_concept.items()}
        for concept in (None, *groups):
            estimate = bootstrap_mean(list(groups.values()) if concept is None else [groups[concept]], key)
            if estimate is not None:
                rows.append(ReportRow(condition, concept, figure, estimate))
    return sorted(rows, key=lambda row: (row.condition.arm, *_place(row.condition)))


def _place(condition: Condition) -> tuple[int, float]:
    return _ORDER.index(condition.name), condition.strength or 0.0


def flat(rows: Sequence[ReportRow], names: Mapping[int, str]) -> Iterator[dict[str, Any]]:
    """Rows for JSON and CSV; concept is empty for all of them together. names: of the concepts, by id."""
    for (arm, name, strength), concept, figure, estimate in rows:
        label = "" if concept is None else names[concept]
        head = {"arm": arm, "condition": name, "strength": strength, "concept": label, "figure": figure}
        yield head | {"mean": estimate.mean, "low": estimate.low, "high": estimate.high, "texts": estimate.values}


def overall(rows: Sequence[ReportRow]) -> dict[Condition, dict[str, Estimate]]:
    """Figures of all concepts together, by condition in the tables' order."""
    found: dict[Condition, dict[str, Estimate]] = {}
    for row in rows:
        if row.concept is None:
            found.setdefault(row.condition, {})[row.figure] = row.estimate
    return found


def render(rows: Sequence[ReportRow], names: Mapping[int, str]) -> RenderableType:
    """A table for each arm, then the share found for each concept, then what the columns say."""
    shown = [f for f in FIGURES if any(f in columns for columns in _COLUMNS.values())]
    legend = "\n".join(f"{_HEADINGS.get(f, f).replace(chr(10), ' ')}: {FIGURES[f]}" for f in shown)
    return Group(
        _arm(rows, AMPLIFY, "Amplify: prompts without the concept"),
        "",
        _arm(rows, SUPPRESS, "Suppress: prompts with the concept"),
        "",
        _concepts(rows, names),
        "",
        Styled(legend, style="dim"),
    )


def _arm(rows: Sequence[ReportRow], arm: str, title: str) -> Table:
    table = _table(title, "", *(_HEADINGS.get(figure, figure) for figure in _COLUMNS[arm]))
    for condition, figures in overall(rows).items():
        if condition.arm == arm:
            cells = (_cell(figures.get(figure)) for figure in _COLUMNS[arm])
            table.add_row(_label(condition), *cells)
    return table


def _concepts(rows: Sequence[ReportRow], names: Mapping[int, str]) -> Table:
    """Share found, a row a concept; of the strengths the one at which most is found over all, in the random column
    too."""
    found = {(row.condition, row.concept): row.estimate.mean for row in rows if row.figure == "found"}
    amplified = [c for c, concept in found if c.name == CONCEPT and concept is None]
    best = max(amplified, key=lambda c: found[c, None]).strength
    conditions = [Condition(AMPLIFY, name) for name in (NOTHING, WORDS)]
    conditions += [Condition(AMPLIFY, name, best) for name in (CONCEPT, RANDOM)]
    conditions += [Condition(SUPPRESS, name) for name in (NOTHING, SUPPRESSED)]
    heads = ("nothing", "words", f"concept\nat {best:g}", f"random\nat {best:g}", "had it:\nnothing", "sup-\npressed")
    table = _table("Found, by concept", "", *heads)
    for concept, name in names.items():
        cells = (found.get((condition, concept)) for condition in conditions)
        table.add_row(name, *("" if value is None else f"{value:.2f}" for value in cells))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(*columns, title=title, title_justify="left", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _label(condition: Condition) -> str:
    return condition.name if condition.strength is None else f"{condition.name} at {condition.strength:g}"


def _cell(estimate: Estimate | None) -> Styled:
    """The mean, and under it half the width of its interval."""
    if estimate is None:
        return Styled("")
    half = (estimate.high - estimate.low) / 2
    return Styled.assemble(f"{estimate.mean:.2f}", "\n", (f"±{half:.2f}", "dim"))
