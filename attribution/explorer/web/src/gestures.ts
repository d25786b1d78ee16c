// Pointer and keyboard input of the text.

import type { Canvas } from "./canvas.ts";
import { PANELS } from "./pure/address.ts";
import { chunkSpan, inside, rangeSpan, sameSpan, spanAt, tokenSpan } from "./pure/selection.ts";
import { type Reading, factsOf } from "./reading.ts";
import {
  count,
  folded,
  foldedSpan,
  grain,
  hover,
  panel,
  reading,
  select,
  selection,
  setStep,
  togglePin,
} from "./store.ts";
import type { Span } from "./types.ts";

/** The canvas of the page, set by `TextView`. */
export const canvas: { current: Canvas | null } = { current: null };

// ---- pointer: a click selects a chunk, a second click or Alt a token, a drag or Shift a range of words

let anchor: number | null = null; // where a drag or a Shift selection begins
let dragged = false;

function chunksOf(text: Reading) {
  return text.document?.chunks ?? [];
}

/** The span that a click at a position selects; a second click on a selected chunk selects the token. */
function clicked(text: Reading, position: number, alt: boolean): Span {
  const wanted = alt ? "token" : grain.value;
  const span = spanAt(text.runs, chunksOf(text), position, wanted);
  const again = wanted === "chunk" && sameSpan(span, selection.value);
  return again ? tokenSpan(text.runs, position) : span;
}

function choose(position: number, event: { altKey: boolean; shiftKey: boolean }): void {
  const text = reading.value!;
  // An open position is selected alone: the considered candidates belong to one position.
  if ((factsOf(text).commitOf[position] ?? -2) >= count.value) select(tokenSpan(text.runs, position));
  else if (event.shiftKey && anchor !== null) selection.value = rangeSpan(text.runs, anchor, position);
  else select(clicked(text, position, event.altKey));
  if (!event.shiftKey) anchor = position;
}

export function pressed(event: PointerEvent): void {
  const index = canvas.current!.indexOf(event.target);
  if (index === null || event.button !== 0) return;
  dragged = false;
  if (event.pointerType === "mouse" && !event.shiftKey) anchor = canvas.current!.runOf(index)![0];
}

export function moved(event: PointerEvent): void {
  const [made, text] = [canvas.current!, reading.value];
  const index = made.indexOf(event.target);
  if (text === null || index === null) {
    hover.value = null;
    return;
  }
  const position = made.runOf(index)![0];
  if (event.pointerType === "mouse" && event.buttons === 1 && anchor !== null && (dragged || position !== anchor)) {
    dragged = true;
    event.preventDefault();
    const span = rangeSpan(text.runs, anchor, position);
    if (!sameSpan(span, selection.value)) selection.value = span;
  } else if (event.pointerType === "mouse") {
    const span = spanAt(text.runs, chunksOf(text), position, event.altKey ? "token" : grain.value);
    if (!sameSpan(span, hover.value)) hover.value = span;
  }
}

export function released(event: PointerEvent): void {
  const index = canvas.current!.indexOf(event.target);
  if (index === null || event.button !== 0 || dragged) return;
  window.getSelection()?.removeAllRanges();
  canvas.current!.setActive(index);
  choose(canvas.current!.runOf(index)![0], event);
}

/** Keyboard focus previews a selection, as hovering does. */
export function focused(event: FocusEvent): void {
  const index = canvas.current!.indexOf(event.target);
  const text = reading.value;
  if (index === null || text === null || !(event.target as Element).matches(":focus-visible")) return;
  hover.value = spanAt(text.runs, chunksOf(text), canvas.current!.runOf(index)![0], grain.value);
}

// ---- keys, which act only while the text has the focus (WCAG 2.1.4); keys.ts handles Escape

export function typed(event: KeyboardEvent): void {
  const [made, text] = [canvas.current!, reading.value];
  if (text === null || event.ctrlKey || event.metaKey || event.isComposing) return;
  const at = made.activeIndex;
  const position = made.runOf(at)?.[0] ?? 0;
  const moves: Record<string, () => number> = {
    ArrowLeft: () => at - 1,
    ArrowRight: () => at + 1,
    ArrowUp: () => made.vertical(at, -1),
    ArrowDown: () => made.vertical(at, 1),
    Home: () => 0,
    End: () => made.size - 1,
    "[": () => neighbour(text, at, -1),
    "]": () => neighbour(text, at, 1),
  };
  const move = moves[event.key];
  if (move !== undefined) {
    const next = Math.max(0, Math.min(made.size - 1, move()));
    if (event.shiftKey && event.key.startsWith("Arrow")) {
      anchor ??= position;
      selection.value = rangeSpan(text.runs, anchor, made.runOf(next)![0]);
    } else if (event.key.startsWith("Arrow")) anchor = null;
    if (inside(foldedSpan.value, made.runOf(next)![0])) folded.value = false; // what is hidden cannot have the focus
    made.setActive(next);
    if (event.key === "[" || event.key === "]") {
      const span = chunkSpan(chunksOf(text), made.runOf(next)![0]);
      if (span !== null) selection.value = span;
    }
  } else if (event.key === "Enter" || event.key === " ") choose(position, event);
  else if (event.key === ",") setStep(count.value - 1);
  else if (event.key === ".") setStep(count.value + 1);
  else if (/^[1-4]$/.test(event.key)) panel.value = PANELS[Number(event.key) - 1]!;
  else if ((event.key === "p" || event.key === "P") && selection.value !== null) togglePin(selection.value);
  else return;
  event.preventDefault();
}

/** The first unit of the chunk before or after. */
function neighbour(text: Reading, index: number, direction: 1 | -1): number {
  const position = canvas.current!.runOf(index)![0];
  const starts = chunksOf(text).map((chunk) => chunk.start);
  const next = direction > 0 ? starts.find((start) => start > position) : starts.findLast((start) => start < position);
  return next === undefined ? index : text.runs.findIndex((run) => run[0] <= next && next < run[1]);
}
