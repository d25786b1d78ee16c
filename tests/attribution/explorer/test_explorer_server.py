"""The explorer's server over HTTP, with a tiny model: texts, panels, resumption, limits and refusals."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn

import steerling_jax as sj
from steerling_jax.attribution.explorer.api import ModelApi
from steerling_jax.attribution.explorer.app import MOST_BYTES, Site, make_app
from steerling_jax.attribution.explorer.security import HEADERS, new_token
from steerling_jax.attribution.explorer.service import Explorer
from steerling_jax.attribution.explorer.settings import ExplorerSettings
from steerling_jax.attribution.explorer.texts import Model
from steerling_jax.attribution.explorer.training_data import TrainingData
from steerling_jax.attribution.index.evidence import Evidence, Hit
from steerling_jax.decoding.decoder import decoder_of
from steerling_jax.decoding.trace_record import from_plain, origin_of, restore
from steerling_jax.infer.server.engine import Engine
from steerling_jax.infer.server.listening import listen
from tests.io.gguf.test_gguf_models import chat_model
from tests.worlds.serving_world import PATIENCE

REQUEST = {"prompt": "The quick brown", "max_tokens": 16, "seed": 1}


def find_evidence(tokens, start: int, end: int, scores) -> Evidence:
    hit = Hit(scores[0], 4.0, 7, 2, "os.path", "docs", "0" * 64, 30, 34, 3, "join", (start, end), 2)
    return Evidence(start, end, (hit,), dict.fromkeys(scores, 1.0))


@dataclass
class Running:
    """A running explorer."""

    explorer: Explorer
    bundle: sj.Bundle
    client: httpx.Client

    def tab(self) -> str:
        answer = self.client.post("/api/sessions", json={})
        assert answer.status_code == 200, answer.text
        assert answer.json()["epoch"] == self.explorer.epoch
        return f"/api/sessions/{answer.json()['session']}"

    def write(self, tab: str, **changes: Any) -> str:
        answer = self.client.post(f"{tab}/texts", json=REQUEST | changes)
        assert answer.status_code == 202, answer.text
        return answer.json()["text"]

    def events(self, tab: str, last: str | None = None) -> Iterator[tuple[str | None, str, Any]]:
        """(id, name, data) of the events of a tab."""
        headers = {} if last is None else {"last-event-id": last}
        with self.client.stream("GET", f"{tab}/events", headers=headers, timeout=PATIENCE) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            fields: dict[str, str] = {}
            for line in answer.iter_lines():
                if not line and fields:
                    yield fields.get("id"), fields["event"], json.loads(fields["data"])
                    fields = {}
                elif ":" in line and not line.startswith(":"):
                    name, _, value = line.partition(": ")
                    fields[name] = value

    def until(
        self,
        tab: str,
        found: Callable[[str, Any], bool],
        last: str | None = None,
        listening: Callable[[], None] = lambda: None,
    ) -> list[tuple[Any, str, Any]]:
        """The events up to the first that is looked for. listening: called after the first event, which shows that the
        stream is open: events without a number, such as progress, are sent to nobody before."""
        seen = []
        for event in self.events(tab, last):
            seen.append(event)
            if len(seen) == 1:
                listening()
            if found(event[1], event[2]):
                return seen
        raise AssertionError(f"the stream ended: {seen}")

    def explained(self, tab: str, text: str) -> dict[str, Any]:
        """The text, once its concepts are there."""
        self.until(tab, lambda name, data: name == "ready" and data["kind"] == "concepts" and data["text"] == text)
        return self.client.get(f"/api/texts/{text}").json()


@contextmanager
def serving(
    bundle: sj.Bundle, settings: ExplorerSettings, autoencoders: tuple[sj.Autoencoder, ...] = (), **options: Any
) -> Iterator[Running]:
    engine = Engine(decoder_of(bundle, rows=2), steps=1)
    explorer = Explorer(
        Model(bundle, origin_of(bundle), autoencoders), engine, TrainingData(find_evidence, None), **options
    )
    app = make_app(Site(settings, lambda counts: ModelApi(explorer, settings, counts)))
    listening = listen("127.0.0.1", 0)
    config = uvicorn.Config(app, log_level="warning", lifespan="on", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        with httpx.Client(base_url=address, timeout=PATIENCE) as client:
            while client.get("/health").status_code != 200:
                time.sleep(0.01)
            yield Running(explorer, bundle, client)
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        listening.close()
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def site(text_model: Path) -> Iterator[Running]:
    with serving(sj.load(text_model), ExplorerSettings()) as site:
        yield site


def ended(name: str, data: Any) -> bool:
    return name == "state" and data["state"] in ("done", "stopped", "failed")


def test_a_text_is_written_and_explained(site: Running):
    tab = site.tab()
    text = site.write(tab)
    seen = site.until(tab, lambda name, data: name == "ready")
    commits = [commit for _, name, data in seen if name == "commits" for commit in data["commits"]]
    whole = sj.generate(site.bundle, REQUEST["prompt"], sj.GenerationConfig(max_new_tokens=16, seed=1))
    assert [(c["step"], tuple(c["positions"]), tuple(c["token_ids"])) for c in commits] == [
        commit[:3] for commit in whole.trace.commits
    ]
    kept = site.explorer.model.record(site.explorer.text(text)).trace.hidden
    assert kept is not None
    assert whole.trace.hidden is not None
    np.testing.assert_allclose(kept, whole.trace.hidden, atol=1e-4, err_msg="concepts need no passes")
    state = next(data for _, name, data in seen if ended(name, data))
    assert (state["state"], state["written"], state["of"], state["error"]) == ("done", 16, 16, None)
    ids = [id for id, name, _ in seen if name in ("commits", "ready")]
    numbers = [int(id.removeprefix(f"{site.explorer.epoch}.")) for id in ids]
    assert numbers == sorted(set(numbers)), "events to come back to are numbered"
    assert all(id is None for id, name, _ in seen if name == "progress")

    answer = site.client.get(f"/api/texts/{text}").json()
    assert answer["state"] == "done"
    tokens = whole.trace.tokens.tolist()
    assert "".join(run[2] for run in answer["characters"]) == site.bundle.tokenizer.decode(tokens)
    document = answer["document"]
    assert len(document["tokens"]) == 16
    shares = sj.concept_contributions(site.bundle, whole.trace, reference="vocabulary")
    np.testing.assert_allclose([t["epsilon"] for t in document["tokens"]], shares.epsilon, atol=1e-3)
    trace = restore(from_plain(document["trace"], "It"), site.bundle)
    assert trace.tokens.tolist() == tokens
    assert site.client.post(f"{tab}/texts", json=REQUEST).json() == {"text": text, "cached": True}, "the same text"


def test_panels_of_a_selection(site: Running):
    tab = site.tab()
    text = site.write(tab, seed=2)
    document = site.explained(tab, text)["document"]
    start = len(document["trace"]["prompt"])
    body = {"text": text, "at": [start, start + 3], "step": 5, "panels": ["inputs", "considered", "evidence"]}
    kinds: set[str] = set()

    def look() -> None:
        assert site.client.put(f"{tab}/focus", json=body).status_code == 204

    def all_there(name: str, data: Any) -> bool:
        kinds.update([data["kind"]] if name == "ready" else [])
        return {"inputs", "considered", "evidence"} <= kinds

    seen = site.until(tab, all_there, listening=look)
    hrefs = {data["kind"]: data["href"] for _, name, data in seen if name == "ready"}
    progress = [data for _, name, data in seen if name == "progress" and data["kind"] == "inputs"]
    assert progress
    assert progress[0]["of"] == 3
    panel = site.client.get(hrefs["inputs"]).json()
    trace = restore(from_plain(document["trace"], "It"), site.bundle)
    span = sj.attribute_inputs(site.bundle, trace, span=(start, start + 3)).of_span(start, start + 3)
    assert panel["at"] == [start, start + 3]
    assert panel["tokens"] == 3
    assert sum(panel["attributions"]) + panel["rest"] == pytest.approx(span.attributions.sum(), abs=2e-3)
    assert panel["value"] == pytest.approx(span.path, abs=1e-3)
    one = site.client.get(f"/api/texts/{text}/inputs?at={start}").json()
    assert one["tokens"] == 1, "a token of a finished selection is finished"
    (step,) = site.client.get(hrefs["considered"]).json()["steps"]
    config = sj.GenerationConfig(max_new_tokens=16, seed=2)
    (expected,) = sj.considered(site.bundle, trace, config, [5])
    assert (step["step"], step["agrees"]) == (5, True)
    assert step["order"] == list(expected.order)
    assert [place[0] for place in step["open"]] == [place.position for place in expected.positions]
    evidence = site.client.get(hrefs["evidence"]).json()
    assert [hit["score"] for hit in evidence["hits"]] == ["verbatim"]
    assert evidence["nothing_close"] == ["signature", "representation"]

    answer = site.client.post(f"{tab}/jobs", json={"kind": "cost", "text": text})
    assert answer.status_code == 202
    site.until(tab, lambda name, data: name == "ready" and data["kind"] == "cost")
    cost = site.client.get(f"/api/texts/{text}/cost").json()
    assert cost["tokens"] == 16
    score = sj.log_likelihood(site.bundle, trace.prompt.tolist(), trace.tokens[start:].tolist(), samples=16)
    assert cost["nats_per_token"] == pytest.approx(-score / 16, rel=1e-4)
    assert site.client.post(f"{tab}/jobs", json={"kind": "cost", "text": text}).json() == {"job": None}, "it is there"


def test_exported_files(site: Running):
    tab = site.tab()
    text = site.write(tab, seed=6)
    document = site.explained(tab, text)["document"]
    answer = site.client.post("/api/export", json={"text": text, "as": "json", "with": ["evidence"]})
    assert answer.headers["content-disposition"] == f"attachment; filename={text}.json"
    assert answer.json()["tokens"] == document["tokens"]
    assert answer.json()["chunks"][0]["evidence"]["hits"][0]["name"] == "os.path"
    assert answer.json().keys() >= {"cards"}
    with_steps = site.client.post("/api/export", json={"text": text, "as": "json", "with": ["considered"]}).json()
    assert with_steps["considered"]["compared"] == 16
    page = site.client.post("/api/export", json={"text": text, "as": "html", "state": "#at=7&panel=inputs"})
    assert 'data-state="#at=7&amp;panel=inputs"' in page.text
    assert page.headers["content-type"].startswith("text/html")
    assert '"format":"steerling-explanation"' in page.text
    refused = site.client.post("/api/export", json={"text": text, "as": "pdf"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "as")


def test_a_random_direction_of_the_same_size(site: Running):
    """It is another text than the steered one, explained with its own direction, and says in its record what it is."""
    tab, steering = site.tab(), {"amplify": {"Email": 2.0}}
    texts = [site.write(tab, seed=7, steering=steering, random_direction=random) for random in (False, True)]
    assert texts[0] != texts[1]
    documents = [site.explained(tab, text)["document"] for text in texts]
    steered, random = (document["trace"] for document in documents)
    assert steered["tokens"] != random["tokens"]
    assert [one["concept_ids"] for one in steered["steering_configs"]] == [[1]]
    assert random["steering_configs"] == []
    assert "of the size of" in random["policies"]["random_direction"]
    assert all(token["share_error"] < 1e-2 for token in documents[1]["tokens"])


def test_a_given_text_and_a_model_that_fails(site: Running):
    tab = site.tab()
    body = {"prompt": "The quick", "continuation": " brown fox"}
    text = site.client.post(f"{tab}/texts", json=body).json()["text"]
    document = site.explained(tab, text)["document"]
    assert document["trace"]["text"] == " brown fox"
    assert site.client.post(f"{tab}/texts", json=body).json() == {"text": text, "cached": True}
    after = " fox"
    while len(site.bundle.tokenizer.encode(after)) < 126:
        after += " fox"
    long = {"prompt": "The quick brown", "continuation": after}
    text = site.client.post(f"{tab}/texts", json=long).json()["text"]
    seen = site.until(tab, lambda name, data: ended(name, data) and data["text"] == text)
    assert seen[-1][2]["state"] == "failed"
    assert "more than the model's context" in seen[-1][2]["error"]


def test_another_focus_cancels_what_nobody_looks_at(site: Running):
    tab = site.tab()
    text = site.write(tab, seed=3)
    start = len(site.explained(tab, text)["document"]["trace"]["prompt"])
    explainer = site.explorer.explaining.thread
    gate, began = threading.Event(), threading.Event()

    def hold(progress: Callable) -> None:
        began.set()
        assert gate.wait(PATIENCE)

    from steerling_jax.attribution.explorer.jobs import JobKey, Rank

    explainer.submit(JobKey("other", "hold"), Rank.CONCEPTS, hold, "someone")
    assert began.wait(PATIENCE)
    focus = {"text": text, "at": [start, start + 8], "panels": ["inputs"]}
    assert site.client.put(f"{tab}/focus", json=focus).status_code == 204
    assert site.client.put(f"{tab}/focus", json=focus | {"at": [start + 9, start + 10]}).status_code == 204
    gate.set()
    site.until(tab, lambda name, data: name == "ready" and data["kind"] == "inputs")
    assert site.client.get(f"/api/texts/{text}/inputs?at={start + 9}").status_code == 200
    left = site.client.get(f"/api/texts/{text}/inputs?at={start}-{start + 8}")
    assert (left.status_code, left.json()["error"]["code"]) == (404, "not_ready")
    assert site.client.put(f"{tab}/focus", json={"text": None}).status_code == 204


def test_a_stopped_text_keeps_what_is_there(site: Running):
    """Two tabs follow the text: it goes on for the one when the other leaves it."""
    first, second = site.tab(), site.tab()
    body = {"max_tokens": 64, "seed": 4}
    text = site.write(first, **body)
    assert site.write(second, **body) == text
    assert site.client.delete(f"{first}/texts/{text}").status_code == 204
    seen = site.until(second, lambda name, data: name == "commits")
    assert site.client.delete(f"{second}/texts/{text}").status_code == 204
    last = next(id for id, name, _ in reversed(seen) if name == "commits")
    after = site.until(second, lambda name, data: name == "ready" and data["kind"] == "concepts", last)
    state = next(data for _, name, data in after if ended(name, data))
    answer = site.client.get(f"/api/texts/{text}").json()
    if state["state"] == "stopped":  # it may have ended before the request arrived
        assert 0 < state["written"] < 64
    assert len(answer["document"]["tokens"]) == state["written"] == sum(len(c["positions"]) for c in answer["commits"])


def test_events_resume_without_doubles(site: Running):
    tab = site.tab()
    site.write(tab, seed=5)
    seen = [event for event in site.until(tab, lambda name, data: name == "ready") if event[0]]
    again = [event for event in site.until(tab, lambda name, data: name == "ready", seen[2][0]) if event[0]]
    assert again == seen[3:]


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "prompt", "empty"),
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": "word " * 3000}, "prompt", "context"),
        ({"prompt": "a", "temperature": -1}, "temperature", "temperature"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens", "at least 1"),
        ({"prompt": "a", "steering": [{"amplify": "No such concept"}]}, "steering", "No such concept"),
        ({"prompt": "a", "stream": True}, "stream", "no field"),
        ({"prompt": "a", "random_direction": True}, "random_direction", "needs steering"),
        ({"prompt": "a", "random_direction": 1}, "random_direction", "true or false"),
        ({"prompt": "a", "continuation": ""}, "continuation", "empty"),
        ({"prompt": "a", "continuation": "b", "seed": 1}, "seed", "not generated"),
    ],
)
def test_a_refused_text_names_its_field(site: Running, body: dict[str, Any], param: str, words: str):
    answer = site.client.post(f"{site.tab()}/texts", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert words in error["message"]


def test_refusals(site: Running):
    tab = site.tab()
    get, post, put = site.client.get, site.client.post, site.client.put
    for answer, status, code in [
        (get("/api/texts/t_none"), 404, "text_not_found"),
        (get("/api/sessions/none/events"), 404, "session_not_found"),
        (get("/nothing"), 404, None),
        (post(f"{tab}/jobs", json={"kind": "cost", "text": "t_none"}), 404, "text_not_found"),
        (post(f"{tab}/jobs", json={"kind": "magic", "text": "t"}), 400, None),
        (post(f"{tab}/jobs", json={"kind": "index"}), 409, "no_index"),
        (post("/api/export", json={"text": "t", "as": "html", "state": 3}), 400, None),
        (put(f"{tab}/focus", json={"at": [3, 3]}), 400, None),
        (put(f"{tab}/focus", json={"panels": ["magic"]}), 400, None),
        (put(f"{tab}/focus", json={"elsewhere": 1}), 400, "unknown_field"),
        (get("/api/texts/t_none/inputs?at=x"), 400, None),
        (get("/api/concepts?limit=101"), 400, None),
        (get("/api/concepts/known/999999"), 404, "concept_not_found"),
        (post(f"{tab}/texts", json={"prompt": "a" * MOST_BYTES}), 413, "body_too_large"),
        (post(f"{tab}/texts", content=b"prompt=a", headers={"content-type": "text/plain"}), 415, "not_json"),
        (post(f"{tab}/texts", json={"prompt": "a"}, headers={"sec-fetch-site": "cross-site"}), 403, "cross_site"),
        (get("/api/model", headers={"host": "evil.example"}), 403, "host_not_allowed"),
        (get("/api/model", headers={"origin": "https://evil.example"}), 403, "origin_not_allowed"),
        (site.client.request("DELETE", f"{tab}/jobs/j_1", headers={"content-type": "application/json"}), 404, None),
    ]:
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]["message"]
        assert code is None or answer.json()["error"]["code"] == code
        for name, value in HEADERS.items():
            assert answer.headers[name] == value, "also on refusals"


def test_concepts_and_the_model(site: Running):
    model = site.client.get("/api/model").json()
    assert model["concepts"] == {"known": 24, "discovered": 40}
    assert (model["context"], model["block"]) == (128, 16)
    assert not model["can_index"]
    found = site.client.get("/api/concepts", params={"q": "email"}).json()
    assert [one["name"] for one in found["concepts"]] == ["Email"]
    card = site.client.get("/api/concepts/known/1").json()
    assert card["name"] == "Email"
    assert len(card["promotes"]) == 12
    assert site.client.get("/api/passages/0").status_code == 404, "without a corpus"
    assert site.client.get("/health").json() == {"status": "ok"}
    assert "steerling_requests_total" in site.client.get("/metrics").text


def test_a_token_where_other_machines_reach_the_server(text_model: Path):
    token = new_token()
    with serving(sj.load(text_model), ExplorerSettings(listening="0.0.0.0", token=token)) as site:
        assert site.client.get("/api/model").status_code == 401
        assert site.client.get("/health").status_code == 200
        assert site.client.post("/api/token", json={"token": "wrong"}).status_code == 401
        answer = site.client.post("/api/token", json={"token": token})
        assert answer.status_code == 204
        assert {"HttpOnly", "SameSite=Strict", "Path=/api"} <= set(answer.headers["set-cookie"].split("; "))
        assert site.client.get("/api/model").status_code == 200, "the cookie is sent"


def test_an_autoregressive_model_has_one_commit_a_step_and_no_concepts(tmp_path: Path):
    with serving(sj.load(chat_model(tmp_path / "model.gguf")), ExplorerSettings()) as site:
        model = site.client.get("/api/model").json()
        assert (model["block"], model["concepts"]) == (1, {"known": 0, "discovered": 0})
        tab = site.tab()
        text = site.write(tab, prompt="he said", max_tokens=6)
        document = site.explained(tab, text)["document"]
        start = len(document["trace"]["prompt"])
        assert [commit["positions"] for commit in document["trace"]["commits"]] == [[start + i] for i in range(6)]
        assert (document["concepts"], document.get("cards")) == (None, None)
        assert len(document["tokens"]) == 6
        body = {"text": text, "at": [start + 5, start + 6], "step": 5, "panels": ["inputs", "considered"]}
        assert site.client.put(f"{tab}/focus", json=body).status_code == 204
        kinds: set[str] = set()

        def both_there(name: str, data: Any) -> bool:
            kinds.update([data["kind"]] if name == "ready" else [])
            return {"inputs", "considered"} <= kinds

        site.until(tab, both_there)
        (step,) = site.client.get(f"/api/texts/{text}/considered?step=5").json()["steps"]
        assert [place[0] for place in step["open"]] == [start + 5]
        inputs = site.client.get(f"/api/texts/{text}/inputs?at={start + 5}").json()
        assert max(inputs["positions"]) < start + 5
