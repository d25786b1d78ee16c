// The concepts of a selection as rows: shares for a chunk, contributions in logits for tokens.

import type { Reading } from "./reading.ts";
import { tokensOf } from "./reading.ts";
import { cards } from "./store.ts";
import type { Card, Document, DocumentChunk, FeatureParts, Kind, Shares, Span } from "./types.ts";

export interface Row {
  readonly kind: Kind;
  readonly id: number;
  readonly value: number;
}

export interface ConceptRows {
  readonly unit: "share" | "logits";
  readonly known: readonly Row[];
  readonly discovered: readonly Row[];
  readonly otherKnown: number | null; // what the concepts add that are not listed; null for shares, where it is not stored
  readonly otherDiscovered: number | null;
  readonly epsilon: number | null; // null where the model has none
  readonly net: Shares | null;
  readonly absolute: Shares | null;
  readonly error: number; // the largest difference of a token between its logit and the sum of its parts
  readonly tokens: number;
}

/** An epsilon below this is a rounding error: the model has none. */
const NOTHING = 1e-6;

export function nameOf(text: Reading, kind: Kind, id: number): string {
  return text.document?.concepts?.[kind]?.[`${id}`] ?? cardOf(text, kind, id)?.name ?? `#${id}`;
}

export function cardOf(text: Reading, kind: Kind, id: number): Card | undefined {
  return cards.value[`${kind}:${id}`] ?? text.document?.cards?.[kind]?.[`${id}`];
}

/** The group of a known concept: "form" (tone), "topic" (content), "syntax" (form of code), or "" if it is unknown. */
export function groupOf(text: Reading, id: number): string {
  return cardOf(text, "known", id)?.group ?? "";
}

/** Whether any token of a text has a contribution that belongs to no concept. */
export function hasEpsilon(text: Reading): boolean {
  return text.document?.tokens.some((token) => Math.abs(token.epsilon ?? 0) > NOTHING) ?? false;
}

/** The rows of a span, or of the whole text for null. Returns null without concepts, or before they are computed. */
export function conceptRows(text: Reading, span: Span | null): ConceptRows | null {
  const { document } = text;
  if (!document?.concepts) return null;
  const chunk =
    span === null ? undefined : document.chunks.find(({ start, end }) => start === span[0] && end === span[1]);
  const tokens = tokensOf(text, span ?? [0, text.length]);
  if (tokens.length === 0) return null;
  const error = Math.max(...tokens.map((token) => Math.abs(token.share_error ?? 0)));
  const epsilon = hasEpsilon(text);
  if (span === null || chunk?.known) {
    const chunks = span === null ? document.chunks : [chunk!];
    return {
      unit: "share",
      ...averageOf(chunks),
      otherKnown: null,
      otherDiscovered: null,
      epsilon: epsilon ? mean(chunks.map((one) => one.net_shares?.epsilon ?? 0)) : null,
      error,
      tokens: tokens.length,
    };
  }
  const rowsOf = (kind: "known" | "discovered") =>
    summed(
      kind,
      tokens.flatMap((token) => (token[kind] ?? []).map(({ id, contribution }) => [id, contribution] as const)),
    );
  const add = (name: "other_known" | "other_discovered" | "epsilon") =>
    tokens.reduce((sum, token) => sum + (token[name] ?? 0), 0);
  return {
    unit: "logits",
    known: rowsOf("known"),
    discovered: rowsOf("discovered"),
    otherKnown: add("other_known"),
    otherDiscovered: add("other_discovered"),
    epsilon: epsilon ? add("epsilon") : null,
    net: meanShares(tokens.map((token) => token.net_shares)),
    absolute: meanShares(tokens.map((token) => token.absolute_shares)),
    error,
    tokens: tokens.length,
  };
}

function averageOf(chunks: readonly DocumentChunk[]) {
  const rowsOf = (kind: "known" | "discovered") =>
    summed(
      kind,
      chunks.flatMap((chunk) => (chunk[kind] ?? []).map(({ id, share }) => [id, share / chunks.length] as const)),
    );
  return {
    known: rowsOf("known"),
    discovered: rowsOf("discovered"),
    net: meanShares(chunks.map((chunk) => chunk.net_shares)),
    absolute: meanShares(chunks.map((chunk) => chunk.absolute_shares)),
  };
}

/** A row for each id, with its values put together: summed, or with another `join`. */
function summed(
  kind: Kind,
  values: readonly (readonly [id: number, value: number])[],
  join = (a: number, b: number) => a + b,
): Row[] {
  const sums = new Map<number, number>();
  for (const [id, value] of values) sums.set(id, join(sums.get(id) ?? 0, value));
  return [...sums].map(([id, value]) => ({ kind, id, value })).sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
}

// ---- features of autoencoders

const ACTIVE = 8; // rows of an autoencoder: the document lists as many of each token, so these are the strongest of all

/** The block of a kind of features; null for those of the bottleneck. */
export function blockOf(kind: Kind): string | null {
  return kind === "feature:bottleneck" ? null : kind.slice("feature:".length);
}

export interface PartRows {
  readonly of: FeatureParts;
  readonly head: Kind;
  readonly rows: readonly Row[];
  readonly other: number;
  readonly bias: number;
  readonly residual: number | null; // null for a bottleneck, which leaves nothing over
  readonly tokens: number;
}

/** The head of the features whose contributions are parts of logits. */
export function partsHead({ features }: Document): Kind | undefined {
  return features === undefined ? undefined : (features.head ?? "feature:bottleneck");
}

/** The features of a span as parts of the summed logits; null without any, or where nothing was written. */
export function partRows(text: Reading, span: Span | null): PartRows | null {
  const of = text.document?.features;
  const tokens = tokensOf(text, span ?? [0, text.length]);
  if (of === undefined || tokens.length === 0) return null;
  const head = partsHead(text.document!)!;
  const add = (name: "other_features" | "feature_bias" | "feature_residual") =>
    tokens.reduce((sum, token) => sum + (token[name] ?? 0), 0);
  return {
    of,
    head,
    rows: summed(
      head,
      tokens.flatMap((token) => (token.features ?? []).map((one) => [one.feature, one.contribution] as const)),
    ),
    other: add("other_features"),
    bias: add("feature_bias"),
    residual: tokens.some((token) => token.feature_residual !== undefined) ? add("feature_residual") : null,
    tokens: tokens.length,
  };
}

/** For each other autoencoder, the features with the largest activations at the tokens of a span. */
export function activeRows(text: Reading, span: Span | null): { head: Kind; name: string; rows: Row[] }[] {
  return (text.document?.activations ?? []).map(({ head, name, tokens }) => ({
    head,
    name,
    rows: summed(head, tokens.slice(...(span ?? [0])).flat(), Math.max).slice(0, ACTIVE),
  }));
}

const mean = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / Math.max(1, values.length);

function meanShares(all: readonly (Shares | null)[]): Shares | null {
  const found = all.filter((one) => one !== null && one !== undefined);
  if (found.length === 0) return null;
  return {
    known: mean(found.map((one) => one.known)),
    discovered: mean(found.map((one) => one.discovered)),
    epsilon: mean(found.map((one) => one.epsilon)),
  };
}
