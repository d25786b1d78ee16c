"""Memory of `steerling serve` under a mixed load over a long time.

    python benchmarks/soak.py --minutes 40 --share 0.25 --samples soak.jsonl

Starts a server and sends plain, streamed, steered, clamped, guided and traced requests with prompts of many lengths,
invalid requests, requests with a foreign Host header, clients that disconnect at once or mid-stream, and bursts larger
than the queue. The status of every response is checked, and at the end the server's own counts and its exit code.
Writes a line of JSON with memory, open files and threads every 10 seconds. The figure of interest is the growth of
memory in MB per hour after the first quarter of the time, which should be about 0.

Reference machine: two cores of an Intel Xeon; results in docs/results/serving.md.
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
WARM = 0.25  # fraction of the time after which memory should not grow


class Clients:
    """Clients that send requests until `end`.

    They pause while the processor time of server and clients together exceeds `share` of one core.
    """

    def __init__(self, url: str, server: psutil.Process, end: float, share: float):
        self.url, self.server, self.end, self.share = url, server, end, share
        self.counts: Counter[str] = Counter()
        self.began, self.spent = time.monotonic(), self._processor()
        self.lock = threading.Lock()

    def run(self, seed: int) -> None:
        """Sends random requests of all kinds; runs in a thread of its own."""
        rng = random.Random(seed)
        with httpx.Client(base_url=self.url, timeout=120) as http:
            while time.monotonic() < self.end:
                kind = rng.choices([kind for kind, _ in KINDS], [weight for _, weight in KINDS])[0]
                kind(self, http, rng)
                with self.lock:
                    self.counts[kind.__name__] += 1
                while self._over_share() and time.monotonic() < self.end:
                    time.sleep(0.2)

    def _processor(self) -> float:
        own, child = psutil.Process().cpu_times(), self.server.cpu_times()
        return own.user + own.system + child.user + child.system

    def _over_share(self) -> bool:
        return self._processor() - self.spent > self.share * (time.monotonic() - self.began)


def body(rng: random.Random, **changes) -> dict:
    """A random valid request body with `changes`."""
    prompt = " ".join(rng.choices(WORDS, k=rng.choice((1, 3, 10, 40, 120))))
    settings = {"prompt": prompt, "max_tokens": rng.randint(1, 24), "seed": rng.randrange(2**32)}
    return settings | ({"temperature": rng.choice((0, 0.7))} if rng.random() < 0.5 else {}) | changes


def post(http: httpx.Client, status: int, content: dict) -> httpx.Response:
    """Posts a completion; the response must have the given status, or 429 if the queue is full."""
    response = http.post("/v1/completions", json=content)
    assert response.status_code in (status, 429), response.text
    return response


def text(_: Clients, http: httpx.Client, rng: random.Random) -> None:
    post(http, 200, body(rng, stop=rng.choice(([], ["the"], [".", "\n\n"]))))


def streamed(_: Clients, http: httpx.Client, rng: random.Random) -> None:
    response = post(http, 200, body(rng, stream=True, trace=rng.random() < 0.3))
    assert response.status_code == 429 or response.text.endswith("data: [DONE]\n\n"), response.text[-500:]


def steered(_: Clients, http: httpx.Client, rng: random.Random) -> None:
    post(http, 200, body(rng, steering={rng.choice(("amplify", "suppress")): {rng.choice(CONCEPTS): rng.random()}}))


def clamped(_: Clients, http: httpx.Client, rng: random.Random) -> None:
    post(http, 200, body(rng, steering={"clamp": {rng.choice(CONCEPTS): rng.random()}, "epsilon": "frozen"}))


def guided(_: Clients, http: httpx.Client, rng: random.Random) -> None:
    post(http, 200, body(rng, cfg_scale=1.5, temperature=0.7))


def invalid(_: Clients, http: httpx.Client, rng: random.Random) -> None:
    change = rng.choice(({"seed": -1}, {"steering": {"amplify": {"Emial": 1}}}, {"max_tokens": "many"}, {"promt": "a"}))
    post(http, 400, body(rng, **change))


def foreign_host(_: Clients, http: httpx.Client, rng: random.Random) -> None:
    assert http.get("/v1/models", headers={"Host": "evil.example"}).status_code == 403


def disconnects_at_once(clients: Clients, http: httpx.Client, rng: random.Random) -> None:
    content = json.dumps(body(rng)).encode()
    url = httpx.URL(clients.url)
    with socket.create_connection((url.host, url.port or 80)) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
        connection.sendall(head.encode() + content[: rng.choice((0, 20, len(content)))])


def disconnects_mid_stream(_: Clients, http: httpx.Client, rng: random.Random) -> None:
    with http.stream("POST", "/v1/completions", json=body(rng, stream=True, max_tokens=48)) as response:
        next(response.iter_lines())


def burst(clients: Clients, http: httpx.Client, rng: random.Random) -> None:
    with ThreadPoolExecutor(2 * (ROWS + QUEUE)) as pool:
        bodies = [body(rng, max_tokens=8) for _ in range(2 * (ROWS + QUEUE))]
        url = f"{clients.url}/v1/completions"
        statuses = Counter(pool.map(lambda content: httpx.post(url, json=content, timeout=120).status_code, bodies))
    assert set(statuses) <= {200, 429}, statuses
    with clients.lock:
        clients.counts["in bursts"] += len(bodies)


KINDS: list[tuple[Callable[[Clients, httpx.Client, random.Random], None], float]] = [
    (text, 30), (streamed, 25), (steered, 12), (clamped, 5), (guided, 3), (invalid, 12),
    (foreign_host, 5), (disconnects_at_once, 4), (disconnects_mid_stream, 4), (burst, 0.3),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--share", type=float, default=2.0, help="of one core, server and clients together, on average")
    parser.add_argument("--samples", type=Path, default=Path("soak.jsonl"))
    args = parser.parse_args()
    command = [sys.executable, "-m", "steerling_jax.cli.main", "serve", "--port", "0"]
    command += ["--rows", str(ROWS), "--queue", str(QUEUE)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            while (address := re.search(r"(http://\S+)/v1 ", line := process.stderr.readline())) is None:
                assert line, "the server did not start"
            samples = watch(process.pid, address[1], args)
            process.send_signal(signal.SIGTERM)
            code, errors = process.wait(60), process.stderr.read()
        finally:
            process.kill()
    report(samples, code, errors)


def watch(pid: int, url: str, args: argparse.Namespace) -> list[dict]:
    """Runs the clients and samples the server until they end; checks that no request is left."""
    server, samples = psutil.Process(pid), []
    clients = Clients(url, server, time.monotonic() + 60 * args.minutes, args.share)
    with ThreadPoolExecutor(3) as pool, args.samples.open("w") as out:
        running = [pool.submit(clients.run, seed) for seed in range(3)]
        while not all(client.done() for client in running):
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
        for client in running:
            client.result()  # raises what failed in its thread
    time.sleep(2)
    metrics = httpx.get(f"{url}/metrics").text
    print(dict(clients.counts), metrics, sep="\n")
    for gauge in ("queue_length", "running_rows"):
        assert f"steerling_{gauge} 0\n" in metrics, metrics
    return samples


def report(samples: list[dict], code: int, errors: str) -> None:
    """Prints a table of the samples and the growth of memory after warm-up."""
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
