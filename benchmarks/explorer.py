"""The explorer's budgets: how long a user waits for the page, a text and each answer, beside the goals.

    python benchmarks/explorer.py [--index INDEX --corpus CORPUS]

Three servers of the bundled model are started one after the other: one with an empty cache of compiled programs, and
two with the cache that the first has filled. On the second each question is asked of a text that is written as soon as
it is ready, so that the first answer of a kind also waits until its programs are traced and read from the cache, and
then of a text with a longer prompt. The third rests before the first text, as while a user reads the page and writes a
prompt; in that time it compiles what explains a text. Times are as the page has them, from the
request to the event that says that the answer is there, over the same HTTP routes; behind each is the server's
processor time meanwhile, which counts all its threads and depends little on what else the machine does. Layout shifts
are measured in Chromium where Playwright is installed. Results are in docs/results/explorer.md.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil
from environment import environment

PROMPT, TOKENS, CHUNK = "socket.create_connection(address, timeout)\n\nConnect to", 64, 33
LONGER = "datetime.timedelta(days, seconds)\n\nThe difference between two dates or times, to a microsecond"
LONG = 1984  # tokens of a long text, with a context of 2,048
SHIFTS = """() => new Promise(done => {
  let sum = 0;
  new PerformanceObserver(list => list.getEntries().forEach(one => (sum += one.hadRecentInput ? 0 : one.value)))
    .observe({type: "layout-shift", buffered: true});
  requestAnimationFrame(() => requestAnimationFrame(() => done(sum)));
})"""

Rows = list[tuple[str, str, float, float]]  # what, goal, seconds, processor seconds


@dataclass
class Server:
    """A running explorer, and one tab of it. rows: as measured."""

    process: psutil.Process
    began: float
    client: httpx.Client
    rows: Rows = field(default_factory=list)
    events: queue.SimpleQueue[tuple[str, Any]] = field(default_factory=queue.SimpleQueue)
    tab: str = ""

    def processor(self) -> float:
        times = self.process.cpu_times()
        return times.user + times.system

    def measure(self, what: str, goal: str, work: Callable[[], Any], *, since_start: bool = False) -> Any:
        began, used = (self.began, 0.0) if since_start else (time.perf_counter(), self.processor())
        result = work()
        self.rows.append((what, goal, time.perf_counter() - began, self.processor() - used))
        print(f"{what}: {self.rows[-1][2]:.2f} s, {self.rows[-1][3]:.2f} processor seconds", file=sys.stderr)
        return result

    def take_rows(self) -> Rows:
        rows, self.rows = self.rows, []
        return rows

    def get(self, path: str) -> httpx.Response:
        return self.client.get(path).raise_for_status()

    def open_tab(self) -> None:
        """Opens a session as soon as the model is loaded, and listens to its events."""
        while (answer := self.client.post("/api/sessions", json={})).status_code != 200:
            time.sleep(0.02)
        self.tab = f"/api/sessions/{answer.json()['session']}"
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        name = ""
        with (
            contextlib.suppress(httpx.TransportError),  # the server was stopped
            self.client.stream("GET", f"{self.tab}/events", timeout=None) as answer,
        ):
            for line in answer.iter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    self.events.put((name, json.loads(line.removeprefix("data: "))))

    def until(self, name: str, **fields: Any) -> dict[str, Any]:
        while True:
            event, data = self.events.get(timeout=300)
            if event == "failed":
                raise SystemExit(f"{data}")
            if event == name and all(data.get(key) == value for key, value in fields.items()):
                return data

    def write(self, seed: int, prompt: str = PROMPT, tokens: int = TOKENS) -> str:
        body = {"prompt": prompt, "max_tokens": tokens, "seed": seed}
        return self.client.post(f"{self.tab}/texts", json=body).raise_for_status().json()["text"]

    def focus(self, text: str, panel: str, at: tuple[int, int] | None = None, step: int | None = None) -> None:
        body = {"text": text, "at": at, "step": step, "panels": [panel], "pins": []}
        self.client.put(f"{self.tab}/focus", json=body).raise_for_status()


@contextlib.contextmanager
def running(cache: str, options: list[str]) -> Iterator[Server]:
    command = [sys.executable, "-m", "steerling_jax.cli.main", "explore", "--port", "0", *options]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION")}
    began = time.perf_counter()
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=variables | {"STEERLING_CACHE_DIR": cache}
    ) as process:
        assert process.stderr is not None
        url = next(found[1] for line in process.stderr if (found := re.search(r"(http://[^\s/]+)/", line)))
        threading.Thread(target=process.stderr.read, daemon=True).start()
        try:
            with httpx.Client(base_url=url, timeout=300) as client:
                yield Server(psutil.Process(process.pid), began, client)
        finally:
            process.terminate()
            process.wait(60)


def page(server: Server) -> None:
    for path in ("/", "/explorer.js", "/explorer.css", "/api/cases", "/api/cases/files"):
        server.get(path)


def first_text(server: Server) -> str:
    server.open_tab()
    text = server.write(1)
    server.until("commits", text=text)
    return text


def export(server: Server, text: str, parts: list[str]) -> float:
    """The size of a text's HTML file, in MB."""
    body = {"text": text, "as": "html", "with": parts, "state": ""}
    return len(server.client.post("/api/export", json=body).raise_for_status().content) / 1e6


def ready(server: Server) -> None:
    while server.client.get("/health").status_code != 200:
        time.sleep(0.05)


def rest(server: Server) -> None:
    """Waits until the server has nothing to do."""
    used = -1.0
    while server.processor() - used > 0.1:
        used = server.processor()
        time.sleep(3)


def answers(server: Server, seed: int, prompt: str, searched: bool) -> None:
    """Writes a text and asks all questions about it."""
    text = server.measure("Write → first token", "0.15", lambda: _first(server, seed, prompt))
    done = {"text": text, "state": "done"}
    server.measure("Write → 64 tokens, after the first", "0.6", lambda: server.until("state", **done))
    server.measure("end of the text → concepts", "0.05", lambda: server.until("ready", text=text, kind="concepts"))
    positions = sorted(p for one in server.get(f"/api/texts/{text}").json()["commits"] for p in one["positions"])
    at = positions[20]
    steps: list[tuple[str, str, int | None]] = [("a step", "0.05", 20), ("all steps", "0.4", None)]
    for name, goal, step in steps:
        server.measure(f"considered at {name}", goal, lambda step=step: _ask(server, text, "considered", step=step))
    server.measure("inputs of a token", "0.4", lambda: _ask(server, text, "inputs", (at, at + 1)))
    chunk = positions[0], positions[0] + CHUNK
    server.measure(f"inputs of a chunk of {CHUNK}", "3", lambda: _ask(server, text, "inputs", chunk))
    if searched:
        server.measure("training data, without influence", "0.1", lambda: _ask(server, text, "evidence", chunk))
    # What the page looks at changes while the inputs of all tokens are computed: the next answer waits for the thread.
    server.focus(text, "inputs", (positions[0], positions[-1] + 1))
    server.until("progress", text=text, kind="inputs")
    free = "another focus while inputs are computed → considered at a step"
    server.measure(free, "0.5", lambda: _ask(server, text, "considered", step=21))


def long_file(server: Server) -> None:
    """The size of the HTML file of a long text."""
    long = server.write(1, tokens=LONG)
    # Not by events: a text of so many steps has more of them than a slow client is sent before it must ask again.
    while server.get(f"/api/texts/{long}").json()["document"] is None:
        time.sleep(1)
    print(f"One HTML file of {LONG} tokens with concepts alone: {export(server, long, []):.2f} MB (goal 6)")


def _first(server: Server, seed: int, prompt: str) -> str:
    text = server.write(seed, prompt)
    server.until("commits", text=text)
    return text


def _ask(
    server: Server, text: str, panel: str, at: tuple[int, int] | None = None, step: int | None = None
) -> dict[str, Any]:
    server.focus(text, panel, at, step)
    return server.until("ready", text=text, kind=panel)


def layout_shift(server: Server) -> float | None:
    """The sum of the layout shifts of a first visit; None without a browser."""
    path = shutil.which("chromium")
    if importlib.util.find_spec("playwright") is None or path is None:
        return None
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(str(server.client.base_url))
        page.locator("#panel li").first.wait_for()
        shift = page.evaluate(SHIFTS)
        browser.close()
    return shift


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index")
    parser.add_argument("--corpus")
    args = parser.parse_args()
    options = [] if args.index is None else ["--index", args.index, "--corpus", args.corpus]
    print(environment())
    starts: Rows = []
    asked: list[Rows] = []
    with tempfile.TemporaryDirectory() as cache:
        for number, (name, goal) in enumerate((("the first time", "12"), ("later", "5"), ("later", "5"))):
            with running(cache, options) as server:
                server.measure(f"command → page, {name}", "1.5", lambda s=server: page(s), since_start=True)
                text = server.measure(
                    f"command → own text, {name}", goal, lambda s=server: first_text(s), since_start=True
                )
                ready(server)
                starts += server.take_rows()
                if number == 0:  # which fills the cache
                    answers(server, 2, PROMPT, bool(options))
                    continue
                if number == 2:
                    rest(server)
                for seed, prompt in ((2, PROMPT), (3, LONGER)) if number == 1 else ((2, PROMPT),):
                    answers(server, seed, prompt, bool(options))
                    asked.append(server.take_rows())
                if number == 1:
                    size = export(server, text, ["inputs", "considered"])
                    print(f"One HTML file of {TOKENS} tokens with everything: {size:.2f} MB (goal 0.3)")
                    if (shift := layout_shift(server)) is not None:
                        print(f"Layout shift of a first visit: {shift:.4f} (goal below 0.01)")
                if number == 2:
                    print_tables(starts, asked)
                    long_file(server)


def print_tables(starts: Rows, asked: list[Rows]) -> None:
    """starts: rows of the starts of servers. asked: rows of each text that was asked about."""
    print("| | goal, s | s | processor s |\n| --- | --- | --- | --- |")
    for what, goal, seconds, processor in starts:
        print(f"| {what} | {goal} | {seconds:.2f} | {processor:.2f} |")
    print("\n| | goal, s | at once, s | processor s | then, s | processor s | after a rest, s | processor s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for rows in zip(*asked, strict=True):
        what, goal, *_ = rows[0]
        print(f"| {what} | {goal} | " + " | ".join(f"{value:.2f}" for row in rows for value in row[2:]) + " |")


if __name__ == "__main__":
    main()
