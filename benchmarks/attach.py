"""What a bottleneck of k features costs a model, by k, number of features, rows of text and training time.

    make smollm2
    python benchmarks/attach.py FOLDER --text TEXT [--points K:FEATURES:ROWS:STEPS:KL_STEPS …]
    python benchmarks/attach.py FOLDER --report [--json FILE] [--svg FILE]

Each point is what `steerling attach` with these options makes of SmolLM2-135M-Instruct (`--model` takes another one),
evaluated on the same held-out text: the last 16,384 tokens, or their beginning (`--windows`). The rows after the final
norm are captured once, in FOLDER/rows, for all points: ROWS of them are used. Every point adds an entry to
FOLDER/results.json; points that are done are not repeated, and one that was killed goes on from its last checkpoint.
`processor_seconds` are those of all threads from the first step to the last one, compilation included, without capture
and evaluation.

Reference machine: two virtual CPU cores; results in docs/results/autoencoders.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from attach_report import FIELDS, Entry, plot, table
from environment import environment
from open_models import smollm2

from steerling_jax.bundle import Bundle
from steerling_jax.io.json_files import read_json_array, read_json_object, write_json
from steerling_jax.train import attach_command
from steerling_jax.train.attach.hidden_rows import HiddenRows, Windows, capture_rows, text_windows
from steerling_jax.train.attach.program import load_model
from steerling_jax.train.attach.run_config import AttachRun
from steerling_jax.train.attach.training import AttachTraining
from steerling_jax.train.autoencoders.loop import run_steps
from steerling_jax.train.autoencoders.text_tokens import TOKENS_FILE, open_tokens
from steerling_jax.train.run.events import CheckpointSaved, Evaluated, StepDone
from steerling_jax.train.run.program_setup import set_compilation_cache

RESULTS, TIMES = "results.json", "processor_seconds.json"


class Point(NamedTuple):
    """A bottleneck. rows: of text, hidden ones. steps: of reconstruction, 2,048 rows each. kl_steps: of KL, 1,024."""

    k: int
    features: int
    rows: int
    steps: int
    kl_steps: int

    @property
    def folder(self) -> str:
        return "-".join(map(str, self))


def parse_point(text: str) -> Point:
    numbers = [int(part) for part in text.split(":")]
    if len(numbers) != len(FIELDS):
        raise argparse.ArgumentTypeError(f"{text!r} is not K:FEATURES:ROWS:STEPS:KL_STEPS")
    return Point(*numbers)


def run_of(point: Point, model: str, texts: Sequence[Path], tokens: int, bundle: Bundle) -> AttachRun:
    """The run of `steerling attach` with these options."""
    parser = argparse.ArgumentParser()
    attach_command.configure(parser)
    options = {"k": point.k, "latents": point.features, "steps": point.steps, "kl-steps": point.kl_steps,
               "tokens": tokens, "out": ""}  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    words += [word for text in texts for word in ("--text", str(text))]
    return attach_command.attach_run(parser.parse_args([model, *words]), bundle)


def prepare(run: AttachRun, bundle: Bundle, folder: Path) -> tuple[HiddenRows, Windows]:
    """The captured rows of all points, and the held-out windows."""
    rows = folder / "rows"
    tokens, held_out = open_tokens(run, bundle, rows, encoded=(rows / TOKENS_FILE).is_file())
    hidden = capture_rows(run, bundle, tokens, rows)
    return hidden, text_windows(run, bundle, held_out, held_out=True)


def measure(point: Point, run: AttachRun, bundle: Bundle, hidden: HiddenRows, held_out: Windows, folder: Path) -> Entry:
    """Trains and evaluates a point in its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    saved = read_json_object(folder / TIMES) if (folder / TIMES).is_file() else {}
    before, begun = float(saved.get("training", 0.0)), time.process_time()
    training = AttachTraining(run, bundle, HiddenRows(*(part[: point.rows] for part in hidden)), held_out)
    seconds, evaluation = before, {}
    for event in run_steps(run, training, folder):
        match event:
            case StepDone():
                seconds = before + time.process_time() - begun
            case CheckpointSaved():
                write_json(folder / TIMES, {"training": seconds})
            case Evaluated():
                evaluation = {"evaluation_processor_seconds": before + time.process_time() - begun - seconds}
                evaluation |= event.results
    return point._asdict() | {"processor_seconds": seconds} | evaluation | environment()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--model", default=None, help="default: the installed SmolLM2")
    parser.add_argument("--text", action="append", type=Path, default=[], help="as of `steerling attach`")
    parser.add_argument("--tokens", type=int, default=262_144, help="of the texts (default %(default)s)")
    parser.add_argument("--windows", type=int, metavar="N", help="evaluate on the first N held-out windows alone")
    parser.add_argument("--points", type=parse_point, nargs="+", default=[], metavar="K:FEATURES:ROWS:STEPS:KL_STEPS")
    parser.add_argument("--report", action="store_true", help="print the table of the points that are done")
    parser.add_argument("--json", type=Path, metavar="FILE", help="with --report: copy the results there")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="with --report: draw a picture (needs matplotlib)")
    args = parser.parse_args()
    results = args.folder / RESULTS
    entries = list(read_json_array(results)) if results.is_file() else []
    if args.report:
        print(table(entries))
        if args.json is not None:
            write_json(args.json, {"points": entries})
        if args.svg is not None:
            plot(entries, args.svg)
        return
    set_compilation_cache(args.folder)
    model = args.model or str(smollm2())
    bundle = load_model(model)
    captured: tuple[HiddenRows, Windows] | None = None
    for point in args.points:
        if any(tuple(entry[name] for name in FIELDS) == point for entry in entries):
            continue
        run = run_of(point, model, args.text, args.tokens, bundle)
        captured = captured or prepare(run, bundle, args.folder)
        hidden, held_out = captured
        held_out = Windows(*(part[: args.windows] for part in held_out))
        entries.append(measure(point, run, bundle, hidden, held_out, args.folder / point.folder))
        write_json(results, entries)
        print(json.dumps(entries[-1]), flush=True)
        jax.clear_caches()


if __name__ == "__main__":
    main()
