// The state of the page, as signals. Components read them; only the functions here and in live/ write them.

import { batch, computed, effect, signal } from "@preact/signals";
import type { Address, Column, Panel } from "./pure/address.ts";
import { type Grain, inside, sameSpan } from "./pure/selection.ts";
import { type Reading, factsOf, readDocument } from "./reading.ts";
import type { Card, Case, CaseEntry, Considered, Cost, Evidence, Inputs, Kind, Model, Span, Variant } from "./types.ts";

export const mode = signal<"live" | "file">("file");
export const model = signal<Model | null>(null);
export const cases = signal<readonly CaseEntry[]>([]);
export const shownCase = signal<CaseEntry | null>(null);

// ---- the text and the view of it

export const reading = signal<Reading | null>(null);
export const selection = signal<Span | null>(null);
export const hover = signal<Span | null>(null); // previews a selection, and fetches nothing
export const step = signal<number | null>(null); // how many commits are on the canvas; null for all
export const panel = signal<Panel>("concepts");
export const grain = signal<Grain>("chunk");
export const pins = signal<readonly Span[]>([]);
export const playing = signal(0); // steps a second, 0 when it does not play
export const absolute = signal(false); // shares as absolute values in place of net ones
export const folded = signal(true); // the middle of a long prompt is hidden
export const enlarged = signal(false); // the panels take more room
export const strip = signal(true); // the line of shares below each token

/** The concept, input token or span that a row of a panel highlights in the text. */
export type Pointer =
  { readonly kind: Kind; readonly id: number } | { readonly input: number } | { readonly span: Span };
export const pointer = signal<Pointer | null>(null); // while hovered or focused
export const held = signal<Pointer | null>(null); // after a click, until it is let go
export const card = signal<{ readonly kind: Kind; readonly id: number; readonly anchor: HTMLElement } | null>(null);

export const count = computed(() => {
  const commits = reading.value?.commits.length ?? 0;
  return step.value === null ? commits : Math.min(step.value, commits);
});

const LONG_PROMPT = 240; // tokens, above which the middle of a prompt is folded
const SHOWN_ENDS = 60; // tokens that stay at its beginning and end

/** The hidden positions of a long prompt. */
export const foldedSpan = computed<Span | null>(() => {
  const length = reading.value?.promptLength ?? 0;
  return folded.value && length > LONG_PROMPT ? [SHOWN_ENDS, length - SHOWN_ENDS] : null;
});

/** The selected position where nothing is written at this step. */
export const openPosition = computed(() => {
  const [text, span] = [reading.value, selection.value];
  if (text === null || span === null) return null;
  const { commitOf } = factsOf(text);
  for (let at = span[0]; at < span[1]; at += 1) if ((commitOf[at] ?? -2) >= count.value) return at;
  return null;
});

// ---- results that the server computed beside the document, by text and key

export type Waiting = {
  readonly stage: string;
  readonly done: number;
  readonly of: number;
  readonly job?: string | null;
};
export type Result<T> = { readonly value?: T; readonly waiting?: Waiting; readonly error?: string };
export interface Results {
  readonly inputs: Readonly<Record<string, Result<Inputs>>>; // by span, as in addresses
  readonly considered: Readonly<Record<string, Result<Considered>>>; // by step
  readonly evidence: Readonly<Record<string, Result<Evidence>>>;
  readonly influence: Readonly<Record<string, Result<Evidence>>>;
}
export const noResults: Results = { inputs: {}, considered: {}, evidence: {}, influence: {} };
export const results = signal<Results>(noResults);
export const costs = signal<Readonly<Record<string, Result<Cost>>>>({}); // by text
export const cards = signal<Readonly<Record<string, Card>>>({}); // "known:12"

export const unexplained = signal<Readonly<Record<string, string | undefined>>>({}); // why a text's concepts failed, by text
export const attempts = signal(0); // how often a panel whose work failed was asked again; live/focus.ts asks then

/** Asks for a failed result again. */
export function askAgain<K extends keyof Results>(kind: K, key: string): void {
  batch(() => {
    setResult(kind, key, {} as Results[K][string]);
    attempts.value += 1;
  });
}

export function setResult<K extends keyof Results>(kind: K, key: string, value: Results[K][string]): void {
  results.value = { ...results.value, [kind]: { ...results.value[kind], [key]: value } };
}

// ---- comparing

export interface Other {
  readonly column: Column;
  readonly title: string; // of a case's variant; empty for one of the page's own
  readonly reading: Reading;
}
export const others = signal<readonly Other[]>([]);
export const columns = signal<readonly Column[]>(["plain", "steered", "random"]);
export const comparing = computed(() => others.value.length > 1);

// ---- actions

/** Shows another text and resets the view. */
export function show(next: Reading | null): void {
  batch(() => {
    reading.value = next;
    selection.value = hover.value = pointer.value = held.value = card.value = null;
    step.value = null;
    playing.value = 0;
    pins.value = [];
    results.value = noResults;
  });
}

export function showCase(one: Case, language: "en" | "ko"): void {
  const title = (variant: Variant) => variant.title[language] ?? variant.title.en;
  batch(() => {
    shownCase.value = one;
    const first = readDocument(one.document, `case ${one.name}`, one.request ?? null);
    show(first);
    const variants = one.compare ?? [];
    others.value =
      variants.length === 0
        ? []
        : [
            { column: "plain" as Column, title: "", reading: first },
            ...variants.map((variant) => ({
              column: (["plain", "steered", "random", "prompt"].includes(variant.name)
                ? variant.name
                : "steered") as Column,
              title: title(variant),
              reading: readDocument(variant.document, `case ${one.name} ${variant.name}`, variant.request ?? null),
            })),
          ];
  });
}

export function select(span: Span | null): void {
  batch(() => {
    selection.value = sameSpan(span, selection.value) ? null : span;
    held.value = null;
    if (openPosition.value !== null) panel.value = "considered";
  });
}

/** Closes the card, or else releases the highlight, or else the selection. Returns whether there was one. */
export function letGo(): boolean {
  for (const one of [card, held, selection]) {
    if (one.value !== null) {
      one.value = null;
      return true;
    }
  }
  return false;
}

export function setStep(next: number | null): void {
  const commits = reading.value?.commits.length ?? 0;
  step.value = next === null || next >= commits ? null : Math.max(0, next);
}

export function togglePin(span: Span): void {
  const rest = pins.value.filter((pin) => !sameSpan(pin, span));
  pins.value = rest.length < pins.value.length ? rest : [...rest, span].slice(-8);
}

/** Whether a position is in the span that a row of a panel highlights. */
export function isPointed(position: number): boolean {
  const at = pointer.value ?? held.value;
  return at !== null && "span" in at && inside(at.span, position);
}

/** The view as an address; live/request.ts adds the fields of the request. */
export function viewAddress(): Address {
  const address: Address = {};
  if (shownCase.value !== null) address.case = shownCase.value.name;
  if (selection.value !== null) address.at = selection.value;
  if (step.value !== null) address.step = step.value;
  if (panel.value !== "concepts") address.panel = panel.value;
  if (pins.value.length > 0) address.pin = pins.value;
  return address;
}

/** Applies the view of an address; spans outside of the text are ignored. */
export function applyView(address: Address): void {
  const length = reading.value?.length ?? 0;
  const fits = (span: Span) => span[1] <= length;
  batch(() => {
    if (address.step !== undefined) setStep(address.step);
    if (address.panel !== undefined) panel.value = address.panel;
    selection.value = address.at !== undefined && fits(address.at) ? address.at : null;
    if (address.pin !== undefined) pins.value = address.pin.filter(fits);
  });
}

// Advances the step while playing, up to the last one.
effect(() => {
  const speed = playing.value;
  if (speed === 0) return;
  const timer = setInterval(() => {
    if (step.value === null) playing.value = 0;
    else setStep(step.value + 1);
  }, 1000 / speed);
  return () => clearInterval(timer);
});
