"""Documentation that cannot go stale: examples run, links and paths exist, every public name has a reference."""

from __future__ import annotations

import doctest
import io
import os
import pydoc
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import steerling_jax as sj
from steerling_jax.cli.main import command_parser, commands, load_command
from tests.worlds.examples import difference, examples_of, printed_by
from tests.worlds.paths import REPOSITORY

PAGES = sorted(
    [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), *REPOSITORY.glob("steerling_jax/bundled/*/*.md")]
)
# Public names whose docstrings' examples read files that are not in the repository.
NEED_FILES = (
    "Autoencoder",
    "load_autoencoder",
    "feature_edit",
    "attach_bottleneck",
    "feature_contributions",
    "with_features",
)
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
# Folders of the repository: a path that begins with one must exist, others are the reader's own files.
FOLDERS = r"attribution|benchmarks|configs|docs|infer|steerling_jax|tests|tpu_scripts|train|\.ci"
PATH_IN_CODE = re.compile(rf"`((?:{FOLDERS})/[\w./-]+\.\w+)`")


# Pages whose examples need only the bundled model; in two processes, because loading and compiling takes longest.
EXAMPLES = {
    "Python": ["README.md", "docs/guide/python.md"],
    "guide": [
        f"docs/guide/{name}.md"
        for name in ("first-steps", "research", "trace", "input-attribution", "concepts", "evaluation")
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("pages", EXAMPLES.values(), ids=EXAMPLES)
def test_examples_print_what_the_page_shows(pages: list[str], tmp_path: Path) -> None:
    """The Python examples of a page run as they are, one after the other. `python -m tests.worlds.examples PAGE` writes
    what they print into the page."""
    examples = {page: examples_of(REPOSITORY / page) for page in pages}
    assert all(examples.values())
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"}
    sources = {page: [example.source for example in of_page] for page, of_page in examples.items()}
    wrong = []
    for page, printed in printed_by(sources, tmp_path, environment).items():
        for number, (example, output) in enumerate(zip(examples[page], printed, strict=True), 1):
            found = difference(example.output or "", output)
            wrong += [] if found is None else [f"{page}, example {number}: {found}"]
    assert not wrong, "\n".join(wrong)


def test_what_a_page_shows_is_compared_line_by_line() -> None:
    shown = "a 1.50 of 3 tokens\n\n  -0.0213 and 22 %\n"
    for printed in (shown, "a 1.51 of  3 tokens\n\n -0.0214 and 23 %", "a 1.49 of 3 tokens \n\n  -0.0212 and 21 %\n\n"):
        assert difference(shown, printed) is None
    for old, new in (("1.50", "1.60"), ("3 tok", "4 tok"), ("of", "off"), ("-0.02", "0.02"), ("22 %", "24 %")):
        assert difference(shown, shown.replace(old, new)) is not None
    assert difference(shown, shown + "one line more") is not None
    assert difference(shown, "") is not None
    assert difference("errors of 2e-06", "errors of 5e-07") is None
    assert difference("errors of 2e-06", "errors of 0.002") is not None


@pytest.mark.slow
def test_docstrings_print_what_they_show() -> None:
    """The examples in the docstrings of public names, each with `sj` and the bundled model as `bundle`."""

    class Checker(doctest.OutputChecker):
        def check_output(self, want: str, got: str, optionflags: int) -> bool:
            return difference(want, got) is None

    runner, bundle, shown = doctest.DocTestRunner(Checker(), verbose=False), sj.load(), io.StringIO()
    finder = doctest.DocTestFinder(recurse=False)
    names = [name for name in sj.__all__ if name not in NEED_FILES]
    tests = [test for name in names for test in finder.find(getattr(sj, name), f"sj.{name}") if test.examples]
    for test in tests:
        test.globs = {"sj": sj, "bundle": bundle}
        runner.run(test, out=shown.write)
    assert len(tests) >= 5
    assert runner.summarize(verbose=False).failed == 0, shown.getvalue()


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


def test_the_serving_page_gives_the_defaults_of_the_command() -> None:
    """Rows of its table with a number in brackets for each of their options."""
    parser, compared = command_parser("serve", load_command("serve", commands())), set[str]()
    for names, meaning in re.findall(
        r"^\| (`--.*?`) \| (.*) \|$", (REPOSITORY / "docs/guide/serving.md").read_text(encoding="utf-8"), re.MULTILINE
    ):
        options = re.findall(r"--([\w-]+)", names)
        numbers = [int(number.replace(",", "")) for number in re.findall(r"\(([\d,]+)\)", meaning)]
        if len(numbers) == len(options):
            assert [parser.get_default(option.replace("-", "_")) for option in options] == numbers, names
            compared.update(options)
    assert compared >= {"rows", "queue", "warm-up", "prefix-cache-mb", "grace"}


def test_every_public_name_has_a_reference() -> None:
    reference = (REPOSITORY / "docs/reference/index.md").read_text(encoding="utf-8")
    # `show` is named by its file: the reference is read from the source, where the programs are top-level folders.
    listed = re.findall(r"^::: (?:steerling_jax|attribution\.explorer\.show)\.(\w+)$", reference, re.MULTILINE)
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
