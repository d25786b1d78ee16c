"""`steerling steer-eval`: the effect of steering by concepts, compared with random directions and prompts."""

from __future__ import annotations

import argparse
import csv
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerling_jax.cli.arguments import add_model_option, number_in_range
from steerling_jax.errors import UserError
from steerling_jax.infer.steer_eval.case_options import add_case_options, run_case_command

if TYPE_CHECKING:
    from steerling_jax.bundle import Bundle
    from steerling_jax.infer.steer_eval.judge import Judge
    from steerling_jax.infer.steer_eval.measure import MeasuredText
    from steerling_jax.infer.steer_eval.text_specs import SteerEvalSettings
    from steerling_jax.io.corpus.store import CorpusStore

HELP = """\
Measure the effect of steering by concepts, compared with random directions and prompts.

The corpus must be the one that the model was trained on, or another with the same concepts and tokenizer.
docs/guide/steering-evaluation.md describes the figures.

examples:
  steerling steer-eval --corpus ./corpus
  steerling steer-eval --corpus ./corpus --concepts "Files,Threads" --strengths 0.5,1 --suppress-strengths 0.1,0.3
  steerling steer-eval --corpus ./corpus --own --strengths 1
  steerling steer-eval --corpus ./corpus --json --csv figures.csv --plot figures.svg > steering.json
  steerling steer-eval --positive code.txt --negative prose.txt --prompts prompts.txt --autoencoder ./sae/export
  steerling steer-eval --positive ru.txt --negative en.txt --prompts mixed.txt --autoencoder ./sae --away \\
    --script Cyrillic --plot languages.svg
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_model_option(parser)
    add("--corpus", type=Path, metavar="FOLDER", help="a corpus store with labels and held-out documents")
    add("--catalogue", metavar="FILE", help="concept names to use in place of the model's (JSON or Parquet)")
    add(
        "--concepts",
        default="12",
        metavar="N|NAMES",
        help="number of concepts, from frequent to rare, or their names, separated by commas (default: %(default)s)",
    )
    add(
        "--strengths",
        default="0.5,1,2,4,8",
        metavar="X,Y",
        help="strengths of the injection, in logits (default: %(default)s)",
    )
    add(
        "--suppress-strengths",
        default="",
        metavar="X,Y",
        help="strengths of suppression to measure as well as the published preset's, 7 (default: none)",
    )
    add(
        "--own",
        action="store_true",
        help="also measure the strengths that names alone have, from `steerling calibrate` or the model's defaults",
    )
    add(
        "--samples",
        type=number_in_range(int, 1),
        default=8,
        metavar="N",
        help="prompts for each concept, with and without it (default: %(default)s)",
    )
    add(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help="length of a text (default: 32, or the model's block)",
    )
    add("--seed", type=number_in_range(int, 0), default=0, metavar="N", help="random seed (default: %(default)s)")
    add("--json", action="store_true", help="print figures and texts as JSON")
    add("--csv", type=Path, metavar="FILE", help="write the figures as a table")
    add("--plot", type=Path, metavar="FILE", help="plot the figures, as .svg, .png or .pdf (needs matplotlib)")
    add_case_options(parser)


def run(args: argparse.Namespace) -> None:
    strengths = parse_strengths(args.strengths, "--strengths")
    if args.positive is not None:
        run_case_command(args, strengths, parse_strengths(args.concept_strengths, "--concept-strengths"))
        return
    if args.corpus is None:
        raise UserError("Give --corpus to steer by concepts, or --positive and its options to steer by a feature.")
    suppress = parse_strengths(args.suppress_strengths, "--suppress-strengths") if args.suppress_strengths else ()
    import steerling_jax as sj
    from steerling_jax.cli.console import print_json, stdout
    from steerling_jax.cli.steering_options import with_catalogue
    from steerling_jax.infer.steer_eval.plot import plot
    from steerling_jax.infer.steer_eval.report import flat, overall, render, summarise
    from steerling_jax.io.atomic import resolve_output
    from steerling_jax.io.corpus.store import CorpusStore
    from steerling_jax.io.pictures import check_plot

    if args.plot is not None:
        check_plot(args.plot)
    if args.csv is not None:
        resolve_output(args.csv)
    bundle, store = with_catalogue(sj.load(args.model), args.catalogue), CorpusStore(args.corpus)
    settings = _settings(args, bundle, strengths, suppress)
    judge, chosen, texts = _evaluate(bundle, store, args.concepts, settings)
    all_names = {entry["id"]: entry["name"] for entry in store.concepts}
    names = {concept: all_names[concept] for concept in chosen}
    rows = summarise(texts, settings.seed)
    if args.csv is not None:
        write_csv(args.csv, list(flat(rows, names)))
    if args.plot is not None:
        title = f"{bundle.name}: {len(chosen)} concepts, {settings.samples} prompts each, seed {settings.seed}"
        plot(overall(rows), args.plot, title)
    if args.json:
        report = {"model": bundle.name, "settings": settings, "concepts": _concepts(bundle, judge, names)}
        print_json(report | {"figures": list(flat(rows, names)), "texts": _texts(bundle, texts, names)})
    else:
        stdout().print(render(rows, names))


def parse_strengths(text: str, option: str) -> tuple[float, ...]:
    """The numbers of an option, sorted, each once."""
    try:
        strengths = tuple(sorted({float(word) for word in text.split(",")}))
    except ValueError:
        raise UserError(f"{option} is {text!r}; give numbers separated by commas, as in 2,4,8.") from None
    if not all(0 < value < float("inf") for value in strengths):
        raise UserError(f"{option} is {text!r}, but a strength must be above 0 and finite.")
    return strengths


def find_concepts(text: str, ids: Mapping[str, int]) -> int | list[int]:
    """The value of --concepts: a number, or the ids of the named concepts (case is ignored)."""
    if text.isdecimal():
        if int(text) < 1:
            raise UserError("--concepts is 0, but it must be at least 1.")
        return int(text)
    by_name = {name.lower(): i for name, i in ids.items()}
    selected = []
    for name in map(str.strip, text.split(",")):
        if name.lower() not in by_name:
            near = difflib.get_close_matches(name, ids, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "`steerling concepts` lists them."
            raise UserError(f"--concepts names {name!r}, which the corpus does not have; {hint}")
        selected.append(by_name[name.lower()])
    return list(dict.fromkeys(selected))


def _settings(
    args: argparse.Namespace, bundle: Bundle, strengths: tuple[float, ...], suppress: tuple[float, ...]
) -> SteerEvalSettings:
    from steerling_jax.decoding.generation_config import GenerationConfig
    from steerling_jax.infer.steer_eval.prompts import WITH_TOKENS
    from steerling_jax.infer.steer_eval.text_specs import SteerEvalSettings

    block, context = bundle.config.diff_block_size, bundle.config.block_size
    tokens = args.max_new_tokens if args.max_new_tokens is not None else max(32 // block * block, block)
    canvas = GenerationConfig(max_new_tokens=tokens).canvas_length(bundle.config)  # raises below 1
    if canvas + WITH_TOKENS > context:
        raise UserError(
            f"--max-new-tokens is {tokens}, but prompts take up to {WITH_TOKENS} of the model's {context} tokens: "
            f"give at most {(context - WITH_TOKENS) // block * block}."
        )
    return SteerEvalSettings(strengths, args.samples, tokens, args.seed, suppress, args.own)


def _evaluate(
    bundle: Bundle, store: CorpusStore, concepts: str, settings: SteerEvalSettings
) -> tuple[Judge, list[int], list[MeasuredText]]:
    """The judge, the ids of the chosen concepts, and the texts."""
    from steerling_jax.cli.console import stages
    from steerling_jax.infer.steer_eval.judge import train_judge
    from steerling_jax.infer.steer_eval.measure import generate_texts, measure
    from steerling_jax.infer.steer_eval.prompts import HeldOutChunks
    from steerling_jax.infer.steer_eval.text_specs import make_text_specs

    count = check_concepts(bundle, store)
    selection = find_concepts(concepts, {entry["name"]: entry["id"] for entry in store.concepts})
    named = [] if isinstance(selection, int) else selection
    descriptions = {entry["id"]: f"{entry['name']}. {entry['description']}".strip() for entry in store.concepts}
    with stages() as progress:
        judge = train_judge(store, count, named, settings.new_tokens, progress)
        chosen = judge.choose(selection) if isinstance(selection, int) else selection
        held = HeldOutChunks.read(store, count)
        specs = make_text_specs(bundle.tokenizer, held, judge, chosen, descriptions, settings)
        texts = generate_texts(bundle, judge, specs, settings, progress=progress)
        return judge, chosen, measure(bundle, judge, texts, progress)


def check_concepts(bundle: Bundle, store: CorpusStore) -> int:
    """The number of the model's known concepts. Raises `UserError` where the corpus has other concepts or tokens."""
    store.check_tokenizer(bundle.tokenizer.sha256)
    if bundle.config.concept is None:
        raise UserError("Steering needs a model with known concepts; this one has none.")
    count, names = bundle.config.concept.n_concepts, bundle.concept_names
    for entry in store.concepts:
        i, name = entry["id"], entry["name"]
        if i >= count or (names is not None and names[i] != name):
            raise UserError(
                f"Concept {i} of the corpus {store.folder} is {name!r}, but not that of this model: "
                "give the corpus that the model was trained on."
            )
    return count


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes the figures as a table, whole or not at all."""
    from steerling_jax.io.atomic import atomic_path

    with atomic_path(path) as target, target.open("w", newline="", encoding="utf-8", errors="replace") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def _concepts(bundle: Bundle, judge: Judge, names: Mapping[int, str]) -> list[dict[str, Any]]:
    """The concepts for JSON: how well the judge recognises each one, and its lifted tokens."""
    concepts = []
    for concept, name in names.items():
        i = judge.column(concept)
        pieces = [bundle.tokenizer.piece(int(token)) for token in judge.lifted[i].tokens]
        concepts.append(
            {
                "id": concept,
                "name": name,
                "heldout_chunks": judge.positives[i],
                "recall": judge.recall[i],
                "false_alarm": judge.false_alarm[i],
                "lifted": dict(zip(pieces, judge.lifted[i].lift.tolist())),
            }
        )
    return concepts


def _texts(bundle: Bundle, texts: Sequence[MeasuredText], names: Mapping[int, str]) -> list[dict[str, Any]]:
    return [
        {
            **dict(zip(("arm", "condition", "strength"), text.spec.condition)),
            "concept": names[text.spec.concept],
            "document": text.spec.opening.document,
            "seed": text.spec.seed,
            "prompt": bundle.tokenizer.decode(text.spec.opening.ids),
            "text": bundle.tokenizer.decode(text.ids),
            **text.figures,
        }
        for text in texts
    ]
