"""States of the explorer's page say what they are and have no fault that axe finds; two tabs are independent."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from playwright.sync_api import Browser, Page, Response, expect

from tests.worlds.browser import WIDTHS, chromium, violations, watched_page
from tests.worlds.explorer_states import (
    HEALTH,
    PROMPT,
    SESSIONS,
    STATES,
    TEXTS,
    bar,
    being_prepared,
    fill,
    of_text,
    open_page,
    queued,
    refusal,
    state_line,
    submit,
)
from tests.worlds.explorer_world import RunningExplorer, exploring
from tests.worlds.serving_world import sharing_compiled

# Keeps each text that the status bars have from now on.
RECORD_BARS = """() => {
    const bars = document.querySelector(".bars");
    window.recordedBars = [];
    new MutationObserver(() => recordedBars.push(bars.textContent))
        .observe(bars, {childList: true, characterData: true, subtree: true});
}"""


class View(NamedTuple):
    language: str
    scheme: Any  # "light" or "dark"
    width: str


VIEWS = [View(*parts) for parts in itertools.product(("en", "ko"), ("light", "dark"), WIDTHS)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def explorer(browser: Browser, text_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningExplorer]:
    file = tmp_path_factory.mktemp("hold") / "hold"
    with exploring(text_model, sharing_compiled(tmp_path_factory), file=file) as explorer:
        explorer.wait_until_ready()
        yield explorer


def show(page: Page, view: View) -> None:
    """Changes language, colours and width of an open page, and waits until it is drawn so."""
    page.emulate_media(color_scheme=view.scheme)
    page.set_viewport_size({"width": WIDTHS[view.width], "height": 800})
    page.evaluate("language => document.querySelector(`header button[lang=${language}]`).click()", view.language)
    expect(page.locator("html")).to_have_attribute("lang", view.language)
    page.wait_for_function("width => innerWidth === width", arg=WIDTHS[view.width])
    page.evaluate("() => new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))")


def check(browser: Browser, explorer: RunningExplorer, name: str, views: list[View]) -> None:
    """Enters a state once and looks at it in several views."""
    with watched_page(browser, server=explorer.url, reduced_motion="reduce") as watched:
        with STATES[name](watched.page, explorer):
            found = {}
            for view in views:
                show(watched.page, view)
                found[view] = violations(watched.page)
        assert not {view: faults for view, faults in found.items() if faults}


def pairwise(number: int) -> list[View]:
    """Views of the state with this number: every width, both languages and both colour schemes. Over all states every
    pair of these is covered, too."""
    languages, schemes = ("en", "ko"), ("light", "dark")
    return [
        View(languages[(number + place) % 2], schemes[(number // 2 + place // 2) % 2], width)
        for place, width in enumerate(WIDTHS)
    ]


@pytest.mark.parametrize("name", STATES)
def test_a_state_and_axe_in_pairs_of_views(browser: Browser, explorer: RunningExplorer, name: str):
    check(browser, explorer, name, pairwise(list(STATES).index(name)))


@pytest.mark.slow
@pytest.mark.parametrize("name", STATES)
def test_a_state_and_axe_in_every_view(browser: Browser, explorer: RunningExplorer, name: str):
    check(browser, explorer, name, VIEWS)


def test_a_fault_of_a_view_is_found(browser: Browser, explorer: RunningExplorer):
    with watched_page(browser, server=explorer.url, reduced_motion="reduce") as watched:
        open_page(watched.page, explorer.url)
        show(watched.page, VIEWS[-1])
        watched.page.evaluate("document.querySelector('label[for=prompt]').remove()")
        watched.page.evaluate("document.querySelector('#prompt').removeAttribute('placeholder')")
        assert any(fault.startswith("label: ") for fault in violations(watched.page))


def test_a_text_requested_too_early_is_written_when_the_model_is_ready(browser: Browser, explorer: RunningExplorer):
    with watched_page(browser, server=explorer.url) as watched:
        page = watched.page
        being_prepared(page)
        open_page(page, explorer.url)
        fill(page, PROMPT)
        submit(page)
        bar(page, "your text waits")
        page.unroute(HEALTH)
        page.unroute(SESSIONS)
        state_line(page, "16 tokens in")
        assert PROMPT in page.locator("#text").inner_text()


def test_a_busy_server_is_asked_again(browser: Browser, explorer: RunningExplorer):
    with watched_page(browser, server=explorer.url) as watched:
        page = watched.page
        busy = {"json": refusal("Too many texts.", "too_many_texts"), "headers": {"Retry-After": "1"}}
        page.route(TEXTS, lambda route: route.fulfill(status=429, **busy), times=1)
        open_page(page, explorer.url)
        # The message is there for a second, in which a busy machine may not look.
        page.evaluate(RECORD_BARS)
        fill(page, PROMPT)
        submit(page)
        state_line(page, "16 tokens in")
        assert any("The server is busy; trying again in 1 s." in shown for shown in page.evaluate("recordedBars"))


def test_a_queued_text_says_its_place_and_is_cancelled(browser: Browser, explorer: RunningExplorer):
    with (
        watched_page(browser, server=explorer.url) as first,
        watched_page(browser, server=explorer.url) as second,
        queued(first.page, explorer),
    ):
        page = second.page
        open_page(page, explorer.url)
        fill(page, PROMPT + " second", 64)
        submit(page)
        state_line(page, "In the queue: 1 before it")
        page.locator(".state-line").get_by_role("button", name="Cancel").click()
        state_line(page, "Stopped after 0 of 64 tokens.")
        state_line(first.page, "About to be written")


@pytest.mark.parametrize(("language", "again"), [("en", "Try again"), ("ko", "다시 시도")])
def test_a_failed_panel_is_asked_again(browser: Browser, explorer: RunningExplorer, language: str, again: str):
    """The concepts, which are computed for every text, and what is computed for a selection."""
    with watched_page(browser, server=explorer.url) as watched:
        page, panel = watched.page, watched.page.locator("#panel")

        def fails_and_succeeds(ask: Callable[[], object], answer: str) -> None:
            with explorer.failing():
                ask()
                expect(panel.locator(".missing")).to_contain_text("The explanation failed.")
            panel.get_by_role("button", name=again).click()
            expect(panel.locator(answer).first).to_be_visible()

        seed = {"en": 71, "ko": 72}[language]  # of texts that no other test has
        fails_and_succeeds(lambda: open_page(page, of_text(explorer, seed, lang=language)), "li")
        page.locator("#text [role=button]:not(.prompt)").last.click(modifiers=["Alt"])
        for name, answer in (("inputs", "li button.row"), ("considered", "table")):
            fails_and_succeeds(page.locator(f"#tab-{name}").click, answer)


def test_two_tabs_are_independent_and_share_a_text(browser: Browser, explorer: RunningExplorer):
    """The second tab gets the text of the first, with what was computed about it; selections are each tab's own."""
    fresh = of_text(explorer, seed=2)
    with watched_page(browser, fresh, server=explorer.url) as first:
        state_line(first.page, "16 tokens in")
        first.page.locator("#text [role=button]:not(.prompt)").last.click(modifiers=["Alt"])
        first.page.get_by_role("tab", name="Inputs").click()
        expect(first.page.locator("#panel")).to_contain_text("adds up within")
        with watched_page(browser, server=explorer.url) as second:
            answers: list[Response] = []
            second.page.on("response", lambda one: answers.append(one) if one.url.endswith("/texts") else None)
            open_page(second.page, fresh)
            state_line(second.page, "16 tokens in")
            assert [one.json()["cached"] for one in answers] == [True]
            assert second.page.locator("#text").inner_text() == first.page.locator("#text").inner_text()
            selected = first.page.locator("#why .selected").inner_text()
            assert second.page.locator("#why .selected").inner_text() != selected
            fill(second.page, PROMPT + " two")
            submit(second.page)
            expect(second.page.locator("#text")).to_contain_text("two")
            state_line(second.page, "16 tokens in")
            assert first.page.locator("#why .selected").inner_text() == selected
            assert "two" not in first.page.locator("#text").inner_text()
