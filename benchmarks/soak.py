"""Memory of `steerling serve` over many requests of all kinds, at a gentle rate: one process, a line of JSON a sample.

    python benchmarks/soak.py --minutes 40 --share 0.25 --samples soak.jsonl

Plain, streamed, steered, clamped, guided, traced and stopped texts, prompts of many lengths; bad requests, foreign
hosts, clients that leave at once or mid-stream, and bursts of more than the queue takes. Each answer's status is
checked, at the end the server's own counts, and that it stops with exit code 0.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil

TEXT = "The server opens a socket and re.split returns a list of strings when the email header is parsed .\n"
WORDS = TEXT.split(" ")
CONCEPTS = ("Email and MIME", "Threads", "Networking")
ROWS, QUEUE = 4, 16
WARM = 0.25  # the share of the time after which memory should not grow any more


class Clients:
    """Sends requests until `end`, and keeps processor time of server and clients at `share` of one core."""

    def __init__(self, url: str, server: psutil.Process, end: float, share: float):
        self.url, self.server, self.end, self.share = url, server, end, share
        self.counts: Counter[str] = Counter()
        self.began, self.spent = time.monotonic(), self._processor()
        self.lock = threading.Lock()

    def run(self, seed: int) -> None:
        rng = random.Random(seed)
        with httpx.Client(base_url=self.url, timeout=120) as http:
            while time.monotonic() < self.end:
                kind = rng.choices([kind for kind, _ in KINDS], [weight for _, weight in KINDS])[0]
                kind(self, http, rng)
                with self.lock:
                    self.counts[kind.__name__] += 1
                while self._too_much() and time.monotonic() < self.end:
                    time.sleep(0.2)

    def _processor(self) -> float:
        own, child = psutil.Process().cpu_times(), self.server.cpu_times()
        return own.user + own.system + child.user + child.system

    def _too_much(self) -> bool:
        return self._processor() - self.spent > self.share * (time.monotonic() - self.began)


def body(rng: random.Random, **changes) -> dict:
    prompt = " ".join(rng.choices(WORDS, k=rng.choice((1, 3, 10, 40, 120))))
    settings = {"prompt": prompt, "max_tokens": rng.randint(1, 24), "seed": rng.randrange(2**32)}
    return settings | ({"temperature": rng.choice((0, 0.7))} if rng.random() < 0.5 else {}) | changes


def ask(http: httpx.Client, status: int, content: dict, **options) -> httpx.Response:
    answer = http.post("/v1/completions", json=content, **options)
    assert answer.status_code in (status, 429), answer.text
    return answer


def text(_: Clients, http: httpx.Client, rng: random.Random) -> None:
    ask(http, 200, body(rng, stop=rng.choice(([], ["the"], [".", "\n\n"]))))


def streamed(_: Clients, http: httpx.Client, rng: random.Random) -> None:
    answer = ask(http, 200, body(rng, stream=True, trace=rng.random() < 0.3))
    assert answer.status_code == 429 or answer.text.endswith("data: [DONE]\n\n"), answer.text[-500:]


def steered(_: Clients, http: httpx.Client, rng: random.Random) -> None:
    ask(http, 200, body(rng, steering={rng.choice(("amplify", "suppress")): {rng.choice(CONCEPTS): rng.random()}}))


def clamped(_: Clients, http: httpx.Client, rng: random.Random) -> None:
    ask(http, 200, body(rng, steering={"clamp": {rng.choice(CONCEPTS): rng.random()}, "epsilon": "frozen"}))


def guided(_: Clients, http: httpx.Client, rng: random.Random) -> None:
    ask(http, 200, body(rng, cfg_scale=1.5, temperature=0.7))


def bad(_: Clients, http: httpx.Client, rng: random.Random) -> None:
    change = rng.choice(({"seed": -1}, {"steering": {"amplify": {"Emial": 1}}}, {"max_tokens": "many"}, {"promt": "a"}))
    ask(http, 400, body(rng, **change))


def foreign(_: Clients, http: httpx.Client, rng: random.Random) -> None:
    assert http.get("/v1/models", headers={"Host": "evil.example"}).status_code == 403


def leaves_at_once(clients: Clients, http: httpx.Client, rng: random.Random) -> None:
    content = json.dumps(body(rng)).encode()
    url = httpx.URL(clients.url)
    with socket.create_connection((url.host, url.port or 80)) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
        connection.sendall(head.encode() + content[: rng.choice((0, 20, len(content)))])


def leaves_midway(_: Clients, http: httpx.Client, rng: random.Random) -> None:
    with http.stream("POST", "/v1/completions", json=body(rng, stream=True, max_tokens=48)) as answer:
        next(answer.iter_lines())


def burst(clients: Clients, http: httpx.Client, rng: random.Random) -> None:
    with ThreadPoolExecutor(2 * (ROWS + QUEUE)) as pool:
        sent = [body(rng, max_tokens=8) for _ in range(2 * (ROWS + QUEUE))]
        url = f"{clients.url}/v1/completions"
        found = Counter(pool.map(lambda one: httpx.post(url, json=one, timeout=120).status_code, sent))
    assert set(found) <= {200, 429}, found
    with clients.lock:
        clients.counts["in bursts"] += len(sent)


KINDS: list[tuple[Callable[[Clients, httpx.Client, random.Random], None], float]] = [
    (text, 30), (streamed, 25), (steered, 12), (clamped, 5), (guided, 3), (bad, 12), (foreign, 5), (leaves_at_once, 4),
    (leaves_midway, 4), (burst, 0.3),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--share", type=float, default=2.0, help="of one core, server and clients together, on average")
    parser.add_argument("--samples", type=Path, default=Path("soak.jsonl"))
    args = parser.parse_args()
    line = [sys.executable, "-m", "steerling_jax.cli.main", "serve", "--port", "0"]
    line += ["--rows", str(ROWS), "--queue", str(QUEUE)]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            while (found := re.search(r"(http://\S+)/v1 ", told := process.stderr.readline())) is None:
                assert told, "the server did not start"
            samples = watch(process.pid, found[1], args)
            process.send_signal(signal.SIGTERM)
            code, errors = process.wait(60), process.stderr.read()
        finally:
            process.kill()
    report(samples, code, errors)


def watch(pid: int, url: str, args: argparse.Namespace) -> list[dict]:
    server, samples = psutil.Process(pid), []
    clients = Clients(url, server, time.monotonic() + 60 * args.minutes, args.share)
    with ThreadPoolExecutor(3) as pool, args.samples.open("w") as out:
        running = [pool.submit(clients.run, seed) for seed in range(3)]
        while not all(one.done() for one in running):
            time.sleep(10)
            samples.append(
                {
                    "minutes": (time.monotonic() - clients.began) / 60,
                    "requests": sum(clients.counts.values()),
                    "mb": server.memory_info().rss / 1e6,
                    "files": server.num_fds(),
                    "threads": server.num_threads(),
                }
            )
            out.write(json.dumps(samples[-1]) + "\n")
            out.flush()
        for one in running:
            one.result()
    time.sleep(2)
    metrics = httpx.get(f"{url}/metrics").text
    print(dict(clients.counts), metrics, sep="\n")
    for gauge in ("queue_length", "running_rows"):
        assert f"steerling_{gauge} 0\n" in metrics, metrics
    return samples


def report(samples: list[dict], code: int, errors: str) -> None:
    print("| minutes | requests | MB | files | threads |\n| --- | --- | --- | --- | --- |")
    for part in (0.0, 0.1, WARM, 0.5, 0.75, 1.0):
        s = samples[min(int(part * len(samples)), len(samples) - 1)]
        print(f"| {s['minutes']:.1f} | {s['requests']} | {s['mb']:.0f} | {s['files']} | {s['threads']} |")
    warm = samples[int(WARM * len(samples)) :]
    slope = np.polyfit([s["minutes"] / 60 for s in warm], [s["mb"] for s in warm], 1)[0]
    most = max(s["mb"] for s in warm)
    print(f"after a quarter of the time: {slope:+.1f} MB an hour (least squares), at most {most:.0f} MB")
    print(f"exit code {code}; errors: {errors.strip() or 'none'}")


if __name__ == "__main__":
    main()
