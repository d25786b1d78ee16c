"""The explorer's view of a text in a notebook: one page in a frame, without a server."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerling_jax.attribution.explorer.page import make_page
from steerling_jax.attribution.explorer.panels import CONCEPTS
from steerling_jax.attribution.trace.explanation import EvidenceSearch, Explanation, explain
from steerling_jax.attribution.trace.parts import complete_document
from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.bundle import Bundle
from steerling_jax.decoding.generation import Generation
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.decoding.trace import Trace
from steerling_jax.decoding.trace_record import TraceRecord
from steerling_jax.errors import UserError
from steerling_jax.io.atomic import atomic_path
from steerling_jax.io.trace_file import model_origin


@dataclass(frozen=True)
class View:
    """A text with its explanation, which a notebook shows when it is the value of a cell.

    Attributes:
        document: The explanation as plain values, those that `steerling trace --json` writes.
        height: Of the frame in a notebook, in pixels.
        state: What is selected at first, as in the address of the explorer's page: "#at=28&panel=inputs".
    """

    document: dict[str, Any]
    height: int = 720
    state: str = ""

    @property
    def page(self) -> str:
        """The page as HTML."""
        return make_page(self.document, self.state)

    def save(self, path: str | Path) -> None:
        """Writes the page as a file, which opens in a browser without a server."""
        with atomic_path(Path(path)) as target:
            # A text may contain a lone surrogate, which UTF-8 cannot encode; JSON can escape it as \\udXXX.
            target.write_text(self.page, encoding="utf-8", errors="backslashreplace")

    def _repr_html_(self) -> str:
        # The frame is an origin of its own, which reads nothing of the notebook; the page may run its script.
        page = html.escape(self.page.encode("utf-8", "backslashreplace").decode())
        style = f"width:100%;height:{self.height}px;border:0"
        return f'<iframe title="steerling" sandbox="allow-scripts" style="{style}" srcdoc="{page}"></iframe>'

    def __repr__(self) -> str:
        trace = self.document["trace"]
        return f"View of {len(trace['tokens']) - len(trace['prompt'])} tokens after {trace['prompt_text']!r}"


def show(
    bundle: Bundle,
    text: Generation | Trace | TraceRecord | Explanation,
    *,
    config: GenerationConfig | None = None,
    inputs: bool = True,
    find_evidence: EvidenceSearch | None = None,
    autoencoders: Sequence[Autoencoder] = (),
    height: int = 720,
    state: str = "",
) -> View:
    """Explains a text and returns what a notebook shows: the explorer's view, without a server.

    Args:
        text: A generation, a trace, a record that was read from a file, or a finished explanation.
        config: The settings of a generation or a trace; with them the view says whether each step, computed again,
            chooses what was written. A record and an explanation have their own.
        inputs: Also attribute to input tokens, which takes the longest.
        find_evidence: Also search the training data with this function.
        autoencoders: Of blocks of the model, each of another one, whose features stand beside concepts; a finished
            explanation has its own.
        height: Of the frame, in pixels.
        state: What is selected at first, see `View`.

    Raises `UserError` for a text of another model and for a text without tokens.
    """
    if not isinstance(text, Explanation):
        text = explain(
            bundle,
            _record(bundle, text, config),
            inputs=inputs,
            find_evidence=find_evidence,
            autoencoders=autoencoders,
        )
    return View(complete_document(bundle, text, CONCEPTS), height, state)


def _record(bundle: Bundle, text: Any, config: GenerationConfig | None) -> TraceRecord:
    if isinstance(text, TraceRecord):
        return text
    trace, seed = (text.trace, text.seed) if isinstance(text, Generation) else (text, None)
    if not isinstance(trace, Trace):
        kind = type(text).__name__
        raise UserError(f"show needs a Generation, Trace, TraceRecord or Explanation, and this is a {kind}.")
    decode = bundle.tokenizer.decode
    after = trace.tokens[trace.prompt_length :]
    written = text.text if isinstance(text, Generation) else decode(after[after != trace.mask_id].tolist())
    return TraceRecord(trace, model_origin(bundle), decode(trace.prompt.tolist()), written, config, seed)
