// Runs of tokens that make whole characters: the units of the text that can be seen and selected.
//
// A Hangul syllable can be three byte tokens; a page that shows tokens would show three fragments. The server divides a
// text into runs, and while a text is written it sends only those that changed.

import type { Run, Span } from "../types.ts";

/** The runs of a canvas on which nothing is written: each position by itself. */
export function emptyRuns(start: number, end: number): Run[] {
  const runs: Run[] = [];
  for (let at = start; at < end; at += 1) runs.push([at, at + 1, "", true]);
  return runs;
}

/**
 * `runs` with `changed` in place of those that they overlap. A changed run can be shorter than the one before it (a
 * token that was taken for a whole character is the first part of another), so what remains of that one is empty.
 */
export function replaceRuns(runs: readonly Run[], changed: readonly Run[]): Run[] {
  const fresh = [...changed].sort((a, b) => a[0] - b[0]);
  const covered = (at: number) => fresh.some(([start, end]) => start <= at && at < end);
  const result: Run[] = [...fresh];
  for (const run of runs) {
    const [start, end] = run;
    if (!fresh.some(([from, to]) => from < end && start < to)) result.push(run);
    else for (let at = start; at < end; at += 1) if (!covered(at)) result.push([at, at + 1, "", true]);
  }
  return result.sort((a, b) => a[0] - b[0]);
}

/** The index of the run that holds a position; the nearest one for a position outside of the text. */
export function runAt(runs: readonly Run[], position: number): number {
  let low = 0;
  let high = runs.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (runs[middle]![0] <= position) low = middle;
    else high = middle - 1;
  }
  return Math.max(0, low);
}

/** The text of a span. */
export function textOf(runs: readonly Run[], [start, end]: Span): string {
  let text = "";
  for (let i = runAt(runs, start); i < runs.length && runs[i]![0] < end; i += 1) text += runs[i]![2];
  return text;
}

/** A text in one line for lists: line ends visible, a lone space as an open box. */
export function visible(text: string, longest = 48): string {
  if (text === "") return "·";
  const shown =
    text.trim() === ""
      ? text.replaceAll("\n", "↵").replaceAll(" ", "␣").replaceAll("\t", "⇥")
      : text.trim().replace(/\s*\n\s*/g, " ↵ ");
  return shown.length <= longest ? shown : `${shown.slice(0, longest - 1)}…`;
}
