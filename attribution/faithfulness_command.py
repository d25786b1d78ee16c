"""`steerling faithfulness`: is attribution true? Measured for inputs, concepts, training data and bad outputs."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerling_jax.errors import UserError, require

if TYPE_CHECKING:
    from steerling_jax.attribution.faithfulness.kept import PartialResults
    from steerling_jax.attribution.faithfulness.planted.run import Planted
    from steerling_jax.attribution.index.reader import Index
    from steerling_jax.bundle import Bundle
    from steerling_jax.io.corpus.store import CorpusStore
    from steerling_jax.progress import Progress

HELP = """\
Measure whether attributions are correct: inputs, concepts, training data, bad outputs.

With --planted, a small model is trained on a generated corpus whose facts are known; only there can training data be
measured, by training again without it. A run that was stopped resumes. docs/design/faithfulness.md defines the
figures.

examples:
  steerling faithfulness --corpus ./corpus --out measured
  steerling faithfulness --corpus ./corpus --parts outputs --index ./index --out measured
  steerling faithfulness --planted --out measured-planted
  steerling faithfulness --planted --parts data --subsets 8 --out quick
"""

PARTS = ("inputs", "concepts", "data", "outputs")
STEPS = 1500  # of the planted model; `faithfulness.planted_model.STEPS`, which must not be imported here
PLANTED_ONLY = {"subsets": 48, "twice": None, "world": "full", "steps": STEPS}  # options, and what they usually are


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help="a folder, a checkpoint, a bundled model or a Hub id")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--corpus", type=Path, metavar="FOLDER", help="the corpus store that the model was trained on")
    what.add_argument("--planted", action="store_true", help="a model of our own, trained on a planted world")
    add("--parts", metavar="A,B", help=f"some of {','.join(PARTS)} (default: all; data with --planted only)")
    add("--index", type=Path, metavar="INDEX", help="of that corpus: also the evidence for bad and good outputs")
    add("--out", type=Path, default=Path("faithfulness"), metavar="FOLDER", help="default: %(default)s")
    add("--seed", type=int, default=0, metavar="N", help="of draws and of the planted world (default: %(default)s)")
    add("--subsets", type=int, default=48, metavar="N", help="half-corpora to train on (default: %(default)s)")
    add(
        "--twice",
        type=int,
        metavar="N",
        help="half-corpora that are trained on with a second seed too, for the ceiling (default: all)",
    )
    add("--world", choices=("full", "small"), default="full", help="small: a first try, in a minute (default: full)")
    add("--steps", type=int, default=STEPS, metavar="N", help="of each training (default: %(default)s)")
    add("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> None:
    parts = check(args)
    from steerling_jax.attribution.faithfulness.report import Results, render, write_report
    from steerling_jax.cli.console import print_json, stages, stdout

    if "data" in parts:
        from steerling_jax.attribution.faithfulness.training_data.evidence_scores import check_bm25

        check_bm25()
    with stages() as tell:
        bundle, store, planted = _subject(args, tell)
        index = _index(args, store, bundle)
        results = Results(args.out, _command(args), bundle.name)
        for part in parts:
            settings = _settings(args, part, bundle, store)
            results.part(
                part, settings, lambda kept, part=part: _measure(part, bundle, store, planted, index, args, tell, kept)
            )
    write_report(results)
    if args.json:
        print_json({"model": bundle.name, "command": results.command, "parts": results.found})
    else:
        stdout().print(render(results))


def check(args: argparse.Namespace) -> list[str]:
    """The parts that are asked for, in order. Raises `UserError` for what cannot be measured."""
    possible = PARTS if args.planted else tuple(part for part in PARTS if part != "data")
    asked = possible if args.parts is None else [part.strip() for part in args.parts.split(",")]
    for part in asked:
        require(part in PARTS, f"--parts names {part!r}, but the parts are {', '.join(PARTS)}.")
        require(
            part in possible, "Training data can be measured on the planted model only: add --planted, or leave it out."
        )
    require(not (args.planted and args.model), "--planted trains a model of its own: leave MODEL out.")
    require(
        args.index is None or not args.planted, "--index is of a corpus and goes with --corpus: leave out one of them."
    )
    require(
        args.index is None or "outputs" in asked, "--index is for the outputs: add them to --parts, or leave it out."
    )
    for name, usual in PLANTED_ONLY.items():
        ours = args.planted or getattr(args, name) == usual
        require(ours, f"--{name} is of the planted model: add --planted, or leave it out.")
    require(args.seed >= 0, f"--seed is {args.seed}, but it must not be negative.")
    require(args.subsets >= 2, f"--subsets is {args.subsets}, but it must be at least 2.")
    twice = args.subsets if args.twice is None else args.twice
    require(2 <= twice <= args.subsets, f"--twice is {twice}, but it must be between 2 and {args.subsets}.")
    require(
        args.steps >= 10 and args.steps % 10 == 0, f"--steps is {args.steps}, but it must be a positive multiple of 10."
    )
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out is {args.out}, which is no folder: choose another place.")
    return [part for part in PARTS if part in asked]


def _command(args: argparse.Namespace) -> str:
    """What gives the figures again."""
    words = ["steerling", "faithfulness"]
    words += ["--planted"] if args.planted else [*([args.model] if args.model else []), "--corpus", str(args.corpus)]
    words += ["--seed", str(args.seed)]
    words += [] if args.index is None else ["--index", str(args.index)]
    if args.planted:
        words += ["--subsets", str(args.subsets), "--steps", str(args.steps)]
        words += [] if args.twice is None else ["--twice", str(args.twice)]
        words += [] if args.world == "full" else ["--world", args.world]
    return shlex.join(words)


def _settings(args: argparse.Namespace, part: str, bundle: Bundle, store: CorpusStore) -> dict[str, Any]:
    """What a part's figures depend on: they are measured again where it has changed."""
    from steerling_jax.io.index import IndexFolder
    from steerling_jax.models.steerling.fingerprint import fingerprint

    settings: dict[str, Any] = {
        "seed": args.seed, "fingerprint": fingerprint(bundle.params, bundle.config), "corpus": store.documents_sha256
    }  # fmt: skip
    if args.planted:
        settings |= {"planted": True, "steps": args.steps, "world": args.world}
    if part == "outputs" and args.index is not None:
        settings |= {"index": IndexFolder(args.index).metadata["settings"]}
    if part == "data":
        settings |= {"subsets": args.subsets, "twice": args.twice}
    return settings


def _subject(args: argparse.Namespace, tell: Any) -> tuple[Bundle, CorpusStore, Planted | None]:
    import steerling_jax as sj
    from steerling_jax.io.corpus.store import CorpusStore

    if not args.planted:
        store = CorpusStore(args.corpus)
        bundle = sj.load(args.model)
        store.check_tokenizer(bundle.tokenizer.sha256)
        return bundle, store, None
    from dataclasses import replace

    from steerling_jax.attribution.faithfulness.planted.run import MODEL_SEEDS, open_planted
    from steerling_jax.attribution.faithfulness.planted.world import SMALL, WorldSize

    size = SMALL if args.world == "small" else WorldSize()
    planted = open_planted(args.out / "planted", args.seed, args.steps, size).with_models(tell)
    bundle = sj.load(planted.model_folder(MODEL_SEEDS[0]))
    return replace(bundle, name=f"planted, seed {args.seed}"), planted.store, planted


def _measure(
    part: str,
    bundle: Bundle,
    store: CorpusStore,
    planted: Planted | None,
    index: Index | None,
    args: argparse.Namespace,
    tell: Progress,
    kept: PartialResults,
) -> dict[str, Any]:
    from steerling_jax.attribution.faithfulness import outputs
    from steerling_jax.attribution.faithfulness.concepts import concepts
    from steerling_jax.attribution.faithfulness.inputs import inputs
    from steerling_jax.attribution.faithfulness.planted.model import DOCUMENT, PLANTED_PROMPT
    from steerling_jax.attribution.faithfulness.training_data import data

    if part == "data":
        assert planted is not None
        return data.measure(planted, tell=tell, seed=args.seed, subsets=args.subsets, twice=args.twice)
    usual: dict[str, Any] = {"tell": tell, "kept": kept, "seed": args.seed}
    if planted is not None:
        usual |= {"prompt_tokens": PLANTED_PROMPT, "blocks": 1}
    if part == "inputs":
        return inputs.measure(bundle, store, **usual)
    if part == "concepts":
        if planted is not None:
            usual["seq_len"] = DOCUMENT
        return concepts.measure(bundle, store, **usual)
    return outputs.measure(bundle, store, **usual, everyday=planted is None, index=index)


def _index(args: argparse.Namespace, store: CorpusStore, bundle: Bundle) -> Index | None:
    """Raises `UserError` where it holds the held-out documents, whose own evidence is a control."""
    if args.index is None:
        return None
    from steerling_jax.attribution.index.reader import open_index

    index = open_index(args.index, store, bundle)
    require(
        index.settings.splits == ("train",),
        f"The index {args.index} holds held-out documents, which would find themselves: give one of --split train.",
    )
    return index
