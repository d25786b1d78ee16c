"""Options of `steerling steer-eval` for steering by a feature, which a contrast of texts finds, and its report."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from steerling_jax.cli.arguments import number_in_range
from steerling_jax.errors import UserError

if TYPE_CHECKING:
    from steerling_jax.infer.steer_eval.case_arms import ArmFigures
    from steerling_jax.infer.steer_eval.feature_cases import SteeringCase


def add_case_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options; --strengths, --max-new-tokens, --seed and --json are those of the command."""
    group = parser.add_argument_group("steering by a feature, in place of --corpus")
    add = group.add_argument
    add("--positive", metavar="FILE", help="texts, one a line, of the style or subject to steer to")
    add("--negative", metavar="FILE", help="texts without it, which are also the neutral texts")
    add(
        "--prompts",
        metavar="FILE",
        help="prompts, one a line: half to choose layer and strength on, half to measure on",
    )
    add("--autoencoder", metavar="PATH", help="an autoencoder of the model's layers, or a folder with those of several")
    add("--k", type=number_in_range(int, 1), metavar="N", help="latents of a token, where its files do not say it")
    add(
        "--script",
        metavar="NAME",
        help="judge texts by how many of their letters are of this script (Cyrillic, Hangul, Han), not by their words",
    )
    add(
        "--concept",
        metavar="NAME",
        help="the built-in concept to compare with (default: the one that the contrast of the texts finds)",
    )
    add(
        "--concept-strengths",
        default="0.5,1,2,4,8",
        metavar="X,Y",
        help="strengths of the built-in concept, in logits (default: %(default)s)",
    )
    add("--away", action="store_true", help="steer away from the positive texts")
    add("--damage-limit", type=number_in_range(float, 0.0), default=0.5, metavar="X",
        help="most nats a token that steering may add to the loss of neutral texts (default: %(default)s)")  # fmt: skip


def run_case_command(
    args: argparse.Namespace, strengths: tuple[float, ...], concept_strengths: tuple[float, ...]
) -> None:
    """Steers by a feature with each of the strengths, and by a concept with each of its own, and prints the figures."""
    for option in ("negative", "prompts", "autoencoder"):
        if getattr(args, option) is None:
            raise UserError(f"--positive needs --{option}.")
    for option in ("corpus", "csv"):
        if getattr(args, option) is not None:
            raise UserError(f"--{option} is for steering by concepts; leave it out with --positive.")
    import steerling_jax as sj
    from steerling_jax.autoencoders.model_fit import check_fits
    from steerling_jax.cli.console import print_json, stages
    from steerling_jax.infer.steer_eval.case_arms import CaseSettings
    from steerling_jax.infer.steer_eval.case_plot import plot_case
    from steerling_jax.infer.steer_eval.feature_cases import CaseTexts, run_case
    from steerling_jax.io.autoencoders.load import load_autoencoders
    from steerling_jax.io.pictures import check_plot
    from steerling_jax.io.text_tables import read_text_table

    if args.plot is not None:
        check_plot(args.plot)
    settings = CaseSettings(
        strengths=strengths,
        new_tokens=args.max_new_tokens or 32,
        suppress=args.away,
        limit=args.damage_limit,
        seed=args.seed,
        concept_strengths=concept_strengths,
    )
    files = (args.positive, args.negative, args.prompts)
    texts = CaseTexts(*(read_text_table(file).texts for file in files), script=args.script, concept=args.concept)
    bundle = sj.load(args.model, dtype="float32")
    autoencoders = load_autoencoders(args.autoencoder, k=args.k)
    for one in autoencoders:
        check_fits(one, bundle)
    with stages() as progress:
        case = run_case(bundle, autoencoders, texts, settings, progress)
    if args.plot is not None:
        plot_case(case, settings, args.plot, f"{bundle.name}: {len(texts.prompts)} prompts, seed {settings.seed}")
    if args.json:
        about = {"model": bundle.name, "settings": settings, "autoencoders": [one.summary() for one in autoencoders]}
        print_json(about | case_as_json(case))
    else:
        show_case(case)


def case_as_json(case: SteeringCase) -> dict[str, Any]:
    """The figures and texts for JSON."""
    fields = ("layer", "feature", "difference")
    one, strength = case.chosen
    return {
        "candidates": [{field: getattr(candidate, field) for field in fields} for candidate in case.candidates],
        "concept": None if case.concept is None else case.concept._asdict() | {"strength": case.concept_strength},
        "judge": case.judge,
        "judge_auc": case.judge_auc,
        "chosen": {field: getattr(one, field) for field in fields} | {"strength": strength},
        "tuning": [_arm(arm) for arm in case.tuning],
        "arms": [_arm(arm) for arm in case.arms],
    }


def _arm(arm: ArmFigures) -> dict[str, Any]:
    return arm._asdict() | {"found": arm.found._asdict()}


def show_case(case: SteeringCase) -> None:
    """Prints the choice and a table of the conditions on the second half of the prompts."""
    from rich.table import Table

    from steerling_jax.cli.console import stdout

    one, strength = case.chosen
    stdout().print(
        f"Chosen on half of the prompts: feature {one.feature} of layer {one.layer} (Δ {one.difference:.2f}), "
        f"strength {strength:g}. Judged by {case.judge}, with an AUC of {case.judge_auc:.2f}."
    )
    if case.concept is not None:
        stdout().print(f"Built-in concept: {case.concept.name}, strength {case.concept_strength:g}.", markup=False)
    table = Table(box=None, pad_edge=False)
    table.add_column("condition", no_wrap=True)
    for title in ("found", "95 %", "damage", "repeated", "failures"):
        table.add_column(title, justify="right")
    for arm in case.arms:
        table.add_row(arm.name, f"{arm.found.mean:.2f}", f"{arm.found.low:.2f}–{arm.found.high:.2f}",
                      f"{arm.damage:.2f}", f"{arm.repeated:.2f}", f"{arm.failures} of {len(arm.texts)}")  # fmt: skip
    stdout().print(table)
