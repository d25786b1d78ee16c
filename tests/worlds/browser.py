"""A real Chromium for the explorer's tests, and a page in it that records what must not happen."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, expect, sync_playwright

# A sandbox needs a user who is not root; the rest stops requests of the browser's own.
FLAGS = (
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
WAIT = 600_000  # milliseconds that a state may take on a busy machine, compilation included
WIDTHS = {"wide": 1280, "narrow": 390, "narrowest": 320}
# WCAG 2.2 AA; best practices are advice.
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's Chromium. Without one the test fails in CI and is skipped elsewhere."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        sentence = "There is no Chromium: apt-get install chromium fonts-noto-cjk"
        required = os.environ.get("CI") or os.environ.get("STEERLING_BROWSER") == "required"
        pytest.fail(sentence) if required else pytest.skip(sentence)
    expect.set_options(timeout=WAIT)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Watched:
    """A page, and everything that a page of the explorer must not do: `problems` is empty at the end of a test."""

    page: Page
    allowed: str | None
    problems: list[str] = field(default_factory=list)

    def on_request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme in ("data", "blob") or (parts.scheme == "file" and self.allowed is None):
            return
        if self.allowed is None or f"{parts.scheme}://{parts.netloc}" != self.allowed:
            self.problems.append(f"request to {request.url}")

    def on_console(self, message: ConsoleMessage) -> None:
        # Chromium reports answers of 4xx and 5xx as errors of the page, which are expected: a server that is loading,
        # a result that is not there yet, a server that was stopped.
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            self.problems.append(f"{message.type}: {message.text}")


@contextmanager
def watched_page(
    browser: Browser, url: str | None = None, *, width: str = "wide", server: str | None = None, **options: Any
) -> Iterator[Watched]:
    """A page in a context of its own. url: opened at first. server: the only origin that it may talk to."""
    options.setdefault("viewport", {"width": WIDTHS[width], "height": 800})
    options.setdefault("locale", "en-GB")
    context: BrowserContext = browser.new_context(**options)
    context.set_default_timeout(WAIT)
    page = context.new_page()
    try:
        watched = Watched(page, server)
        watched.page.on("request", watched.on_request)
        watched.page.on("console", watched.on_console)
        watched.page.on("pageerror", lambda error: watched.problems.append(f"exception: {error}"))
        if url is not None:
            watched.page.goto(url)
        yield watched
        assert watched.problems == []
    finally:
        # A handler of a request that is on its way would fail in the closed page, and its error be raised by the next
        # call of Playwright: in the next test.
        page.unroute_all(behavior="ignoreErrors")
        context.close()


def violations(page: Page) -> list[str]:
    """What axe finds against WCAG 2.2 AA in the page as it is now: rule and element of each violation."""
    result = Axe().run(page, options={"runOnly": {"type": "tag", "values": TAGS}})
    return [
        f"{one['id']}: {node['html'][:120]} {node['failureSummary'][:200]}"
        for one in result.response["violations"]
        for node in one["nodes"]
    ]


def selection_text(page: Page) -> str:
    """The words that the page says are selected."""
    return page.locator("#why .selected h2").inner_text()
