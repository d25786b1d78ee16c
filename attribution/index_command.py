"""`steerling index`: everything that is needed to find training data behind a text."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HELP = """\
Index a corpus store for a model, so that training data behind a text can be found.

examples:
  steerling index ./corpus ./index
  steerling index ./corpus ./index --model ./runs/tiny --gradients 8
  steerling index ./corpus ./index --process-index 1 --process-count 4

The same command goes on after a stop, and takes in what is new after the corpus has grown.
`steerling search ./index "TEXT"` asks the index.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("corpus", type=Path, metavar="CORPUS", help="a corpus store, made by `steerling prepare`")
    add("index", type=Path, metavar="INDEX", help="the folder of the index, new or one to go on with")
    add("--model", metavar="MODEL", help="a folder, a checkpoint, a bundled model or a Hub id (default: bundled)")
    add("--split", choices=("train", "heldout", "all"), default="train", help="of the corpus (default: %(default)s)")
    add("--context", type=int, default=64, metavar="N", help="tokens that a chunk is read after (default: %(default)s)")
    add("--level", type=float, default=0.5, metavar="T", help="share of tokens masked (default: %(default)s)")
    add("--draws", type=int, default=2, metavar="N", help="maskings of a chunk (default: %(default)s)")
    add("--unit-tokens", type=int, default=1 << 19, metavar="N", help="tokens of a unit of work (default: %(default)s)")
    add(
        "--gradients",
        type=int,
        default=0,
        metavar="SIDE",
        help="keep every chunk's gradient, projected to SIDE x SIDE a matrix, and compare all of them with a question "
        "(default: computed for candidates only)",
    )
    add("--nulls", type=int, default=100, metavar="N", help="nonsense texts for each threshold (default: %(default)s)")
    add("--process-index", type=int, default=0, metavar="I", help="which of several processes this is, from 0")
    add("--process-count", type=int, default=1, metavar="N", help="how many processes share the units out")
    add("--json", action="store_true", help="print what was made as JSON")


def run(args: argparse.Namespace) -> None:
    from steerling_jax.attribution.index.passages import Masking
    from steerling_jax.cli.console import note, print_json, stages
    from steerling_jax.io.corpus.store import SPLITS, CorpusStore

    corpus = CorpusStore(args.corpus)
    note("Loading JAX and the model …")
    import steerling_jax as sj
    from steerling_jax.attribution.index.build import build_index
    from steerling_jax.attribution.index.settings import IndexSettings

    settings = IndexSettings(
        context=args.context,
        masking=Masking(args.level, args.draws),
        unit_tokens=args.unit_tokens,
        splits=SPLITS if args.split == "all" else (args.split,),
        gradient_side=args.gradients,
        nulls=args.nulls,
    )
    bundle = sj.load(args.model)
    with stages() as tell:
        report = build_index(
            corpus,
            bundle,
            args.index,
            settings,
            process_index=args.process_index,
            process_count=args.process_count,
            progress=tell,
        )
    if args.json:
        print_json(report)
    else:
        _tell(report)


def _tell(report: Mapping[str, Any]) -> None:
    from steerling_jax.cli.console import note

    size = sum(report["bytes_a_chunk"].values())
    note(
        f"{report['documents']:,} documents, {report['chunks']:,} chunks, {size:,.0f} bytes a chunk; "
        f"{report['units_made_now']} of {report['units']} units made now."
    )
    covered = report["coverage"]
    if covered is None:
        note("The model does not say which documents it was trained on.")
    else:
        note(
            f"Of {covered['trained_on']:,} documents the model was trained on, {covered['indexed']:,} are indexed; "
            f"{covered['not_trained_on']:,} indexed ones it was not trained on."
        )
        if covered["absent"]:
            named = ", ".join(covered["absent_names"][:5])
            note(f"Not in this corpus: {named}{' …' if covered['absent'] > 5 else ''}; --json names more.")
    if not report["finished"]:
        left = report["units"] - report["units_done"]
        note(f"{left} units are left to other processes; the last one to end finishes the index.")
        return
    for score, table in report["thresholds"].items():
        values = ", ".join(f"{value:.3g} at {length:.0f}" for length, value in zip(table["lengths"], table["values"]))
        note(f"{score}: 1 in 100 texts of no sense reaches {values} tokens")
    note(f"The index is in {report['index']}.")
