"""Pictures written with matplotlib, an optional dependency. The same content gives the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerling_jax.errors import UserError
from steerling_jax.io.atomic import atomic_path, resolve_output

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".svg", ".png", ".pdf")


def check_plot(path: Path) -> None:
    """Raises `UserError` where `open_picture` could not write the file of --plot: a long evaluation should not fail at
    its end."""
    resolve_output(path)
    if path.suffix not in SUFFIXES:
        raise UserError(f"--plot is {path}, but the name must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}.")
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        raise UserError("--plot needs matplotlib: install it with `pip install 'steerling-jax[plot]'`.") from None


@contextmanager
def open_picture(
    path: Path, width: float, height: float, title: str | None = None, *, frame: bool = False
) -> Iterator[Figure]:
    """A figure of `width` by `height` inches, which is written to `path` at the end of the block, and not at all where
    the block raises. frame: draw all four sides of the panels."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # By default, ids in SVG files are random and the file contains the date.
    style: dict[Any, Any] = {"svg.hashsalt": "steerling", "font.size": 8}
    if not frame:
        style |= {"axes.spines.top": False, "axes.spines.right": False}
    with rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        if title is not None:
            figure.suptitle(title, fontsize=9, x=0.01, ha="left")
        with atomic_path(path) as scratch:
            figure.savefig(scratch, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
