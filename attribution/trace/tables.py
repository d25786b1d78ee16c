"""An explanation as tidy tables, one row per fact, written as Parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from steerling_jax.attribution.trace.document import KINDS
from steerling_jax.attribution.trace.explanation import Explanation
from steerling_jax.errors import UserError
from steerling_jax.explain.ranking import ChunkRanking
from steerling_jax.io.text_files import replace_surrogates

Rows = list[dict[str, Any]]


def check_parquet() -> None:
    """Raises `UserError` if pyarrow, which writes the tables, is not installed."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise UserError("--parquet needs pyarrow: pip install 'steerling-jax[parquet]'.") from None


def check_folder(folder: Path) -> None:
    """Raises `UserError` if the folder contains other files than tables, because it is replaced as a whole."""
    tables = {f"{name}.parquet" for name in _COLUMNS}
    other = folder.is_dir() and any(path.name not in tables for path in folder.iterdir())
    if other or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder} contains other files than tables of `steerling trace`; give another folder.")


def write_tables(folder: Path, tables: dict[str, Rows], explanation: Explanation) -> None:
    """Writes each table as NAME.parquet into an existing folder, with the model's fingerprint and the seed as
    metadata."""
    import pyarrow
    from pyarrow import parquet

    record = explanation.record
    about = {
        "format": "steerling-tables",
        "version": "1",
        "model": record.origin.name,
        "fingerprint": record.origin.fingerprint,
        "seed": str(record.seed),
        "reference": "" if explanation.shares is None else explanation.shares.reference,
    }
    for name, rows in tables.items():
        schema = pyarrow.schema([(column, getattr(pyarrow, kind)()) for column, kind in _COLUMNS[name].items()])
        # A lone surrogate, which a trace's JSON can hold, has no UTF-8 form.
        table = pyarrow.Table.from_pylist(replace_surrogates(rows), schema.with_metadata(about))
        parquet.write_table(table, folder / f"{name}.parquet", compression="zstd")


_COLUMNS = {
    "tokens": {
        "position": "int32", "token_id": "int32", "piece": "string", "in_prompt": "bool_", "chunk": "int32",
        "step": "int32", "logit": "float32", "reference_logit": "float32", "epsilon": "float32",
        "share_error": "float32", "net_known": "float32", "net_discovered": "float32", "net_epsilon": "float32",
        "path_logit": "float32", "baseline_logit": "float32", "completeness_error": "float32", "nodes": "int32",
        "converged": "bool_",
    },
    "concepts": {
        "position": "int32", "kind": "string", "concept_id": "int32", "name": "string", "activation": "float32",
        "contribution": "float32", "log_probability": "float32",
    },
    "inputs": {"position": "int32", "input_position": "int32", "attribution": "float32"},
    "chunks": {
        "chunk": "int32", "start": "int32", "end": "int32", "text": "string", "net_known": "float32",
        "net_discovered": "float32", "net_epsilon": "float32", "absolute_known": "float32",
        "absolute_discovered": "float32", "absolute_epsilon": "float32", "epsilon_percent": "float32",
    },
    "chunk_concepts": {
        "chunk": "int32", "kind": "string", "concept_id": "int32", "name": "string", "share": "float32",
        "log_probability_share": "float32",
    },
    "evidence": {
        "chunk": "int32", "score": "string", "rank": "int32", "value": "float32", "corpus_chunk": "int64",
        "document": "int64", "name": "string", "source": "string", "sha256": "string", "start": "int64",
        "end": "int64", "offset": "int64", "text": "string", "query_start": "int32", "query_end": "int32",
        "occurrences": "int32",
    },
}  # fmt: skip


def make_tables(explanation: Explanation) -> dict[str, Rows]:
    """The rows of each table; docs/design/trace-format.md describes the columns.

    Attributions that were not requested are empty, and so are concepts of a model without them.
    """
    return {
        "tokens": _tokens(explanation),
        "concepts": _concepts(explanation),
        "inputs": _inputs(explanation),
        "chunks": _chunks(explanation),
        "chunk_concepts": _chunk_concepts(explanation),
        "evidence": _evidence(explanation),
    }


def _tokens(explanation: Explanation) -> Rows:
    shares, inputs, trace = explanation.shares, explanation.inputs, explanation.trace
    chunk_of = {p: n for n, chunk in enumerate(explanation.chunks) for p in range(chunk.start, chunk.end)}
    rows: Rows = [
        {
            "position": p,
            "token_id": int(token),
            "piece": explanation.pieces[p],
            "in_prompt": p < trace.prompt_length,
            "chunk": chunk_of.get(p),
        }
        for p, token in enumerate(trace.tokens)
    ]
    for i, one in enumerate(explanation.committed):
        p = one.position
        rows[p] |= {"token_id": one.token_id, "step": one.step, "logit": one.logit}
        if shares is not None:
            net = (shares.net_known[i], shares.net_discovered[i], shares.net_epsilon[i])
            rows[p] |= {
                "reference_logit": shares.target_logits[i] - shares.split_logits[i],
                "epsilon": shares.epsilon[i],
                "share_error": shares.error[i],
                **_by_kind("net", net),
            }
        if inputs is not None:
            rows[p] |= {
                "path_logit": inputs.path_logits[i],
                "baseline_logit": inputs.baseline_logits[i],
                "completeness_error": inputs.completeness_error[i],
                "nodes": int(inputs.nodes[i]),
                "converged": bool(inputs.converged[i]),
            }
    return rows


def _concepts(explanation: Explanation) -> Rows:
    s, beside, rows = explanation.shares, explanation.log_probability, []
    if s is None:
        return rows
    for kind in KINDS[:2]:
        ids, weights, values, probability = (
            getattr(of, f"{kind}_{name}")
            for of, name in ((s, "ids"), (s, "weights"), (s, "contributions"), (beside, "contributions"))
        )
        for i, k in np.argwhere(ids >= 0).tolist():
            rows.append(
                {
                    "position": int(s.positions[i]),
                    **_concept(explanation, kind, int(ids[i, k])),
                    "activation": weights[i, k],
                    "contribution": values[i, k],
                    "log_probability": probability[i, k],
                }
            )
    return rows


def _inputs(explanation: Explanation) -> Rows:
    inputs = explanation.inputs
    if inputs is None:
        return []
    return [
        {"position": int(inputs.target_positions[i]), "input_position": p, "attribution": inputs.attributions[i, p]}
        for i, p in np.argwhere(inputs.attributions).tolist()
    ]


def _chunks(explanation: Explanation) -> Rows:
    return [
        {
            "chunk": number,
            "start": chunk.start,
            "end": chunk.end,
            "text": chunk.text,
            **({} if chunk.ranking is None else _chunk_shares(chunk.ranking)),
        }
        for number, chunk in enumerate(explanation.chunks)
    ]


def _chunk_shares(ranking: ChunkRanking) -> dict[str, float]:
    return {
        **_by_kind("net", ranking.net_shares),
        **_by_kind("absolute", ranking.absolute_shares),
        "epsilon_percent": ranking.epsilon_percent,
    }


def _chunk_concepts(explanation: Explanation) -> Rows:
    return [
        {
            "chunk": number,
            **_concept(explanation, entry.type, entry.concept_id),
            "share": entry.contribution,
            "log_probability_share": chunk.ranking.log_probability_shares[entry.type, entry.concept_id],
        }
        for number, chunk in enumerate(explanation.chunks)
        if chunk.ranking is not None
        for entry in chunk.ranking
    ]


def _evidence(explanation: Explanation) -> Rows:
    rows: Rows = []
    for number, chunk in enumerate(explanation.chunks):
        for score in () if chunk.evidence is None else chunk.evidence.thresholds:
            assert chunk.evidence is not None
            for rank, hit in enumerate(chunk.evidence.of(score)):  # pyright: ignore[reportArgumentType]
                fields = vars(hit) | {"corpus_chunk": hit.chunk, "chunk": number, "rank": rank}
                rows.append(fields | dict(zip(("query_start", "query_end"), hit.query, strict=True)))
    return rows


def _concept(explanation: Explanation, kind: str, number: int) -> dict[str, Any]:
    return {"kind": kind, "concept_id": number, "name": explanation.name(kind, number)}


def _by_kind(prefix: str, values: Any) -> dict[str, float]:
    return {f"{prefix}_{kind}": float(value) for kind, value in zip(KINDS, values, strict=True)}
