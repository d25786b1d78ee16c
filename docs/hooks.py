"""MkDocs hook: pages that are outside docs/ (README, changelog, model card, …) become pages of the site.

Pages link to them by their path in the repository, so that the links also work where Markdown is read in place.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {  # path in the repository: path in the site
    "README.md": "project/readme.md",
    "README.ko.md": "project/readme.ko.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "LICENSE": "project/license.md",
    "steerling_jax/bundled/steerling-pydocs/README.md": "project/steerling-pydocs.md",
}
_REPOSITORY_PATH = {site: path for path, site in OUTSIDE.items()}
_LINK = re.compile(r"(\]\()([^)#\s:]+)(#[^)\s]*)?(\))")


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages outside docs/."""
    for path, site in OUTSIDE.items():
        files.append(File.generated(config, site, content=(ROOT / path).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrites links that leave docs/, or that come from outside it, to the pages of the site."""
    site = page.file.src_uri
    path = _REPOSITORY_PATH.get(site, f"docs/{site}")

    def rewritten(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[2]))
        if target in OUTSIDE:
            target = OUTSIDE[target]
        elif target.startswith("docs/"):
            target = target.removeprefix("docs/")
        else:
            return match[0]
        return f"{match[1]}{posixpath.relpath(target, posixpath.dirname(site))}{match[3] or ''}{match[4]}"

    return _LINK.sub(rewritten, markdown)
