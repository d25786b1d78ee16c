// The values that tint the text: inputs of the selection, contributions of a concept, or effects of one token on later
// ones; and the candidates of a step.

import { computed } from "@preact/signals";
import { partsHead } from "./concepts.ts";
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

/** The summed inputs of several tokens, each attributed on its own snapshot; null if one is missing. */
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

/** The inputs of a span, from the server's results or from the document. */
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

/** The inputs of one token, from the document or from the server's results. */
function tokenInputs(token: DocumentToken): Inputs | undefined {
  return token.inputs ?? results.value.inputs[`${token.position}`]?.value;
}

/** The number of tokens whose inputs are known, and of all tokens. */
export const knownInputs = computed<readonly [number, number]>(() => {
  const tokens = [...(reading.value === null ? [] : factsOf(reading.value).tokens.values())];
  return [tokens.filter((token) => tokenInputs(token) !== undefined).length, tokens.length];
});

/** The value of each position for a highlighted concept or input token, in logits. */
function pointed(text: Reading, at: Pointer): Map<number, number> {
  const values = new Map<number, number>();
  if ("span" in at) return values;
  if ("id" in at) {
    const active = text.document?.activations?.find(({ head }) => head === at.kind);
    active?.tokens.forEach((row, position) => {
      const value = row.find(([feature]) => feature === at.id)?.[1];
      if (value !== undefined) values.set(position, value);
    });
  }
  for (const token of factsOf(text).tokens.values()) {
    if ("input" in at) {
      const inputs = tokenInputs(token);
      const index = inputs?.positions.indexOf(at.input) ?? -1;
      if (index >= 0) values.set(token.position, inputs!.attributions[index]!);
    } else {
      const { kind, id } = at;
      const entry =
        kind === "known" || kind === "discovered"
          ? token[kind]?.find((one) => one.id === id)
          : kind === partsHead(text.document!)
            ? token.features?.find((one) => one.feature === id)
            : undefined;
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

/** Whether the tints are activations, which are no logits. */
export const showsActivity = computed(() => {
  const at = pointer.value ?? held.value;
  return (
    at !== null && "id" in at && (reading.value?.document?.activations?.some(({ head }) => head === at.kind) ?? false)
  );
});

// ---- what was considered

/** The key of the result for all steps, whose request has no step. */
export const ALL_STEPS = "null";

/** What one commit, given by its index, had to choose from; null if it is not known. */
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

/** The index of the next commit at this step; null if all tokens are on the canvas. */
export const nextCommit = computed<number | null>(() => {
  const text = reading.value;
  return text !== null && count.value < text.commits.length ? count.value : null;
});

/** The commit of the selected token, or the next one if the selected position is still open. */
export const lookedAtCommit = computed<number | null>(() => {
  const [text, span] = [reading.value, selection.value];
  if (text === null || span === null) return null;
  const first = factsOf(text).commitOf[openPosition.value ?? span[0]];
  return openPosition.value !== null ? nextCommit.value : first === undefined || first < 0 ? null : first;
});

/** The best candidates of open positions, which are drawn on the canvas: text and confidence by position. */
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

/** The text of a candidate; line ends are escaped in pieces. */
export function pieceOf(all: Considered, token: number): string {
  return all.pieces?.[`${token}`]?.replaceAll("\\n", "↵").replaceAll("\\t", "⇥") ?? `#${token}`;
}
