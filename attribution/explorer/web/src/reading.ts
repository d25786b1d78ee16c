// A text on the page: one that is being written, a finished one with its document, or the document of a file.

import { emptyRuns, replaceRuns } from "./pure/characters.ts";
import type { Commit, Document, DocumentToken, Run, Span, TextRequest, TextState } from "./types.ts";

export const PROMPT = -1; // a position's commit where it is part of the prompt
export const UNWRITTEN = -2; // and where nothing was committed

export interface Reading extends Omit<TextState, "text"> {
  readonly id: string; // the server's id of the text, or a name of this page's for a document
  readonly source: "server" | "document";
  readonly request: TextRequest | null;
  readonly promptLength: number;
  readonly length: number; // positions of the canvas
  readonly runs: readonly Run[];
  readonly commits: readonly Commit[];
  readonly document: Document | null;
}

/** The reading of a finished document. */
export function readDocument(document: Document, id: string, request: TextRequest | null = null): Reading {
  const { trace, pieces } = document;
  const length = trace.tokens.length;
  const written = trace.commits.reduce((sum, commit) => sum + commit.positions.length, 0);
  return {
    id,
    source: "document",
    request,
    state: "done",
    place: null,
    written,
    of: written,
    seconds: 0,
    error: null,
    promptLength: trace.prompt.length,
    length,
    runs: fillRuns(document.characters ?? pieces.map((piece, at): Run => [at, at + 1, unescaped(piece), true]), length),
    commits: trace.commits,
    document,
  };
}

/** The text of a token's piece, in which line ends are escaped and special tokens are names. */
export function unescaped(piece: string): string {
  return /^<.*>$/.test(piece) && piece.length > 2 ? "" : piece.replaceAll("\\n", "\n").replaceAll("\\t", "\t");
}

/** Adds empty runs for positions that no run contains. */
function fillRuns(runs: readonly Run[], length: number): readonly Run[] {
  return runs.length === 0 || runs.at(-1)![1] < length ? replaceRuns(emptyRuns(0, length), runs) : runs;
}

/** The reading of a text that was just requested. */
export function newReading(id: string, request: TextRequest, of: number): Reading {
  return {
    id,
    source: "server",
    request,
    state: "queued",
    place: null,
    written: 0,
    of,
    seconds: 0,
    error: null,
    promptLength: 0,
    length: 0,
    runs: [],
    commits: [],
    document: null,
  };
}

export function withCommits(reading: Reading, commits: readonly Commit[], characters: readonly Run[]): Reading {
  const last = Math.max(reading.length, ...commits.flatMap((commit) => commit.positions.map((at) => at + 1)));
  const longer = last > reading.length ? [...reading.runs, ...emptyRuns(reading.length, last)] : reading.runs;
  return { ...reading, length: last, commits: [...reading.commits, ...commits], runs: replaceRuns(longer, characters) };
}

// ---- derived facts, computed once for each reading

export interface Facts {
  readonly commitOf: Int32Array; // by position: the index of its commit, PROMPT or UNWRITTEN
  readonly stepIndex: ReadonlyMap<number, number>; // by step: the index of its commit
  readonly tokens: ReadonlyMap<number, DocumentToken>; // by position
}

const known = new WeakMap<Reading, Facts>();

export function factsOf(reading: Reading): Facts {
  let facts = known.get(reading);
  if (facts === undefined) {
    const commitOf = new Int32Array(reading.length).fill(UNWRITTEN).fill(PROMPT, 0, reading.promptLength);
    const stepIndex = new Map<number, number>();
    reading.commits.forEach((commit, index) => {
      stepIndex.set(commit.step, index);
      for (const position of commit.positions) commitOf[position] = index;
    });
    const tokens = new Map((reading.document?.tokens ?? []).map((token) => [token.position, token]));
    facts = { commitOf, stepIndex, tokens };
    known.set(reading, facts);
  }
  return facts;
}

/** Whether a run contains a position that is not among the first `count` commits. */
export function isMasked(reading: Reading, run: Run, count: number): boolean {
  const { commitOf } = factsOf(reading);
  for (let at = run[0]; at < run[1]; at += 1) {
    const commit = commitOf[at] ?? UNWRITTEN;
    if (commit === UNWRITTEN || commit >= count) return true;
  }
  return false;
}

/** The written tokens of a span, from left to right. */
export function tokensOf(reading: Reading, [start, end]: Span): DocumentToken[] {
  const { tokens } = factsOf(reading);
  const result: DocumentToken[] = [];
  for (let at = start; at < end; at += 1) {
    const token = tokens.get(at);
    if (token !== undefined) result.push(token);
  }
  return result;
}

/** The name of a special token, such as the boundary of a chunk, at a run without text. */
export function specialName(reading: Reading, position: number): string {
  const piece = reading.document?.pieces[position] ?? "";
  return /^<.*>$/.test(piece) ? piece.slice(1, -1).replace(/^\||\|$/g, "") : "";
}
