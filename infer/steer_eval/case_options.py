"""Options of `steerling steer-eval` for steering by a feature, which a contrast of texts finds, and its report."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from steerling_jax.cli.arguments import number_in_range
from steerling_jax.errors import UserError

if TYPE_CHECKING:
    from steerling_jax.infer.steer_eval.feature_cases import ArmFigures, SteeringCase


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
    add("--away", action="store_true", help="steer away from the positive texts")
    add("--damage-limit", type=number_in_range(float, 0.0), default=0.5, metavar="X",
        help="most nats a token that steering may add to the loss of neutral texts (default: %(default)s)")  # fmt: skip


def run_case_command(args: argparse.Namespace, strengths: tuple[float, ...]) -> None:
    """Steers by a feature with each of the strengths and prints the figures."""
    for option in ("negative", "prompts", "autoencoder"):
        if getattr(args, option) is None:
            raise UserError(f"--positive needs --{option}.")
    for option in ("corpus", "csv", "plot"):
        if getattr(args, option) is not None:
            raise UserError(f"--{option} is for steering by concepts; leave it out with --positive.")
    import steerling_jax as sj
    from steerling_jax.autoencoders.model_fit import check_fits
    from steerling_jax.cli.console import print_json, stages
    from steerling_jax.infer.steer_eval.feature_cases import CaseSettings, run_case
    from steerling_jax.io.autoencoders.load import load_autoencoders
    from steerling_jax.io.text_tables import read_text_table

    settings = CaseSettings(
        strengths=strengths,
        new_tokens=args.max_new_tokens or 32,
        suppress=args.away,
        limit=args.damage_limit,
        seed=args.seed,
    )
    positive, negative, prompts = (read_text_table(file).texts for file in (args.positive, args.negative, args.prompts))
    bundle = sj.load(args.model, dtype="float32")
    autoencoders = load_autoencoders(args.autoencoder, k=args.k)
    for one in autoencoders:
        check_fits(one, bundle)
    with stages() as progress:
        case = run_case(bundle, autoencoders, positive, negative, prompts, settings, progress)
    if args.json:
        print_json({"model": bundle.name, "settings": settings} | case_as_json(case))
    else:
        show_case(case)


def case_as_json(case: SteeringCase) -> dict[str, Any]:
    """The figures and texts for JSON."""
    fields = ("layer", "feature", "difference")
    one, strength = case.chosen
    return {
        "candidates": [{field: getattr(candidate, field) for field in fields} for candidate in case.candidates],
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
        f"strength {strength:g}. The judge's AUC is {case.judge_auc:.2f}."
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("condition", no_wrap=True)
    for title in ("found", "95 %", "damage", "repeated", "failures"):
        table.add_column(title, justify="right")
    for arm in case.arms:
        table.add_row(arm.name, f"{arm.found.mean:.2f}", f"{arm.found.low:.2f}–{arm.found.high:.2f}",
                      f"{arm.damage:.2f}", f"{arm.repeated:.2f}", f"{arm.failures} of {len(arm.texts)}")  # fmt: skip
    stdout().print(table)
