// Runs of tokens that form whole characters. They are the units that are displayed and selected.
//
// A Hangul syllable can take three byte tokens, which have no text by themselves. The server divides a text into runs,
// and while a text is written it sends the runs that changed.

import type { Run, Span } from "../types.ts";

/** The runs of empty positions: one run for each position, without text. */
export function emptyRuns(start: number, end: number): Run[] {
  const runs: Run[] = [];
  for (let at = start; at < end; at += 1) runs.push([at, at + 1, "", true]);
  return runs;
}

/**
 * Replaces the runs that `changed` overlaps. A changed run can be shorter than the run that it replaces, since a token
 * that was decoded as a whole character can become the first part of another one; positions left over become empty.
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

/** The index of the run that contains a position; the nearest run for a position outside of the text. */
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

/** A text in one line for lists, shortened, with visible line ends; white space alone is shown as symbols. */
export function visible(text: string, longest = 48): string {
  if (text === "") return "·";
  const shown =
    text.trim() === ""
      ? text.replaceAll("\n", "↵").replaceAll(" ", "␣").replaceAll("\t", "⇥")
      : text.trim().replace(/\s*\n\s*/g, " ↵ ");
  return shown.length <= longest ? shown : `${shown.slice(0, longest - 1)}…`;
}
