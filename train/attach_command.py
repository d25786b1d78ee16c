"""`steerling attach`: trains a sparse bottleneck after the final norm of a model, and says what it costs."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from steerling_jax.cli.arguments import add_model, number_in_range

if TYPE_CHECKING:
    from steerling_jax.bundle import Bundle
    from steerling_jax.train.attach.run_config import AttachRun

HELP = """\
Give a model a bottleneck of k features, of which every logit is the sum; resumes exactly.

examples:
  steerling attach --out ./runs/attach                                  # the bundled model
  steerling attach SmolLM2-135M-Instruct.Q4_1.gguf --text ./texts --k 64 --out ./runs/smollm2
  steerling features "The capital of France is" --model ./runs/smollm2/export
  steerling generate "The capital of France is" --model ./runs/smollm2/export
"""
COMPILE_CACHE = False  # a run has its own, see `set_compilation_cache`


def configure(parser: argparse.ArgumentParser) -> None:
    add, count = parser.add_argument, number_in_range(int, 1)
    add_model(parser)
    add("--out", type=Path, required=True, metavar="FOLDER", help="folder of the run; the result is in FOLDER/export")
    add(
        "--text",
        action="append",
        default=[],
        metavar="PATH",
        help="file, folder or pattern of documents; may be repeated (default: the documentation of this Python)",
    )
    add("--k", type=count, default=64, metavar="N", help="features of a token (default: %(default)s)")
    add("--latents", type=count, metavar="N", help="features of the dictionary (default: 16 times the model's width)")
    add("--tokens", type=count, default=250_000, metavar="N", help="tokens of text (default: %(default)s)")
    add("--held-out", type=count, default=16_384, metavar="N", help="of these, for evaluation (default: %(default)s)")
    add(
        "--steps",
        type=count,
        default=600,
        metavar="N",
        help="steps on reconstruction, of 2,048 rows (default: %(default)s)",
    )
    add(
        "--kl-steps",
        type=count,
        default=800,
        metavar="N",
        help="steps on the model's distribution, of 1,024 rows (default: %(default)s)",
    )
    add("--seq-len", type=count, default=256, metavar="N", help="tokens of a window of text (default: %(default)s)")
    add(
        "--checkpoint-every",
        type=count,
        default=250,
        metavar="N",
        help="steps between two saves (default: %(default)s)",
    )
    add("--seed", type=number_in_range(int, 0), default=0, metavar="N", help="default: %(default)s")
    add("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    import signal

    from steerling_jax.cli.console import note, print_json
    from steerling_jax.io.checkpoints.training_folder import lock_folder
    from steerling_jax.train.attach.program import load_model, run_attach
    from steerling_jax.train.run.program_setup import catch_signals, set_compilation_cache

    # Orbax logs the traceback of a failed save; the command prints one sentence.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    bundle = load_model(args.model)
    config = attach_run(args, bundle)
    with lock_folder(args.out), catch_signals() as caught:
        set_compilation_cache(args.out)
        result, stopped = run_attach(config, bundle, args.out, lambda: bool(caught), tables=not args.json)
    if args.json:
        print_json(result)
    elif not stopped:
        note(f"The model with its bottleneck is {result['export']}; `steerling features` shows the parts of a text.")
    return 128 + (caught or [signal.SIGTERM])[0] if stopped else 0


def attach_run(args: argparse.Namespace, bundle: Bundle) -> AttachRun:
    """The run that the options describe."""
    from steerling_jax.autoencoders.training_step import AutoencoderRecipe
    from steerling_jax.train.attach.run_config import AttachRun

    latents = args.latents or 16 * bundle.backbone.width
    path = Path(bundle.name).expanduser()
    return AttachRun(
        # A path is made absolute, because the bottleneck names it and may be loaded from elsewhere.
        model=str(path.absolute()) if path.exists() else bundle.name,
        texts=tuple(args.text),
        reconstruct=AutoencoderRecipe(
            n_latents=latents,
            k=args.k,
            steps=args.steps,
            batch_rows=2048,
            learning_rate=1e-3,
            dead_after=100_000,
        ),
        match=AutoencoderRecipe(
            n_latents=latents,
            k=args.k,
            steps=args.kl_steps,
            batch_rows=1024,
            learning_rate=5e-4,
            decay=0.6,
            dead_after=100_000,
        ),
        max_tokens=args.tokens,
        held_out=args.held_out,
        seq_len=args.seq_len,
        seed=args.seed,
        checkpoint_every=args.checkpoint_every,
    )
