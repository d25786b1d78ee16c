"""Which explanations are computed: what the tabs look at, and what they ask for by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from steerling_jax.attribution.explorer import panels
from steerling_jax.attribution.explorer.asking import Focus, Span
from steerling_jax.attribution.explorer.jobs import Explainer, Job, JobKey, Rank
from steerling_jax.attribution.explorer.tabs import Tab, Tabs
from steerling_jax.attribution.explorer.texts import Model, Text, TextStore
from steerling_jax.attribution.explorer.training_data import TrainingData
from steerling_jax.attribution.trace.document import evidence_panel
from steerling_jax.attribution.trace.parts import considered_part
from steerling_jax.decoding.trace import Trace
from steerling_jax.infer.server.errors import ApiError, as_api_error
from steerling_jax.progress import Progress

MOST_JOBS = 8  # of a tab, of those that it asks for by themselves
_GROUP = 8  # tokens whose inputs are computed together


class Explaining:
    """The results and jobs of all tabs, on the event loop's thread.

    call: runs a function with its arguments on the event loop, from any thread.
    """

    def __init__(
        self,
        model: Model,
        texts: TextStore,
        tabs: Tabs,
        training_data: TrainingData | None,
        writing: Callable[[], bool],
        call: Callable[..., Any],
    ):
        self._model, self._texts, self._tabs, self._call = model, texts, tabs, call
        self.training_data = training_data
        self.thread = Explainer(lambda *report: call(self._report, *report), writing)
        self._once: dict[JobKey, Callable[[Any], None]] = {}  # what is done with results that no tab reads

    def look(self, tab: Tab, focus: Focus) -> None:
        """The tab looks at something else: what it does not look at any more is cancelled, the rest begun."""
        tab.focus = focus
        text = None if focus.text is None else self._texts.get(focus.text)
        keys = [] if text is None or not text.ended or not text.commits else self._looked_at(text, focus)
        for key in [key for key in tab.focused if key not in keys]:
            self.abandon(tab, key)
        for key in keys:
            assert text is not None
            self.begin(tab, text, key, tab.focused)

    def _looked_at(self, text: Text, focus: Focus) -> list[JobKey]:
        keys = []
        selections = [span for span in (focus.at, *focus.pins) if span is not None and text.span(*span)]
        if "considered" in focus.panels:
            step = focus.step if focus.step in {commit.step for commit in text.commits} else None
            keys.append(JobKey(text.id, "considered", step))
        if "inputs" in focus.panels:
            keys += [JobKey(text.id, "inputs", span) for span in selections]
        if "evidence" in focus.panels and self.training_data is not None:
            scores = self.training_data.quick_scores
            keys += [JobKey(text.id, "evidence", (span, scores)) for span in selections]
        return keys

    def ask(self, tab: Tab, text: Text, kind: str, at: Span | None) -> Job | None:
        """Begins a job that is asked for by itself; None if its result is there."""
        if not text.ended or not text.commits:
            raise ApiError(409, "The text is still being written; ask again when it has ended.", code="not_ready")
        data = self.training_data
        if kind == "influence" and (data is None or "influence" not in data.scores):
            raise ApiError(409, "There is no index with influence; start with --index.", code="no_index")
        if len(tab.asked) >= MOST_JOBS:
            message = f"{MOST_JOBS} jobs of this tab are waiting: wait for one to end."
            raise ApiError(429, message, code="too_many_jobs", headers={"Retry-After": "2"})
        key = JobKey(text.id, "evidence", (at, ("influence",))) if kind == "influence" else JobKey(text.id, kind)
        return self.begin(tab, text, key, tab.asked)

    def result(self, key: JobKey) -> Any:
        """A finished result. Raises `ApiError` where it is not there."""
        text = self._texts.get(key.text)
        if text is not None and key in text.results:
            return text.results[key]
        if text is not None and key.kind == "inputs" and isinstance(key.at, tuple):
            # The inputs of a selection are those of its tokens, whichever selections they were computed for.
            tokens = [JobKey(text.id, "token", place) for place in text.span(*key.at)]
            if tokens and all(token in text.results for token in tokens):
                return panels.inputs_panel(key.at, [text.results[token] for token in tokens])
        raise ApiError(404, "This is not computed yet.", code="not_ready")

    def begin(self, tab: Tab, text: Text, key: JobKey, owned: dict[JobKey, Job]) -> Job | None:
        """Begins a job of a tab, which hears at once of a result that is there (None)."""
        try:
            self.result(key)
        except ApiError:
            if key not in owned:
                owned[key] = self.thread.submit(key, rank_of(key), self._work(text, key), tab.id)
            return owned[key]
        tab.log.add("ready", _about(key) | {"href": href(key)})
        return None

    def run(
        self, owner: str, key: JobKey, rank: Rank, work: Callable[[Progress], Any], done: Callable[[Any], None]
    ) -> Job:
        """Runs something else on the explaining thread; done: gets its result, or the exception that ended it."""
        self._once[key] = done
        return self.thread.submit(key, rank, work, owner)

    def abandon(self, tab: Tab, key: JobKey) -> None:
        """The tab does not wait for a job any more."""
        for owned in (tab.focused, tab.asked):
            if (job := owned.pop(key, None)) is not None:
                self.thread.abandon(job, tab.id)

    def _work(self, text: Text, key: JobKey) -> Callable[[Progress], Any]:
        """The function that computes a job's result, on the explaining thread."""
        bundle, record = self._model.bundle, self._model.record(text)
        detail: Any = key.at
        if key.kind == "concepts":
            return lambda progress: panels.text_document(bundle, self._model.autoencoders, record, progress)
        if key.kind == "cost":
            return lambda progress: panels.cost_panel(bundle, record, progress)
        if key.kind == "considered":
            return lambda progress: considered_part(bundle, record.trace, record.generation, detail, progress)
        if key.kind == "inputs":
            missing = [p for p in text.span(*detail) if JobKey(text.id, "token", p) not in text.results]
            return lambda progress: self._compute_tokens(text.id, record.trace, missing, progress)
        data, ((start, end), scores) = self.training_data, detail
        assert data is not None

        def find(progress: Progress) -> dict[str, Any]:
            progress("training data", 0, 1)
            return evidence_panel(data.search(record.trace.tokens, start, end, scores))

        return find

    def _compute_tokens(self, text: str, trace: Trace, positions: list[int], progress: Progress) -> None:
        """Computes the inputs of tokens, a few at a time, each of which is kept as soon as it is there."""
        for first in range(0, len(positions), _GROUP):
            group = positions[first : first + _GROUP]
            rows = panels.token_inputs(
                self._model.bundle,
                trace,
                group,
                lambda stage, done, total, first=first: progress(stage, first, len(positions)),
            )
            self._call(self._keep, text, dict(zip(group, rows, strict=True)))

    def _keep(self, id: str, rows: dict[int, panels.TokenInputs]) -> None:
        if (text := self._texts.get(id)) is not None:
            text.results |= {JobKey(id, "token", position): row for position, row in rows.items()}

    def _report(self, job: Job, what: str, value: Any) -> None:
        """A report of the explaining thread."""
        key, text, owners = job.key, self._texts.get(job.key.text), self._tabs.of(job.owners)
        about = _about(key, job.id)
        if what == "progress":
            stage, done, total = value
            for tab in owners:
                tab.log.add("progress", about | {"stage": stage, "done": done, "of": total}, numbered=False)
            return
        for tab in owners:
            for owned in (tab.focused, tab.asked):
                if owned.get(key) is job:
                    del owned[key]
        if (done_once := self._once.pop(key, None)) is not None and what != "cancelled":
            done_once(value)
        elif what == "failed":
            error = as_api_error(value).body()
            for tab in owners:
                tab.log.add("failed", about | error)
        elif what == "ready" and text is not None:
            if key.kind != "inputs":  # whose result is that of its tokens
                text.results[key] = value
            for tab in owners:
                tab.log.add("ready", about | {"href": href(key)})


def rank_of(key: JobKey) -> Rank:
    """How urgent a job is."""
    detail: Any = key.at
    if key.kind == "inputs":
        return Rank.TOKEN_INPUTS if detail[1] - detail[0] == 1 else Rank.INPUTS
    if key.kind == "evidence":
        return Rank.INFLUENCE if "influence" in detail[1] else Rank.EVIDENCE
    if key.kind == "considered":
        return Rank.ALL_STEPS if detail is None else Rank.STEP
    return Rank.COST if key.kind == "cost" else Rank.CONCEPTS


def href(key: JobKey) -> str:
    """The address of a result."""
    base, detail = f"/api/texts/{key.text}", key.at
    if key.kind == "concepts":
        return base
    if key.kind == "inputs" and isinstance(detail, tuple):
        return f"{base}/inputs?at={detail[0]}-{detail[1]}"
    if key.kind == "evidence" and isinstance(detail, tuple):
        (start, end), scores = detail
        return f"{base}/evidence?at={start}-{end}&scores={','.join(scores)}"
    return f"{base}/{key.kind}" + ("" if detail is None else f"?step={detail}")


def _about(key: JobKey, job: str | None = None) -> dict[str, Any]:
    """What events say of a job."""
    at: Any = key.at[0] if key.kind == "evidence" and isinstance(key.at, tuple) else key.at
    return {"job": job, "kind": key.kind, "text": key.text, "at": at}
