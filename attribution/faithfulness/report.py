"""The faithfulness report: a JSON file for each part, a Markdown page, and a plot."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from steerling_jax.attribution.faithfulness.figures import markdown_table, text_table
from steerling_jax.attribution.faithfulness.partial_results import PartialResults
from steerling_jax.cli.console import plain
from steerling_jax.errors import UserError
from steerling_jax.io.atomic import atomic_path
from steerling_jax.io.json_files import write_json
from steerling_jax.io.pictures import open_picture
from steerling_jax.io.text_files import load_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TITLES = {
    "inputs": "Inputs",
    "concepts": "Concepts",
    "data": "Training data",
    "outputs": "Bad outputs",
}
_PLOTTED = {  # figures of the data part, with their titles
    "share of the ceiling": "retraining: share of the ceiling",
    "recall@10": "planted evidence: recall@10",
    "tail patch": "a step on the ten best, nats",
}


@dataclass
class Results:
    """The parts measured by one command, in a folder with a JSON file per part."""

    folder: Path
    command: str
    model: str
    parts: dict[str, Any] = field(default_factory=dict)

    def measure_part(
        self, name: str, settings: Mapping[str, Any], measure: Callable[[PartialResults], Mapping[str, Any]]
    ) -> None:
        """Reads the part if it was measured with the same model and settings, else measures and writes it.

        An interrupted measurement continues from its partial results. Raises `UserError` for a damaged file.
        """
        path = self.folder / f"{name}.json"
        about = {"model": self.model, "asked": dict(settings)}  # the file's field names
        saved = _read(path) if path.exists() else {}
        if {key: saved.get(key) for key in about} != about:
            partial = PartialResults.open(self.folder / f"{name}.unfinished", about)
            saved = about | {"command": self.command} | plain(dict(measure(partial)))
            write_json(path, saved)
            partial.remove()
        self.parts[name] = saved


def _read(path: Path) -> dict[str, Any]:
    try:
        part = load_json(path.read_bytes())
        if isinstance(part, dict) and "figures" in part:
            return part
    except (OSError, ValueError):
        pass
    raise UserError(f"{path} is not a readable part of a faithfulness report: remove it, or choose another --out.")


def render(results: Results) -> RenderableType:
    """Tables for the terminal."""
    shown: list[RenderableType] = []
    for name, part in results.parts.items():
        header, *rows = text_table(part)
        grid = Table(*header, title=_TITLES[name], title_justify="left", box=None)
        for row in rows:
            grid.add_row(*row)
        shown += [grid, *(Text(note, style="dim") for note in part["notes"]), Text()]
    return Group(*shown, Text(f"The same tables are in {results.folder}/report.md."))


def write_report(results: Results) -> None:
    """Writes `report.md`, and `figures.svg` if there is a data part and matplotlib is installed.

    The page also has the parts that earlier commands measured on the same model and corpus.
    """
    lines = [f"# Faithfulness of {results.model}", ""]
    for name, part in _with_earlier_parts(results).items():
        lines += [f"## {_TITLES[name]}", "", f"    {part['command']}", ""]
        lines += [*markdown_table(part), ""]
        lines += [f"{note}\n" for note in part["notes"]]
        lines += ["Settings: " + ", ".join(f"{key} {value}" for key, value in part["settings"].items()) + ".", ""]
    with atomic_path(results.folder / "report.md") as scratch:
        scratch.write_text("\n".join(lines), encoding="utf-8")
    if "data" in results.parts:
        _plot(results.parts["data"], results.folder / "figures.svg")


def _with_earlier_parts(results: Results) -> dict[str, Any]:
    """The parts of these results and those in the folder of the same model and corpus, in the page's order."""
    subjects = {_subject(part) for part in results.parts.values()}
    earlier = {
        name: _read(results.folder / f"{name}.json")
        for name in _TITLES
        if name not in results.parts and (results.folder / f"{name}.json").exists()
    }
    parts = {name: part for name, part in earlier.items() if _subject(part) in subjects} | results.parts
    return {name: parts[name] for name in _TITLES if name in parts}


def _subject(part: Mapping[str, Any]) -> tuple[Any, ...]:
    """Model and corpus of a part."""
    settings = part.get("asked", {})
    return part.get("model"), settings.get("fingerprint"), settings.get("corpus")


def _plot(part: Mapping[str, Any], path: Path) -> None:
    if importlib.util.find_spec("matplotlib") is None:  # the optional extra `plot`
        return
    with open_picture(path, 10, 3.6, "queries that share no three words in a row with their evidence") as plot:
        for ax, (figure, title) in zip(plot.subplots(1, len(_PLOTTED)), _PLOTTED.items()):
            _bars(ax, [f for f in part["figures"] if f["figure"] == figure and f["of"].startswith("paraphrase: ")])
            ax.set_title(title, fontsize=8, loc="left")


def _bars(ax: Axes, figures: list[dict[str, Any]]) -> None:
    shown = [f for f in figures if None not in (f["mean"], f["low"], f["high"])]
    names = [f["of"].split(": ", 1)[1] for f in shown]
    spread = [[max(f["mean"] - f["low"], 0) for f in shown], [max(f["high"] - f["mean"], 0) for f in shown]]
    ax.barh(names, [f["mean"] for f in shown], xerr=spread, color="#0072b2", alpha=0.6, capsize=2)
    ax.invert_yaxis()
    ax.axvline(0, color="black", linewidth=0.5)
