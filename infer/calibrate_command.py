"""`steerling calibrate`: strengths of steering for each concept, at a cost that is the same for all."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerling_jax.cli.arguments import add_model_option, number_in_range
from steerling_jax.errors import UserError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from steerling_jax.bundle import Bundle
    from steerling_jax.concepts.catalogue import Catalogue
    from steerling_jax.concepts.concept import Head
    from steerling_jax.infer.calibrate.calibrate import Calibration

HELP = """\
Measure for each concept the strength of steering that costs at most so many nats a token.

--amplify NAME and --suppress NAME without a number then have the strength of this concept. The costs are measured on
held-out texts for each concept, and corrected by generated texts. The catalogue with the strengths goes into the
model's folder as concepts.json, --defaults as steering.json. A run that was interrupted continues when it is started
again. See docs/guide/calibration.md.

examples:
  steerling calibrate --corpus ./corpus --out concepts.json --defaults steering.json
  steerling calibrate --corpus ./corpus --out concepts.json --limit 0.1
  steerling calibrate --corpus ./corpus --out concepts.json --head known --json > calibration.json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    positive = number_in_range(int, 1)
    add_model_option(parser)
    add(
        "--corpus", type=Path, required=True, metavar="FOLDER", help="a corpus store with labels and held-out documents"
    )
    add("--out", type=Path, required=True, metavar="FILE", help="write the model's catalogue with the strengths here")
    add("--defaults", type=Path, metavar="FILE", help="write the medians, for steering by several concepts, here")
    add("--catalogue", metavar="FILE", help="concept names to use in place of the model's (JSON or Parquet)")
    add(
        "--limit",
        type=number_in_range(float, 0.01, 10.0),
        default=0.3,
        metavar="X",
        help="nats a token that steering may cost (default: %(default)s)",
    )
    add(
        "--head",
        choices=("known", "both"),
        default="both",
        help="known concepts alone, or also the discovered ones that have a name (default: %(default)s)",
    )
    add(
        "--panel",
        type=positive,
        default=16,
        metavar="N",
        help="known concepts for which texts are generated (default: %(default)s)",
    )
    add("--samples", type=positive, default=4, metavar="N", help="prompts for each of them (default: %(default)s)")
    add(
        "--canvases",
        type=positive,
        default=16,
        metavar="N",
        help="held-out texts for the expected cost of each concept (default: %(default)s)",
    )
    add("--seed", type=number_in_range(int, 0), default=0, metavar="N", help="random seed (default: %(default)s)")
    add("--json", action="store_true", help="print strengths and figures as JSON")


def run(args: argparse.Namespace) -> None:
    import steerling_jax as sj
    from steerling_jax.cli.console import note, print_json, stages, stdout
    from steerling_jax.cli.steering_options import with_catalogue
    from steerling_jax.decoding.trace_record import fingerprint
    from steerling_jax.infer.calibrate.calibrate import (
        CalibrationSettings,
        calibrate,
        calibrated_catalogue,
        median_strengths,
    )
    from steerling_jax.infer.calibrate.unit_log import UnitLog
    from steerling_jax.infer.steer_eval.judge import train_judge
    from steerling_jax.infer.steer_eval.prompts import HeldOutChunks
    from steerling_jax.infer.steer_eval_command import check_concepts
    from steerling_jax.io.atomic import resolve_output
    from steerling_jax.io.catalogue import write_catalogue
    from steerling_jax.io.corpus.store import CorpusStore
    from steerling_jax.io.json_files import write_json

    output = resolve_output(args.out)
    if output.is_stream:
        raise UserError("--out is not a regular file, beside which finished parts are kept; give a file's name.")
    if args.defaults is not None:
        resolve_output(args.defaults)
    bundle, store = with_catalogue(sj.load(args.model), args.catalogue), CorpusStore(args.corpus)
    count = check_concepts(bundle, store)
    block = bundle.config.diff_block_size
    settings = CalibrationSettings(
        args.limit, args.panel, args.samples, args.canvases, max(32 // block * block, block), args.seed
    )
    header = dataclasses.asdict(settings) | {
        "model": fingerprint(bundle.params, bundle.config),
        "corpus": store.documents_sha256,
    }
    del header["limit"]  # no unit's result depends on it, but for the last
    log = UnitLog(output.path.with_name(f"{output.path.name}.units"), header)
    concepts = selected_concepts(bundle.concepts, count, args.head)
    with stages() as progress:
        judge = train_judge(store, count, [], settings.new_tokens, progress)
        calibration = calibrate(
            bundle,
            judge,
            HeldOutChunks.read(store, count),
            concepts,
            settings,
            remember=log,
            progress=progress,
        )
    write_catalogue(args.out, calibrated_catalogue(bundle.concepts, calibration))
    if args.defaults is not None:
        write_json(args.defaults, median_strengths(calibration))
    log.close()
    if args.json:
        print_json(report(bundle, calibration, settings))
        return
    stdout().print(table(bundle.concepts, calibration))
    for line in sentences(calibration):
        note(line)


def selected_concepts(catalogue: Catalogue, known: int, head: str) -> list[tuple[Head, int]]:
    """All known concepts and, unless `head` is "known", the discovered ones that have a name."""
    concepts: list[tuple[Head, int]] = [("known", i) for i in range(known)]
    if head != "known":
        named: list[int] = sorted(one.id for one in catalogue.concepts if one.head == "discovered" and one.is_named)
        concepts.extend(("discovered", i) for i in named)
    return concepts


def report(bundle: Bundle, calibration: Calibration, settings: Any) -> dict[str, Any]:
    """The strengths and figures for JSON."""
    from steerling_jax.infer.calibrate.calibrate import median_strengths

    strengths = calibration.strengths
    rows = [
        {
            "id": concept,
            "head": head,
            "name": bundle.concepts.get(concept, head).name,
            **{action: strengths[action][head, concept] for action in strengths},
        }
        for head, concept in next(iter(strengths.values()))
    ]
    return {
        "model": bundle.name,
        "settings": settings,
        "defaults": median_strengths(calibration),
        "expected_cost": calibration.levels,
        "panel": [bundle.concepts.get(concept).name for concept in calibration.panel],
        "tried": calibration.tried,
        "measured": calibration.measured,
        "concepts": rows,
    }


def sentences(calibration: Calibration) -> list[str]:
    """What the strengths cost and do, beside a random direction."""
    lines = []
    for action, entries in calibration.measured.items():
        figure = "found" if action == "amplify" else "still_found"
        parts = [
            f"{one['condition']}: {_number(one['cost'])} ± {_number(one['cost_error'])} nats a token, "
            f"{figure.replace('_', ' ')} in {_number(one[figure])}"
            for one in entries
        ]
        texts = entries[0]["texts"] if entries else 0
        lines.append(f"{action}, {texts} other prompts, {len(calibration.panel)} concepts: {'; '.join(parts)}.")
    return lines


def table(catalogue: Catalogue, calibration: Calibration) -> RenderableType:
    """A row for each concept."""
    from rich.table import Table
    from rich.text import Text

    rows = Table(box=None, pad_edge=False)
    for title in ("concept", "name", *calibration.strengths):
        rows.add_column(title, justify="left" if title in ("concept", "name") else "right")
    for head, concept in next(iter(calibration.strengths.values())):
        values = (f"{strengths[head, concept]:g}" for strengths in calibration.strengths.values())
        rows.add_row(*map(Text, (f"{head}:{concept}", catalogue.get(concept, head).name, *values)))
    return rows


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"
