"""`steerling explore`: the page before the model, a model that does not load, and how it stops."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from steerling_jax.attribution.explorer.app import Api, Site, make_app
from steerling_jax.attribution.explorer.page import page_files
from steerling_jax.attribution.explorer.security import HEADERS
from steerling_jax.attribution.explorer.settings import ExplorerSettings
from steerling_jax.cli.main import main
from steerling_jax.errors import UserError
from steerling_jax.infer.server.listening import http_address, listen
from tests.worlds.explorer_world import exploring
from tests.worlds.serving_world import PATIENCE, sharing_compiled

TEXT = {"prompt": "The quick brown", "max_tokens": 64, "seed": 1}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return sharing_compiled(tmp_path_factory)


@contextmanager
def serving(site: Site) -> Iterator[httpx.Client]:
    with listen("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(make_app(site), log_level="warning", lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            with httpx.Client(base_url=http_address(listening), timeout=PATIENCE) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join(PATIENCE)


def test_the_page_is_there_before_the_model():
    """The model is never loaded: `load` waits for the end of the test."""
    gate = threading.Event()

    def load(counts: Any) -> Api:
        assert gate.wait(PATIENCE)
        raise UserError("It was not needed.")

    with serving(Site(ExplorerSettings(), load)) as client:
        for path, file in page_files().items():
            answer = client.get(path)
            assert (answer.status_code, answer.content) == (200, file.content)
            assert answer.headers["content-type"].startswith(file.media_type)
            for name, value in HEADERS.items():
                assert answer.headers[name] == value
            again = client.get(path, headers={"if-none-match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
            assert client.get(path, headers={"if-none-match": '"other"'}).status_code == 200
        assert isinstance(client.get("/api/cases").json()["cases"], list)
        assert client.get("/api/cases/none").json()["error"]["code"] == "case_not_found"
        health = client.get("/health")
        assert (health.status_code, health.json()["stage"]) == (503, "loading")
        early = client.post("/api/sessions", json={})
        assert (early.status_code, early.json()["error"]["code"]) == (503, "preparing")
        assert early.headers["retry-after"] == "1"
        assert client.get("/", headers={"host": "evil.example"}).status_code == 403
        gate.set()


def test_a_model_that_does_not_load_is_named():
    def load(counts: Any) -> Api:
        raise UserError("There is no model here.")

    site = Site(ExplorerSettings(), load)
    with serving(site) as client:
        while site.failure is None:
            time.sleep(0.01)
        assert client.get("/health").json() == {"status": "failed", "error": "There is no model here."}
        answer = client.get("/api/model")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "failed")
        assert "There is no model here" in answer.json()["error"]["message"]


def test_nothing_that_serves_the_page_imports_jax():
    modules = "attribution.explorer.app, attribution.explorer.run, attribution.explore_command, infer.server.listening"
    code = "".join(f"import steerling_jax.{name.strip()}\n" for name in modules.split(","))
    code += "import sys\nassert 'jax' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_reports_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["explore", "--port", "0", "--model", str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert "none" in error
    assert main(["explore", "--index", "folder"]) == 2
    assert "--index and --corpus go together" in capsys.readouterr().err
    with listen("127.0.0.1", 0) as taken:
        assert main(["explore", "--port", str(taken.getsockname()[1])]) == 2
    assert "choose another --host or --port" in capsys.readouterr().err


def test_the_address_beyond_this_machine_has_a_token(text_model: Path, environment: dict[str, str]):
    with exploring(text_model, environment, "--host", "0.0.0.0") as explorer:
        address = f"http://127.0.0.1:{explorer.port}"
        assert httpx.get(f"{address}/", timeout=PATIENCE).status_code == 200, "the page itself holds nothing"
        assert httpx.get(f"{address}/api/cases", timeout=PATIENCE).status_code == 401


def test_it_stops_when_the_texts_in_progress_are_written(text_model: Path, environment: dict[str, str], tmp_path: Path):
    """The decoder is held in the middle of a text while the server is asked to stop."""
    with exploring(text_model, environment, "--grace", "600", file=tmp_path / "hold") as explorer:
        explorer.wait_until_ready()
        explorer.allow(3)
        session = "/api/sessions/" + explorer.post({}, "/api/sessions").json()["session"]
        assert explorer.post(TEXT, f"{session}/texts").status_code == 202
        with httpx.stream("GET", f"{explorer.url}{session}/events", timeout=PATIENCE) as answer:
            events = (line for line in answer.iter_lines() if line.startswith("event: "))
            while next(events) != "event: commits":
                pass
            explorer.process.send_signal(signal.SIGTERM)
            while explorer.get("/health").json()["status"] != "stopping":
                time.sleep(0.01)
            refused = explorer.post(TEXT | {"seed": 2}, f"{session}/texts")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")
            explorer.release()
            assert "event: commits" in list(events), "the text goes on, then the stream ends"
        assert explorer.process.wait(PATIENCE) == 0
