// The prompt, settings and steering: as signals of the form, as a request, and as an address.

import { computed, signal } from "@preact/signals";
import type { Address, Column, Strengths } from "../pure/address.ts";
import type { Card, Steering, TextRequest } from "../types.ts";

export const prompt = signal("");
export const edited = signal(false); // the user has changed the form
export const given = signal<string | null>(null); // a given text to explain, in place of writing one

export const SETTINGS = [
  "max_tokens",
  "seed",
  "temperature",
  "top_p",
  "repetition_penalty",
  "cfg_scale",
  "steps",
] as const;
export type Setting = (typeof SETTINGS)[number];
const IN_ADDRESS: Readonly<Record<Setting, "n" | "seed" | "t" | "top_p" | "rep" | "cfg" | "steps">> = {
  max_tokens: "n",
  seed: "seed",
  temperature: "t",
  top_p: "top_p",
  repetition_penalty: "rep",
  cfg_scale: "cfg",
  steps: "steps",
};
const FIRST = { max_tokens: 64, seed: 1 };
/** The fields as text; empty ones are omitted from the request. */
export const settings = signal<Readonly<Partial<Record<Setting, string>>>>({ max_tokens: "64", seed: "1" });

/** The fields as numbers. Invalid text is sent unchanged, and the server's error names the field. */
function numbers(): Partial<Record<Setting, number>> {
  const result: Partial<Record<Setting, number>> = {};
  for (const name of SETTINGS) {
    const text = settings.value[name]?.trim() ?? "";
    if (text !== "") result[name] = Number.isFinite(Number(text)) ? Number(text) : (text as unknown as number);
  }
  return result;
}

/**
 * A concept or feature to steer by. name: in requests. label: on the page. dial: from −2 to 2 in measured strengths,
 * negative to suppress. amplify, suppress: the strengths.
 */
export interface Turn {
  readonly name: string;
  readonly label: string;
  readonly dial: number;
  readonly amplify: number | null;
  readonly suppress: number | null;
}
export const turns = signal<readonly Turn[]>([]);
export const compareWith = signal<readonly Column[]>(["plain", "random"]);
const DEFAULT = { amplify: 8, suppress: 7 }; // the published strengths, for concepts that were not measured

export function turn(name: string, dial: number, known: Card): void {
  const next = {
    name,
    label: labelOf(name, known),
    dial,
    amplify: known.amplify ?? null,
    suppress: known.suppress ?? null,
  };
  turns.value = [...turns.value.filter((one) => one.name !== name), next];
}

/** The name of the catalogue, if there is one. */
function labelOf(name: string, { name: own, is_named }: Card): string {
  return own !== undefined && is_named !== false ? own : name;
}

export function strengthOf({ dial, amplify, suppress }: Turn): number {
  const unit = dial > 0 ? (amplify ?? DEFAULT.amplify) : (suppress ?? DEFAULT.suppress);
  return Number((Math.abs(dial) * unit).toPrecision(4));
}

/** The same strength as a multiple of the concept's measured one. */
export function measured(one: Turn, known: Card): Turn {
  const next = {
    ...one,
    label: labelOf(one.name, known),
    amplify: known.amplify ?? null,
    suppress: known.suppress ?? null,
  };
  const sign = Math.sign(one.dial);
  const unit = strengthOf({ ...next, dial: sign });
  return { ...next, dial: unit === 0 ? 0 : Number(((sign * strengthOf(one)) / unit).toPrecision(4)) };
}

function steeringOf(all: readonly Turn[]): Steering | undefined {
  const of = (sign: 1 | -1) =>
    Object.fromEntries(all.filter(({ dial }) => Math.sign(dial) === sign).map((one) => [one.name, strengthOf(one)]));
  const [amplify, suppress] = [of(1), of(-1)];
  const steering: Steering = {};
  if (Object.keys(amplify).length > 0) steering.amplify = amplify;
  if (Object.keys(suppress).length > 0) steering.suppress = suppress;
  return Object.keys(steering).length > 0 ? steering : undefined;
}

export const request = computed<TextRequest>(() => {
  const steering = steeringOf(turns.value);
  if (given.value !== null) return { prompt: prompt.value, continuation: given.value };
  return { prompt: prompt.value, ...numbers(), ...(steering === undefined ? {} : { steering }) };
});

/** Fills the form with a request. */
export function fill(from: TextRequest): void {
  prompt.value = from.prompt;
  given.value = from.continuation ?? null;
  const next: Partial<Record<Setting, string>> = {};
  for (const name of SETTINGS) {
    const value = from[name] ?? (FIRST as Partial<Record<Setting, number>>)[name];
    if (value !== undefined) next[name] = `${value}`;
  }
  settings.value = next;
  const of = (strengths: Readonly<Record<string, number | null>> | undefined, sign: 1 | -1): Turn[] =>
    Object.entries(strengths ?? {}).map(([name, strength]) => ({
      name,
      label: turns.value.find((one) => one.name === name)?.label ?? name,
      dial: sign,
      amplify: sign > 0 ? strength : null,
      suppress: sign < 0 ? strength : null,
    }));
  turns.value = [...of(from.steering?.amplify, 1), ...of(from.steering?.suppress, -1)];
}

export function requestAddress(from: TextRequest): Address {
  const address: Address = { p: from.prompt };
  if (from.continuation !== undefined) address.given = from.continuation;
  else for (const name of SETTINGS) if (from[name] !== undefined) address[IN_ADDRESS[name]] = from[name];
  const strengths = (all: Readonly<Record<string, number | null>> | undefined) =>
    Object.fromEntries(Object.entries(all ?? {}).filter(([, value]) => value !== null)) as Strengths;
  if (from.steering?.amplify) address.amp = strengths(from.steering.amplify);
  if (from.steering?.suppress) address.sup = strengths(from.steering.suppress);
  if (from.steering?.clamp) address.clamp = from.steering.clamp;
  return address;
}

/** The request of an address; null if it has no prompt. */
export function addressedRequest(address: Address): TextRequest | null {
  if (address.p === undefined) return null;
  if (address.given !== undefined) return { prompt: address.p, continuation: address.given };
  const made: TextRequest = { prompt: address.p, ...FIRST };
  for (const name of SETTINGS) {
    const value = address[IN_ADDRESS[name]];
    if (value !== undefined) made[name] = value;
  }
  const steering: Steering = {};
  if (address.amp !== undefined) steering.amplify = { ...address.amp };
  if (address.sup !== undefined) steering.suppress = { ...address.sup };
  if (address.clamp !== undefined) steering.clamp = { ...address.clamp };
  return Object.keys(steering).length > 0 ? { ...made, steering } : made;
}
