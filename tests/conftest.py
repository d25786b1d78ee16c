"""Settings for every test, in the environment before JAX is imported, so that child processes have them too."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.worlds.paths import REPOSITORY

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
# Most of the tests' time is XLA's: small models, many programs. Unoptimised ones compile in half the time, without the
# code generator of fusions in half of that, and two workers need no more threads.
FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if version("jax") < "0.11":  # later ones do not know the flag, and stop
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", FLAGS)
# Commands in child processes share what they compile in this run, and leave the user's own cache alone. Workers of
# pytest-xdist have the variable from the process that starts them, which removes the folder.
if "STEERLING_CACHE_DIR" not in os.environ:
    os.environ["STEERLING_CACHE_DIR"] = tempfile.mkdtemp(prefix="steerling-cache-")
    atexit.register(shutil.rmtree, os.environ["STEERLING_CACHE_DIR"], ignore_errors=True)

if TYPE_CHECKING:
    from steerling_jax.bundle import Bundle
    from steerling_jax.io.corpus.store import CorpusStore


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden cases: what the published implementation returned."""
    return REPOSITORY / "tests" / "golden"


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Compiled programs hold memory maps, of which Linux gives a process 65,530: a long run would end in a crash."""
    yield
    maps = Path("/proc/self/maps")
    if maps.is_file() and maps.read_bytes().count(b"\n") > 30_000:
        import jax

        jax.clear_caches()


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model with random weights, a tokenizer and named concepts; see `serving_world`."""
    from tests.worlds.serving_world import write_text_model

    return write_text_model(tmp_path_factory.mktemp("models") / "tiny-text")


@pytest.fixture(scope="session")
def topic_store(tmp_path_factory: pytest.TempPathFactory) -> CorpusStore:
    """A small corpus with a topic; see `topic_world`."""
    from tests.worlds.topic_world import make_store

    return make_store(tmp_path_factory.mktemp("topic") / "corpus")


@pytest.fixture(scope="session")
def topic_bundle(topic_store: CorpusStore) -> Bundle:
    """A model in which one discovered concept knows the topic."""
    from tests.worlds.topic_world import make_bundle

    return make_bundle(topic_store)


@pytest.fixture(scope="session")
def child_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of child processes, which share what they compile."""
    from tests.worlds.serving_world import sharing_compiled

    return sharing_compiled(tmp_path_factory)
