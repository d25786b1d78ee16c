"""Documentation that cannot go stale: examples run, links and paths exist, every public name has a reference."""

from __future__ import annotations

import os
import pydoc
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import steerling_jax as sj
from tests.worlds.paths import REPOSITORY

PAGES = sorted(
    [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), *REPOSITORY.glob("steerling_jax/bundled/*/*.md")]
)
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
# Folders of the repository: a path that begins with one must exist, others are the reader's own files.
FOLDERS = r"attribution|benchmarks|configs|docs|infer|steerling_jax|tests|tpu_scripts|train|\.ci"
PATH_IN_CODE = re.compile(rf"`((?:{FOLDERS})/[\w./-]+\.\w+)`")


# Pages whose examples need only the bundled model; in two processes, because loading and compiling takes longest.
EXAMPLES = {
    "Python": ["README.md", "docs/guide/python.md"],
    "guide": [
        f"docs/guide/{name}.md" for name in ("first-steps", "trace", "input-attribution", "concepts", "evaluation")
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("pages", EXAMPLES.values(), ids=EXAMPLES)
def test_examples_run(pages: list[str], tmp_path: Path) -> None:
    """The Python examples of a page run as they are, one after the other."""
    script = []
    for page in pages:
        examples = re.findall(
            r"^```python\n(.+?)^```", (REPOSITORY / page).read_text(encoding="utf-8"), re.DOTALL | re.M
        )
        assert examples, page
        script.append(f"exec(compile({''.join(examples)!r}, {page!r}, 'exec'), {{'__name__': '__main__'}})")
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", "-c", "\n".join(script)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_and_paths_exist(page: Path) -> None:
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    assert not re.search(r"^```", text, re.MULTILINE), f"{page.name} has a code block that does not end"
    broken = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not exists(page, link)]
    missing = [path for path in PATH_IN_CODE.findall(text) if not (REPOSITORY / path).exists()]
    assert not broken, f"{page.name} links to {broken}, which do not exist: correct the links"
    assert not missing, f"{page.name} names {missing}, which do not exist: correct the paths"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_python_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    if page.name == "CHANGELOG.md":
        text = re.sub(r"^ *(\|[^|]+\|)[^|]+\|", r"\1", text, flags=re.MULTILINE)  # without the old names
    names = set(re.findall(r"`(steerling_jax(?:\.\w+)+)`", text))
    for module, imported in re.findall(r"^from (steerling_jax[\w.]*) import (.+)$", text, re.MULTILINE):
        names |= {f"{module}.{name.strip()}" for name in imported.split(",")}
    missing = [name for name in names if pydoc.locate(name) is None]
    assert not missing, f"{page.name} names {missing}, which do not exist: correct the names"


def test_every_public_name_has_a_reference() -> None:
    reference = (REPOSITORY / "docs/reference/index.md").read_text(encoding="utf-8")
    listed = re.findall(r"^::: steerling_jax\.(\w+)$", reference, re.MULTILINE)
    assert sorted(listed) == sorted(sj.__all__)


def exists(page: Path, link: str) -> bool:
    """Whether a link leads to an existing file and heading; links to other sites count as existing."""
    if re.match(r"\w+:", link):
        return True
    name, _, anchor = link.partition("#")
    target = page.parent / name if name else page
    return target.exists() and (not anchor or target.suffix != ".md" or anchor in anchors(target))


@cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    return frozenset(headings(FENCED.sub("", page.read_text(encoding="utf-8"))))


def headings(text: str) -> Iterator[str]:
    for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        yield re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", title.strip().lower()))
