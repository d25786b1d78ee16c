"""The collections of texts that `steerling sae compare` names, read in this process or in stages."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from steerling_jax.attribution.sae.compare import Collection
from steerling_jax.attribution.sae.file_features import FileFeatures, read_file_features
from steerling_jax.attribution.sae.options import load_model_and_autoencoder
from steerling_jax.attribution.sae.stages_of_commands import run_reading
from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.bundle import Bundle
from steerling_jax.errors import UserError
from steerling_jax.evaluation.coverage import random_numbers
from steerling_jax.evaluation.sparse_tables import sample_counts
from steerling_jax.io.storage import matching_files
from steerling_jax.io.text_tables import read_text_table
from steerling_jax.progress import Progress

LEAST = 4  # texts of a collection


class ReadCollections(NamedTuple):
    """What was read with what; size: texts of the subsets of one size."""

    bundle: Bundle
    autoencoder: Autoencoder
    collections: list[Collection]
    size: int


def read_collections(args: argparse.Namespace, progress: Progress) -> ReadCollections:
    """Reads all texts, then their features, in this process."""
    names, files = _files(args.files)
    texts = [[text for file, _ in one for text in read_text_table(file, args.column).texts] for one in files]
    for number, (argument, own) in enumerate(zip(args.files, texts, strict=True)):
        _check_count(argument, len(own))
        texts[number] = [own[i] for i in random_numbers(len(own), args.limit, [args.seed, number])]
    chosen = [_sample(args, number, len(own)) for number, own in enumerate(texts)]
    size = subset_size(args.size, names, [len(one) for one in chosen])
    bundle, autoencoder = load_model_and_autoencoder(args)
    together = [text for own in texts for text in own]
    features = read_file_features(bundle, [autoencoder], together, args.ngram, progress)
    collections, first = [], 0
    for name, own, numbers in zip(names, texts, chosen, strict=True):
        part = features.select(first + np.arange(len(own)))
        counts = sample_counts(part.layers[0].last)
        collections.append(_collection(name, len(own), counts, numbers, part.select(numbers)))
        first += len(own)
    return ReadCollections(bundle, autoencoder, collections, size)


def read_in_stages(args: argparse.Namespace, progress: Progress) -> ReadCollections:
    """Has the files read by the tasks of stages, and holds the features of the sample alone."""
    if args.limit is not None:
        raise UserError("--limit is for texts that one process reads; with --work, give --sample N.")
    names, files = _files(args.files)
    bundle, autoencoder = load_model_and_autoencoder(args)
    reading = run_reading(args, (bundle, [autoencoder]), files, args.column, args.ngram, progress)
    totals = [sum(reading.texts_of_files(reading.of_collection(number))) for number in range(len(names))]
    for argument, total in zip(args.files, totals, strict=True):
        _check_count(argument, total)
    chosen = [_sample(args, number, total) for number, total in enumerate(totals)]
    size = subset_size(args.size, names, [len(one) for one in chosen])
    collections = []
    for number, (name, total, numbers) in enumerate(zip(names, totals, chosen, strict=True)):
        counts, features = reading.counts(number, 0), reading.select(number, numbers)
        collections.append(_collection(name, total, counts, numbers, features))
    return ReadCollections(bundle, autoencoder, collections, size)


def subset_size(requested: int | None, names: Sequence[str], samples: Sequence[int]) -> int:
    """The number of samples of the subsets that are compared; two of them must fit into every collection."""
    smallest = int(np.argmin(samples))
    most = samples[smallest] // 2
    size = most if requested is None else requested
    if size > most:
        raise UserError(
            f"--size is {size}, but {names[smallest]} has {samples[smallest]} samples; give at most {most}, so that it "
            "has two subsets without a common sample."
        )
    return size


def _files(arguments: Sequence[str]) -> tuple[list[str], list[list[tuple[str, int]]]]:
    """The names of the collections, and the files of each with their sizes."""
    if len(set(arguments)) < len(arguments):
        raise UserError("A file is named twice; name each benchmark once.")
    stems = [PurePosixPath(one).stem for one in arguments]
    return stems if len(set(stems)) == len(stems) else list(arguments), [matching_files(one) for one in arguments]


def _check_count(argument: str, count: int) -> None:
    if count < LEAST:
        counted = "one sample" if count == 1 else f"{count} samples"
        raise UserError(f"{argument} has {counted}, but a benchmark needs at least four, for two subsets of two.")


def _sample(args: argparse.Namespace, number: int, total: int) -> np.ndarray:
    """The numbers of the texts of a collection whose features are held: all, or random ones, in order."""
    return random_numbers(total, args.sample, [args.seed, number, 1])


def _collection(name: str, samples: int, counts: np.ndarray, numbers: np.ndarray, features: FileFeatures) -> Collection:
    return Collection(name, samples, counts, numbers, features.layers[0], features.ngrams)
