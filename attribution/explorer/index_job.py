"""Making an index while the explorer runs: `prepare` and `index` as child processes, in the user's cache folder.

The corpus is the documentation of this Python installation, on which the bundled model was trained. An index for
verbatim search is made first, since it takes seconds; then the whole one. A stopped job goes on where it was: `prepare`
writes its folder when it is complete, and `index` continues unit by unit.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from steerling_jax.attribution.explorer.training_data import TrainingData, open_training_data
from steerling_jax.bundle import Bundle
from steerling_jax.cli.compile_cache import cache_folder
from steerling_jax.errors import UserError
from steerling_jax.models.steerling.fingerprint import fingerprint
from steerling_jax.progress import Progress

_COUNTS = re.compile(r"([\w ]+?) ([\d,]+)/([\d,]+)")  # in a line of progress: "units 3/8, signatures 10/50, 0:01:30"
_LOOK_AGAIN = 0.1  # seconds


class IndexMaker:
    """Makes the corpus store and the indexes of one model.

    folder: where they are, see `default_folder`. model: as for --model; None for the bundled one. command: the words
    that start `steerling`.
    """

    def __init__(
        self,
        folder: Path,
        bundle: Bundle,
        model: str | None = None,
        command: tuple[str, ...] = (sys.executable, "-m", "steerling_jax.cli.main"),
        prepare: tuple[str, ...] = (),
    ):
        """prepare: further options of `steerling prepare`."""
        self._bundle, self._command = bundle, command
        self._corpus, self._verbatim, self._whole = (folder / name for name in ("corpus", "verbatim", "index"))
        given = () if model is None else ("--model", model)
        corpus = str(self._corpus)
        self._steps: tuple[tuple[str, Path, tuple[str, ...]], ...] = (
            ("corpus", self._corpus, ("prepare", "--out", corpus, "--tokenizer", model or bundle.name, *prepare)),
            ("verbatim", self._verbatim, ("index", corpus, str(self._verbatim), *given, "--scores", "verbatim")),
            ("index", self._whole, ("index", corpus, str(self._whole), *given)),
        )

    def made(self) -> TrainingData | None:
        """The best index that is there; None without one that is whole and of this model."""
        for folder in (self._whole, self._verbatim):
            try:
                return open_training_data(folder, self._corpus, self._bundle)
            except UserError:
                continue
        return None

    def run(self, progress: Progress, ready: Callable[[TrainingData], None], stopped: threading.Event) -> None:
        """Makes what is missing; ready: called with each index as soon as it can be searched.

        Raises `UserError` with the sentence of a command that failed. Returns early where `stopped` is set.
        """
        for number, (name, folder, words) in enumerate(self._steps):
            progress(name, number, len(self._steps))
            if not (name == "corpus" and (folder / "manifest.json").is_file()):
                self._run_command(words, lambda *counts: progress(*counts), stopped)
            if stopped.is_set():
                return
            if name != "corpus":
                ready(open_training_data(folder, self._corpus, self._bundle))

    def _run_command(self, words: tuple[str, ...], progress: Progress, stopped: threading.Event) -> None:
        """Runs a command, reports the counts of its lines of progress, and terminates it where `stopped` is set."""
        last = ""

        def read(stream) -> None:
            nonlocal last
            for line in stream:
                last = line.strip() or last
                if counts := _COUNTS.findall(line):
                    stage, done, total = counts[-1]
                    progress(stage.strip(), int(done.replace(",", "")), int(total.replace(",", "")))

        with subprocess.Popen(
            [*self._command, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            reader = threading.Thread(target=read, args=(process.stderr,), daemon=True)
            reader.start()
            while process.poll() is None and not stopped.wait(_LOOK_AGAIN):
                pass
            if process.poll() is None:
                process.terminate()
            process.wait()
            reader.join()
        if process.returncode != 0 and not stopped.is_set():
            reason = last.removeprefix("error: ") or f"it ended with exit code {process.returncode}"
            raise UserError(f"`steerling {words[0]}` failed: {reason}")


def default_folder(bundle: Bundle) -> Path:
    """The folder of a model's index in the user's cache. Raises `RuntimeError` where the user has no home folder."""
    return cache_folder() / "explorer" / fingerprint(bundle.params, bundle.config)
