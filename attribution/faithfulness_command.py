"""`steerling faithfulness`: measures how far attribution agrees with what the model does."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerling_jax.attribution.faithfulness.planted.defaults import STEPS, SUBSETS
from steerling_jax.errors import UserError, require

if TYPE_CHECKING:
    from steerling_jax.attribution.faithfulness.partial_results import PartialResults
    from steerling_jax.attribution.faithfulness.planted.workspace import PlantedWorkspace
    from steerling_jax.attribution.index.reader import Index
    from steerling_jax.bundle import Bundle
    from steerling_jax.io.corpus.store import CorpusStore
    from steerling_jax.progress import Progress

HELP = """\
Measure whether attributions are correct: inputs, concepts, training data, bad outputs.

With --planted, a small model is trained on an artificial corpus in which the truth is known. Training data can only be
measured there, by training again without it. An interrupted run continues with the same command.
docs/design/faithfulness.md defines the figures.

examples:
  steerling faithfulness --corpus ./corpus --out measured
  steerling faithfulness --corpus ./corpus --parts outputs --index ./index --out measured
  steerling faithfulness --planted --out measured-planted
  steerling faithfulness --planted --parts data --subsets 8 --out quick
"""

PARTS = ("inputs", "concepts", "data", "outputs")
PLANTED_ONLY = {"subsets": SUBSETS, "twice": None, "world": "full", "steps": STEPS}  # options and their defaults


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help="a folder, a checkpoint, a bundled model or a Hub id")
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument("--corpus", type=Path, metavar="FOLDER", help="the corpus store that the model was trained on")
    subject.add_argument(
        "--planted", action="store_true", help="train a small model on a planted corpus and measure it"
    )
    add("--parts", metavar="A,B", help=f"some of {','.join(PARTS)} (default: all; data only with --planted)")
    add(
        "--index",
        type=Path,
        metavar="INDEX",
        help="an index of that corpus, to measure evidence for bad and good outputs too",
    )
    add("--out", type=Path, default=Path("faithfulness"), metavar="FOLDER", help="default: %(default)s")
    add(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of random draws and of the planted corpus (default: %(default)s)",
    )
    add("--subsets", type=int, default=SUBSETS, metavar="N", help="half-corpora to train on (default: %(default)s)")
    add(
        "--twice",
        type=int,
        metavar="N",
        help="half-corpora to train on with a second seed too, for the ceiling (default: all)",
    )
    add("--world", choices=("full", "small"), default="full", help="small: a quick try, in a minute (default: full)")
    add("--steps", type=int, default=STEPS, metavar="N", help="steps of each training (default: %(default)s)")
    add("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> None:
    parts = check(args)
    from steerling_jax.attribution.faithfulness.report import Results, render, write_report
    from steerling_jax.cli.console import print_json, stages, stdout

    if "data" in parts:
        from steerling_jax.attribution.faithfulness.training_data.evidence_scores import check_bm25

        check_bm25()
    with stages() as progress:
        subject = _open_subject(args, progress)
        results = Results(args.out, _command(args), subject.bundle.name)
        for part in parts:
            settings = _settings(args, part, subject)
            results.measure_part(
                part, settings, lambda partial, part=part: _measure(part, args, subject, partial, progress)
            )
    write_report(results)
    if args.json:
        print_json({"model": subject.bundle.name, "command": results.command, "parts": results.parts})
    else:
        stdout().print(render(results))


def check(args: argparse.Namespace) -> list[str]:
    """The requested parts, in the order of `PARTS`. Raises `UserError` for options that do not fit together."""
    possible = PARTS if args.planted else tuple(part for part in PARTS if part != "data")
    requested = possible if args.parts is None else [part.strip() for part in args.parts.split(",")]
    for part in requested:
        require(part in PARTS, f"--parts names {part!r}, but the parts are {', '.join(PARTS)}.")
        require(
            part in possible,
            "Training data can be measured on the planted model only: add --planted, or leave out data.",
        )
    require(not (args.planted and args.model), "--planted trains its own model: leave MODEL out.")
    require(
        args.index is None or not args.planted,
        "--index is of a corpus, so it needs --corpus: leave out --index or --planted.",
    )
    require(
        args.index is None or "outputs" in requested,
        "--index is for the outputs part: add outputs to --parts, or leave out --index.",
    )
    for name, default in PLANTED_ONLY.items():
        allowed = args.planted or getattr(args, name) == default
        require(allowed, f"--{name} is for the planted model: add --planted, or leave out --{name}.")
    require(args.seed >= 0, f"--seed is {args.seed}, but it must not be negative.")
    require(args.subsets >= 2, f"--subsets is {args.subsets}, but it must be at least 2.")
    twice = args.subsets if args.twice is None else args.twice
    require(2 <= twice <= args.subsets, f"--twice is {twice}, but it must be between 2 and {args.subsets}.")
    require(
        args.steps >= 10 and args.steps % 10 == 0, f"--steps is {args.steps}, but it must be a positive multiple of 10."
    )
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out is {args.out}, which is not a folder: choose another path.")
    return [part for part in PARTS if part in requested]


def _command(args: argparse.Namespace) -> str:
    """The command line that measures the same figures."""
    words = ["steerling", "faithfulness"]
    words += ["--planted"] if args.planted else [*([args.model] if args.model else []), "--corpus", str(args.corpus)]
    words += ["--seed", str(args.seed)]
    words += [] if args.index is None else ["--index", str(args.index)]
    if args.planted:
        words += ["--subsets", str(args.subsets), "--steps", str(args.steps)]
        words += [] if args.twice is None else ["--twice", str(args.twice)]
        words += [] if args.world == "full" else ["--world", args.world]
    return shlex.join(words)


@dataclass(frozen=True)
class _Subject:
    """The model that is measured, its corpus, and the planted workspace or the index that belongs to them."""

    bundle: Bundle
    store: CorpusStore
    workspace: PlantedWorkspace | None = None
    index: Index | None = None


def _open_subject(args: argparse.Namespace, progress: Progress) -> _Subject:
    import steerling_jax as sj
    from steerling_jax.io.corpus.store import CorpusStore

    if not args.planted:
        store = CorpusStore(args.corpus)
        bundle = sj.load(args.model)
        store.check_tokenizer(bundle.tokenizer.sha256)
        return _Subject(
            bundle, store, index=None if args.index is None else open_train_index(args.index, store, bundle)
        )
    from steerling_jax.attribution.faithfulness.planted.workspace import MODEL_SEEDS, open_workspace
    from steerling_jax.attribution.faithfulness.planted.world import SMALL, WorldSize

    size = SMALL if args.world == "small" else WorldSize()
    workspace = open_workspace(args.out / "planted", args.seed, args.steps, size).with_models(progress)
    bundle = sj.load(workspace.model_folder(MODEL_SEEDS[0]))
    return _Subject(replace(bundle, name=f"planted, seed {args.seed}"), workspace.store, workspace)


def open_train_index(folder: Path, store: CorpusStore, bundle: Bundle) -> Index:
    """Opens an index of the training split.

    Raises `UserError` if it contains held-out documents: their evidence is a control, and they would find themselves.
    """
    from steerling_jax.attribution.index.reader import open_index

    index = open_index(folder, store, bundle)
    require(
        index.settings.splits == ("train",),
        f"The index {folder} contains held-out documents, which would find themselves: give an index of --split train.",
    )
    return index


def _settings(args: argparse.Namespace, part: str, subject: _Subject) -> dict[str, Any]:
    """The settings that a part's figures depend on: a part is measured again if they have changed."""
    from steerling_jax.io.index import IndexFolder
    from steerling_jax.models.steerling.fingerprint import fingerprint

    settings: dict[str, Any] = {
        "seed": args.seed,
        "fingerprint": fingerprint(subject.bundle.params, subject.bundle.config),
        "corpus": subject.store.documents_sha256,
    }
    if args.planted:
        settings |= {"planted": True, "steps": args.steps, "world": args.world}
    if part == "outputs" and args.index is not None:
        settings |= {"index": IndexFolder(args.index).metadata["settings"]}
    if part == "data":
        settings |= {"subsets": args.subsets, "twice": args.twice}
    return settings


def _measure(
    part: str, args: argparse.Namespace, subject: _Subject, partial: PartialResults, progress: Progress
) -> dict[str, Any]:
    from functools import partial as bind

    from steerling_jax.attribution.faithfulness import part_settings
    from steerling_jax.attribution.faithfulness.concepts.measure import measure as measure_concepts
    from steerling_jax.attribution.faithfulness.inputs.measure import measure as measure_inputs
    from steerling_jax.attribution.faithfulness.outputs.measure import measure as measure_outputs
    from steerling_jax.attribution.faithfulness.training_data.measure import measure as measure_training_data
    from steerling_jax.attribution.index.search import best_values

    bundle, store, planted = subject.bundle, subject.store, subject.workspace is not None
    if part == "data":
        assert subject.workspace is not None
        return measure_training_data(
            subject.workspace, progress=progress, seed=args.seed, subsets=args.subsets, twice=args.twice
        )
    if part == "inputs":
        settings = part_settings.input_settings(args.seed, planted)
        return measure_inputs(bundle, store, settings, partial=partial, progress=progress)
    if part == "concepts":
        settings = part_settings.concept_settings(args.seed, planted)
        return measure_concepts(bundle, store, settings, partial=partial, progress=progress)
    settings = part_settings.output_settings(args.seed, planted)
    evidence = None if subject.index is None else bind(best_values, subject.index)
    return measure_outputs(bundle, store, settings, evidence=evidence, partial=partial, progress=progress)
