"""Features of autoencoders on the explorer's page, in a real Chromium: in a file, and live as steering."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

import steerling_jax as sj
from steerling_jax.attribution.explorer.show import View
from tests.worlds.browser import chromium, violations, watched_page
from tests.worlds.explorer_world import exploring
from tests.worlds.feature_world import RIVERS, small_autoencoders, write_feature_world
from tests.worlds.serving_world import sharing_compiled

TOKENS = 6


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    return write_feature_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def view(world: tuple[Path, list[Path]]) -> View:
    bundle = sj.load(world[0])
    made = sj.generate(bundle, "강 he said", sj.GenerationConfig(max_new_tokens=TOKENS, seed=1))
    return sj.show(bundle, made, inputs=False, autoencoders=small_autoencoders())


@pytest.fixture(scope="module")
def address(view: View, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("file") / "view.html"
    view.save(path)
    return path.as_uri()


def signed(value: float) -> str:
    size = f"{abs(value):.2f}"
    return size if float(size) == 0 else f"{'+' if value > 0 else '−'}{size}"


def section(page: Page, title: str) -> Any:
    return page.locator("#panel section").filter(has=page.locator("h3", has_text=title))


def test_features_are_parts_of_a_tokens_logit_or_activations(browser: Browser, address: str, view: View):
    token = view.document["tokens"][-1]
    at = token["position"]
    with watched_page(browser, f"{address}#at={at}") as watched:
        page = watched.page
        slider = page.get_by_role("slider", name="Step")
        expect(slider).to_have_value(str(TOKENS))  # one commit a step
        parts, active = section(page, "Features of block 1"), section(page, "Features of block 0")
        values = [one["contribution"] for one in token["features"]]
        values += [token["other_features"], token["feature_bias"], token["feature_residual"]]
        expect(parts.locator(".value")).to_have_text([signed(value) for value in values])
        expect(parts).to_contain_text("against the tokens that compete with it")
        expect(parts).to_contain_text("The scale of the final norm is held fixed")
        here = view.document["activations"][0]["tokens"][at]
        expect(active.locator(".value")).to_have_text([f"{value:.2f}" for _, value in here])
        expect(active).to_contain_text("not what it added to a logit")
        expect(page.locator("#panel")).not_to_contain_text("epsilon")
        active.locator("button.row").first.hover()
        expect(page.locator(".legend")).to_contain_text("at which this feature is active")
        expect(page.locator("#text .up").first).to_be_visible()
        page.locator("#concept-filter").fill("no such words")
        expect(page.locator("#panel button.row")).to_have_count(0)
    with watched_page(browser, f"{address}#at=0-3") as watched:
        expect(watched.page.locator("#panel")).to_contain_text("This is your prompt")
        expect(section(watched.page, "Features of block 0").locator("button.row").first).to_be_visible()


@pytest.mark.parametrize(
    ("width", "scheme", "language"), [("wide", "light", "en"), ("narrow", "dark", "ko"), ("narrowest", "light", "ko")]
)
def test_axe_finds_nothing_in_features(
    browser: Browser, address: str, view: View, width: str, scheme: Any, language: str
):
    state = f"{address}#at={view.document['tokens'][0]['position']}&lang={language}"  # opens the sheet of a phone
    # A card that fades in has less contrast for a moment.
    with watched_page(browser, state, width=width, color_scheme=scheme, reduced_motion="reduce") as watched:
        page = watched.page
        expect(page.locator("#panel button.row").first).to_be_visible()
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "no sideways scrolling"
        page.locator("#panel button.info").first.click()
        expect(page.get_by_role("dialog")).to_contain_text("블록" if language == "ko" else "feature of block")
        assert violations(page) == []


def test_a_text_is_steered_by_a_feature(
    browser: Browser, world: tuple[Path, list[Path]], tmp_path_factory: pytest.TempPathFactory
):
    """`steerling explore --autoencoders` itself."""
    model, autoencoders = world
    environment = sharing_compiled(tmp_path_factory)
    with exploring(model, environment, "--autoencoders", *map(str, autoencoders)) as explorer:
        explorer.wait_until_ready()
        with watched_page(browser, explorer.url, server=explorer.url) as watched:
            page = watched.page
            expect(page.locator("#text [role=button]").first).to_be_visible()
            page.locator("#prompt").fill("he said")
            page.get_by_label("Tokens", exact=True).fill(str(TOKENS))
            page.get_by_role("button", name="Add a feature").click()
            page.get_by_role("searchbox", name="Find by name").fill("7")
            expect(page.locator(".search li button").first).to_be_disabled()  # its largest latent is not known
            page.get_by_role("searchbox", name="Find by name").fill("river")
            page.locator(".search li button", has_text=RIVERS.name).click()
            dial = page.get_by_role("slider", name="Strength of rivers")
            dial.focus()
            page.keyboard.press("End")
            expect(dial).to_have_value("2")
            page.get_by_role("button", name="Write", exact=True).click()
            columns = page.locator(".compare article")
            expect(columns).to_have_count(3)
            expect(columns.locator("h3")).to_have_text(["plain", "steered", "random direction"])
            expect(columns.locator("dd").first).to_have_text(re.compile(r"\d\.\d\d"))  # the costs are there
            expect(page).to_have_url(re.compile("amp=feature:0:5:2"))
            expect(section(page, "Features of block 1").locator("button.row").first).to_be_visible()
            section(page, "Features of block 0").locator("button.info").first.click()
            expect(page.get_by_role("dialog")).to_contain_text("feature of block 0")
