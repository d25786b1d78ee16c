"""What was measured, on disk and to read: a JSON file for each part, a Markdown page, a picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from steerling_jax.attribution.faithfulness.figures import markdown, table
from steerling_jax.attribution.faithfulness.kept import PartialResults
from steerling_jax.cli.console import plain
from steerling_jax.errors import UserError
from steerling_jax.io.atomic import atomic_path
from steerling_jax.io.json_files import write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TITLES = {
    "inputs": "Inputs",
    "concepts": "Concepts",
    "data": "Training data",
    "outputs": "Bad outputs",
}
_PICTURED = {  # figure of the data part, and its title
    "share of the ceiling": "retraining: share of the seed-to-seed ceiling",
    "recall@10": "planted evidence: recall@10",
    "tail patch": "a step on the ten best, nats",
}


@dataclass
class Results:
    """Parts as they are found. `part` reads what is there for the same settings, else measures and writes it; a part
    that was stopped goes on."""

    folder: Path
    command: str
    model: str
    found: dict[str, Any] = field(default_factory=dict)

    def part(
        self, name: str, settings: Mapping[str, Any], measure: Callable[[PartialResults], Mapping[str, Any]]
    ) -> None:
        path = self.folder / f"{name}.json"
        about = {"model": self.model, "asked": dict(settings)}
        saved = _read(path) if path.exists() else {}
        if {key: saved.get(key) for key in about} != about:
            kept = PartialResults.open(self.folder / f"{name}.unfinished", about)
            saved = about | {"command": self.command} | plain(dict(measure(kept)))
            write_json(path, saved)
            kept.remove()
        self.found[name] = saved


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and "figures" in found:
            return found
    except (OSError, ValueError):
        pass
    raise UserError(f"{path} cannot be read as a part of the figures: remove it, or choose another --out.")


def render(results: Results) -> RenderableType:
    """Tables for a terminal."""
    shown: list[RenderableType] = []
    for name, part in results.found.items():
        header, *rows = table(part)
        grid = Table(*header, title=_TITLES[name], title_justify="left", box=None)
        for row in rows:
            grid.add_row(*row)
        shown += [grid, *(Text(note, style="dim") for note in part["notes"]), Text()]
    return Group(*shown, Text(f"{results.folder}/report.md has the same"))


def write_report(results: Results) -> None:
    """`report.md`, with parts that were measured before of the same model and corpus, and `figures.svg` where
    matplotlib is installed and there is a data part."""
    lines = [f"# Faithfulness of {results.model}", ""]
    for name, part in _with_earlier(results).items():
        lines += [f"## {_TITLES[name]}", "", f"    {part['command']}", ""]
        lines += [*markdown(part), ""]
        lines += [f"{note}\n" for note in part["notes"]]
        lines += ["Settings: " + ", ".join(f"{key} {value}" for key, value in part["settings"].items()) + ".", ""]
    with atomic_path(results.folder / "report.md") as scratch:
        scratch.write_text("\n".join(lines), encoding="utf-8")
    if "data" in results.found:
        _draw(results.found["data"], results.folder / "figures.svg")


def _with_earlier(results: Results) -> dict[str, Any]:
    """The parts found now, and those in the folder of the same model and corpus, in the page's order."""
    of = {_subject(part) for part in results.found.values()}
    earlier = {
        name: _read(results.folder / f"{name}.json")
        for name in _TITLES
        if name not in results.found and (results.folder / f"{name}.json").exists()
    }
    parts = {name: part for name, part in earlier.items() if _subject(part) in of} | results.found
    return {name: parts[name] for name in _TITLES if name in parts}


def _subject(part: Mapping[str, Any]) -> tuple[Any, ...]:
    asked = part.get("asked", {})
    return part.get("model"), asked.get("fingerprint"), asked.get("corpus")


def _draw(part: Mapping[str, Any], path: Path) -> None:
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ModuleNotFoundError:  # the optional extra `plot`
        return
    quiet: Any = {"svg.hashsalt": "steerling", "font.size": 8, "axes.spines.top": False, "axes.spines.right": False}
    with rc_context(quiet):
        picture = Figure(figsize=(10, 3.6), layout="constrained")
        for ax, (figure, title) in zip(picture.subplots(1, len(_PICTURED)), _PICTURED.items()):
            _bars(ax, [f for f in part["figures"] if f["figure"] == figure and f["of"].startswith("paraphrase: ")])
            ax.set_title(title, fontsize=8, loc="left")
        picture.suptitle(
            "queries that share no three words in a row with their evidence", fontsize=9, x=0.01, ha="left"
        )
        with atomic_path(path) as scratch:
            picture.savefig(scratch, metadata={"Date": None})


def _bars(ax: Axes, figures: list[dict[str, Any]]) -> None:
    shown = [f for f in figures if None not in (f["mean"], f["low"], f["high"])]
    names = [f["of"].split(": ", 1)[1] for f in shown]
    spread = [[max(f["mean"] - f["low"], 0) for f in shown], [max(f["high"] - f["mean"], 0) for f in shown]]
    ax.barh(names, [f["mean"] for f in shown], xerr=spread, color="#0072b2", alpha=0.6, capsize=2)
    ax.invert_yaxis()
    ax.axvline(0, color="black", linewidth=0.5)
