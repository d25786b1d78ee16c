"""`steerling lm-eval`: runs tasks of the lm-evaluation-harness."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerling_jax.cli.arguments import add_model_option, number_in_range
from steerling_jax.errors import UserError

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from steerling_jax.infer.lm_eval.adapter import SteerlingLM, TaskSettings

HELP = """\
Run tasks of the lm-evaluation-harness.

Needs `pip install 'steerling-jax[lm-eval]'`. hellaswag, arc_challenge, winogrande, piqa, mmlu and gsm8k run with the
published settings, other tasks with 128 samples and no guidance; docs/guide/evaluation.md has both.

examples:
  steerling lm-eval --tasks piqa --limit 50
  steerling lm-eval --tasks piqa,gsm8k --model guidelabs/steerling-8b --json > results.json
  steerling lm-eval --tasks my_task --include-path ./my-tasks --samples 16
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--tasks", required=True, metavar="NAMES", help="tasks or groups of tasks, separated by commas")
    add_model_option(parser)
    add(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="dtype of the weights (default: %(default)s)",
    )
    add("--include-path", type=Path, metavar="FOLDER", help="a folder with additional tasks, in the harness' format")
    add("--limit", type=number_in_range(int, 1), metavar="N", help="use only the first N documents of each task")
    add("--num-fewshot", type=int, metavar="N", help="examples before each question")
    add("--samples", type=int, metavar="N", help="maskings drawn for each likelihood (default: the task's)")
    add("--cfg-scale", type=float, metavar="X", help="classifier-free guidance (default: the task's)")
    add("--max-gen-toks", type=int, metavar="N", help="tokens to generate if the task does not set it")
    add("--steps", type=int, metavar="N", help="denoising steps of a text (default: one for each token)")
    add(
        "--sampling",
        choices=("entropy", "task"),
        default="entropy",
        help="entropy sampling, as published, or the task's own temperature (default: %(default)s)",
    )
    add(
        "--max-length",
        type=int,
        metavar="N",
        help="tokens of context and continuation together (default: the model's context)",
    )
    add(
        "--batch-size",
        type=int,
        default=16,
        metavar="N",
        help="maskings or texts at the same time (default: %(default)s)",
    )
    add("--seed", type=int, default=0, metavar="N", help="random seed (default: %(default)s)")
    add("--json", action="store_true", help="print settings and results as JSON")


def run(args: argparse.Namespace) -> None:
    if args.include_path is not None and not args.include_path.is_dir():
        raise UserError(f"--include-path {args.include_path} is not a folder; give the folder of your tasks.")
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("The lm-evaluation-harness is not installed: pip install 'steerling-jax[lm-eval]'.")
    # The harness forks to bootstrap standard errors, and a forked process of JAX's threads can deadlock.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    from lm_eval.tasks import TaskManager

    import steerling_jax as sj
    from steerling_jax.cli.console import print_json
    from steerling_jax.infer.lm_eval.adapter import SteerlingLM

    manager = TaskManager(include_path=args.include_path)
    names = task_names(args.tasks, manager)
    bundle = sj.load(args.model, dtype=args.dtype)
    # The published settings are those of a diffusion model: samples, guidance, denoising steps.
    published = isinstance(bundle.config, sj.ModelConfig)
    settings_by_task = {name: settings_of(name, args, published=published) for name in names}
    options = {name: getattr(args, name) for name in ("seed", "batch_size", "max_length", "sampling")}
    report = {}
    for name, settings in settings_by_task.items():
        given = {field: value for field, value in vars(settings).items() if field != "num_fewshot"}
        model = SteerlingLM(bundle, **given, **options)
        with contextlib.redirect_stdout(sys.stderr):  # the harness prints; standard output is for results
            report[name] = evaluate(model, name, settings, manager, args.limit)
    if args.json:
        print_json({"model": bundle.name, "limit": args.limit, "options": options, "tasks": report})
    else:
        show(report)


def task_names(text: str, manager: TaskManager) -> list[str]:
    """The names in `--tasks`. Raises `UserError` for a task that the harness does not have."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UserError("--tasks is empty; name at least one task.")
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "`lm-eval ls tasks` lists them."
            raise UserError(f"The harness has no task {name!r}; {hint}")
    return names


def settings_of(name: str, args: argparse.Namespace, *, published: bool) -> TaskSettings:
    """The published settings of a task, or the defaults, with the command line's overrides."""
    from steerling_jax.infer.lm_eval.adapter import PUBLISHED, TaskSettings

    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(TaskSettings)}
    given = {field: value for field, value in given.items() if value is not None}
    return dataclasses.replace(PUBLISHED.get(name, TaskSettings()) if published else TaskSettings(), **given)


def evaluate(
    model: SteerlingLM, name: str, settings: TaskSettings, manager: TaskManager, limit: int | None
) -> dict[str, Any]:
    """A task's settings and the harness' results; for a group, also the results of its tasks."""
    from lm_eval.evaluator import simple_evaluate

    try:
        results = simple_evaluate(
            model,
            tasks=[name],
            num_fewshot=settings.num_fewshot,
            limit=limit,
            task_manager=manager,
            bootstrap_iters=1000,
            log_samples=False,
        )
    except OSError as error:  # the Hub is not reachable, or a file is missing
        raise UserError(f"The documents of the task {name!r} cannot be read: {error}") from error
    keys = ("results", "groups", "group_subtasks", "versions", "n-shot", "n-samples", "higher_is_better")
    return {"settings": settings, **{key: value for key, value in (results or {}).items() if key in keys}}


def show(report: dict[str, Any]) -> None:
    """Prints the results as tables."""
    from lm_eval.utils import make_table

    for name, results in report.items():
        settings = results["settings"]
        print(f"{name}: {settings.samples} samples, guidance {settings.cfg_scale:g}")  # noqa: T201
        for column in ("results", "groups"):
            if results.get(column):
                print(make_table(results, column))  # noqa: T201
