"""The explorer's page: the files of a server, one file with its data, and the view in a notebook."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import steerling_jax as sj
from steerling_jax.attribution.explorer.page import make_page, page_files

NASTY = "</script><img src=x onerror=alert(1)>{{data}}&amp;<!--\u2028'\""
STATE = "#at=3&p=\"'<>"


@pytest.fixture(scope="module")
def bundle(text_model: Path) -> sj.Bundle:
    return sj.load(text_model)


@pytest.fixture(scope="module")
def generation(bundle: sj.Bundle) -> sj.Generation:
    return sj.generate(bundle, "return </script>", sj.GenerationConfig(max_new_tokens=16, seed=3))


class PageParser(HTMLParser):
    """Collects tags, and the texts of styles and scripts by type."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.contents: dict[str, str] = {}
        self._in: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._in = dict(attrs).get("type") or tag

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._in = None

    def handle_data(self, data: str) -> None:
        if self._in:
            self.contents[self._in] = self.contents.get(self._in, "") + data


def parse(page: str) -> PageParser:
    parser = PageParser()
    parser.feed(page)
    return parser


def test_the_file_contains_the_document_and_no_text_escapes_from_it():
    document: dict[str, Any] = {"trace": {"prompt_text": NASTY}, "pieces": [NASTY]}
    page = make_page(document, STATE)
    parser = parse(page)
    names = [tag for tag, _ in parser.tags]
    assert names.count("script") == 2
    assert "img" not in names
    assert json.loads(parser.contents["application/json"]) == document
    assert "\u2028" not in page
    assert not [name for _, attrs in parser.tags for name in attrs if name in ("src", "href", "style")]
    app = next(attrs for _, attrs in parser.tags if attrs.get("id") == "app")
    assert app["data-state"] == STATE


def test_the_policy_of_the_file_allows_its_own_script_and_style_alone():
    parser = parse(make_page({"trace": {"prompt_text": "a"}}))
    content = next(attrs["content"] for _, attrs in parser.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert content is not None
    policy = {name: sources for name, *sources in (part.split() for part in content.split(";"))}
    assert policy["default-src"] == ["'none'"]
    assert "connect-src" not in policy
    for directive, element in (("script-src", "script"), ("style-src", "style")):
        digest = base64.b64encode(hashlib.sha256(parser.contents[element].encode()).digest()).decode()
        assert policy[directive] == [f"'sha256-{digest}'"]
    assert policy["require-trusted-types-for"] == ["'script'"]
    assert policy["trusted-types"] == ["'none'"]


def test_the_served_page_has_nothing_inline():
    page = page_files()["/"].content.decode()
    parser = parse(page)
    assert not parser.contents
    sources = [attrs[name] for _, attrs in parser.tags for name in ("src", "href") if name in attrs]
    assert sorted(map(str, sources)) == ["/explorer.css", "/explorer.js", "/favicon.svg"]


def test_show_is_a_sandboxed_frame_with_the_same_page(bundle: sj.Bundle, generation: sj.Generation, tmp_path: Path):
    config = sj.GenerationConfig(max_new_tokens=16, seed=3)
    view = sj.show(bundle, generation, config=config, inputs=False, state="#at=20")
    frame = view._repr_html_()
    (attributes,) = [attrs for tag, attrs in parse(frame).tags if tag == "iframe"]
    assert attributes["sandbox"] == "allow-scripts"
    assert attributes["srcdoc"] == view.page
    assert html.escape(view.page) in frame
    view.save(tmp_path / "view.html")
    assert (tmp_path / "view.html").read_text(encoding="utf-8") == view.page
    document = json.loads(parse(view.page).contents["application/json"])
    assert [token["position"] for token in document["tokens"]] == [one[1] for one in generation.trace.flat()]
    considered = document["considered"]
    assert (considered["agreeing"], considered["compared"]) == (16, 16)
    names, cards = document["concepts"], document["cards"]
    assert {head: set(ids) for head, ids in names.items()} == {head: set(ids) for head, ids in cards.items()}
    assert "View of 16 tokens" in repr(view)
    again = sj.show(bundle, generation.trace, inputs=False)
    assert again.document["tokens"] == document["tokens"]
    assert again.document["considered"]["compared"] == 0, "without settings nothing can be compared"
    with pytest.raises(sj.UserError, match="this is a str"):
        sj.show(bundle, "text")  # type: ignore[arg-type]


def test_steps_candidates_are_in_the_document(bundle: sj.Bundle, generation: sj.Generation):
    config = sj.GenerationConfig(max_new_tokens=16, seed=3)
    document = sj.show(bundle, generation, config=config, inputs=False).document
    (expected,) = sj.considered(bundle, generation.trace, config, [5])
    step = next(step for step in document["considered"]["steps"] if step["step"] == 5)
    assert step["order"] == list(expected.order)
    pieces = document["considered"]["pieces"]
    for place, one in zip(step["open"], expected.positions, strict=True):
        assert place[0] == one.position
        assert [row[0] for row in place[1]] == [c.token_id for c in one.candidates]
        assert [row[1] for row in place[1]] == pytest.approx([c.probability for c in one.candidates], rel=1e-3)
        assert all(pieces[str(row[0])] == bundle.tokenizer.piece(row[0]) for row in place[1])
        assert place[2:4] == pytest.approx([one.entropy, one.confidence], rel=1e-3)
    assert re.fullmatch(r"\{.*\}", json.dumps(pieces))
