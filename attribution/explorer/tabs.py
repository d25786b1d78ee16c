"""The tabs that are connected: their events, what they look at, and how long they stay without a client."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from steerling_jax.attribution.explorer.asking import Focus
from steerling_jax.attribution.explorer.events import EventLog
from steerling_jax.attribution.explorer.jobs import Job, JobKey
from steerling_jax.infer.server.errors import ApiError

MOST_TABS = 32
IDLE_SECONDS = 15.0  # without a listener, after which a tab's work is cancelled
REPLACE_SECONDS = 30.0  # without a listener, after which a new tab may take its place; its work is cancelled by then
FORGET_SECONDS = 600.0  # without a listener, after which a tab is forgotten


@dataclass(eq=False)
class Tab:
    """One tab of a browser; a session in the protocol.

    focused: the jobs that its focus began, asked: those that it asked for by themselves. left: when its last client
    left, None while one listens.
    """

    id: str
    log: EventLog
    left: float | None
    focus: Focus | None = None
    focused: dict[JobKey, Job] = field(default_factory=dict)
    asked: dict[JobKey, Job] = field(default_factory=dict)

    def job(self, id: str) -> Job | None:
        """Its job with this id, which it asked for by itself."""
        return next((job for job in self.asked.values() if job.id == id), None)


class Tabs:
    """All tabs. clock: seconds, such as `time.monotonic`."""

    def __init__(self, epoch: str, clock: Callable[[], float]):
        self.epoch, self._clock = epoch, clock
        self._tabs: dict[str, Tab] = {}

    def __iter__(self) -> Iterator[Tab]:
        return iter(list(self._tabs.values()))

    def create(self) -> Tab:
        """A new tab, in place of one that was closed where there are too many. Raises `ApiError` if none was."""
        if len(self._tabs) >= MOST_TABS and not self._forget_closed():
            raise ApiError(
                429,
                f"{MOST_TABS} tabs are open, the most that are allowed: close one and try again.",
                code="too_many_tabs",
                headers={"Retry-After": str(round(IDLE_SECONDS))},
            )
        tab = Tab("s_" + secrets.token_urlsafe(16), EventLog(self.epoch), self._clock())
        self._tabs[tab.id] = tab
        return tab

    def _forget_closed(self) -> bool:
        """Forgets the tab that was closed first; False if there is none. A page that is loaded again is another tab, so
        reloading must not use up the places."""
        now = self._clock()
        closed = {tab.id: tab.left for tab in self if tab.left is not None and not tab.log.has_listener}
        first = min(closed, key=closed.__getitem__, default=None)
        if first is None or now - closed[first] < REPLACE_SECONDS:
            return False
        del self._tabs[first]
        return True

    def get(self, id: str) -> Tab:
        """Raises `ApiError` for a tab that does not exist, for example of an earlier run of the server."""
        if id not in self._tabs:
            raise ApiError(404, "There is no such session; begin a new one.", code="session_not_found")
        return self._tabs[id]

    def of(self, ids: Iterable[str]) -> list[Tab]:
        """The tabs with these ids that are still there."""
        return [self._tabs[id] for id in sorted(ids) if id in self._tabs]

    def idle(self) -> list[Tab]:
        """The tabs whose work is to be cancelled, since nobody listened for a while. Forgets those that are gone."""
        now, idle = self._clock(), []
        for tab in self:
            if tab.log.has_listener:
                tab.left = None
                continue
            tab.left = now if tab.left is None else tab.left
            if now - tab.left >= IDLE_SECONDS:
                idle.append(tab)
            if now - tab.left >= FORGET_SECONDS:
                del self._tabs[tab.id]
        return idle
