"""A model folder in a bucket: its small files are copied to this machine, its weights are read where they are."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from steerling_jax.errors import UserError, require
from steerling_jax.io.checkpoints.location import RUN_FILE
from steerling_jax.io.storage import StoragePath
from steerling_jax.io.weights.published_layout import COMPANIONS, INDEX, SINGLE, Headers
from steerling_jax.io.weights.remote_tensors import remote_header


def open_bucket_model(address: str) -> tuple[Path, Headers]:
    """A local folder with the configuration, tokenizer and other small files of a model, and its weight files.

    address: of the folder, `gs://…` or `s3://…`. Raises `UserError` for a GGUF file, a training run, and a folder
    without a model.
    """
    require(
        not address.lower().endswith(".gguf"),
        f"{address} is a GGUF file in a bucket, which is not read from there; copy it to this machine.",
    )
    storage = StoragePath(address)
    names = {name for name in storage.names() if "/" not in name}
    if RUN_FILE in names:
        raise UserError(f"{address} is a training run; copy it to this machine, or give the address of its export.")
    require(
        "config.json" in names,
        f"{address} has no config.json; give the address of a folder with config.json and {SINGLE}.",
    )
    small = sorted(name for name in names if any(fnmatch(name, one) for one in ("config.json", INDEX, *COMPANIONS)))
    copy = Path(tempfile.mkdtemp(prefix="steerling-model-"))
    # Not before the process ends: a bundle may read a file of its folder later.
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    for name, content in zip(small, storage.read_many(small), strict=True):
        (copy / name).write_bytes(content)
    return copy, partial(remote_header, storage)
