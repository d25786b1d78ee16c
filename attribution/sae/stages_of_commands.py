"""Files read in stages, as the options of `steerling sae compare` and `classify` name them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from steerling_jax.attribution.sae.file_features import joined
from steerling_jax.attribution.sae.labelled_texts import LabelledTexts
from steerling_jax.attribution.sae.staged_reading import READING, Reading, start_reading
from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.bundle import Bundle
from steerling_jax.explain.text_features import LayerFeatures, read_text_features
from steerling_jax.io.stages.running import run_stages
from steerling_jax.io.stages.staged_work import RunnerConfig
from steerling_jax.io.storage import StoragePath, matching_files
from steerling_jax.progress import Progress


def run_reading(
    args: argparse.Namespace,
    reader: tuple[Bundle, list[Autoencoder]],
    files: Sequence[Sequence[tuple[str, int]]],
    column: str,
    ngram: int,
    progress: Progress,
) -> Reading:
    """Has the files of each collection read by what --workers and --runner name, into --work."""
    runner = RunnerConfig(args.workers, args.runner, args.runner_options)
    blocks = [one.layer for one in reader[1] if one.layer is not None]
    layers = blocks if args.autoencoder is not None and len(blocks) == len(reader[1]) else None
    options = {"model": args.model, "autoencoder": args.autoencoder, "k": args.k, "layers": layers, "column": column,
               "ngram": ngram}  # fmt: skip
    work = StoragePath(args.work)
    reading = start_reading(work, options, files, reader)
    run_stages(READING, work, runner, progress)
    return reading


def labelled_features(
    args: argparse.Namespace,
    labelled: LabelledTexts,
    reader: tuple[Bundle, list[Autoencoder]],
    progress: Progress,
) -> list[LayerFeatures]:
    """What each autoencoder reads in labelled texts, in this process or, with --work, in stages."""
    if args.work is None:
        return read_text_features(*reader, labelled.texts, progress)
    files = [matching_files(name) for name in (args.file, args.test) if name is not None]
    reading = run_reading(args, reader, files, args.text_column, 1, progress)
    return joined([reading.select(number, chosen) for number, chosen in enumerate(labelled.numbers)]).layers
