"""What commands that train set up around the loop: signals that stop a run, and the cache of compiled programs."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax


def set_compilation_cache(out: Path) -> None:
    """Caches compiled programs in the run's folder, unless JAX_COMPILATION_CACHE_DIR names another one.

    A restart is then faster, and runs the same program: on a GPU, compiling again may choose other kernels by timing
    them, which round differently, and the resumed run would not be bit-identical.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str((out / "compiled").absolute()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@contextlib.contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Collects the first SIGINT or SIGTERM, for the loop to stop after the current step. The handlers are then
    restored, so that a second signal ends the process at once."""
    caught: list[int] = []
    previous: dict[int, Callable[..., Any] | int | None] = {}

    def catch(number: int, _: Any) -> None:
        caught.append(number)
        restore()

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, catch)
    try:
        yield caught
    finally:
        restore()
