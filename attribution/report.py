"""A generation as a person reads it: chunk by chunk, the text, its concepts by name, and where the logits came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steerling_jax.api import Bundle
from steerling_jax.chunk_ranking import ChunkRanking, ConceptShare, chunk_spans, rank_chunk
from steerling_jax.contributions import concept_contributions
from steerling_jax.generation import Generation, text_ids

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class ChunkReport:
    """One chunk of the text: canvas positions [start, end), its words, and its ranked concepts."""

    start: int
    end: int
    text: str
    ranking: ChunkRanking

    def top(self, kind: str, count: int) -> list[ConceptShare]:
        """The `count` concepts of a kind ("known" or "discovered") with the largest absolute share."""
        return [entry for entry in self.ranking if entry.type == kind][:count]


@dataclass(frozen=True)
class Report:
    """All chunks of a generation. check: the largest distance, over tokens, between a logit and the sum of its
    parts.
    """

    chunks: tuple[ChunkReport, ...]
    check: float


def make_report(bundle: Bundle, generation: Generation) -> Report:
    """Explains every chunk of `generation`; a model that writes no chunk boundary gives one chunk.

    Raises `UserError` for a model without concepts.
    """
    trace, config = generation.trace, bundle.config
    shares = concept_contributions(bundle, trace)
    spans = chunk_spans(trace, trace.prompt_length, config.endofchunk_token_id, config.eot_id)
    chunks = []
    for start, end in spans:
        words = bundle.tokenizer.decode(text_ids(trace.tokens[start:end], config))
        chunks.append(ChunkReport(start, end, words, rank_chunk(shares, start, end)))
    return Report(tuple(chunks), float(shares.error.max(initial=0.0)))


def as_dict(report: Report, count: int) -> dict[str, Any]:
    """The report for programs: `count` concepts of each kind a chunk, shares as fractions."""

    def entries(chunk: ChunkReport, kind: str) -> list[dict[str, Any]]:
        return [{"id": e.concept_id, "label": e.label, "share": e.contribution} for e in chunk.top(kind, count)]

    def shares(values: tuple[float, float, float]) -> dict[str, float]:
        return dict(zip(("known", "discovered", "epsilon"), values, strict=True))

    return {
        "largest_error": report.check,
        "chunks": [
            {
                "start": chunk.start,
                "end": chunk.end,
                "text": chunk.text,
                "known": entries(chunk, "known"),
                "discovered": entries(chunk, "discovered"),
                "net_shares": shares(chunk.ranking.net_shares),
                "absolute_shares": shares(chunk.ranking.absolute_shares),
                "epsilon_percent": chunk.ranking.epsilon_percent,
            }
            for chunk in report.chunks
        ],
    }


def render(report: Report, count: int) -> RenderableType:
    """The report as rich panels, one a chunk."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    panels = []
    for number, chunk in enumerate(report.chunks, 1):
        body = Group(Text(chunk.text.strip("\n"), style="bold"), Text(), _concept_table(chunk, count), _bar(chunk))
        panels.append(Panel(body, title=f"chunk {number}", title_align="left", border_style="dim"))
    return Group(*panels)


def _concept_table(chunk: ChunkReport, count: int) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_row(Text("known concepts", style="green"), Text("discovered concepts", style="cyan"))
    known, discovered = chunk.top("known", count), chunk.top("discovered", count)
    for row in range(max(len(known), len(discovered))):
        table.add_row(*(_share(column[row]) if row < len(column) else Text() for column in (known, discovered)))
    return table


def _share(entry: ConceptShare) -> RenderableType:
    from rich.text import Text

    return Text(f"{100 * entry.contribution:+6.2f} %  {entry.label.split(': ', 1)[1]}")


def _bar(chunk: ChunkReport, width: int = 18) -> RenderableType:
    """Net shares of the logits as one coloured bar with its figures."""
    from rich.text import Text

    line = Text("\nlogits, net  ")
    parts = list(
        zip(("known", "discovered", "epsilon"), chunk.ranking.net_shares, ("green", "cyan", "red"), strict=True)
    )
    for _, share, colour in parts:
        line.append("█" * round(width * share), style=colour)
    for name, share, colour in parts:
        line.append(f"  {name} {100 * share:.0f} %", style=colour)
    return line
