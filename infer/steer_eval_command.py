"""`steerling steer-eval`: what steering by concepts does to texts, beside what random directions and prompts do."""

from __future__ import annotations

import argparse
import csv
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerling_jax.errors import UserError

if TYPE_CHECKING:
    from steerling_jax.bundle import Bundle
    from steerling_jax.infer.steer_eval.jobs import SteerEvalSettings
    from steerling_jax.infer.steer_eval.judge import Judge
    from steerling_jax.infer.steer_eval.measure import Text
    from steerling_jax.io.corpus.store import CorpusStore

HELP = """\
Measure what steering by concepts does, beside random directions and prompting.

The corpus must be the one the model was trained on, or another with the same concepts and tokenizer. docs/steer-eval.md
says what the figures mean.

examples:
  steerling steer-eval --corpus ./corpus
  steerling steer-eval --corpus ./corpus --concepts "Files,Threads" --strengths 4,8 --samples 20
  steerling steer-eval --corpus ./corpus --json --csv figures.csv --plot figures.svg > steering.json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", metavar="MODEL", help="a folder, a checkpoint, a bundled model or a Hub id (default: bundled)")
    add(
        "--corpus", type=Path, required=True, metavar="FOLDER", help="a corpus store with labels and held-out documents"
    )
    add(
        "--concepts",
        default="12",
        metavar="N|NAMES",
        help="how many, from frequent to rare ones, or names with commas between (default: %(default)s)",
    )
    add("--strengths", default="0.5,1,2,4,8", metavar="X,Y", help="of the injection, in logits (default: %(default)s)")
    add("--samples", type=int, default=8, metavar="N", help="prompts a concept, in each arm (default: %(default)s)")
    add("--max-new-tokens", type=int, metavar="N", help="a multiple of the block (default: 32, or the block)")
    add("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    add("--json", action="store_true", help="print figures and texts as JSON")
    add("--csv", type=Path, metavar="FILE", help="write the figures as a table")
    add("--plot", type=Path, metavar="FILE", help="draw them, as .svg, .png or .pdf (needs matplotlib)")


def run(args: argparse.Namespace) -> None:
    strengths = parse_strengths(args.strengths)
    for name, value, least in (("--samples", args.samples, 1), ("--seed", args.seed, 0)):
        if value < least:
            raise UserError(f"{name} is {value}, but it must be at least {least}.")
    import steerling_jax as sj
    from steerling_jax.cli.console import print_json, stdout
    from steerling_jax.infer.steer_eval.plot import check_plot, plot
    from steerling_jax.infer.steer_eval.report import flat, overall, render, summarise
    from steerling_jax.io.corpus.store import CorpusStore

    if args.plot is not None:
        check_plot(args.plot)
    bundle, store = sj.load(args.model), CorpusStore(args.corpus)
    settings = _settings(args, bundle, strengths)
    judge, chosen, texts = _evaluate(bundle, store, args.concepts, settings)
    named = {entry["id"]: entry["name"] for entry in store.concepts}
    names = {concept: named[concept] for concept in chosen}
    rows = summarise(texts, settings.seed)
    if args.csv is not None:
        write_csv(args.csv, list(flat(rows, names)))
    if args.plot is not None:
        title = f"{bundle.name}: {len(chosen)} concepts, {settings.samples} prompts each, seed {settings.seed}"
        plot(overall(rows), args.plot, title)
    if args.json:
        about = {"model": bundle.name, "settings": settings, "concepts": _about(bundle, judge, names)}
        print_json(about | {"figures": list(flat(rows, names)), "texts": _texts(bundle, texts, names)})
    else:
        stdout().print(render(rows, names))


def parse_strengths(text: str) -> tuple[float, ...]:
    """Different positive numbers, in order."""
    try:
        found = tuple(sorted({float(word) for word in text.split(",")}))
    except ValueError:
        raise UserError(f"--strengths is {text!r}; give numbers with commas between, as in 2,4,8.") from None
    if not all(0 < value < float("inf") for value in found):
        raise UserError(f"--strengths is {text!r}, but a strength is above 0 and finite.")
    return found


def find_concepts(text: str, ids: Mapping[str, int]) -> int | list[int]:
    """A number, or the ids of the named concepts; upper and lower case are one."""
    if text.isdecimal():
        if int(text) < 1:
            raise UserError("--concepts is 0, but it must be at least 1.")
        return int(text)
    by_name = {name.lower(): i for name, i in ids.items()}
    found = []
    for name in map(str.strip, text.split(",")):
        if name.lower() not in by_name:
            near = difflib.get_close_matches(name, ids, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "`steerling concepts` lists them."
            raise UserError(f"--concepts names {name!r}, which the corpus does not have; {hint}")
        found.append(by_name[name.lower()])
    return list(dict.fromkeys(found))


def _settings(args: argparse.Namespace, bundle: Bundle, strengths: tuple[float, ...]) -> SteerEvalSettings:
    from steerling_jax.decoding.generation_config import GenerationConfig
    from steerling_jax.infer.steer_eval.jobs import SteerEvalSettings
    from steerling_jax.infer.steer_eval.prompts import WITH_TOKENS

    block, context = bundle.config.diff_block_size, bundle.config.block_size
    tokens = args.max_new_tokens if args.max_new_tokens is not None else max(32 // block * block, block)
    GenerationConfig(max_new_tokens=tokens).sampler_blocks(bundle.config)  # complains where it is no multiple
    if tokens + WITH_TOKENS > context:
        raise UserError(
            f"--max-new-tokens is {tokens}, but prompts take up to {WITH_TOKENS} of the model's {context} tokens: "
            f"give at most {context - WITH_TOKENS}."
        )
    return SteerEvalSettings(strengths, args.samples, tokens, args.seed)


def _evaluate(
    bundle: Bundle, store: CorpusStore, concepts: str, settings: SteerEvalSettings
) -> tuple[Judge, list[int], list[Text]]:
    from steerling_jax.cli.console import stages
    from steerling_jax.infer.steer_eval.jobs import jobs_of
    from steerling_jax.infer.steer_eval.judge import train_judge
    from steerling_jax.infer.steer_eval.measure import measure, write_texts
    from steerling_jax.infer.steer_eval.prompts import HeldOutChunks

    count = check_concepts(bundle, store)
    asked = find_concepts(concepts, {entry["name"]: entry["id"] for entry in store.concepts})
    with stages() as tell:
        judge = train_judge(store, count, [] if isinstance(asked, int) else asked, settings.new_tokens, tell)
        chosen = judge.choose(asked) if isinstance(asked, int) else asked
        descriptions = {entry["id"]: f"{entry['name']}. {entry['description']}".strip() for entry in store.concepts}
        jobs = jobs_of(bundle.tokenizer, HeldOutChunks.read(store, count), judge, chosen, descriptions, settings)
        written = write_texts(bundle, judge, jobs, settings, progress=tell)
        return judge, chosen, measure(bundle, judge, written, tell)


def check_concepts(bundle: Bundle, store: CorpusStore) -> int:
    """How many concepts the model knows; raises `UserError` where the corpus has others, or other tokens."""
    store.check_tokenizer(bundle.tokenizer.sha256)
    if bundle.config.concept is None:
        raise UserError("Steering needs a model with known concepts; this one has none.")
    count, names = bundle.config.concept.n_concepts, bundle.concept_names
    for entry in store.concepts:
        i, name = entry["id"], entry["name"]
        if i >= count or (names is not None and names[i] != name):
            raise UserError(
                f"The corpus {store.folder} calls concept {i} {name!r}, which this model does not: "
                "give the corpus that the model was trained on."
            )
    return count


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    from steerling_jax.io.atomic import atomic_path

    with atomic_path(path) as scratch, scratch.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def _about(bundle: Bundle, judge: Judge, names: Mapping[int, str]) -> list[dict[str, Any]]:
    """What the judge knows of each concept."""
    found = []
    for concept, name in names.items():
        i = judge.column(concept)
        words = [bundle.tokenizer.piece(int(token)) for token in judge.lifted[i].tokens]
        found.append(
            {
                "id": concept,
                "name": name,
                "heldout_chunks": judge.positives[i],
                "recall": judge.recall[i],
                "false_alarm": judge.false_alarm[i],
                "lifted": dict(zip(words, judge.lifted[i].lift.tolist())),
            }
        )
    return found


def _texts(bundle: Bundle, texts: Sequence[Text], names: Mapping[int, str]) -> list[dict[str, Any]]:
    return [
        {
            **dict(zip(("arm", "condition", "strength"), text.job.condition)),
            "concept": names[text.job.concept],
            "document": text.job.opening.document,
            "seed": text.job.seed,
            "prompt": bundle.tokenizer.decode(text.job.opening.ids),
            "text": bundle.tokenizer.decode(text.ids),
            **text.figures,
        }
        for text in texts
    ]
