"""The explorer's page as one file, in a real Chromium: it shows the document's numbers and loads nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

import steerling_jax as sj
from steerling_jax.attribution.explorer.page import make_page
from steerling_jax.attribution.explorer.show import View
from steerling_jax.attribution.index.evidence import Evidence, Hit
from tests.worlds.browser import chromium, violations, watched_page

NASTY = "</script><img src=x onerror=alert(1)>&amp;<!--\u2028'\""
PROMPT = "The quick brown 값은"


def find_evidence(tokens: Any, start: int, end: int) -> Evidence:
    place = (NASTY, "docs", "0" * 64, 30, 34, 3, f"hit {NASTY}", (start, start + 2))
    hit = Hit("verbatim", 4.0, 7, 2, *place, occurrences=2, license="PSF-2.0")
    return Evidence(start, end, (hit,), {"verbatim": 1.0, "signature": 0.5}, {"verbatim": 4.0, "signature": 0.25})


@pytest.fixture(scope="module")
def view(text_model: Path) -> View:
    bundle = sj.load(text_model)
    config = sj.GenerationConfig(max_new_tokens=16, seed=3)
    return sj.show(bundle, sj.generate(bundle, PROMPT, config), config=config, find_evidence=find_evidence)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(view: View, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("file") / "view.html"
    view.save(path)
    return path.as_uri()


def token_of(view: View, index: int) -> dict[str, Any]:
    return view.document["tokens"][index]


def test_a_file_shows_the_numbers_of_its_document(browser: Browser, address: str, view: View):
    token = token_of(view, -1)
    at = token["position"]
    with watched_page(browser, f"{address}#at={at}&panel=inputs") as watched:
        page = watched.page
        expect(page.locator("#why .selected")).to_contain_text(f"position {at}")
        rows = page.locator("#panel li button.row")
        inputs = token["inputs"]
        shown = min(12, len(inputs["positions"]))
        expect(rows).to_have_count(shown)
        for i in range(shown):
            value = inputs["attributions"][i]
            expect(rows.nth(i)).to_contain_text(f"@{inputs['positions'][i]}")
            expect(rows.nth(i).locator(".value")).to_have_text(f"{'+' if value > 0 else '−'}{abs(value):.2f}")
        page.get_by_role("tab", name="Concepts").click()
        names = view.document["concepts"]["known"]
        strongest = max(token["known"], key=lambda one: abs(one["contribution"]))
        expect(page.locator("#panel")).to_contain_text(names[str(strongest["id"])])
        page.get_by_role("tab", name="Considered").click()
        step = next(step for step in view.document["considered"]["steps"] if step["step"] == token["step"])
        place = next(place for place in step["open"] if place[0] == at)
        expect(page.locator("#panel")).to_contain_text(f"{place[2]:.2f}"[:3])
    chunk = view.document["chunks"][0]
    with watched_page(browser, f"{address}#at={chunk['start']}-{chunk['end']}&panel=evidence") as watched:
        expect(watched.page.locator("#panel")).to_contain_text("hit </script><img")
        expect(watched.page.locator("#panel")).to_contain_text("2 times in the corpus · PSF-2.0")
        nothing = watched.page.locator("#panel .nothing")
        expect(nothing).to_contain_text(
            re.compile(r"Nothing close\. Threshold: 0\.50?,.*The closest place has 0\.25\.")
        )
        assert watched.page.locator("img").count() == 0


def test_a_file_is_used_by_keys_alone(browser: Browser, address: str, view: View):
    with watched_page(browser, address) as watched:
        page = watched.page
        expect(page.locator("#text [role=button]").first).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#why .selected h2")).to_have_text("The whole text")
        page.keyboard.press("F6")
        page.keyboard.press("End")
        page.keyboard.press("Alt+Enter")
        last = max(token["position"] for token in view.document["tokens"])
        expect(page.locator("#why .selected")).to_contain_text(f"position {last}")
        page.keyboard.press("Shift+ArrowLeft")
        expect(page.locator("#why .selected")).to_contain_text(f"–{last}")
        page.keyboard.press("4")
        expect(page.get_by_role("tab", name="Considered")).to_have_attribute("aria-selected", "true")
        page.keyboard.press("Escape")
        expect(page.locator("#why .selected h2")).to_have_text("The whole text")


def test_the_slider_takes_away_what_was_written_later(browser: Browser, address: str, view: View):
    steps = len(view.document["trace"]["commits"])
    with watched_page(browser, address) as watched:
        page = watched.page
        slider = page.get_by_role("slider", name="Step")
        expect(slider).to_have_value(str(steps))
        slider.focus()
        page.keyboard.press("Home")
        masks = page.locator("#text .ghost, #text .mask")
        expect(slider).to_have_value("0")
        written = page.locator("#text [role=button]:not(.prompt)")
        expect(masks).to_have_count(written.count())
        writes = int(page.locator("#text").get_attribute("data-writes") or 0)
        page.get_by_role("button", name="One step on").click()
        expect(slider).to_have_value("1")
        after = int(page.locator("#text").get_attribute("data-writes") or 0)
        assert after - writes < 12 * written.count(), "a step writes what it changes"


@pytest.mark.parametrize("width", ["wide", "narrowest"])
def test_korean_is_shown_as_characters(browser: Browser, address: str, width: str):
    with watched_page(browser, f"{address}#lang=ko", width=width) as watched:
        page = watched.page
        expect(page.locator("html")).to_have_attribute("lang", "ko")
        text = page.locator("#text").inner_text()
        assert "값은" in text
        assert "<0x" not in text
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "no sideways scrolling"


def test_the_notebook_view_needs_no_storage_and_no_server(browser: Browser, view: View, tmp_path: Path):
    """In a sandboxed frame, storage and the history throw."""
    (tmp_path / "notebook.html").write_text(f"<!doctype html><title>n</title>{view._repr_html_()}", encoding="utf-8")
    with watched_page(browser, (tmp_path / "notebook.html").as_uri()) as watched:
        frame = watched.page.frame_locator("iframe")
        expect(frame.locator("#text [role=button]").first).to_be_visible()
        frame.locator("#text [role=button]:not(.prompt)").last.click(modifiers=["Alt"])
        last = max(token["position"] for token in view.document["tokens"])
        expect(frame.locator("#why .selected")).to_contain_text(f"position {last}")


@pytest.mark.parametrize(
    ("width", "scheme", "language", "state"),
    [
        ("wide", "light", "en", "panel=inputs"),
        ("wide", "dark", "ko", "panel=concepts"),
        ("narrow", "light", "ko", "panel=considered&step=5"),
        ("narrow", "dark", "en", "panel=evidence"),
        ("narrowest", "dark", "en", "panel=inputs&step=3"),
    ],
)
def test_axe_finds_nothing(browser: Browser, address: str, width: str, scheme: Any, language: str, state: str):
    # A token that is new at a step is outlined in a colour that changes for half a second.
    options: dict[str, Any] = {"width": width, "color_scheme": scheme, "reduced_motion": "reduce"}
    with watched_page(browser, f"{address}#lang={language}&{state}", **options) as watched:
        expect(watched.page.locator("#text [role=button]").first).to_be_visible()
        assert violations(watched.page) == []


def test_no_text_of_a_document_becomes_markup(browser: Browser, view: View, tmp_path: Path):
    document = json.loads(json.dumps(view.document))
    document["trace"]["prompt_text"] = NASTY
    document["characters"] = [[run[0], run[1], NASTY, True] for run in document["characters"]]
    (tmp_path / "nasty.html").write_text(make_page(document), encoding="utf-8")
    with watched_page(browser, (tmp_path / "nasty.html").as_uri()) as watched:
        expect(watched.page.locator("#text [role=button]").first).to_be_visible()
        assert watched.page.locator("img").count() == 0
        assert "onerror" in watched.page.locator("#text").inner_text()
