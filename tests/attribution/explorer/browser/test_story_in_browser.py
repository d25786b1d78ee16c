"""The explorer in a real Chromium, with a tiny model in a server of its own: the story by mouse, touch and keys, links,
a lost server, Korean, any address."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from playwright.sync_api import Browser, Page, expect

from tests.worlds.browser import chromium, selection_text, watched_page
from tests.worlds.explorer_world import RunningExplorer, exploring
from tests.worlds.ports import lasting_port
from tests.worlds.serving_world import sharing_compiled

PROMPT = "The quick brown"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return sharing_compiled(tmp_path_factory)


@pytest.fixture(scope="module")
def explorer(
    browser: Browser, text_model: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningExplorer]:
    file = tmp_path_factory.mktemp("hold") / "hold"
    with exploring(text_model, environment, file=file) as explorer:
        explorer.wait_until_ready()
        yield explorer


def fill(page: Page, prompt: str, tokens: int) -> None:
    """Fills the form, once the example that the page shows at first has filled it."""
    expect(page.locator("#text [role=button]").first).to_be_visible()
    page.locator("#prompt").fill(prompt)
    page.get_by_label("Tokens", exact=True).fill(str(tokens))


def written(page: Page, tokens: int) -> None:
    """Waits until the text is whole and its concepts are there."""
    expect(page.locator(".state-line")).to_contain_text(f"{tokens} tokens in")
    page.get_by_role("tab", name="Concepts").click()
    expect(page.locator("#panel li").first).to_be_visible()


def write(page: Page, prompt: str = PROMPT, tokens: int = 16) -> None:
    fill(page, prompt, tokens)
    page.get_by_role("button", name="Write", exact=True).click()
    written(page, tokens)


def test_write_select_and_ask_by_mouse(browser: Browser, explorer: RunningExplorer):
    with watched_page(browser, explorer.url, server=explorer.url) as watched:
        page = watched.page
        write(page)
        token = page.locator("#text [role=button]:not(.prompt)").last
        token.click(modifiers=["Alt"])
        expect(page.locator("#why .selected")).to_contain_text("position")
        page.get_by_role("tab", name="Inputs").click()
        expect(page.locator("#panel")).to_contain_text("adds up within")
        page.get_by_role("tab", name="Considered").click()
        expect(page.locator("#panel")).to_contain_text("Entropy")
        page.get_by_role("tab", name="Training data").click()
        expect(page.locator("#panel")).to_contain_text("no index")
        page.get_by_role("button", name="One step back").click()
        expect(page.locator("#text .ghost, #text .mask").first).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#why .selected h2")).to_have_text("The whole text")


def test_write_and_ask_by_keys_alone(browser: Browser, explorer: RunningExplorer):
    with watched_page(browser, explorer.url, server=explorer.url) as watched:
        page = watched.page
        expect(page.locator("#text [role=button]").first).to_be_visible()
        page.keyboard.press("F6")
        expect(page.locator("#prompt")).to_be_focused()
        page.keyboard.press("Control+a")
        page.keyboard.type(PROMPT)
        page.keyboard.press("Tab")
        page.keyboard.press("Control+a")
        page.keyboard.type("16")
        page.keyboard.press("Control+Enter")
        written(page, 16)
        page.locator("#prompt").focus()
        page.keyboard.press("F6")
        page.keyboard.press("End")
        page.keyboard.press("Alt+Enter")
        expect(page.locator("#why .selected")).to_contain_text("position")
        page.keyboard.press("1")
        expect(page.locator("#panel")).to_contain_text("adds up within")


def test_write_and_ask_by_touch_on_a_phone(browser: Browser, explorer: RunningExplorer):
    options = {"has_touch": True, "is_mobile": True}
    with watched_page(browser, explorer.url, width="narrow", server=explorer.url, **options) as watched:
        page = watched.page
        fill(page, PROMPT, 16)
        page.get_by_role("button", name="Write", exact=True).tap()
        expect(page.locator(".state-line")).to_contain_text("16 tokens in")
        page.get_by_role("group", name="A click selects").get_by_role("button", name="token").tap()
        token = page.locator("#text [role=button]:not(.prompt)").last
        token.tap()
        expect(page.locator("#why .selected")).to_contain_text("position")
        page.get_by_role("tab", name="Inputs").tap()
        expect(page.locator("#panel")).to_contain_text("adds up within")
        # What is selected is not under the sheet, once it is scrolled, some frames after the selection.
        above = """word => {
            const [at, sheet] = [word, document.querySelector("#why")].map(one => one.getBoundingClientRect());
            return at.bottom <= sheet.top + 1;
        }"""
        page.wait_for_function(above, arg=token.element_handle())


def test_a_stopped_text_is_kept_and_explained(browser: Browser, explorer: RunningExplorer):
    """The decoder is held in the middle of the text, so there is always something to stop."""
    with watched_page(browser, explorer.url, server=explorer.url) as watched:
        page = watched.page
        expect(page.locator("#prompt")).to_be_visible()
        with explorer.held(4):
            fill(page, PROMPT + " fox", 64)
            page.get_by_role("button", name="Write", exact=True).click()
            expect(page.locator(".state-line")).to_contain_text(re.compile(r"[1-9]\d* of 64 tokens"))
            page.get_by_role("button", name="Stop").click()
            # Before the decoder goes on: it could write the rest before the request to stop arrives.
            expect(page.locator(".state-line")).to_contain_text("Stopped after")
        page.get_by_role("tab", name="Concepts").click()
        expect(page.locator("#panel li").first).to_be_visible()


def test_a_link_shows_the_same_view_elsewhere(browser: Browser, explorer: RunningExplorer):
    with watched_page(browser, explorer.url, server=explorer.url) as first:
        write(first.page)
        first.page.locator("#text [role=button]:not(.prompt)").last.click(modifiers=["Alt"])
        first.page.get_by_role("tab", name="Inputs").click()
        expect(first.page.locator("#panel")).to_contain_text("adds up within")
        expect(first.page).to_have_url(re.compile(r"#.*panel=inputs"))
        link, selected = first.page.url, selection_text(first.page)
        values = first.page.locator("#panel .value").all_inner_texts()
        text = first.page.locator("#text").inner_text()
    with watched_page(browser, link, server=explorer.url) as second:
        expect(second.page.locator(".state-line")).to_contain_text("16 tokens in")
        expect(second.page.locator("#panel")).to_contain_text("adds up within")
        expect(second.page.locator("#why .selected h2")).to_have_text(selected)
        expect(second.page.locator("#panel .value")).to_have_text(values)
        assert second.page.locator("#text").inner_text() == text


def test_an_exported_file_shows_the_same_numbers(browser: Browser, explorer: RunningExplorer, tmp_path: Path):
    with watched_page(browser, explorer.url, server=explorer.url) as watched:
        page = watched.page
        write(page)
        page.locator("#text [role=button]:not(.prompt)").last.click(modifiers=["Alt"])
        page.get_by_role("tab", name="Inputs").click()
        expect(page.locator("#panel")).to_contain_text("adds up within")
        values = page.locator("#panel .value").all_inner_texts()
        page.get_by_role("button", name="Share").click()
        with page.expect_download() as download:
            page.get_by_role("button", name="One HTML file").click()
        download.value.save_as(tmp_path / "text.html")
    with watched_page(browser, (tmp_path / "text.html").as_uri()) as file:
        expect(file.page.locator("#panel")).to_contain_text("adds up within")
        expect(file.page.locator("#panel .value")).to_have_text(values)


def test_a_server_that_was_killed_and_started_again(
    browser: Browser, text_model: Path, environment: dict[str, str], tmp_path: Path
):
    """What is shown stays, and the page goes on by itself when a server answers at the address."""
    port = lasting_port()
    with exploring(text_model, environment, port=port, file=tmp_path / "hold") as first:
        first.wait_until_ready()
        first.allow(4)
        with watched_page(browser, first.url, server=first.url) as watched:
            page = watched.page
            fill(page, PROMPT, 64)
            page.get_by_role("button", name="Write", exact=True).click()
            expect(page.locator(".state-line")).to_contain_text(re.compile(r"[1-9]\d* of 64 tokens"))
            first.process.kill()
            first.process.wait()
            expect(page.get_by_text("The server does not answer")).to_be_visible()
            first.release()
            with exploring(text_model, environment, port=port) as second:
                second.wait_until_ready()
                expect(page.get_by_text("The server was started again")).to_be_visible()
                assert PROMPT in page.locator("#text").inner_text()
                page.get_by_role("button", name="Write it again").click()
                expect(page.locator(".state-line")).to_contain_text("64 tokens in")


def test_hangul_is_composed_before_it_is_written(browser: Browser, explorer: RunningExplorer):
    """Ctrl+Enter during the composition of a syllable writes once, with the whole syllable."""
    with watched_page(browser, f"{explorer.url}/#lang=ko", server=explorer.url) as watched:
        page = watched.page
        sent: list[str] = []
        page.on("request", lambda one: sent.append(one.post_data or "") if one.url.endswith("/texts") else None)
        expect(page.locator("#text [role=button]").first).to_be_visible()
        field = page.locator("#prompt")
        field.fill("")
        field.focus()
        devtools = page.context.new_cdp_session(page)
        for text in ("ㄱ", "가", "값"):
            devtools.send("Input.imeSetComposition", {"text": text, "selectionStart": 1, "selectionEnd": 1})
        page.keyboard.press("Control+Enter")
        devtools.send("Input.insertText", {"text": "값"})
        expect(page.locator(".state-line")).to_be_visible()
        page.get_by_role("button", name="Stop").or_(page.locator(".state-line")).first.wait_for()
        assert len(sent) == 1
        assert '"prompt":"값"' in sent[0]


@given(fragment=st.text(max_size=60) | st.from_regex(r"(at|step|pin|panel|n|seed|amp|z|p|lang|case)=[-\w:,.%]{0,20}"))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_fragment_gives_a_page(open_page: Page, fragment: str):
    open_page.evaluate("part => { location.hash = part; }", fragment)
    expect(open_page.locator("#prompt")).to_be_visible()
    expect(open_page.locator("#why")).to_be_visible()


@pytest.fixture(scope="module")
def open_page(browser: Browser, explorer: RunningExplorer) -> Iterator[Page]:
    with watched_page(browser, explorer.url, server=explorer.url) as watched:
        expect(watched.page.locator("#prompt")).to_be_visible()
        yield watched.page
