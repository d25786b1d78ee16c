// The text with its pointer and keys, and the legend that says what the tints mean.

import { effect } from "@preact/signals";
import { useLayoutEffect, useRef } from "preact/hooks";
import { Canvas, type Look } from "./canvas.ts";
import { visible } from "./pure/characters.ts";
import { signed } from "./pure/numbers.ts";
import { chunkSpan, inside, rangeSpan, sameSpan, spanAt, tokenSpan } from "./pure/selection.ts";
import { type Reading, PROMPT, factsOf, isMasked, specialName } from "./reading.ts";
import {
  absolute, count, folded, foldedSpan, grain, held, hover, isPointed, letGo, openPosition, panel, pins, pointer, reading, select, selection, setStep,
  step, strip, togglePin,
} from "./store.ts";
import { PANELS } from "./pure/address.ts";
import { ghosts, knownInputs, tints, values } from "./tints.ts";
import type { Run, Span } from "./types.ts";
import { words } from "./words/index.ts";

export const canvas: { current: Canvas | null } = { current: null };

/** The shares of the line below a token: of known concepts, and of known and discovered ones, in percent. */
function sharesOf(text: Reading, position: number): readonly [number, number] {
  const token = factsOf(text).tokens.get(position);
  const shares = absolute.value ? token?.absolute_shares : token?.net_shares;
  if (!strip.value || !shares) return [-1, -1];
  const known = Math.round(100 * shares.known);
  return [known, known + Math.round(100 * shares.discovered)];
}

function lookOf(text: Reading, run: Run, isNew: boolean): Look {
  const w = words.value;
  const [start, end, characters] = run;
  const prompt = factsOf(text).commitOf[start] === PROMPT;
  const masked = isMasked(text, run, count.value);
  const special = characters === "" && !masked;
  const ghost = masked ? ghosts.value.get(start) : undefined;
  const tint = tints.value.get(start) ?? null;
  const value = values.value.get(start);
  const step = text.commits[factsOf(text).commitOf[start] ?? -1]?.step;
  const shown = masked ? (ghost === undefined ? "   " : ghost.text.replaceAll("\n", "↵"))
    : special ? specialName(text, start) || "·" : withLineEnds(characters);
  const [known, discovered] = masked || prompt ? [-1, -1] : sharesOf(text, start);
  const on = [
    inside(foldedSpan.value, start) && "folded", prompt && "prompt", masked && (ghost === undefined ? "mask" : "ghost"), special && "special",
    inside(selection.value, start) && "on", selection.value?.[0] === start && "first",
    selection.value !== null && end >= selection.value[1] && start < selection.value[1] && "last",
    inside(hover.value, start) && "hovered", isPointed(start) && "pointed", isNew && "new",
    pins.value.some((pin) => inside(pin, start)) && "pinned", tint !== null && !masked && tint.sign, known >= 0 && "shared",
  ];
  const name = masked ? w.text.mask : special ? specialName(text, start) || "·" : visible(characters);
  const parts = [name, w.text.position(start), prompt ? w.text.ofPrompt : step === undefined ? "" : w.text.atStep(step)];
  if (value !== undefined && !masked) parts.push(w.text.logits(signed(value)));
  return {
    text: shown,
    classes: on.filter(Boolean).join(" "),
    tint: masked ? null : tint,
    known,
    discovered,
    thickness: ghost === undefined ? 0 : 1 + Math.round(4 * ghost.confidence),
    label: parts.filter(Boolean).join(", "),
    pressed: inside(selection.value, start),
  };
}

export function TextView() {
  const root = useRef<HTMLDivElement>(null);
  useLayoutEffect(() => { // before the first paint, or what is below would move
    const made = (canvas.current = new Canvas(root.current!));
    return effect(() => {
      const text = reading.value;
      if (text === null) return;
      made.arrange(text);
      const next = count.value;
      // Tokens of the last commit are ringed, while a text is written and while the slider moves.
      const fresh = new Set(step.value !== null || text.state === "running" ? text.commits[next - 1]?.positions : []);
      made.draw((run) => lookOf(text, run, rangeHas(run, fresh)));
      root.current!.dataset.writes = `${made.writes}`;
    });
  }, []);
  const w = words.value;
  const hidden = foldedSpan.value;
  return (
    <>
      {hidden !== null && (
        <button type="button" class="quiet unfold" onClick={() => { folded.value = false; }}>{w.text.unfold(hidden[1] - hidden[0])}</button>
      )}
      <div
        ref={root} id="text" class="canvas" role="group" aria-label={w.text.title} aria-describedby="text-hint" lang=""
        onPointerDown={pressed} onPointerMove={moved} onPointerUp={released} onPointerLeave={() => { hover.value = null; }}
        onKeyDown={typed} onFocusIn={focused}
      />
    </>
  );
}

/** A run of white space alone shows its line ends, or there would be nothing to click. */
function withLineEnds(characters: string): string {
  return characters.trim() === "" ? characters.replaceAll("\n", "↵\n") : characters;
}

function rangeHas(run: Run, positions: ReadonlySet<number>): boolean {
  for (let at = run[0]; at < run[1]; at += 1) if (positions.has(at)) return true;
  return false;
}

// ---- pointer: a click takes a chunk, a second click or Alt a token, a drag or Shift a range of words

let anchor: number | null = null; // where a drag or a Shift selection begins
let dragged = false;

function chunksOf(text: Reading) {
  return text.document?.chunks ?? [];
}

/** What a click at a position takes, given what is selected. */
export function clicked(text: Reading, position: number, alt: boolean): Span {
  const wanted = alt ? "token" : grain.value;
  const span = spanAt(text.runs, chunksOf(text), position, wanted);
  const again = wanted === "chunk" && sameSpan(span, selection.value);
  return again ? tokenSpan(text.runs, position) : span;
}

function choose(position: number, event: { altKey: boolean; shiftKey: boolean }): void {
  const text = reading.value!;
  // An open position is chosen by itself: what else could stand there is asked of one place.
  if ((factsOf(text).commitOf[position] ?? -2) >= count.value) select(tokenSpan(text.runs, position));
  else if (event.shiftKey && anchor !== null) selection.value = rangeSpan(text.runs, anchor, position);
  else select(clicked(text, position, event.altKey));
  if (!event.shiftKey) anchor = position;
}

function pressed(event: PointerEvent): void {
  const index = canvas.current!.indexOf(event.target);
  if (index === null || event.button !== 0) return;
  dragged = false;
  if (event.pointerType === "mouse" && !event.shiftKey) anchor = canvas.current!.runOf(index)![0];
}

function moved(event: PointerEvent): void {
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

function released(event: PointerEvent): void {
  const index = canvas.current!.indexOf(event.target);
  if (index === null || event.button !== 0 || dragged) return;
  window.getSelection()?.removeAllRanges();
  canvas.current!.setActive(index);
  choose(canvas.current!.runOf(index)![0], event);
}

/** A focused token previews like a hovered one, but only if it was reached by keys. */
function focused(event: FocusEvent): void {
  const index = canvas.current!.indexOf(event.target);
  const text = reading.value;
  if (index === null || text === null || !(event.target as Element).matches(":focus-visible")) return;
  hover.value = spanAt(text.runs, chunksOf(text), canvas.current!.runOf(index)![0], grain.value);
}

// ---- keys, which act only while the text has the focus (WCAG 2.1.4)

function typed(event: KeyboardEvent): void {
  const [made, text] = [canvas.current!, reading.value];
  if (text === null || event.ctrlKey || event.metaKey || event.isComposing) return;
  const at = made.activeIndex;
  const position = made.runOf(at)?.[0] ?? 0;
  const moves: Record<string, () => number> = {
    ArrowLeft: () => at - 1, ArrowRight: () => at + 1, ArrowUp: () => made.vertical(at, -1), ArrowDown: () => made.vertical(at, 1),
    Home: () => 0, End: () => made.size - 1, "[": () => neighbour(text, at, -1), "]": () => neighbour(text, at, 1),
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
  else if (event.key === "Escape") {
    if (!letGo()) return; // what it means elsewhere, such as stopping the writing
    event.stopPropagation();
  } else return;
  event.preventDefault();
}

/** The first unit of the chunk before or after. */
function neighbour(text: Reading, index: number, direction: 1 | -1): number {
  const position = canvas.current!.runOf(index)![0];
  const starts = chunksOf(text).map((chunk) => chunk.start);
  const next = direction > 0 ? starts.find((start) => start > position) : starts.findLast((start) => start < position);
  return next === undefined ? index : text.runs.findIndex((run) => run[0] <= next && next < run[1]);
}

/** One sentence on what the colours of the text say at this moment. */
export function Legend() {
  const w = words.value.text;
  const at = pointer.value ?? held.value;
  const tinted = tints.value.size > 0;
  const says = at !== null && "id" in at ? w.legendConcept
    : at !== null && "input" in at ? w.legendInput(...knownInputs.value)
    : at !== null ? w.legendSpan
    : openPosition.value !== null ? w.legendOpen
    : tinted ? w.legendInputs : selection.value === null ? w.hint : w.legendNone;
  return (
    <p class="legend" id="text-hint">
      {tinted && <span class="key"><i class="up" />{w.raised}<i class="down" />{w.lowered}</span>}
      {says}
    </p>
  );
}
