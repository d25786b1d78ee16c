"""The report of the steering evaluation: means with intervals, tables for a terminal, one flat table for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from steerling_jax.evaluation.intervals import Estimate, bootstrap_mean
from steerling_jax.infer.steer_eval.measure import FIGURES, MeasuredText
from steerling_jax.infer.steer_eval.text_specs import (
    AGAIN,
    AMPLIFY,
    CONCEPT,
    DESCRIBED,
    NOTHING,
    OWN,
    OWN_RANDOM,
    RANDOM,
    SUPPRESS,
    SUPPRESSED,
    WORDS,
    Condition,
)

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
_ORDER = (NOTHING, AGAIN, DESCRIBED, WORDS, OWN, OWN_RANDOM, CONCEPT, SUPPRESSED, RANDOM)


class ReportRow(NamedTuple):
    """One figure under one condition. concept: None for the mean over all concepts."""

    condition: Condition
    concept: int | None
    figure: str
    estimate: Estimate


def summarise(texts: Sequence[MeasuredText], seed: int) -> list[ReportRow]:
    """Every figure under every condition, for each concept and over all, with intervals by bootstrap over prompts."""
    values: dict[tuple[Condition, str], dict[int, list[float]]] = {}
    for text in texts:
        for figure, value in text.figures.items():
            by_concept = values.setdefault((text.spec.condition, figure), {})
            by_concept.setdefault(text.spec.concept, []).append(value)
    key, rows = jax.random.key(seed), []
    for (condition, figure), by_concept in values.items():
        groups = {concept: np.array(samples) for concept, samples in by_concept.items()}
        for concept in (None, *groups):
            estimate = bootstrap_mean(list(groups.values()) if concept is None else [groups[concept]], key)
            if estimate is not None:
                rows.append(ReportRow(condition, concept, figure, estimate))
    return sorted(rows, key=lambda row: (row.condition.arm, *_order(row.condition)))


def _order(condition: Condition) -> tuple[int, float]:
    return _ORDER.index(condition.name), condition.strength or 0.0


def flat(rows: Sequence[ReportRow], names: Mapping[int, str]) -> Iterator[dict[str, Any]]:
    """Rows for JSON and CSV; concept is empty in the mean over all. names: by concept id."""
    for (arm, name, strength), concept, figure, estimate in rows:
        label = "" if concept is None else names[concept]
        head = {"arm": arm, "condition": name, "strength": strength, "concept": label, "figure": figure}
        yield head | {"mean": estimate.mean, "low": estimate.low, "high": estimate.high, "texts": estimate.values}


def overall(rows: Sequence[ReportRow]) -> dict[Condition, dict[str, Estimate]]:
    """Figures over all concepts, by condition, in the order of the tables."""
    figures: dict[Condition, dict[str, Estimate]] = {}
    for row in rows:
        if row.concept is None:
            figures.setdefault(row.condition, {})[row.figure] = row.estimate
    return figures


def render(rows: Sequence[ReportRow], names: Mapping[int, str]) -> RenderableType:
    """A table for each arm, one of the share found for each concept, and descriptions of the columns."""
    shown = [f for f in FIGURES if any(f in columns for columns in _COLUMNS.values())]
    legend = "\n".join(f"{_HEADINGS.get(f, f).replace(chr(10), ' ')}: {FIGURES[f]}" for f in shown)
    return Group(
        _arm_table(rows, AMPLIFY, "Amplify: prompts without the concept"),
        "",
        _arm_table(rows, SUPPRESS, "Suppress: prompts with the concept"),
        "",
        _concept_table(rows, names),
        "",
        Text(legend, style="dim"),
    )


def _arm_table(rows: Sequence[ReportRow], arm: str, title: str) -> Table:
    table = _table(title, "", *(_HEADINGS.get(figure, figure) for figure in _COLUMNS[arm]))
    for condition, figures in overall(rows).items():
        if condition.arm == arm:
            cells = (_cell(figures.get(figure)) for figure in _COLUMNS[arm])
            table.add_row(_label(condition), *cells)
    return table


def _concept_table(rows: Sequence[ReportRow], names: Mapping[int, str]) -> Table:
    """The share found for each concept. Injections have the strength at which the most is found over all concepts."""
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


def _cell(estimate: Estimate | None) -> Text:
    """The mean, and under it half the width of its interval."""
    if estimate is None:
        return Text("")
    half = (estimate.high - estimate.low) / 2
    return Text.assemble(f"{estimate.mean:.2f}", "\n", (f"±{half:.2f}", "dim"))
