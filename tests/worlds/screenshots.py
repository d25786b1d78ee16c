"""Pictures of the explorer for README and the guide: `python -m tests.worlds.screenshots`, or `make screenshots`.

Each is of the first case of the gallery in a real explorer with the bundled model, in one language, scheme and width.
"""

from __future__ import annotations

import itertools
import os
import sys

from playwright.sync_api import Browser, expect

from steerling_jax.io.hub import resolve
from tests.worlds.browser import chromium, watched_page
from tests.worlds.explorer_world import exploring
from tests.worlds.paths import REPOSITORY

FOLDER = REPOSITORY / "docs" / "guide"
HEIGHTS = {"wide": 800, "narrow": 760}
SCALE = {"wide": 1.0, "narrow": 1.0}


def take(browser: Browser, url: str, language: str, scheme: str, width: str) -> None:
    options = {"color_scheme": scheme, "device_scale_factor": SCALE[width]}
    with watched_page(browser, width=width, server=url, **options) as watched:
        page = watched.page
        page.set_viewport_size({"width": page.viewport_size["width"], "height": HEIGHTS[width]})  # type: ignore[index]
        page.goto(f"{url}/#lang={language}")
        expect(page.locator("#panel li").first).to_be_visible()
        expect(page.locator(".status-bar")).to_have_count(0)
        page.screenshot(path=FOLDER / f"explorer-{language}-{scheme}-{width}.png", animations="disabled")


def main() -> None:
    with exploring(resolve("steerling-pydocs"), os.environ) as explorer, chromium() as browser:
        explorer.wait_until_ready()
        for choice in itertools.product(("en", "ko"), ("light", "dark"), ("wide", "narrow")):
            take(browser, explorer.url, *choice)
            print("-".join(choice), file=sys.stderr)


if __name__ == "__main__":
    main()
