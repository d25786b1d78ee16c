"""`steerling train`: corpus, training, export, in one command that goes on from wherever it was stopped."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerling_jax.errors import UserError, require

if TYPE_CHECKING:
    from steerling_jax.io.corpus.store import CorpusStore
    from steerling_jax.train.data.conversations import Conversations
    from steerling_jax.train.run.run_config import RunConfig
    from steerling_jax.train.run.start import InitialWeights

HELP = """\
Train a model from a config; resumes exactly where it stopped.

examples:
  steerling train --config tiny
  steerling train --config pydocs --out ./runs/pydocs
  steerling train --config ./my_config.py --corpus ./my-corpus --json
  steerling train --config ./my_config.py --start-from steerling-pydocs --profile 10:13
  steerling train --config ./my_config.py --distributed      (on every host of a pod)
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="NAME", help="a config's name, or a .py file with config()")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="the run's folder (default: runs/NAME)")
    parser.add_argument(
        "--corpus",
        metavar="FOLDER",
        help="a corpus store; made from this Python's documentation if absent (default: the config's, or OUT/corpus)",
    )
    parser.add_argument("--steps", type=int, metavar="N", help="train for so many steps instead of the config's")
    parser.add_argument(
        "--start-from",
        metavar="MODEL",
        help="take the parameters of step 0 from there: a model's or training run's folder, or a bundled model's name",
    )
    parser.add_argument("--profile", metavar="FIRST:LAST", help="write a profiler trace of these steps to OUT/profile")
    parser.add_argument("--tensorboard", action="store_true", help="write OUT/tensorboard too")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    many = parser.add_argument_group("several processes", "each runs this command, on a folder that all of them see")
    many.add_argument("--distributed", action="store_true", help="the platform says who they are (TPU pods, Slurm)")
    many.add_argument("--coordinator", metavar="HOST:PORT", help="an address on the first process's machine")
    many.add_argument("--process-count", type=int, metavar="N", help="how many")
    many.add_argument("--process-index", type=int, metavar="I", help="which one this is, from 0")


def run(args: argparse.Namespace) -> int:
    from steerling_jax.cli.console import note, print_json
    from steerling_jax.io.checkpoints.training_folder import lock_folder
    from steerling_jax.train.run.config_files import load_config
    from steerling_jax.train.run.metrics import check_tensorboard
    from steerling_jax.train.run.processes import by_the_first, is_first, join
    from steerling_jax.train.run.profiler import parse_steps

    given = (args.coordinator, args.process_count, args.process_index)
    if any(value is not None for value in given) and None in given:
        raise UserError("--coordinator, --process-count and --process-index belong together; give all three.")
    args.profile = None if args.profile is None else parse_steps(args.profile)
    if args.distributed or args.coordinator is not None:
        join(*given)
    if args.tensorboard:
        check_tensorboard()
    config = load_config(args.config)
    if args.steps is not None:
        config = dataclasses.replace(config, steps=args.steps)
    if args.start_from is not None:
        config = dataclasses.replace(config, start_from=args.start_from)
    out = args.out or Path("runs") / config.name
    # Orbax logs a failed save with its traceback; ours is a sentence.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    with contextlib.ExitStack() as held:
        by_the_first(lambda: held.enter_context(lock_folder(out)))
        _keep_compiled(out)
        outcome, code = _train(config, args, out)
    if not is_first():
        return code
    if args.json:
        print_json(outcome)
    elif code == 0:
        note(f"Trained {outcome['step']} steps; the model is in {outcome['export']}.")
    return code


def _train(config: RunConfig, args: argparse.Namespace, out: Path) -> tuple[dict[str, Any], int]:
    import jax

    from steerling_jax.cli.console import note, stderr
    from steerling_jax.io.corpus.store import CorpusStore
    from steerling_jax.parallel.sharding import make_mesh
    from steerling_jax.train.data.batches import Batches
    from steerling_jax.train.evaluation.evaluate import evaluator
    from steerling_jax.train.run.events import Done, Evaluated, Stopped
    from steerling_jax.train.run.loop import train
    from steerling_jax.train.run.parameter_table import parameter_rows, parameter_table
    from steerling_jax.train.run.processes import ProcessShare, by_the_first, is_first
    from steerling_jax.train.run.run_folder import check_corpus, has_checkpoints, open_folder
    from steerling_jax.train.run.show import show
    from steerling_jax.train.run.start import find_weights

    if config.compute.attention == "splash" and jax.default_backend() != "tpu":
        raise UserError("compute.attention is 'splash', which needs TPUs, and there are none here: use 'xla'.")
    share = ProcessShare(make_mesh(config.mesh), config.data.batch_size, config.accumulate)
    # What a run began with is not needed any more once it has saved, except under adapters.
    other = None if has_checkpoints(out) and config.lora is None else find_weights(config)
    place = _place(args.corpus or config.data.corpus, out)

    batches: list[Batches] = []

    def begin() -> None:
        store = _corpus(config, place, other)
        check_corpus(config, store)
        if other is not None:
            other.check_corpus(store)
        batches.append(Batches(config, store))
        _tell_left_out(batches[0].answers)
        open_folder(config, store, out)
        if not args.json:
            stderr().print(parameter_table(parameter_rows(config, share.mesh)))

    by_the_first(begin)
    store = CorpusStore(place)
    batches = batches or [Batches(config, store)]
    evaluate = evaluator(config, store)
    outcome: dict[str, Any] = {"config": config.name, "folder": out}
    with _signals() as caught:
        events = train(
            config,
            store,
            out,
            share,
            other=other,
            evaluate=evaluate,
            stop=lambda: bool(caught),
            tensorboard=args.tensorboard,
            profile=args.profile,
            batches=batches[0],
        )
        for event in show(events, config, tables=not args.json) if is_first() else events:
            match event:
                case Evaluated():
                    outcome["evaluation"] = event.results
                case Stopped():
                    if is_first():
                        note(f"Stopped and saved at step {event.step}; the same command goes on from there.")
                    return {**outcome, "step": event.step, "stopped": True}, 128 + (caught or [signal.SIGTERM])[0]
                case Done():
                    outcome |= {"step": event.step, "clock": event.clock, "export": _export(config, out, event.params)}
    return outcome, 0


def _tell_left_out(answers: Conversations | None) -> None:
    from steerling_jax.cli.console import note

    if answers is not None and answers.too_long:
        note(
            f"{answers.too_long} of {len(answers) + answers.too_long} answers are left out: after their prompts "
            "data.seq_len has no room for a block. Raise it to train on them."
        )


def _export(config: RunConfig, out: Path, params: Any) -> Path:
    from steerling_jax.io.weights.published_writer import write_published
    from steerling_jax.parallel.sharding import to_first_host
    from steerling_jax.train.run.processes import by_the_first
    from steerling_jax.train.run.run_folder import companions

    whole = to_first_host(params)
    by_the_first(lambda: write_published(out / "export", config.model, whole, files=companions(out)))
    return out / "export"


def _corpus(config: RunConfig, folder: Path, other: InitialWeights | None) -> CorpusStore:
    """Opens the store at `folder`; where there is nothing, makes it from the interpreter's documentation first, in the
    tokens of the weights that training starts from."""
    from steerling_jax.io.corpus.store import CorpusStore

    if folder.exists():
        return CorpusStore(folder)
    from steerling_jax.cli.console import stages
    from steerling_jax.train.corpus.python_documents import python_documents
    from steerling_jax.train.prepare.config import CorpusInputs, PrepareConfig
    from steerling_jax.train.prepare.model_tokenizer import model_tokenizer
    from steerling_jax.train.prepare.prepare import prepare

    inputs = CorpusInputs(
        documents=python_documents(), tokenizer=None if other is None else model_tokenizer(other.folder)
    )
    settings = PrepareConfig(
        vocab_size=config.data.vocab_size,
        chunk_tokens=config.data.chunk_tokens,
        seed=config.seed,
        shares=config.data.sources or {},
    )
    with stages() as progress:
        return prepare(folder, inputs, settings, progress=progress)


def _place(given: str | None, out: Path) -> Path:
    require(
        given is None or "://" not in given,
        f"The corpus {given} is in a bucket, and training reads from disks: mount it, and give the folder.",
    )
    return out / "corpus" if given is None else Path(given)


def _keep_compiled(out: Path) -> None:
    """Compiled programs stay in the run's folder unless JAX was told another place: a restart is quick, and runs the
    very same program (on a GPU, compiling anew may choose other kernels, and so other last bits).
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str((out / "compiled").absolute()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects the first SIGINT or SIGTERM for the loop to see; the second acts as usual."""
    caught: list[int] = []
    before: dict[int, Callable[..., Any] | int | None] = {}

    def catch(number: int, _: Any) -> None:
        caught.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, catch)
    try:
        yield caught
    finally:
        restore()
