"""Pictures of the explorer's page for README and the guide, which `make screenshots` takes.

Each is of the first case of the gallery, as one file that a real Chromium opens, in one language, scheme and width.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, expect

from steerling_jax.attribution.explorer.gallery import descriptions, read_case
from steerling_jax.attribution.explorer.page import make_page
from tests.worlds.browser import WIDTHS, chromium, watched_page
from tests.worlds.paths import REPOSITORY

FOLDER = REPOSITORY / "docs" / "guide"
HEIGHTS = {"wide": 800, "narrow": 760}


def take(browser: Browser, url: str, language: str, scheme: Any, width: str) -> None:
    viewport = {"width": WIDTHS[width], "height": HEIGHTS[width]}
    with watched_page(browser, f"{url}&lang={language}", color_scheme=scheme, viewport=viewport) as watched:
        page = watched.page
        expect(page.locator("#panel li").first).to_be_visible()
        page.screenshot(path=FOLDER / f"explorer-{language}-{scheme}-{width}.png", animations="disabled")


def main() -> None:
    case = read_case(descriptions()[0]["name"])
    assert case is not None
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        path = Path(folder) / "page.html"
        path.write_text(make_page(case), encoding="utf-8")
        for choice in itertools.product(("en", "ko"), ("light", "dark"), ("wide", "narrow")):
            take(browser, path.as_uri() + case["state"], *choice)
            print("-".join(choice), file=sys.stderr)


if __name__ == "__main__":
    main()
