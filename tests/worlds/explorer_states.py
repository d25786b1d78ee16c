"""The states of the explorer's page, each entered in a real Chromium with a real server behind it.

A state that passes by itself, such as a queue, is held: the decoder stops where the test says, or an answer of the
server is replaced on its way. So each state lasts as long as a test needs, on a machine of any speed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from urllib.parse import quote

from playwright.sync_api import Page, Route, expect

from tests.worlds.explorer_world import RunningExplorer

PROMPT = "The quick brown"
TOKENS = 16
HEALTH, SESSIONS, TEXTS, EVENTS = "**/health", "**/api/sessions", "**/texts", "**/events*"

_UNUSED = itertools.count(100)  # in the requests of texts that no other state has written
Enter = Callable[[Page, RunningExplorer], AbstractContextManager[None]]
STATES: dict[str, Enter] = {}


def state(enter: Callable[[Page, RunningExplorer], Iterator[None]]) -> Enter:
    """Registers a state under the function's name. The function opens a page in that state, checks what is shown, and
    after the yield releases what it held."""
    STATES[enter.__name__] = contextmanager(enter)
    return STATES[enter.__name__]


def address(explorer: RunningExplorer, **parts: str | int) -> str:
    return f"{explorer.url}/#" + "&".join(f"{name}={quote(str(value))}" for name, value in parts.items())


def of_text(explorer: RunningExplorer, seed: int = 1, **parts: str | int) -> str:
    """The address of a text; that of seed 1 is shared by the states, and written once."""
    return address(explorer, p=PROMPT, n=TOKENS, seed=seed, **parts)


def answer(page: Page, where: str, status: int, content: dict[str, Any], **headers: str) -> None:
    """Gives this answer to all requests of the page to `where`, in the server's place."""
    page.route(where, lambda route: route.fulfill(status=status, json=content, headers=headers))


def refusal(message: str, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}


def open_page(page: Page, url: str) -> None:
    page.goto(url)
    expect(page.locator("#text [role=button]").first).to_be_visible()


def fill(page: Page, prompt: str, tokens: int = TOKENS) -> None:
    page.locator("#prompt").fill(prompt)
    page.get_by_label("Tokens", exact=True).fill(str(tokens))


def submit(page: Page) -> None:
    page.get_by_role("button", name="Write", exact=True).click()


def state_line(page: Page, words: str | re.Pattern[str]) -> None:
    expect(page.locator(".state-line")).to_contain_text(words)


def bar(page: Page, words: str) -> None:
    expect(page.locator(".bars")).to_contain_text(words)


def open_text(page: Page, explorer: RunningExplorer, seed: int = 1) -> None:
    """Opens a text and waits until it is whole."""
    open_page(page, of_text(explorer, seed))
    state_line(page, f"{TOKENS} tokens in")
    page.get_by_role("tab", name="Concepts").click()
    expect(page.locator("#panel li").first).to_be_visible()


def select_last(page: Page) -> None:
    page.locator("#text [role=button]:not(.prompt)").last.click(modifiers=["Alt"])
    expect(page.locator("#why .selected")).to_contain_text("position")


def ask(page: Page, explorer: RunningExplorer, panel: str) -> None:
    """Opens a text, selects its last token, and asks in a panel."""
    open_text(page, explorer)
    select_last(page)
    page.get_by_role("tab", name=panel).click()


def more_settings(page: Page) -> None:
    page.locator("#write").get_by_role("button", name="More").click()


def being_prepared(page: Page) -> None:
    starting = {"status": "starting", "stage": "compiling", "compiled": 0.4}
    answer(page, HEALTH, 503, starting)
    answer(page, SESSIONS, 503, refusal("The model is being loaded; try again.", "preparing"), **{"Retry-After": "1"})


@state
def first_visit(page: Page, explorer: RunningExplorer) -> Iterator[None]:
    """The first example, whole, before the model is loaded."""
    being_prepared(page)
    open_page(page, explorer.url)
    bar(page, "The model is being prepared: 40 %")
    expect(page.locator("#panel li").first).to_be_visible()
    page.get_by_role("tab", name="Inputs").click()
    expect(page.locator("#panel li button.row").first).to_be_visible()
    yield


@state
def empty_prompt(page: Page, explorer: RunningExplorer) -> Iterator[None]:
    open_page(page, explorer.url)
    page.locator("#prompt").fill("")
    expect(page.get_by_role("button", name="Write", exact=True)).to_be_disabled()
    expect(page.locator("#write-note")).to_have_text("Write a beginning first.")
    yield


@state
def queued(page: Page, explorer: RunningExplorer) -> Iterator[None]:
    """The decoder makes no call."""
    open_page(page, explorer.url)
    with explorer.held(0):
        fill(page, f"{PROMPT} {next(_UNUSED)}", 64)
        submit(page)
        state_line(page, "About to be written")
        expect(page.locator(".state-line").get_by_role("button", name="Cancel")).to_be_visible()
        yield


@state
def running(page: Page, explorer: RunningExplorer) -> Iterator[None]:
    """The decoder stops after a few calls."""
    open_page(page, explorer.url)
    with explorer.held(4):
        fill(page, f"{PROMPT} {next(_UNUSED)}", 64)
        submit(page)
        state_line(page, re.compile(r"[1-9]\d* of 64 tokens"))
        expect(page.locator(".state-line").get_by_role("button", name="Stop")).to_be_visible()
        yield


@state
def stopped(page: Page, explorer: RunningExplorer) -> Iterator[None]:
    with running(page, explorer):
        page.locator(".state-line").get_by_role("button", name="Stop").click()
        state_line(page, "Stopped after")
    page.get_by_role("tab", name="Concepts").click()
    expect(page.locator("#panel li").first).to_be_visible()
    yield


@state
def failed_text(page: Page, explorer: RunningExplorer) -> Iterator[None]:
    def fail(route: Route) -> None:
        content = route.fetch().json()
        route.fulfill(json=content | {"state": "failed", "error": "The decoder failed.", "document": None})

    page.route(re.compile(r"/api/texts/\w+$"), fail)
    open_page(page, of_text(explorer))
    state_line(page, "The text could not be written: The decoder failed.")
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    yield


@state
def inputs(page: Page, explorer: RunningExplorer) -> Iterator[None]:
    ask(page, explorer, "Inputs")
    expect(page.locator("#panel")).to_contain_text("adds up within")
    page.locator("#panel li button.row").first.click()
    yield


@state
def inputs_waiting(page: Page, explorer: RunningExplorer) -> Iterator[None]:
    """The result is not sent. Of a new text, so that it is computed, with progress before it."""
    page.route("**/inputs?*", lambda route: None)
    open_text(page, explorer, seed=next(_UNUSED))
    page.get_by_role("tab", name="Inputs").click()
    page.locator("#text [role=button]:not(.prompt)").first.click(modifiers=["Alt"])
    expect(page.locator("#panel .waiting")).to_contain_text("Computing: ")
    yield


@state
def failed_panel(page: Page, explorer: RunningExplorer) -> Iterator[None]:
    open_text(page, explorer, seed=next(_UNUSED))
    select_last(page)
    with explorer.failing():
        page.get_by_role("tab", name="Inputs").click()
        expect(page.locator("#panel .missing")).to_contain_text("The explanation failed.")
    expect(page.locator("#panel").get_by_role("button", name="Try again")).to_be_visible()
    yield


@state
def concepts(page: Page, explorer: RunningExplorer) -> Iterator[None]:
    """With a card of a concept."""
    open_text(page, explorer)
    select_last(page)
    page.get_by_role("button", name=re.compile("^About ")).first.click()
    expect(page.locator(".card")).to_be_visible()
    yield


@state
def no_index(page: Page, explorer: RunningExplorer) -> Iterator[None]:
    ask(page, explorer, "Training data")
    expect(page.locator("#panel")).to_contain_text("There is no index of the training data.")
    yield


@state
def enlarged_and_pinned(page: Page, explorer: RunningExplorer) -> Iterator[None]:
    open_page(page, explorer.url)
    page.get_by_role("button", name="pin", exact=True).click()
    page.get_by_role("button", name="enlarge").click()
    expect(page.locator("#why .pins button")).to_have_count(1)
    yield


@state
def considered(page: Page, explorer: RunningExplorer) -> Iterator[None]:
    """At a step before the last, with open places."""
    ask(page, explorer, "Considered")
    expect(page.locator("#panel")).to_contain_text("Entropy")
    page.get_by_role("button", name="One step back").click()
    expect(page.locator("#text .ghost, #text .mask").first).to_be_visible()
    yield


@state
def comparison(page: Page, explorer: RunningExplorer) -> Iterator[None]:
    open_page(page, of_text(explorer, amp="Email:1", cmp="plain|random"))
    expect(page.locator(".compare article")).to_have_count(3)
    expect(page.locator(".compare .facts").last).to_contain_text("%")
    yield


@state
def refused_prompt(page: Page, explorer: RunningExplorer) -> Iterator[None]:
    """The server's sentence is at the field, and the field's text stays."""
    long = "The quick brown fox jumps over the lazy dog. " * 20
    open_page(page, explorer.url)
    fill(page, long)
    submit(page)
    expect(page.locator("#prompt + .refusal")).to_contain_text("tokens")
    expect(page.locator("#prompt")).to_have_value(long)
    yield


@state
def refused_setting(page: Page, explorer: RunningExplorer) -> Iterator[None]:
    open_page(page, explorer.url)
    more_settings(page)
    fill(page, PROMPT)
    page.get_by_label("Top p").fill("7")
    submit(page)
    expect(page.locator(".write-row + .refusal")).to_contain_text("top_p is 7")
    yield


@state
def busy(page: Page, explorer: RunningExplorer) -> Iterator[None]:
    answer(page, TEXTS, 429, refusal("Too many texts.", "too_many_texts"), **{"Retry-After": "600"})
    open_page(page, explorer.url)
    fill(page, PROMPT)
    submit(page)
    bar(page, "The server is busy; trying again in")
    yield


@state
def lost(page: Page, explorer: RunningExplorer) -> Iterator[None]:
    page.route(EVENTS, lambda route: route.abort())
    open_page(page, explorer.url)
    bar(page, "The server does not answer; trying again.")
    yield


@state
def restarted(page: Page, explorer: RunningExplorer) -> Iterator[None]:
    """The first stream of events breaks, and another process answers."""
    page.route(EVENTS, lambda route: route.abort(), times=1)
    page.route("**/focus", lambda route: route.fulfill(status=404, json=refusal("No session.", "not_found")), times=1)
    made = 0

    def begin(route: Route) -> None:
        nonlocal made
        made += 1
        route.fulfill(json=route.fetch().json() | ({"epoch": "other"} if made > 1 else {}))

    page.route(SESSIONS, begin)
    open_page(page, explorer.url)
    bar(page, "The server was started again; what it was computing is lost.")
    yield


@state
def stopping(page: Page, explorer: RunningExplorer) -> Iterator[None]:
    answer(page, HEALTH, 503, {"status": "stopping"})
    open_page(page, explorer.url)
    bar(page, "The server is being stopped.")
    yield


@state
def failed_model(page: Page, explorer: RunningExplorer) -> Iterator[None]:
    answer(page, HEALTH, 503, {"status": "failed", "error": "The weights are damaged."})
    answer(page, SESSIONS, 503, refusal("The model was not loaded: The weights are damaged.", "failed"))
    open_page(page, explorer.url)
    bar(page, "The model could not be loaded: The weights are damaged.")
    expect(page.get_by_role("button", name="Write", exact=True)).to_be_disabled()
    yield


@state
def bad_address(page: Page, explorer: RunningExplorer) -> Iterator[None]:
    """What is understood is applied."""
    open_page(page, address(explorer, at="zzz", panel="considered", seed="-3"))
    bar(page, "Not understood in the address, and left out: at=zzz, seed=-3")
    expect(page.get_by_role("tab", name="Considered")).to_have_attribute("aria-selected", "true")
    yield


@state
def other_model(page: Page, explorer: RunningExplorer) -> Iterator[None]:
    # Nothing is written; an example stands there only where the page was drawn before it knew the model.
    page.goto(of_text(explorer, fp="01234567"))
    bar(page, "The link is of another model (01234567)")
    expect(page.get_by_role("button", name="Write it with this one")).to_be_visible()
    yield


@state
def given_text(page: Page, explorer: RunningExplorer) -> Iterator[None]:
    """The form for a given text, and steering."""
    open_page(page, explorer.url)
    more_settings(page)
    page.get_by_label("Explain a given text after it").check()
    expect(page.get_by_label("Given text", exact=True)).to_be_visible()
    yield


@state
def search_of_concepts(page: Page, explorer: RunningExplorer) -> Iterator[None]:
    open_page(page, explorer.url)
    page.get_by_role("button", name="Add a concept").click()
    expect(page.locator(".steer").get_by_text("Sockets")).to_be_visible()
    yield


@state
def menu_of_examples(page: Page, explorer: RunningExplorer) -> Iterator[None]:
    open_page(page, explorer.url)
    page.get_by_role("button", name="Examples").click()
    expect(page.locator(".menu:popover-open")).to_contain_text("Networks")
    yield


@state
def menu_of_files(page: Page, explorer: RunningExplorer) -> Iterator[None]:
    open_text(page, explorer)
    page.get_by_role("button", name="Share").click()
    expect(page.locator(".menu:popover-open")).to_contain_text("One HTML file")
    yield


@state
def keys(page: Page, explorer: RunningExplorer) -> Iterator[None]:
    open_page(page, explorer.url)
    page.get_by_role("button", name="Keys").click()
    expect(page.locator(".menu:popover-open")).to_contain_text("Ctrl+Enter")
    yield
