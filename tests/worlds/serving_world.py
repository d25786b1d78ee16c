"""Models small enough to be served in seconds, and servers of them in processes of their own."""

from __future__ import annotations

import base64
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import httpx
import jax
import numpy as np
import openai
import pytest

from steerling_jax.io.tokenizers.cl100k import TiktokenTokenizer
from steerling_jax.io.tokenizers.vocabulary import train_sentencepiece
from steerling_jax.io.weights.published_writer import write_published
from steerling_jax.models.steerling.config import ConceptConfig, ModelConfig
from steerling_jax.models.steerling.model import init_params
from steerling_jax.train.run.run_config import special_ids
from tests.worlds.progress_lines import without_progress
from tests.worlds.small_config import CONCEPT

VOCABULARY = 400
SAMPLE = ["The quick brown fox jumps over the lazy dog. It returns a value, or raises an exception.\n",
          "안녕하세요, 세계. 값은 문자열이다.\n", "def greet(name):\n    return 12345\n"] * 20  # fmt: skip
PROMPT = "The quick brown"
PATIENCE = 600  # seconds until a test fails that waits for another process, which a busy machine can keep waiting
CONCEPTS = ("Regular expressions", "Email", "Sockets", "Dates")


def write_text_model(folder: Path) -> Path:
    """Writes a model with random weights and a vocabulary in which half of the tokens are single bytes."""
    config = _config(CONCEPT, vocab_size=VOCABULARY, **special_ids(VOCABULARY))
    _write(folder, config)
    (folder / "tokenizer.model").write_bytes(train_sentencepiece(SAMPLE, VOCABULARY))
    names = [{"id": i, "name": name} for i, name in enumerate(CONCEPTS)]
    (folder / "concepts.json").write_text(json.dumps(names))
    return folder


def write_chat_model(folder: Path) -> Path:
    """Writes an instruct model with the published special ids and a vocabulary of single bytes."""
    published = TiktokenTokenizer.PUBLISHED
    ids = {f"{name}_token_id": getattr(published, f"{name}_id") for name in ("mask", "endofchunk", "bos", "pad", "eos")}
    config = _config(None, vocab_size=100_284, instruct=True, eot_id=TiktokenTokenizer.EOT, interpretable=False, **ids)
    _write(folder, config, known=256)
    lines = [f"{base64.b64encode(bytes([byte])).decode()} {byte}" for byte in range(256)]
    (folder / "cl100k_base.tiktoken").write_text("\n".join(lines))
    return folder


def _config(concept: ConceptConfig | None, **fields) -> ModelConfig:
    """A config whose small context makes all short requests share one cache size, so that few programs are compiled."""
    return ModelConfig(
        n_layers=1,
        n_head=4,
        n_embd=32,
        n_kv_heads=2,
        block_size=128,
        diff_block_size=16,
        intermediate_size=48,
        concept=concept,
        **fields,
    )


def _write(folder: Path, config: ModelConfig, known: int | None = None) -> None:
    """Writes random weights; JAX's own initialisation would take seconds to compile. known: tokens from this id on are
    never the most likely."""
    rng = np.random.default_rng(0)

    def fill(path, leaf) -> np.ndarray:
        if "norm" in (name := jax.tree_util.keystr(path)) or "ln_" in name:
            return np.ones(leaf.shape, np.float32)
        return rng.normal(0, 0.2, leaf.shape).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(fill, jax.eval_shape(lambda: init_params(config, jax.random.key(0))))
    params["tok_emb"]["weight"] *= 2.0
    if known is not None:
        params["tok_emb"]["weight"][known:] = 0.0
    write_published(folder, config, params)


def sharing_compiled(factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of servers that share one compilation cache for the whole test run."""
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(base / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


@dataclass
class HeldProcess:
    """A running command that serves an address. url: that address, without a slash at the end. file: of `held_command`,
    where it was started with one."""

    process: subprocess.Popen[str]
    url: str
    file: Path | None = None
    hold: int = 0  # the number of the hold

    def allow(self, calls: int) -> None:
        """The decoder makes this many calls, counted from the first `allow`, and no more, until `release`."""
        assert self.file is not None
        write_whole(self.file, f"{calls} {self.hold}")

    def release(self) -> None:
        assert self.file is not None
        self.file.unlink(missing_ok=True)
        self.hold += 1

    @contextmanager
    def held(self, calls: int) -> Iterator[None]:
        """The decoder makes this many calls and no more, until `release` or the end of the block. It is idle before:
        the calls would otherwise be spent on the texts of earlier tests."""
        while self.metric("queue_length") + self.metric("running_rows"):
            time.sleep(0.02)
        self.allow(calls)
        try:
            yield
        finally:
            self.release()

    def get(self, path: str, **options) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=PATIENCE, **options)

    def post(self, body, path: str = "/v1/completions", **options) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=PATIENCE, **options)

    def metric(self, name: str) -> float:
        """The value of a metric; name: as in `/metrics`, without the prefix, with its labels."""
        lines = self.get("/metrics").text.splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(f"steerling_{name} "))

    def stop(self, sent: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(sent)
        return self.process.wait(PATIENCE)


@dataclass
class Server(HeldProcess):
    """A running `steerling serve`. errors: lines of its standard error after the one that says it is ready."""

    errors: list[str] = field(default_factory=list)

    @cached_property
    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE)


def write_whole(file: Path, content: str) -> None:
    """Writes a file that another process reads at any moment."""
    new = file.with_suffix(".new")
    new.write_text(content)
    new.replace(file)


def held_command(file: Path | None) -> list[str]:
    """The words that start `steerling` in a process; with `file`, under `held_command`."""
    if file is None:
        return [sys.executable, "-m", "steerling_jax.cli.main"]
    return [sys.executable, "-P", str(Path(__file__).with_name("held_command.py")), str(file)]


@contextmanager
def serving(
    model: Path,
    environment: dict[str, str],
    *options: str,
    ready: str = r"(http://\S+)/v1 ",
    file: Path | None = None,
) -> Iterator[Server]:
    """Starts a server on a free port and yields it once a line of its output matches `ready`, whose first group is the
    URL. Without warm-up, unless `options` request it. At the end, the server must stop by itself, without a traceback.

    file: with it, a test can hold the decoder; see `held_command`.
    """
    line = [*held_command(file), "serve", "--model", str(model), "--port", "0", "--warm-up", "0", *options]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=environment) as process:
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        assert process.stderr is not None
        reader = threading.Thread(
            target=lambda stream: [lines.put(text) for text in stream if without_progress(text)], args=(process.stderr,)
        )
        reader.start()
        server = None
        try:
            first = lines.get(timeout=PATIENCE)
            found = re.search(ready, first)
            assert found, first
            server = Server(process, found[1], file)
            yield server
            if process.poll() is None:
                assert server.stop() == 0
            reader.join()
            while not lines.empty():
                server.errors.append(lines.get())
            assert [line for line in server.errors if not line.startswith("Serving")] == []
        finally:
            process.kill()
            reader.join()
            if server is not None and "openai" in vars(server):
                server.openai.close()


def ask(server: Server, **changes) -> dict:
    """Sends a request by plain HTTP; returns the parsed response."""
    answer = server.post({"prompt": PROMPT, "max_tokens": 16, "seed": 1} | changes)
    assert answer.status_code == 200, answer.text
    return answer.json()


def text(answer: dict) -> str:
    return answer["choices"][0]["text"]


def events(answer: httpx.Response) -> list[str]:
    """The data of the events of a streamed response."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    parts = answer.text.split("\n\n")
    assert parts.pop() == ""
    assert all(part.startswith("data: ") for part in parts)
    return [part.removeprefix("data: ") for part in parts]
