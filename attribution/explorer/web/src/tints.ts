// What tints the text: the inputs of the selection, a concept that is pointed at, or what one token did to later ones.

import { computed } from "@preact/signals";
import { formatSpan } from "./pure/address.ts";
import { type Tint, largest, tintOf } from "./pure/colours.ts";
import { type Reading, factsOf, tokensOf } from "./reading.ts";
import {
  type Pointer,
  type Result,
  count,
  held,
  openPosition,
  panel,
  pointer,
  reading,
  results,
  selection,
} from "./store.ts";
import type { Considered, ConsideredStep, DocumentToken, Inputs, Span } from "./types.ts";

/** The inputs of several tokens as one: sums, each token explained on its own canvas. */
export function sumInputs(tokens: readonly DocumentToken[]): Inputs | null {
  const parts = tokens.map((token) => token.inputs).filter((one) => one !== null && one !== undefined);
  if (parts.length === 0 || parts.length < tokens.length) return null;
  const sums = new Map<number, number>();
  for (const part of parts) {
    part.positions.forEach((at, i) => sums.set(at, (sums.get(at) ?? 0) + part.attributions[i]!));
  }
  const order = [...sums].sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
  const add = (value: (one: Inputs) => number) => parts.reduce((sum, one) => sum + value(one), 0);
  return {
    positions: order.map(([at]) => at),
    attributions: order.map(([, value]) => value),
    rest: add((one) => one.rest),
    value: add((one) => one.value),
    baseline: add((one) => one.baseline),
    completeness_error: add((one) => one.completeness_error),
    nodes: Math.max(...parts.map((one) => one.nodes ?? 0)),
    unconverged: parts.filter((one) => one.converged === false).length,
    tokens: parts.length,
  };
}

/** The inputs of a span: as the server computed them, else those of the document. */
export function inputsOf(text: Reading, span: Span): Result<Inputs> {
  const own = results.value.inputs[formatSpan(span)];
  if (own?.value !== undefined) return own;
  const chunk = text.document?.chunks.find(({ start, end }) => start === span[0] && end === span[1]);
  const value = chunk?.inputs ?? sumInputs(tokensOf(text, span)) ?? undefined;
  return value === undefined ? (own ?? {}) : { value };
}

export const selectedInputs = computed<Result<Inputs>>(() => {
  const [text, span] = [reading.value, selection.value];
  return text === null || span === null ? {} : inputsOf(text, span);
});

/** The inputs of one token: of the document, or as they were computed since. */
function tokenInputs(token: DocumentToken): Inputs | undefined {
  return token.inputs ?? results.value.inputs[`${token.position}`]?.value;
}

/** Of how many tokens the inputs are known, and of how many they could be. */
export const knownInputs = computed<readonly [number, number]>(() => {
  const tokens = [...(reading.value === null ? [] : factsOf(reading.value).tokens.values())];
  return [tokens.filter((token) => tokenInputs(token) !== undefined).length, tokens.length];
});

/** What a pointer at a concept or an input token says of each position, in logits. */
function pointed(text: Reading, at: Pointer): Map<number, number> {
  const values = new Map<number, number>();
  if ("span" in at) return values;
  for (const token of factsOf(text).tokens.values()) {
    if ("input" in at) {
      const inputs = tokenInputs(token);
      const index = inputs?.positions.indexOf(at.input) ?? -1;
      if (index >= 0) values.set(token.position, inputs!.attributions[index]!);
    } else {
      const entry = token[at.kind]?.find((one) => one.id === at.id);
      if (entry !== undefined) values.set(token.position, entry.contribution);
    }
  }
  return values;
}

export const values = computed<ReadonlyMap<number, number>>(() => {
  const text = reading.value;
  if (text === null) return new Map();
  const at = pointer.value ?? held.value;
  if (at !== null && !("span" in at)) return pointed(text, at);
  const inputs = selectedInputs.value.value;
  if (panel.value !== "inputs" || inputs === undefined) return new Map();
  return new Map(inputs.positions.map((position, i) => [position, inputs.attributions[i]!]));
});

export const tints = computed<ReadonlyMap<number, Tint>>(() => {
  const most = largest(values.value.values());
  const result = new Map<number, Tint>();
  for (const [position, value] of values.value) {
    const tint = tintOf(value, most);
    if (tint !== null) result.set(position, tint);
  }
  return result;
});

// ---- what was considered

/** The key of the result that holds all steps: they were asked for without a step. */
export const ALL_STEPS = "null";

/** The considered positions of one commit, by its index; from the document, or as the server computed it. */
export function consideredAt(text: Reading, commit: number): { step: ConsideredStep; all: Considered } | null {
  const number = text.commits[commit]?.step;
  if (number === undefined) return null;
  const { considered } = results.value;
  for (const all of [text.document?.considered, considered[`${number}`]?.value, considered[ALL_STEPS]?.value]) {
    const step = all?.steps.find((one) => one.step === number);
    if (all && step !== undefined) return { step, all };
  }
  return null;
}

/** The commit that comes next at this step; null with all tokens on the canvas. */
export const nextCommit = computed<number | null>(() => {
  const text = reading.value;
  return text !== null && count.value < text.commits.length ? count.value : null;
});

/** The commit whose choice is looked at: that of the selected token, or the next one where nothing stands yet. */
export const lookedAtCommit = computed<number | null>(() => {
  const [text, span] = [reading.value, selection.value];
  if (text === null || span === null) return null;
  const first = factsOf(text).commitOf[openPosition.value ?? span[0]];
  return openPosition.value !== null ? nextCommit.value : first === undefined || first < 0 ? null : first;
});

/** Best candidates at open positions, which stand on the canvas as ghosts: by position, text and confidence. */
export const ghosts = computed<ReadonlyMap<number, { text: string; confidence: number }>>(() => {
  const [text, commit] = [reading.value, nextCommit.value];
  const result = new Map<number, { text: string; confidence: number }>();
  if (text === null || commit === null) return result;
  const found = consideredAt(text, commit);
  for (const [position, candidates, , confidence] of found?.step.open ?? []) {
    const best = candidates[0];
    if (best !== undefined) result.set(position, { text: pieceOf(found!.all, best[0]), confidence });
  }
  return result;
});

/** A candidate as text; pieces write line ends as "\\n". */
export function pieceOf(all: Considered, token: number): string {
  return all.pieces?.[`${token}`]?.replaceAll("\\n", "↵").replaceAll("\\t", "⇥") ?? `#${token}`;
}
