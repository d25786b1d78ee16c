"""Events of a tab are lost by nobody who comes back; jobs run in order, behind writing, and end when nobody waits."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from steerling_jax.attribution.explorer import jobs
from steerling_jax.attribution.explorer.asking import Focus
from steerling_jax.attribution.explorer.events import BUFFERED, EventLog
from steerling_jax.attribution.explorer.jobs import Cancelled, Explainer, JobKey, Rank
from steerling_jax.attribution.explorer.tabs import FORGET_SECONDS, IDLE_SECONDS, MOST_TABS, REPLACE_SECONDS, Tabs
from steerling_jax.infer.server.errors import ApiError
from tests.worlds.serving_world import PATIENCE


def received(log: EventLog, last_id: str | None, count: int) -> list[str]:
    """The next frames that a client gets which has seen `last_id`."""

    async def read() -> list[str]:
        frames = log.frames(last_id)
        return [await asyncio.wait_for(anext(frames), PATIENCE) for _ in range(count)]

    return asyncio.run(read())


def test_a_client_that_comes_back_gets_what_it_missed_once():
    log = EventLog("k3")
    for number in range(3):
        log.add("ready", {"n": number})
    log.add("progress", {"n": 9}, numbered=False)  # nobody listens, so it is lost
    assert received(log, None, 3) == [f'id: k3.{n + 1}\nevent: ready\ndata: {{"n":{n}}}\n\n' for n in range(3)]
    assert received(log, "k3.2", 1) == ['id: k3.3\nevent: ready\ndata: {"n":2}\n\n']
    for other in ("k2.2", "nonsense", "k3.-1", "k3.9999999999999999999999"):
        assert received(log, other, 1)[0].startswith("id: k3.1\n"), "not an id of this epoch: from the beginning"
    for number in range(BUFFERED):
        log.add("ready", {"n": number})
    assert received(log, "k3.2", 1) == ["event: reload\ndata: {}\n\n"]
    assert received(log, "k3.3", 1)[0].startswith("id: k3.4\n"), "exactly what is kept"


def test_one_client_listens_and_one_that_does_not_read_is_let_go():
    async def story() -> None:
        log = EventLog("e")
        first = log.frames(None)
        log.add("progress", {}, numbered=False)
        assert await anext(first) == "event: progress\ndata: {}\n\n"
        second = log.frames(None)
        with pytest.raises(StopAsyncIteration):
            await anext(first)
        assert log.has_listener
        for number in range(BUFFERED + 1):
            log.add("ready", {"n": number})
        assert not log.has_listener
        frames = [frame async for frame in second]
        assert len(frames) == BUFFERED
        last = frames[-1].split("\n")[0].removeprefix("id: ")
        assert (await anext(log.frames(last))).startswith(f"id: e.{BUFFERED + 1}\n"), "the next stream goes on"
        log.close()

    asyncio.run(story())


class Recorder:
    """Reports of an explaining thread, and work that waits until it is let go."""

    def __init__(self, writing: Callable[[], bool] = lambda: False):
        self.reports: queue.Queue[tuple[str, str, Any]] = queue.Queue()
        self.thread = Explainer(lambda job, what, value: self.reports.put((job.key.kind, what, value)), writing)

    def blocking(self) -> tuple[Callable, threading.Event, threading.Event]:
        began, go = threading.Event(), threading.Event()

        def work(progress):
            began.set()
            assert go.wait(PATIENCE)
            progress("after", 1, 2)
            return "result"

        return work, began, go

    def next(self) -> tuple[str, str, Any]:
        return self.reports.get(timeout=PATIENCE)


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()
    recorder.thread.start()
    yield recorder
    recorder.thread.close()


def test_the_most_urgent_job_is_next_and_tabs_take_turns(recorder: Recorder):
    work, began, go = recorder.blocking()
    recorder.thread.submit(JobKey("t", "first"), Rank.COST, work, "a")
    assert began.wait(PATIENCE)
    for name, rank, owner in (
        ("influence", Rank.INFLUENCE, "a"),
        ("a1", Rank.INPUTS, "a"),
        ("a2", Rank.INPUTS, "a"),
        ("b1", Rank.INPUTS, "b"),
        ("step", Rank.STEP, "a"),
    ):
        recorder.thread.submit(JobKey("t", name), rank, lambda progress: None, owner)
    go.set()
    assert recorder.next() == ("first", "progress", ("after", 1, 2))
    assert recorder.next() == ("first", "ready", "result")
    assert [recorder.next()[0] for _ in range(5)] == ["step", "b1", "a1", "a2", "influence"]


def test_a_job_ends_when_its_last_owner_does_not_wait_any_more(recorder: Recorder):
    work, began, go = recorder.blocking()
    key = JobKey("t", "shared")
    job = recorder.thread.submit(key, Rank.INPUTS, work, "a")
    assert recorder.thread.submit(key, Rank.INPUTS, work, "b") is job, "the same is computed once"
    assert began.wait(PATIENCE)
    waiting = recorder.thread.submit(JobKey("t", "waiting"), Rank.INPUTS, work, "a")
    recorder.thread.abandon(waiting, "a")
    assert recorder.next() == ("waiting", "cancelled", None)
    recorder.thread.abandon(job, "a")
    recorder.thread.abandon(job, "b")
    again = recorder.thread.submit(key, Rank.INPUTS, lambda progress: "new", "a")
    assert again is not job
    go.set()
    assert [recorder.next() for _ in range(3)] == [
        ("shared", "progress", ("after", 1, 2)),
        ("shared", "cancelled", None),
        ("shared", "ready", "new"),
    ]


def test_an_error_does_not_end_the_thread(recorder: Recorder):
    def fails(progress):
        raise MemoryError("no room")

    recorder.thread.submit(JobKey("t", "bad"), Rank.INPUTS, fails, "a")
    kind, what, error = recorder.next()
    assert (kind, what, str(error)) == ("bad", "failed", "no room")
    recorder.thread.submit(JobKey("t", "good"), Rank.INPUTS, lambda progress: 1, "a")
    assert recorder.next() == ("good", "ready", 1)


def test_writing_goes_first(monkeypatch: pytest.MonkeyPatch):
    """While a text is written, a job stands still at its next report; it goes on when the text has ended."""
    monkeypatch.setattr(jobs, "_PATIENCE", PATIENCE)  # longer than a busy machine may keep this thread waiting
    writing, looked = threading.Event(), threading.Event()

    def is_writing() -> bool:
        looked.set()
        return writing.is_set()

    recorder = Recorder(is_writing)
    recorder.thread.start()
    writing.set()
    job = recorder.thread.submit(JobKey("t", "inputs"), Rank.INPUTS, lambda progress: progress("8 nodes", 0, 4), "a")
    assert recorder.next() == ("inputs", "progress", ("8 nodes", 0, 4))
    assert looked.wait(PATIENCE)
    recorder.thread.abandon(job, "a")  # also while it stands still
    assert recorder.next() == ("inputs", "cancelled", None)
    writing.clear()
    recorder.thread.submit(JobKey("t", "inputs"), Rank.INPUTS, lambda progress: progress("8 nodes", 0, 4), "a")
    assert [recorder.next()[1] for _ in range(2)] == ["progress", "ready"]
    recorder.thread.close()
    assert issubclass(Cancelled, Exception)


def test_warming_up_makes_way_for_who_asks_and_begins_again(recorder: Recorder):
    began, go, runs = threading.Event(), threading.Event(), []

    def compile_programs(progress):
        runs.append("began")
        began.set()
        assert go.wait(PATIENCE)
        progress("compiling", 0, 1)
        runs.append("ended")

    recorder.thread.submit(JobKey("", "warm-up"), Rank.WARM_UP, compile_programs, "warm-up")
    assert began.wait(PATIENCE)
    recorder.thread.submit(JobKey("t", "asked"), Rank.INPUTS, lambda progress: "answer", "a")
    go.set()
    assert recorder.next() == ("asked", "ready", "answer")
    assert recorder.next() == ("warm-up", "ready", None)
    assert runs == ["began", "began", "ended"]


def test_nothing_warms_up_while_a_text_is_written():
    writing, looked = threading.Event(), threading.Semaphore(0)
    writing.set()

    def is_writing() -> bool:
        looked.release()
        return writing.is_set()

    recorder = Recorder(is_writing)
    recorder.thread.start()
    recorder.thread.submit(JobKey("", "warm-up"), Rank.WARM_UP, lambda progress: None, "warm-up")
    assert all(looked.acquire(timeout=PATIENCE) for _ in range(2)), "it looks again after a while"
    assert recorder.reports.empty()
    writing.clear()
    assert recorder.next() == ("warm-up", "ready", None)
    recorder.thread.close()


def test_tabs_without_a_client_are_idle_and_then_forgotten():
    now = [0.0]
    tabs = Tabs("e", lambda: now[0])
    kept, left = tabs.create(), tabs.create()

    async def listen() -> None:
        kept.log.frames(None)
        kept.focus = Focus(None, None, None, (), ())
        assert tabs.idle() == []
        now[0] = IDLE_SECONDS
        assert tabs.idle() == [left]
        now[0] = FORGET_SECONDS
        assert tabs.idle() == [left]

    asyncio.run(listen())
    assert tabs.get(kept.id) is kept
    with pytest.raises(ApiError, match="no such session") as error:
        tabs.get(left.id)
    assert error.value.status == 404
    first, *_ = [tabs.create() for _ in range(MOST_TABS - 1)]
    with pytest.raises(ApiError) as error:
        tabs.create()
    assert (error.value.status, error.value.code) == (429, "too_many_tabs")
    assert error.value.headers["Retry-After"] == "15"
    # Tabs that were closed a while ago make place, the one that listens does not.
    now[0] += REPLACE_SECONDS
    tabs.create()
    with pytest.raises(ApiError, match="no such session"):
        tabs.get(first.id)
    assert tabs.get(kept.id) is kept
