// Selections are spans of positions whose ends are character boundaries.

import type { Run, Span } from "../types.ts";
import { runAt } from "./characters.ts";

export type Grain = "chunk" | "word" | "token";

export function sameSpan(a: Span | null, b: Span | null): boolean {
  return a === b || (a !== null && b !== null && a[0] === b[0] && a[1] === b[1]);
}

export function inside(span: Span | null, position: number): boolean {
  return span !== null && span[0] <= position && position < span[1];
}

/** The span of the run that contains a position. */
export function tokenSpan(runs: readonly Run[], position: number): Span {
  const run = runs[runAt(runs, position)];
  return run === undefined ? [position, position + 1] : [run[0], run[1]];
}

const beginsWord = (text: string) => text === "" || /^\s/.test(text);
const endsWord = (text: string) => text === "" || /\s$/.test(text);

/** The word at a position, bounded by white space and by positions without text. */
export function wordSpan(runs: readonly Run[], position: number): Span {
  if (runs.length === 0) return [position, position + 1];
  let first = runAt(runs, position);
  let last = first;
  while (first > 0 && !beginsWord(runs[first]![2]) && !endsWord(runs[first - 1]![2])) first -= 1;
  while (last + 1 < runs.length && !endsWord(runs[last]![2]) && !beginsWord(runs[last + 1]![2])) last += 1;
  return [runs[first]![0], runs[last]![1]];
}

export function chunkSpan(chunks: readonly { start: number; end: number }[], position: number): Span | null {
  const chunk = chunks.find(({ start, end }) => start <= position && position < end);
  return chunk === undefined ? null : [chunk.start, chunk.end];
}

/** The span that a click selects. Outside of chunks, as in the prompt, a click selects a word. */
export function spanAt(
  runs: readonly Run[],
  chunks: readonly { start: number; end: number }[],
  position: number,
  grain: Grain,
): Span {
  if (grain === "token") return tokenSpan(runs, position);
  return (grain === "chunk" && chunkSpan(chunks, position)) || wordSpan(runs, position);
}

/** The whole words between two positions, which are in either order. */
export function rangeSpan(runs: readonly Run[], from: number, to: number, grain: Grain = "word"): Span {
  const span = (at: number) => (grain === "token" ? tokenSpan(runs, at) : wordSpan(runs, at));
  const [a, b] = [span(Math.min(from, to)), span(Math.max(from, to))];
  return [Math.min(a[0], b[0]), Math.max(a[1], b[1])];
}

/** What is of two selections at once: the part of a span that lies in [start, end), or null. */
export function clip(span: Span | null, start: number, end: number): Span | null {
  if (span === null) return null;
  const [from, to] = [Math.max(span[0], start), Math.min(span[1], end)];
  return from < to ? [from, to] : null;
}
