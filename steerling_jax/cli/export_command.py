"""`steerling export`: writes a checkpoint or another model in the published safetensors layout."""

from __future__ import annotations

import argparse
from pathlib import Path

from steerling_jax.errors import UserError, require

HELP = """\
Convert a checkpoint to the published layout, or a run of a decoder to a Hugging Face folder.

examples:
  steerling export ./runs/small ./small-model
  steerling export ./runs/small/checkpoints/4000 ./small-model --dtype bfloat16
  steerling export ./runs/small ./small-model --layout hub --max-shard-size 2GB
"""

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def byte_count(text: str) -> int:
    """An argparse type for sizes: the bytes in `5GB`, `512MiB` or a plain number."""
    number = text.rstrip("KMGiBkmgb")
    unit = text[len(number) :].upper()
    try:
        count = int(float(number) * UNITS[unit])
    except (KeyError, OverflowError, ValueError):
        count = 0
    if count <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 5GB, 512MiB or 100000")
    return count


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a checkpoint, a training run, one of its steps (RUN/checkpoints/STEP), or any model that --model takes",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the folder to write; must not exist yet")
    parser.add_argument("--step", type=int, help="the training step (default: the latest)")
    parser.add_argument(
        "--layout",
        choices=["package", "hub"],
        help="layout of config.json (default: that of the imported model, else package)",
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="dtype of the weights (default: as stored)")
    parser.add_argument(
        "--max-shard-size",
        type=byte_count,
        default=5 * 10**9,
        metavar="SIZE",
        help="largest weight file (default: 5GB)",
    )
    parser.add_argument("--json", action="store_true", help="print a summary as JSON")


def run(args: argparse.Namespace) -> None:
    from steerling_jax.cli.console import note, print_json
    from steerling_jax.cli.import_command import require_new_folder

    require_new_folder(args.folder)

    from steerling_jax.io.checkpoints import parameters as checkpoint
    from steerling_jax.io.checkpoints.location import RUN_FILE, locate_checkpoint
    from steerling_jax.io.hub import resolve
    from steerling_jax.io.weights import published_layout
    from steerling_jax.io.weights.decoder_reader import is_decoder_folder, read_decoder
    from steerling_jax.io.weights.decoder_writer import write_decoder
    from steerling_jax.io.weights.published_reader import read_published
    from steerling_jax.io.weights.published_writer import write_published
    from steerling_jax.models.decoder.config import DecoderConfig
    from steerling_jax.models.steerling.published_config import PublishedExtras

    folder, step = locate_checkpoint(resolve(args.checkpoint))
    if args.step is not None and step is not None:
        raise UserError(
            f"--step is {args.step}, but {args.checkpoint} is one step; give the run's folder, or no --step."
        )
    if (folder / RUN_FILE).is_file():
        info = checkpoint.read_run_info(folder)
        config, params = checkpoint.load_checkpoint_params(folder, step=args.step if step is None else step)
    else:
        if args.step is not None:
            raise UserError(f"--step is {args.step}, but {args.checkpoint} is not a training run; leave it out.")
        if is_decoder_folder(folder):
            (config, params, _), info = read_decoder(folder), PublishedExtras()
        else:
            config, params, info = read_published(folder, dtype=None)
    if isinstance(config, DecoderConfig):
        require(
            args.layout is None,
            f"--layout is {args.layout!r}, but a {config.family} model has one layout only; leave it out.",
        )
        files = [path for path in published_layout.companion_files(folder) if path.name != "concepts.json"]
        write_decoder(args.folder, config, params, dtype=args.dtype, max_shard_bytes=args.max_shard_size, files=files)
        print_json({"folder": args.folder, "config": config}) if args.json else note(f"Wrote {args.folder}.")
        return
    layout = args.layout or info.layout
    write_published(
        args.folder,
        config,
        params,
        layout=layout,
        carried=info.carried,
        dtype=args.dtype,
        max_shard_bytes=args.max_shard_size,
        files=published_layout.companion_files(folder),
    )
    if args.json:
        print_json({"folder": args.folder, "config": config, "layout": layout})
    else:
        note(f"Wrote {args.folder}.")
        if config.concept is not None and config.concept.dictionary is not None:
            note("The published package refuses this model, because its discovered concepts are a dictionary.")
