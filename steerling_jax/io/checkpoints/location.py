"""Where a checkpoint is, without importing Orbax, which takes a second."""

from __future__ import annotations

from pathlib import Path

RUN_FILE = "run.json"


def locate_checkpoint(path: Path) -> tuple[Path, int | None]:
    """The folder with `run.json` and the step of a path, which may also be one step of a run, `RUN/checkpoints/STEP`.

    The step is None for other paths, which are returned as they are.
    """
    run = path.absolute().parent.parent
    if path.name.isdigit() and path.absolute().parent.name == "checkpoints" and (run / RUN_FILE).is_file():
        return run, int(path.name)
    return path, None
