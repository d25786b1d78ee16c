"""`steerling import`: writes a model in the published safetensors layout as a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from steerling_jax.errors import UserError

HELP = """\
Convert a model in the published layout to a checkpoint.

examples:
  steerling import ./published-model ./runs/imported
  steerling import guidelabs/steerling-8b ./runs/imported --dtype bfloat16
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", metavar="FOLDER", help="a folder with config.json and model*.safetensors, or a Hub id"
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="the folder to write; must not exist yet")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="dtype of the parameters (default: as stored)")
    parser.add_argument("--json", action="store_true", help="print a summary as JSON")


def require_new_folder(folder: Path) -> None:
    """Raises `UserError` unless `folder` is empty or does not exist: writing replaces a folder as a whole."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"{folder} exists already; choose another folder or remove it first.")


def run(args: argparse.Namespace) -> None:
    from steerling_jax.cli.console import note, print_json
    from steerling_jax.io import hub

    require_new_folder(args.checkpoint)
    folder = hub.resolve(args.folder)

    from steerling_jax.io.checkpoints import parameters as checkpoint
    from steerling_jax.io.weights import published_layout
    from steerling_jax.io.weights.published_reader import read_published

    config, params, extras = read_published(folder, dtype=args.dtype)
    files = published_layout.companion_files(folder)
    checkpoint.save_params_checkpoint(
        args.checkpoint, config, params, layout=extras.layout, carried=extras.carried, files=files
    )
    if args.json:
        dtype = args.dtype or extras.dtype
        print_json({"checkpoint": args.checkpoint, "config": config, "layout": extras.layout, "dtype": dtype})
    else:
        note(f"Wrote {args.checkpoint}.")
