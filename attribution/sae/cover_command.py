"""`steerling sae cover`: which target features a data set covers, and generated texts for those that it misses."""

from __future__ import annotations

import argparse
import hashlib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerling_jax.attribution.sae.options import (
    add_layer_option,
    add_output_options,
    add_reading_options,
    load_model_and_autoencoder,
)
from steerling_jax.cli.arguments import number_in_range
from steerling_jax.errors import UserError, require

if TYPE_CHECKING:
    from collections.abc import Sequence

    from steerling_jax.attribution.sae.cover import Cover
    from steerling_jax.autoencoders.autoencoder import Autoencoder
    from steerling_jax.bundle import Bundle
    from steerling_jax.explain.features.example_requests import FeatureDescription
    from steerling_jax.progress import Progress

HELP = """\
Show which features a data set covers, and ask a program for texts in which the missing ones fire.

FILE is .csv, .tsv, .jsonl or .ndjson with a column of texts, or has a text in each line. The generator reads a prompt
on standard input and writes a text on standard output; {call} in its options becomes the number of the call.
docs/guide/covering-features.md describes the loop, its files and the controls.

examples:
  steerling sae cover data.jsonl --autoencoder ./runs/sae_pydocs/export --feature 17 --feature 204
  steerling sae cover data.jsonl --autoencoder SAE --about "network sockets" --targets 10 --json
  steerling sae cover data.jsonl --autoencoder SAE --positive unsafe.txt --negative safe.txt --plot cover.svg
  steerling sae cover data.jsonl --autoencoder SAE --about sockets --passages texts.jsonl --out ./runs/cover \\
      --budget 200 --generator "steerling generate - --chat --model MODEL --max-new-tokens 64 --seed {call}"
  steerling sae cover data.jsonl --feature 17 --out ./runs/cover --generator ./ask.sh --controls --pool natural.jsonl
"""

_DESCRIBED_WORDS, _SHOWN_WORDS = 8, 4


def configure(parser: argparse.ArgumentParser) -> None:
    add, count = parser.add_argument, number_in_range(int, 1)
    add("file", type=Path, metavar="FILE", help="the data set")
    add_reading_options(parser)
    add_layer_option(parser, several=False)
    add("--column", default="text", metavar="NAME", help="the column of the texts (default: %(default)s)")
    add("--limit", type=count, metavar="N", help="use N random texts of FILE (default: all)")
    add("--feature", action="append", metavar="NAME", help="a target, by number or name; can be repeated")
    add("--about", metavar="TEXT", help="targets are the features whose names and promoted tokens have these words")
    add("--positive", type=Path, metavar="FILE", help="targets are the features that fire more often in these texts")
    add("--negative", type=Path, metavar="FILE", help="than in these")
    add("--targets", type=count, default=20, metavar="N",
        help="targets of --about and of --positive (default: %(default)s)")  # fmt: skip
    add("--least", type=count, default=1, metavar="N",
        help="texts in which a target must fire to be covered (default: %(default)s)")  # fmt: skip
    add("--passages", type=Path, metavar="FILE", help="texts by which features are named, and whose strongest passages "
        "the prompts show (default: the examples of features.json)")  # fmt: skip
    add("--generator", metavar="COMMAND", help="a program that writes a text for a prompt")
    add("--out", type=Path, metavar="FOLDER", help="the folder of the generator's texts; a run in it is continued")
    add("--budget", type=count, default=100, metavar="N", help="most calls for targets (default: %(default)s)")
    add("--controls", action="store_true", help="make as many calls that name random other features, and no feature")
    add("--pool", type=Path, metavar="FILE", help="natural texts: as many drawn from these are a control, too")
    add("--shown", type=number_in_range(int, 0), default=3, metavar="N",
        help="passages in a prompt (default: %(default)s)")  # fmt: skip
    add("--time-limit", type=number_in_range(float, 0.1), default=120.0, metavar="SECONDS",
        help="of a call (default: %(default)g)")  # fmt: skip
    add("--max-bytes", type=count, default=20_000, metavar="N", help="most bytes of a text (default: %(default)s)")
    add("--tries", type=count, default=3, metavar="N", help="of a call that fails; also the unusable texts in a row "
        "after which the run stops (default: %(default)s)")  # fmt: skip
    add_output_options(parser)


def run(args: argparse.Namespace) -> None:
    _check(args)
    from steerling_jax.attribution.sae.cover import Cover, as_json
    from steerling_jax.attribution.sae.cover_view import show
    from steerling_jax.attribution.sae.plots import plot_cover
    from steerling_jax.attribution.sae.targets import choose_targets
    from steerling_jax.cli.console import plain, print_json, stages
    from steerling_jax.evaluation.target_coverage import target_coverage
    from steerling_jax.explain.features.descriptions import describe_features
    from steerling_jax.explain.text_features import read_text_features
    from steerling_jax.io.json_files import write_json
    from steerling_jax.io.pictures import check_plot

    if args.plot is not None:
        check_plot(args.plot)
    texts = _texts(args.file, args, args.limit)
    passages = _texts(args.passages, args) if args.passages else []
    pool = _texts(args.pool, args) if args.pool else []
    require(not pool or len(pool) >= args.budget, f"{args.pool} has {len(pool)} texts, fewer than --budget, "
            f"{args.budget}; give more natural texts or a smaller budget.")  # fmt: skip
    bundle, autoencoder = load_model_and_autoencoder(args)
    with stages() as progress:
        targets = choose_targets(bundle, autoencoder, args, progress)
        (read,) = read_text_features(bundle, [autoencoder], texts, _named(progress, args.file))
        coverage = target_coverage(read.strongest, [one.feature for one in targets], args.least)
        numbers = [one.feature for one in targets]
        others = _candidates(autoencoder, numbers, args) if args.controls else []
        said = describe_features(bundle, autoencoder, [*numbers, *others], passages, words=_DESCRIBED_WORDS,
                                 progress=_named(progress, args.passages))  # fmt: skip
        cover = Cover(targets, said[: len(numbers)], coverage, args.least)
        report = {
            "model": bundle.name,
            "autoencoder": autoencoder.summary(),
            "settings": {"file": args.file, "column": args.column, "limit": args.limit, "seed": args.seed},
        } | as_json(cover)
        if args.generator is not None:
            controls = _described(others, said[len(numbers) :], len(numbers))
            report["synthesis"] = _synthesise(args, bundle, autoencoder, cover, controls, (texts, passages, pool),
                                              progress)  # fmt: skip
            write_json(args.out / "report.json", plain(report))
    if args.plot is not None:
        plot_cover(report, args.plot, f"{bundle.name}: {args.file.name}, {len(texts)} texts")
    if args.json:
        print_json(report)
    else:
        show(report, _SHOWN_WORDS)


def _check(args: argparse.Namespace) -> None:
    """Raises `UserError` for options that do not belong together."""
    kinds = [bool(args.feature), args.about is not None, args.positive is not None or args.negative is not None]
    require(sum(kinds) == 1, "Give the targets by one of --feature, --about, and --positive with --negative.")
    require((args.positive is None) == (args.negative is None), "--positive and --negative belong together; give both.")
    if args.generator is None:
        for name in ("out", "controls", "pool"):
            require(not getattr(args, name), f"--{name} is for the texts of a generator; give --generator, too.")
        return
    from steerling_jax.attribution.program import split_command

    split_command("--generator", args.generator)
    if args.out is None:
        raise UserError("--generator needs --out, the folder of its texts.")


def _texts(path: Path, args: argparse.Namespace, limit: int | None = None) -> list[str]:
    """The texts of a file, or `limit` random ones of them in the file's order."""
    from steerling_jax.evaluation.coverage import random_numbers
    from steerling_jax.io.text_tables import read_text_table

    texts = read_text_table(path, args.column).texts
    return [texts[i] for i in random_numbers(len(texts), limit, args.seed)]


_CANDIDATES = 8  # random features that are described for each that a control names: some have nothing to describe


def _candidates(autoencoder: Autoencoder, targets: Sequence[int], args: argparse.Namespace) -> list[int]:
    """Random features that are no targets, more than are needed."""
    import numpy as np

    rest = np.setdiff1d(np.arange(autoencoder.n_latents), targets)
    return np.random.default_rng(args.seed).permutation(rest)[: _CANDIDATES * len(targets)].tolist()


def _described(
    features: Sequence[int], said: Sequence[FeatureDescription], count: int
) -> dict[int, FeatureDescription]:
    """The first `count` of random features that have a name or a passage, as targets do, or where there are too few
    also others."""
    order = sorted(range(len(features)), key=lambda i: not (said[i].name or said[i].passages))
    return {features[i]: said[i] for i in order[:count]}


def _synthesise(
    args: argparse.Namespace, bundle: Bundle, autoencoder: Autoencoder, cover: Cover,
    controls: dict[int, FeatureDescription], texts: tuple[list[str], list[str], list[str]], progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """Makes the calls of all arms, and returns what they covered, for JSON."""
    from steerling_jax.attribution.sae.arms import TARGETS, synthesis_figures
    from steerling_jax.attribution.sae.call_log import CallLog
    from steerling_jax.attribution.sae.synthesis import GeneratorSettings, Synthesis
    from steerling_jax.cli.console import note
    from steerling_jax.explain.feature_classifier import autoencoder_digest
    from steerling_jax.explain.features.example_requests import normalised
    from steerling_jax.explain.text_features import read_text_features
    from steerling_jax.models.steerling.fingerprint import fingerprint

    data, passages, pool = texts
    missing = cover.missing
    header = {
        "kind": "feature-cover",
        "format_version": 1,
        "model": fingerprint(bundle.params, bundle.config),
        "autoencoder": autoencoder_digest(autoencoder),
        "layer": autoencoder.layer,
        "missing_targets": [[feature, number] for feature, number in missing.items()],
        "data_set": _digest(data),
        "passages": _digest(passages),
        "shown": args.shown,
        "seed": args.seed,
    }
    settings = GeneratorSettings(args.generator, shlex.split(args.generator), args.time_limit, args.max_bytes,
                                 args.tries, args.shown)  # fmt: skip
    descriptions = {feature: cover.description(feature) for feature in missing}
    fires = None
    with CallLog(args.out, header) as log:
        if pool and missing:
            (read,) = read_text_features(bundle, [autoencoder], pool, _named(progress, args.pool))
            fires = read.strongest[:, list(missing)].toarray() > 0
        known = {normalised(text) for text in data}
        loop = Synthesis(bundle, autoencoder, settings, log, missing, known, note)
        loop.ask_for_targets(descriptions, args.budget, progress)
        if args.controls:
            calls = len(log.of_arm(TARGETS))
            loop.ask_for_others(controls, calls, progress)
            loop.ask_for_none(calls, progress)
        return synthesis_figures(log, missing, descriptions, fires, args.budget, args.seed)


def _digest(texts: list[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode("utf-8", errors="replace")).hexdigest()[:16]


def _named(progress: Progress, path: Path | None) -> Progress:
    """The same progress, with the file in the name of each stage."""
    return lambda stage, done, total: progress(f"{stage}: {path.name}" if path else stage, done, total)
