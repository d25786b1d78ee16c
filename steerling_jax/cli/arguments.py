"""Arguments that several commands have."""

from __future__ import annotations

import argparse


def add_model(parser: argparse.ArgumentParser) -> None:
    """MODEL, for `sj.load`; None stands for the bundled one."""
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a folder, a checkpoint, the name of a bundled model or a Hub id (default: the bundled model)",
    )
