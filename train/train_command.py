"""`steerling train`: prepares a corpus if necessary, trains, and exports; continues a run that was stopped."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerling_jax.errors import UserError

if TYPE_CHECKING:
    from steerling_jax.train.autoencoders.run_config import AutoencoderRun
    from steerling_jax.train.rollouts.run_config import RolloutRun
    from steerling_jax.train.run.run_config import RunConfig

Program = Callable[..., tuple[dict[str, Any], bool]]  # a training; with `stop`: (result for --json, stopped)

HELP = """\
Train a model from a config; resumes an interrupted run exactly.

examples:
  steerling train --config tiny
  steerling train --config pydocs --out ./runs/pydocs
  steerling train --config sae_pydocs
  steerling train --config sae_smollm2 --text ./texts
  steerling train --config rollouts_pydocs --start-from runs/qwen3_pydocs/export --reward my_reward.py:reward
  steerling train --config ./my_config.py --corpus ./my-corpus --json
  steerling train --config ./my_config.py --start-from steerling-pydocs --profile 10:13
  steerling train --config ./my_config.py --distributed      # on every host of a pod
"""
COMPILE_CACHE = False  # a run has its own, see `set_compilation_cache`


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="NAME", help="a config's name, or a .py file with config()")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder of the run (default: runs/NAME)")
    parser.add_argument(
        "--corpus",
        metavar="FOLDER",
        help="corpus store; prepared from Python's documentation if missing (default: the config's, or OUT/corpus)",
    )
    parser.add_argument(
        "--text",
        action="append",
        default=[],
        metavar="PATH",
        help="for autoencoders and rollouts: file, folder or pattern of documents; may be repeated (default: the "
        "config's)",
    )
    parser.add_argument(
        "--reward",
        metavar="FILE.py:FUNCTION",
        help="for rollouts: the function that scores a prompt's completion (default: the config's)",
    )
    parser.add_argument("--steps", type=int, metavar="N", help="number of steps (default: the config's)")
    parser.add_argument(
        "--start-from",
        metavar="MODEL",
        help="start from the parameters of this model: a folder of a model or training run, or a bundled model's name",
    )
    parser.add_argument("--profile", metavar="FIRST:LAST", help="write a profiler trace of these steps to OUT/profile")
    parser.add_argument("--tensorboard", action="store_true", help="also write metrics to OUT/tensorboard")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    many = parser.add_argument_group("several processes", "each runs this command, with a folder that all can access")
    many.add_argument(
        "--distributed", action="store_true", help="find the others through the platform (TPU pods, Slurm)"
    )
    many.add_argument("--coordinator", metavar="HOST:PORT", help="an address on the machine of the first process")
    many.add_argument("--process-count", type=int, metavar="N", help="number of processes")
    many.add_argument("--process-index", type=int, metavar="I", help="index of this process, from 0")


def run(args: argparse.Namespace) -> int:
    from steerling_jax.cli.console import note, print_json
    from steerling_jax.io.checkpoints.training_folder import lock_folder
    from steerling_jax.train.rollouts.run_config import RolloutRun
    from steerling_jax.train.run.config_files import load_any_config
    from steerling_jax.train.run.metrics import check_tensorboard
    from steerling_jax.train.run.processes import initialise_processes, is_first_process, run_on_first_process
    from steerling_jax.train.run.profiler import parse_steps
    from steerling_jax.train.run.program_setup import set_compilation_cache
    from steerling_jax.train.run.run_config import RunConfig

    process_options = (args.coordinator, args.process_count, args.process_index)
    if any(value is not None for value in process_options) and None in process_options:
        raise UserError("--coordinator, --process-count and --process-index belong together; give all three.")
    args.profile = None if args.profile is None else parse_steps(args.profile)
    if args.distributed or args.coordinator is not None:
        initialise_processes(*process_options)
    if args.tensorboard:
        check_tensorboard()
    config = load_any_config(args.config)
    out = args.out or Path("runs") / config.name
    # Orbax logs the traceback of a failed save; the command prints one sentence.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    if isinstance(config, RolloutRun):
        return _train_by_rollouts(config, args, out)
    if args.reward is not None:
        raise UserError(f"--reward does not apply to the config {config.name!r}, which does not train by rollouts.")
    if not isinstance(config, RunConfig):
        return _train_autoencoders(config, args, out)
    if args.text:
        raise UserError(f"--text does not apply to the config {config.name!r}, which reads a corpus; give --corpus.")
    if args.steps is not None:
        config = dataclasses.replace(config, steps=args.steps)
    if args.start_from is not None:
        config = dataclasses.replace(config, start_from=args.start_from)
    with contextlib.ExitStack() as stack:
        run_on_first_process(lambda: stack.enter_context(lock_folder(out)))
        set_compilation_cache(out)
        result, code = _train(config, args, out)
    if not is_first_process():
        return code
    if args.json:
        print_json(result)
    elif code == 0:
        note(f"Trained {result['step']} steps; the model is in {result['export']}.")
    return code


def _train_autoencoders(run: AutoencoderRun, args: argparse.Namespace, out: Path) -> int:
    """Trains autoencoders, with the options that such a run has."""
    from steerling_jax.train.autoencoders.program import run_autoencoders

    _refuse_options(args, ("corpus", "profile", "tensorboard"), run.name, "autoencoders")
    if args.steps is not None:
        run = dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, steps=args.steps))
    if args.start_from is not None:
        run = dataclasses.replace(run, model=args.start_from)
    if args.text:
        run = dataclasses.replace(run, texts=tuple(args.text))
    return _run_program(partial(run_autoencoders, run, out, tables=not args.json), args, out, "autoencoders are")


def _train_by_rollouts(run: RolloutRun, args: argparse.Namespace, out: Path) -> int:
    """Trains a model by rollouts and their rewards, with the options that such a run has."""
    from steerling_jax.train.rollouts.program import run_rollouts

    refused = ("corpus", "profile", "tensorboard", "distributed", "coordinator")
    _refuse_options(args, refused, run.name, "by rollouts")
    given = {"steps": args.steps, "model": args.start_from, "reward": args.reward, "texts": tuple(args.text) or None}
    run = dataclasses.replace(run, **{name: value for name, value in given.items() if value is not None})
    return _run_program(partial(run_rollouts, run, out, tables=not args.json), args, out, "model is")


def _run_program(program: Program, args: argparse.Namespace, out: Path, made: str) -> int:
    """Runs a training in its locked folder, prints its result, and returns the exit code. made: what is exported."""
    from steerling_jax.cli.console import note, print_json
    from steerling_jax.io.checkpoints.training_folder import lock_folder
    from steerling_jax.train.run.processes import is_first_process, run_on_first_process
    from steerling_jax.train.run.program_setup import catch_signals, set_compilation_cache

    with contextlib.ExitStack() as stack:
        run_on_first_process(lambda: stack.enter_context(lock_folder(out)))
        caught = stack.enter_context(catch_signals())
        set_compilation_cache(out)
        result, stopped = program(stop=lambda: bool(caught))
    if is_first_process():
        if args.json:
            print_json(result)
        elif not stopped:
            note(f"Trained {result['step']} steps; the {made} in {result['export']}.")
    return 128 + (caught or [signal.SIGTERM])[0] if stopped else 0


def _refuse_options(args: argparse.Namespace, options: Sequence[str], name: str, trains: str) -> None:
    """Raises `UserError` for options that the config `name` does not have."""
    for option in options:
        if getattr(args, option):
            raise UserError(f"--{option} does not apply to the config {name!r}, which trains {trains}.")


def _train(config: RunConfig, args: argparse.Namespace, out: Path) -> tuple[dict[str, Any], int]:
    """(result for --json, exit code)."""
    from steerling_jax.cli.console import note
    from steerling_jax.io.checkpoints.location import RUN_FILE
    from steerling_jax.train.evaluation.evaluate import evaluator
    from steerling_jax.train.run.display import display
    from steerling_jax.train.run.events import Evaluated, RunFinished, RunStopped, StepDone
    from steerling_jax.train.run.loop import LoopOptions, train
    from steerling_jax.train.run.open_run import open_run
    from steerling_jax.train.run.processes import is_first_process
    from steerling_jax.train.run.program_setup import catch_signals

    is_new = not (out / RUN_FILE).exists()
    opened = open_run(config, args.corpus, out, table=not args.json)
    result: dict[str, Any] = {"config": config.name, "folder": out}
    with _discard_if_it_never_starts(out, is_new) as started, catch_signals() as caught:
        options = LoopOptions(
            initial=opened.initial,
            evaluate=evaluator(config, opened.store),
            stop=lambda: bool(caught),
            tensorboard=args.tensorboard,
            profile=args.profile,
            batches=opened.batches,
        )
        events = train(config, opened.store, out, opened.share, options)
        for event in display(events, config.steps, tables=not args.json) if is_first_process() else events:
            match event:
                case StepDone():
                    started.append(event.step)
                case Evaluated():
                    result["evaluation"] = event.results
                case RunStopped():
                    if is_first_process():
                        note(f"Stopped and saved at step {event.step}; run the same command to continue.")
                    return {**result, "step": event.step, "stopped": True}, 128 + (caught or [signal.SIGTERM])[0]
                case RunFinished():
                    result |= {"step": event.step, "clock": event.clock, "export": _export(config, out, event.params)}
    return result, 0


@contextlib.contextmanager
def _discard_if_it_never_starts(out: Path, is_new: bool) -> Iterator[list[int]]:
    """Yields a list for the finished steps. If an error ends a new run without one, its run.json is removed."""
    from steerling_jax.train.run.processes import is_first_process
    from steerling_jax.train.run.run_folder import discard_new_run

    steps: list[int] = []
    try:
        yield steps
    except BaseException:
        if is_new and not steps and is_first_process():
            discard_new_run(out)
        raise


def _export(config: RunConfig, out: Path, params: Any) -> Path:
    """Writes the model in its published layout. All processes take part in gathering the parameters."""
    from steerling_jax.io.weights.decoder_writer import write_decoder
    from steerling_jax.io.weights.published_writer import write_published
    from steerling_jax.models.decoder.config import DecoderConfig
    from steerling_jax.parallel.sharding import to_first_host
    from steerling_jax.train.run.processes import run_on_first_process
    from steerling_jax.train.run.run_folder import companions

    gathered = to_first_host(params)
    files = companions(out)
    if isinstance(config.model, DecoderConfig):
        files = [path for path in files if path.name != "concepts.json"]  # it has no concept heads
        run_on_first_process(lambda: write_decoder(out / "export", config.model, gathered, files=files))
    else:
        run_on_first_process(lambda: write_published(out / "export", config.model, gathered, files=files))
    return out / "export"
